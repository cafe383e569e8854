"""What happens without some heads: their output set to zero, and retrieval heads against other heads as many.

Wu et al. 2024 (arXiv 2404.15574), section 4.1: needles are lost without the retrieval heads, and not without others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.attention.retrieval.answers import STEPS, Answer, Stops, Writing, answers, batches
from interp.engine.forward import Visitor, Walk
from interp.engine.identity import identity
from interp.engine.memory import available_bytes
from interp.engine.parts import Parts
from interp.engine.progress import track
from interp.engine.verify import verified
from interp.errors import InterpError, UsageError
from interp.results import HeadScores, scores
from interp.results.findings import Head
from interp.tasks.corpora import corpus, sized
from interp.tasks.needles import NeedleSample
from interp.tasks.splits import half_of_corpus
from interp.tasks.tokens import Encoder

__all__ = ["ZeroHeads", "retrieval_causality"]

_METRICS = ("recall", "answer_kl", "text_loss")


class ZeroHeads(Visitor):
    """Masks heads: what they hand to the output projection, z, is zero at every position.

    Args:
        heads: layer and index of each.

    Attributes:
        first_layer: the first layer with such a head; layers before it are as they were.
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        self.heads: dict[int, list[int]] = {}
        for layer, head in heads:
            self.heads.setdefault(layer, []).append(head)
        self.first_layer = min(self.heads, default=0)

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        """Zeroes z "row query head d_head" of the heads."""
        if site != "z" or layer not in self.heads:
            return x
        return x.index_fill(2, torch.tensor(self.heads[layer], device=x.device), 0.0)


def retrieval_causality(
    model: TransformerBridge,
    finding: HeadScores,
    samples: Sequence[NeedleSample],
    ks: Sequence[int] = (0, 1, 2, 4, 8, 16, 32),
    *,
    draws: int = 3,
    text: str | Path | Sequence[str] | Int[Tensor, "text pos"] = "prose",
    texts: int | None = None,
    length: int | None = None,
    steps: int = STEPS,
    seed: int = 0,
) -> xr.DataArray:
    """Masks the strongest k retrieval heads, and beside them k other heads, and measures what is lost.

    A masked head's z is zero at every position, of the prompt and of the answer. The others are neither retrieval
    heads nor among the strongest ones masked: either random ones, or ones of the same layers, as many of each (where
    a layer has too few left, from the nearest). Larger k contain the smaller ones.

    Args:
        model: the model that the finding is about.
        finding: retrieval heads, or other scores of heads, the strongest of which are masked.
        samples: prompts, preferably others than those the heads were found on; only those that the model answers count.
        ks: how many heads are masked.
        draws: how often the others are drawn.
        text: plain text for the next-token loss, see `interp.tasks.corpus`.
        texts: how many stretches of it; 4, or all of the token ids.
        length: tokens of a stretch; 128, or all of the token ids.
        steps: tokens that an answer may take.
        seed: of the draws and the text.

    Returns:
        Scores "kind k metric example"; ``kind`` is retrieval, random or same layers, ``example`` counts the draws (the
        retrieval heads are the same in each). Metrics: ``recall``, the share of needles still found (ROUGE-1 recall
        above 0.5); ``answer_kl``, KL divergence of the next-token distribution from the unmasked model's, mean over
        the tokens of its own answers, in nats; ``text_loss``, next-token cross-entropy on plain text, in nats.

    Raises:
        UsageError: another model's finding, or more heads to mask than there are others.
        InterpError: the model answers no sample.
    """
    finding.check(model)
    sizes = sorted({int(k) for k in ks})
    if not sizes or sizes[0] < 0 or draws < 1:
        raise UsageError(f"ks must be numbers of heads from 0 on and draws at least 1, got ks={ks} and draws={draws}")
    controls = [_controls(finding, sizes[-1], np.random.default_rng([seed, draw])) for draw in range(draws)]
    parts = verified(model)
    plain = corpus(text, model, *sized(text, texts, length, 4, 128), seed, split=half_of_corpus(text, "score")).to(
        parts.device
    )
    used = [answer for answer in answers(model, samples, steps) if answer.found]
    if not used:
        raise InterpError(
            f"the model finds none of these {len(samples)} needles, so none can be lost; make them easier"
        )
    trial = _Trial(parts, Encoder(model), used, steps)
    values = np.empty((3, len(sizes), len(_METRICS), draws))
    measured: dict[tuple[Head, ...], tuple[float, ...]] = {}

    def measure(heads: Sequence[Head], advance: Callable[[float], None]) -> tuple[float, ...]:
        if (key := tuple(sorted(heads))) not in measured:
            mask = ZeroHeads(heads)
            measured[key] = (*trial(mask), _loss(parts, plain, mask))
        advance(1)
        return measured[key]

    with track(3 * len(sizes) * draws, "masking heads") as advance:
        for column, k in enumerate(sizes):
            for draw, others in enumerate(controls):
                for row, heads in enumerate((finding.top(sizes[-1]), *others)):
                    values[row, column, :, draw] = measure(heads[:k], advance)
    away = [sum(a[0] != b[0] for a, b in zip(finding.top(sizes[-1]), others[1], strict=True)) for others in controls]
    return scores(
        values,
        ("kind", "k", "metric", "example"),
        {"kind": ["retrieval", "random", "same layers"], "k": sizes, "metric": list(_METRICS)},
        name="effect of masking",
        units={"recall": "share of needles", "answer_kl": "nats", "text_loss": "nats"},
        model=str(model.cfg.model_name),
        fingerprint=identity(model),
        masked="z of the head is zero at every position",
        samples=len(samples),
        samples_used=len(used),
        text_tokens=int(plain.numel()),
        from_other_layers=float(np.mean(away)),
        seed=seed,
    )


class _Trial:
    """Needles that the unmasked model finds, and its own answers, to be asked again under a mask."""

    def __init__(self, parts: Parts, encoder: Encoder, used: list[Answer], steps: int) -> None:
        self.parts, self.encoder, self.steps, self.stops = parts, encoder, steps, Stops(encoder)
        self.batches = []
        entering = parts.graph.n_layers * parts.graph.d_model * parts.dtype.itemsize
        room = available_bytes(parts.device) // 4
        for rows in batches(parts, [answer.sample for answer in used], steps):
            batch = [used[row] for row in rows]
            tokens = _with_answers(batch).to(parts.device)
            room -= tokens.numel() * entering
            whole = Writing(parts, tokens, steps, length=batch[0].sample.length, remember=room > 0)
            self.batches.append((batch, tokens, whole, self._predicted(batch, whole)))

    def __call__(self, mask: ZeroHeads) -> tuple[float, float]:
        """Recall, and mean KL divergence over the answers' tokens, under a mask."""
        found, divergences = [], []
        for batch, tokens, whole, unmasked in self.batches:
            first = mask.first_layer if whole.entering else 0
            writing = Writing(self.parts, tokens, self.steps, mask, whole.length, other=whole, first_layer=first)
            masked = self._predicted(batch, writing)
            divergences += [(old.exp() * (old - new)).sum(-1) for old, new in zip(unmasked, masked, strict=True)]
            # A row whose every token is still the most likely one is answered as before; only others are written anew.
            changed = [
                row
                for row, (answer, new) in enumerate(zip(batch, masked, strict=True))
                if new.argmax(-1).tolist() != list(answer.tokens)
            ]
            anew = zip(changed, writing.greedy(self.stops, changed), strict=True) if changed else ()
            found += [Answer.of(batch[row].sample, ids, self.encoder).found for row, ids in anew]
            found += [True] * (len(batch) - len(changed))
        return float(np.mean(found)), float(torch.cat(divergences).mean())

    @torch.no_grad()
    def _predicted(self, batch: list[Answer], writing: Writing) -> list[Float[Tensor, "step vocab"]]:
        """Log-probabilities of what comes next, at each token of each answer."""
        return [
            self.parts.logits(read[: len(answer.tokens)]).float().log_softmax(-1)
            for read, answer in zip(writing.read, batch, strict=True)
        ]


def _with_answers(batch: list[Answer]) -> Int[Tensor, "row pos"]:
    """Prompts and behind them the answers, which are filled up on the right to the longest."""
    longest = max(len(answer.tokens) for answer in batch)
    return torch.tensor(
        [(*a.sample.tokens, *a.tokens, *[a.sample.tokens[0]] * (longest - len(a.tokens))) for a in batch]
    )


@torch.no_grad()
def _loss(parts: Parts, tokens: Int[Tensor, "text pos"], mask: Visitor) -> float:
    """Mean next-token cross-entropy, in nats."""
    walk = Walk(parts, tokens.shape[1])
    resid = walk(walk.embed(tokens), mask)
    losses = [F.cross_entropy(parts.logits(x[:-1]).float(), ids[1:]) for x, ids in zip(resid, tokens, strict=True)]
    return float(torch.stack(losses).mean())


def _controls(finding: HeadScores, k: int, rng: np.random.Generator) -> tuple[list[Head], list[Head]]:
    """`k` random heads, and one for each of the strongest `k` out of its layer, that are no such heads themselves."""
    strongest = finding.top(k)
    taken = {*strongest, *getattr(finding, "heads", ())}
    pool = [head for head in finding.lowest(finding.scores.size) if head not in taken]
    if k > len(pool):
        raise UsageError(
            f"{k} heads can't be compared with as many others: of {finding.scores.size} heads only {len(pool)} are left"
        )
    order = [pool[i] for i in rng.permutation(len(pool))]
    left, near = list(order), []
    for layer, _ in strongest:
        near.append(left.pop(min(range(len(left)), key=lambda i: abs(left[i][0] - layer))))
    return order[:k], near
