"""Questions whose reasoning trees are known: the k-th smallest of some numbers, and chains of rules in English.

Of the k-th smallest number the tree has the k smallest ones as nodes: those below the k-th are its leaves (height 0),
the k-th is the root (height 1). Of a chain of rules it is the fact (height 0) and the rules that lead from it to the
answer, each one higher than the one before.

Hou et al. 2023, "Towards a Mechanistic Interpretation of Multi-Step Reasoning Capabilities of Language Models",
arXiv:2310.14491, sections 4.1 and 4.2. The English is our own, in the manner of ProofWriter.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.forward import run
from interp.engine.progress import track
from interp.engine.verify import verified
from interp.errors import UsageError
from interp.gradients import gradients
from interp.models._local import boot
from interp.models._words import toy_tokenizer
from interp.tasks.tokens import Encoder

__all__ = ["ReasoningTask", "kth_smallest", "rule_chains", "train_kth_smallest"]

_SPECIAL = ("<bos>", "<eos>", "<unk>", "=")


@dataclass(frozen=True, eq=False)
class ReasoningTask:
    """Questions with statements, of which some make up the tree of each answer.

    Attributes:
        name: what is asked.
        tokens: the prompts, padded on the right.
        ends: the last token of each, after which the answer comes.
        spans: the first token of each statement, and the one behind its last.
        in_tree: whether the answer's tree has the statement as a node.
        height: the node's height in the tree; -1 for statements that are not in it.
        right: the right answer.
        wrong: a wrong answer; -1 where all other tokens are wrong.
    """

    name: str
    tokens: Int[Tensor, "example pos"]
    ends: Int[Tensor, " example"]
    spans: Int[Tensor, "example statement 2"]
    in_tree: Bool[Tensor, "example statement"]
    height: Int[Tensor, "example statement"]
    right: Int[Tensor, " example"]
    wrong: Int[Tensor, " example"]

    def __len__(self) -> int:
        return len(self.tokens)

    def shuffled(self, seed: int = 0) -> ReasoningTask:
        """The control: each example's labels, both kinds together, on its statements in a random order."""
        order = torch.rand(self.height.shape, generator=torch.Generator().manual_seed(seed)).argsort(-1)
        order = order.to(self.height.device)
        return replace(self, in_tree=self.in_tree.gather(1, order), height=self.height.gather(1, order))

    @torch.no_grad()
    def correct(self, model: TransformerBridge) -> Float[Tensor, " example"]:
        """Whether the model prefers each right answer: to the wrong one, or to all other tokens if there is none."""
        parts, found = verified(model), []
        for rows in torch.arange(len(self)).split(64):
            ends = self.ends[rows].to(parts.device)
            _, final = run(parts, self.tokens[rows], set())
            logits = parts.logits(final[torch.arange(len(rows), device=final.device), ends])
            right, wrong = self.right[rows].to(parts.device), self.wrong[rows].to(parts.device)
            best = logits.argmax(-1) == right
            pair = logits.gather(1, right[:, None])[:, 0] > logits.gather(1, wrong.clamp(min=0)[:, None])[:, 0]
            found.append(torch.where(wrong < 0, best, pair).float())
        return torch.cat(found)


def kth_smallest(n: int, k: int = 2, length: int = 8, numbers: int = 32, seed: int = 0) -> ReasoningTask:
    """Lists of different numbers, "<bos> 17 4 28 9 =", after which the k-th smallest comes: token ids for a toy.

    Args:
        n: how many lists.
        k: 1 for the smallest.
        length: numbers in a list.
        numbers: they are drawn from 0 to one less than this.
        seed: of the draw.

    Raises:
        UsageError: no such k in lists of that length, or fewer numbers than a list takes.
    """
    if not 1 <= k <= length <= numbers or n < 1:
        raise UsageError(
            f"kth_smallest needs 1 <= k <= length <= numbers, got k={k}, length={length}, {numbers=}, {n=}"
        )
    draw = torch.rand(n, numbers, generator=torch.Generator().manual_seed(seed)).argsort(-1)[:, :length]
    rank = draw.argsort(-1).argsort(-1)
    fixed = torch.tensor([[_SPECIAL.index("<bos>"), _SPECIAL.index("=")]]).expand(n, -1)
    tokens = torch.cat([fixed[:, :1], draw + len(_SPECIAL), fixed[:, 1:]], 1)
    start = torch.arange(1, length + 1).expand(n, -1)
    in_tree = rank < k
    return ReasoningTask(
        name=f"{k}-th smallest of {length}",
        tokens=tokens,
        ends=torch.full((n,), length + 1),
        spans=torch.stack([start, start + 1], -1),
        in_tree=in_tree,
        height=torch.where(in_tree, (rank == k - 1).long(), -1),
        right=draw.gather(1, (rank == k - 1).long().argmax(1, keepdim=True))[:, 0] + len(_SPECIAL),
        wrong=torch.full((n,), -1),
    )


@gradients()
def train_kth_smallest(
    k: int = 2,
    length: int = 8,
    numbers: int = 32,
    *,
    layers: int = 3,
    width: int = 64,
    n_heads: int = 4,
    steps: int = 2000,
    batch: int = 128,
    rate: float = 2e-3,
    seed: int = 0,
) -> TransformerBridge:
    """A small GPT-2 trained to give the k-th smallest of a list; steps=0 leaves it untrained.

    Args:
        k, length, numbers: as in `kth_smallest`; training lists are drawn afresh at every step.
        layers, width, n_heads: of the model.
        steps, batch, rate: of the training with Adam, the rate falling linearly to zero.
        seed: of the weights and the lists; tests should take other lists, `kth_smallest` with a small seed.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    words = (*_SPECIAL, *map(str, range(numbers)))
    eager: dict[str, Any] = {"attn_implementation": "eager"}
    config = GPT2Config(
        vocab_size=len(words),
        n_positions=max(16, length + 2),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        n_embd=width,
        n_layer=layers,
        n_head=n_heads,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        **eager,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    optimiser = torch.optim.Adam(model.parameters(), rate)
    with track(steps, f"training on the {k}-th smallest") as advance:
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 100) * (1 - step / steps)
            task = kth_smallest(batch, k, length, numbers, seed=1_000_000 * (seed + 1) + step)
            hidden = model.transformer(task.tokens).last_hidden_state[:, -1]
            loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), task.right)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            advance(1)
    model.requires_grad_(False)
    return boot(model.eval(), toy_tokenizer(words), f"{k}-th-smallest", "cpu", torch.float32)


NAMES = ("Anne", "Bob", "Charlie", "Dave", "Erin", "Fiona", "Gary", "Harry")
ATTRIBUTES = ("big", "red", "kind", "cold", "rough", "young", "green", "quiet", "blue", "smart", "round", "white")


def rule_chains(model: TransformerBridge, n: int, depth: int = 2, seed: int = 0) -> ReasoningTask:
    """Facts and rules in English in a random order, two chains of them, and a question that one of them answers.

    "If someone is red then they are kind. Anne is big. ... Question: Is Anne kind or cold? Answer: Anne is" has the
    answer " kind" with `depth` rules applied one after the other; the other chain begins at a fact about another
    person, so that its last attribute is the wrong answer.

    Args:
        model: its tokenizer reads the text.
        n: how many questions.
        depth: rules in a chain.
        seed: of the draw.

    Raises:
        UsageError: a depth for which there are too few attributes, or a tokenizer that splits them.
    """
    encoder, rng = Encoder(model), random.Random(seed)
    words = [word for word in ATTRIBUTES if encoder.single(f" {word}") is not None]
    if depth < 1 or 2 * (depth + 1) > len(words) or n < 1:
        raise UsageError(
            f"rule_chains takes depths of 1 to {len(words) // 2 - 1} and n of 1 or more, got {depth=}, {n=}"
        )
    rows = []
    for _ in range(n):
        people, used = rng.sample(NAMES, 2), rng.sample(words, 2 * (depth + 1))
        chains = used[: depth + 1], used[depth + 1 :]
        statements = []
        for chain, person in zip(chains, people, strict=True):
            height = -1 if chain is chains[1] else 0
            statements.append((f"{person} is {chain[0]}.", height))
            for step, (before, after) in enumerate(pairwise(chain), 1):
                statements.append((f"If someone is {before} then they are {after}.", step if height == 0 else -1))
        rng.shuffle(statements)
        choice = [chains[0][-1], chains[1][-1]]
        rng.shuffle(choice)
        text, spans = "", []
        for statement, _ in statements:
            text += " " if text else ""
            spans.append((len(text), len(text) + len(statement)))
            text += statement
        text += f" Question: Is {people[0]} {choice[0]} or {choice[1]}? Answer: {people[0]} is"
        read = encoder.encode(text)
        places = [
            (next(i for i, (_, end) in enumerate(read.spans) if end > first), read.token_at((first, last)) + 1)
            for first, last in spans
        ]
        answers = [encoder.single(f" {chain[-1]}") for chain in chains]
        rows.append((read.ids, places, [height for _, height in statements], answers))
    length = max(len(ids) for ids, *_ in rows)
    heights = torch.tensor([row[2] for row in rows])
    right, wrong = torch.tensor([row[3] for row in rows]).T
    return ReasoningTask(
        name=f"chains of {depth} rules",
        tokens=torch.tensor([[*ids, *[encoder.padding] * (length - len(ids))] for ids, *_ in rows]),
        ends=torch.tensor([len(ids) - 1 for ids, *_ in rows]),
        spans=torch.tensor([places for _, places, *_ in rows]),
        in_tree=heights >= 0,
        height=heights,
        right=right,
        wrong=wrong,
    )
