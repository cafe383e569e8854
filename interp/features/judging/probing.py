"""Sparse probing: what can be told from a few features of a token.

For each question about a token (is it a number, is it code, ...) the k features whose means differ most between yes
and no are chosen, and a logistic regression on them is tested on other texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.identity import identity
from interp.engine.progress import track
from interp.engine.verify import verified
from interp.errors import UsageError
from interp.features.judging.baselines import Moments, beside
from interp.features.judging.judge import halves
from interp.features.judging.splice import CleanRun, counted, encode, places
from interp.features.overlap import overlap
from interp.gradients import gradients, plain
from interp.results import scores
from interp.tasks.tokens import Encoder

__all__ = ["QUESTIONS", "logistic", "probe_accuracy", "sparse_probing"]

QUESTIONS: Mapping[str, Callable[[str], bool]] = {
    "number": lambda text: any(letter.isdigit() for letter in text),
    "capitalised": lambda text: text.strip()[:1].isupper(),
    "begins a word": lambda text: bool(re.match(r"\s\w", text)),
    "punctuation": lambda text: bool(text.strip()) and not any(letter.isalnum() for letter in text),
    "line break": lambda text: "\n" in text,
}
"""Questions that a token's own text answers; which kind of text it is from is asked too."""

_CHUNK = 1024
_LEAST = 20
"""A question needs so many tokens of either answer on either side."""


@gradients()
def logistic(
    x: Float[Tensor, "example feature"],
    y: Float[Tensor, "example question"],
    balanced: bool = False,
    steps: int = 100,
) -> tuple[Float[Tensor, "feature question"], Float[Tensor, " question"]]:
    """Logistic regressions with an L2 penalty of half the squared weights, on inputs of unit variance.

    Args:
        x: Inputs.
        y: The answers 0 and 1 to several questions, each a regression of its own.
        balanced: Let both answers to a question weigh the same in all, whichever is given more often.
        steps: Steps of L-BFGS at most.

    Returns:
        Weights and constants for the inputs as they are given.
    """
    x, y = plain(x).double(), plain(y).double()
    mean, spread = x.mean(0), x.std(0, correction=0)
    scale = torch.where(spread > 0, 1 / spread.clamp(min=1e-300), 0.0)
    z = (x - mean) * scale
    share = y.mean(0).clamp(1 / len(y), 1 - 1 / len(y))
    weigh = torch.where(y > 0, 0.5 / share, 0.5 / (1 - share)) if balanced else torch.ones_like(y)
    weights = torch.zeros(x.shape[1] + 1, y.shape[1], dtype=torch.float64, device=x.device, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weights], max_iter=steps, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = z @ weights[:-1] + weights[-1]
        total = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, weigh, reduction="sum")
        total = total + 0.5 * weights[:-1].square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[arg-type]
    found = weights.detach()
    matrix = found[:-1] * scale[:, None]
    return matrix, found[-1] - mean @ matrix


def probe_accuracy(
    train: Float[Tensor, "example feature"],
    answers: Bool[Tensor, " example"],
    test: Float[Tensor, "example feature"],
    right: Bool[Tensor, " example"],
) -> float:
    """The share of test examples that a logistic regression on the training examples answers right."""
    weights, constant = logistic(train, answers[:, None].double())
    said = (test.double() @ weights + constant)[:, 0] > 0
    return float((said == right).double().mean())


@torch.no_grad()
def sparse_probing(
    model: TransformerBridge,
    dictionary: Any,
    sources: Sequence[str] = ("prose", "code", "dialogue"),
    n: int = 8,
    length: int = 128,
    *,
    ks: Sequence[int] = (1, 2, 5, 16),
    examples: int = 400,
    skip: int = 1,
    special: bool = False,
    seed: int = 0,
    questions: Mapping[str, Callable[[str], bool]] = QUESTIONS,
) -> xr.DataArray:
    """How well a few features answer questions about a token.

    Args:
        model: Any bridge with a tokenizer.
        dictionary: Anything with `encode`, `decode`, `W_dec`, and the places that it `reads` and `writes`.
        sources: Kinds of text, see `interp.tasks.corpus`; "is it from this one" is asked of each.
        n: Texts of each kind; half of them, of other documents, are for testing.
        length: Tokens in each.
        ks: How many features a probe reads.
        examples: Tokens of each answer at most, in training and in testing; both answers equally often, so that
            chance is 0.5.
        skip: So many positions at the start of each text are left out.
        special: Take in special tokens.
        seed: Of the texts, of the choice of tokens and of the random dictionary.
        questions: From a token's text to the answer.

    Returns:
        Accuracy on texts that are not fitted, "method kind k": of the dictionary, of random directions and principal
        components of its size, of the k most different ``channels`` of the activation itself, and of ``all channels``
        together (the same for every k), with `kind` the question.

    Raises:
        UsageError: No tokenizer, the dictionary does not fit the model, or no question has enough tokens.

    Reference: Gurnee et al. 2023, "Finding Neurons in a Haystack", arXiv:2305.01610 (features by mean difference);
    Karvonen et al. 2025, "SAEBench", arXiv:2503.09532, section "sparse probing".
    """
    if getattr(model, "tokenizer", None) is None:
        raise UsageError("sparse probing asks about the text of tokens, and this model has no tokenizer")
    if n < 2 or not ks or min(ks) < 1:
        raise UsageError(f"sparse probing needs two texts of each kind and k from 1 on, got n={n} and ks={tuple(ks)}")
    parts = verified(model)
    reads, writes = places(dictionary, parts.graph)
    sides = [halves(source, model, n, length, seed, 0.5) for source in sources]
    tokens = torch.cat([rows for rows, _ in sides]).to(parts.device)
    training = torch.cat([torch.arange(len(rows), device=parts.device) < begin for rows, begin in sides])
    counts, trained_on = counted(tokens, model, skip, special), overlap(dictionary, tokens[~training])
    moments = Moments(reads.width(parts.graph), writes.width(parts.graph), parts.device)
    kept, active = [], 0
    with track(len(tokens), "reading texts") as advance:
        for row, (ids, at) in enumerate(zip(tokens, counts, strict=True)):
            run = CleanRun(parts, ids[None], reads, writes)
            kept.append(run.read[0][at])
            if training[row]:
                moments.add(kept[-1], run.written[0][at])
                active += int((encode(dictionary, kept[-1]) != 0).sum())
            advance(1)
    acts = torch.cat(kept)
    methods = {**beside(dictionary, moments, active / moments.n, seed), "channels": None}
    row_of = torch.arange(len(tokens), device=parts.device)[:, None].expand(tokens.shape)[counts]
    answers = _answers(model, tokens[counts], row_of // n, sources, questions)
    chosen, left_out = _chosen(answers, training[row_of], examples, seed)
    if not chosen:
        raise UsageError(f"no question has {_LEAST} tokens of either answer in either half of the texts; give more")
    values = torch.full((len(methods) + 1, len(chosen), len(ks)), torch.nan, dtype=torch.float64)
    with track(len(methods) * len(chosen), "probing") as advance:
        for number, method in enumerate(methods.values()):
            best = _most_different(method, acts, {name: train for name, (train, _) in chosen.items()}, answers, max(ks))
            for question, (name, (train, test)) in enumerate(chosen.items()):
                seen, unseen = (_columns(method, acts[at], best[name]) for at in (train, test))
                for place, k in enumerate(ks):
                    right = probe_accuracy(seen[:, :k], answers[name][train], unseen[:, :k], answers[name][test])
                    values[number, question, place] = right
                advance(1)
        for question, (name, (train, test)) in enumerate(chosen.items()):
            y = answers[name]
            values[-1, question] = probe_accuracy(acts[train], y[train], acts[test], y[test])
    return scores(
        values,
        ("method", "kind", "k"),
        {"method": [*methods, "all channels"], "kind": list(chosen), "k": np.array(ks)},
        name="accuracy",
        units="share of test tokens answered right; chance is 0.5",
        left_out=left_out,
        examples={name: [len(train), len(test)] for name, (train, test) in chosen.items()},
        model=str(model.cfg.model_name),
        fingerprint=identity(model),
        reads=str(reads),
        writes=str(writes),
        sources=list(sources),
        overlap=trained_on,
        texts=len(tokens),
        length=length,
        skip=skip,
        seed=seed,
    )


def _answers(
    model: TransformerBridge,
    tokens: Int[Tensor, " token"],
    kind: Int[Tensor, " token"],
    sources: Sequence[str],
    questions: Mapping[str, Callable[[str], bool]],
) -> dict[str, Bool[Tensor, " token"]]:
    """The answer to every question for every token."""
    ids, where = tokens.unique(return_inverse=True)
    names = Encoder(model).decode(tuple(ids.tolist()))
    found = {
        name: torch.tensor([bool(question(text)) for text in names], device=tokens.device)[where]
        for name, question in questions.items()
    }
    if len(sources) > 1:
        found |= {str(source): kind == number for number, source in enumerate(sources)}
    return found


def _chosen(
    answers: Mapping[str, Bool[Tensor, " token"]], training: Bool[Tensor, " token"], examples: int, seed: int
) -> tuple[dict[str, tuple[Tensor, Tensor]], list[str]]:
    """For each question the tokens to train and to test on, both answers equally often; and what has too few."""
    generator = torch.Generator().manual_seed(seed)
    chosen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, answer in answers.items():
        halves = []
        for half in (training, ~training):
            sides = [(half & side).nonzero()[:, 0] for side in (answer, ~answer)]
            size = min(examples, *(len(side) for side in sides))
            drawn = [side[torch.randperm(len(side), generator=generator)[:size].to(side.device)] for side in sides]
            halves.append(torch.cat(drawn))
        if min(len(half) for half in halves) >= 2 * _LEAST:
            chosen[name] = (halves[0], halves[1])
    return chosen, [name for name in answers if name not in chosen]


def _columns(method: Any, x: Float[Tensor, "token d_in"], columns: Tensor) -> Float[Tensor, "token k"]:
    """Some features of tokens; without a method the activation's own channels."""
    if method is None:
        return x[:, columns]
    return torch.cat([encode(method, piece)[:, columns] for piece in x.split(_CHUNK)])


def _most_different(
    method: Any,
    acts: Float[Tensor, "token d_in"],
    train: Mapping[str, Tensor],
    answers: Mapping[str, Bool[Tensor, " token"]],
    k: int,
) -> dict[str, Int[Tensor, " k"]]:
    """For each question the features whose means on the training tokens differ most, most different first."""
    weights = torch.zeros(len(acts), len(train), dtype=acts.dtype, device=acts.device)
    for column, (name, at) in enumerate(train.items()):
        weights[at, column] = torch.where(answers[name][at], 1.0, -1.0).to(weights) / (len(at) / 2)
    difference: Tensor | None = None
    for piece, share in zip(acts.split(_CHUNK), weights.split(_CHUNK), strict=True):
        features = piece if method is None else encode(method, piece)
        part = share.T.to(features) @ features
        difference = part if difference is None else difference + part
    assert difference is not None
    order = difference.abs().argsort(dim=-1, descending=True, stable=True)[:, :k]
    return dict(zip(train, order, strict=True))
