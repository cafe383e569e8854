"""How good a dictionary is, with a random dictionary and principal components of its size beside every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.identity import identity
from interp.engine.parts import Parts
from interp.engine.progress import track
from interp.engine.verify import verified
from interp.errors import UsageError
from interp.features.judging.baselines import BASELINES, Constant, Moments, beside
from interp.features.judging.measures import Tally
from interp.features.judging.report import METHODS, METRICS, Report
from interp.features.judging.splice import CleanRun, counted, encode, placed, places
from interp.features.overlap import overlap
from interp.results import scores
from interp.tasks import CORPORA, corpus, documents, sized

__all__ = ["compared", "fitted", "halves", "judge", "recovered", "repaired", "split", "texts", "undefined"]

_LOGITS = 1 << 24
"""Logits held at once."""

_ERROR = " with error"


@torch.no_grad()
def judge(
    model: TransformerBridge,
    dictionary: Any,
    source: str | Path | Sequence[str] | Int[Tensor, "text pos"] = "prose",
    n: int | None = None,
    length: int | None = None,
    *,
    seed: int = 0,
    fit_share: float = 0.5,
    skip: int = 0,
    special: bool = True,
    dense_above: float = 0.1,
    batch: int = 4,
) -> Report:
    """Judges a dictionary by what it reconstructs and by what the model computes on the reconstruction.

    The first `fit_share` of the texts give the baselines what they need to know (mean, covariance, the number of
    active features that sets their size); the others, of other documents, are judged. A token's activation is replaced
    at all positions that count, at once. How much of the judged texts was trained on stands in the report
    (``overlap``; None where a dictionary does not know its training text), and more than chance is warned of.

    Args:
        model: Any bridge. It is only read.
        dictionary: Anything with `encode`, `decode`, `W_dec`, and the places that it `reads` and `writes`.
        source: The texts: see `interp.tasks.corpus`; also token ids.
        n: How many texts; 32, or all rows of token ids.
        length: Tokens in each; 256, or all of the token ids.
        seed: Of the texts and of the random dictionary.
        fit_share: Share of the texts on which baselines are fitted.
        skip: So many positions at the start of each text are left as they are and do not count. In many models the
            first holds an activation a hundred times larger than all others, and a squared error over all positions
            is about that one only: `r2_with_first` and `r2_without_first` are always given too. Numbers with another
            `skip` can't be compared: what zero ablation costs changes as well.
        special: Count special tokens; without them they are left as they are, too, and in no sum.
        dense_above: From which share of the tokens on a feature is dense.
        batch: Texts that are run together.

    Returns:
        A report.

    Raises:
        UsageError: The dictionary does not fit the model, or the texts do not suffice.

    Reference: cross-entropy recovered as in Bricken et al. 2023, "Towards Monosemanticity"; shrinkage gamma,
    E||x^||^2 / E<x^, x>, as in Rajamanoharan et al. 2024, arXiv:2404.16014, "relative reconstruction bias".

    Example:
        >>> judge(model, dictionary, "prose", n=16).to_frame()     # doctest: +SKIP
    """
    parts = verified(model)
    reads, writes = places(dictionary, parts.graph)
    if hasattr(dictionary, "check_model"):
        dictionary.check_model(identity(model))
    dictionary = placed(dictionary, parts.device)
    tokens, begin = halves(source, model, n, length, seed, fit_share)
    valid, counts = counted(tokens, model, 0, special), counted(tokens, model, skip, special)
    seen = overlap(dictionary, tokens[begin:])
    moments, l0 = fitted(parts, dictionary, tokens[:begin], counts[:begin], batch)
    zero = Constant(torch.zeros_like(moments.mean[1]).to(dictionary.W_dec))
    methods = beside(dictionary, moments, l0, seed)
    methods |= {"mean": Constant(moments.mean[1].to(dictionary.W_dec)), "zero": zero}
    width = len(moments.mean[1])
    tallies = {name: Tally(tokens.shape[1], width, len(m.W_dec), parts.device) for name, m in methods.items()}
    names = ["clean", *methods, *(name + _ERROR for name in methods)]
    losses = {name: torch.zeros(2, tokens.shape[1] - 1, dtype=torch.float64) for name in names}
    with track(len(tokens) - begin, "judging") as advance:
        for first in range(begin, len(tokens), batch):
            some = slice(first, min(first + batch, len(tokens)))
            run, at = CleanRun(parts, tokens[some], reads, writes), counts[some]
            finals = {"clean": run.final()}
            for name, method in methods.items():
                guess = tallies[name].add(method, run.read, run.written, valid[some], at)
                finals[name] = run.final(torch.where(at[..., None], guess, run.written))
                finals[name + _ERROR] = repaired(run, guess, finals["clean"])
            for name, pair in compared(parts, finals, tokens[some, 1:]).items():
                losses[name] += torch.where(at[:, :-1].cpu(), pair, 0.0).sum(1)
            advance(some.stop - some.start)
    about = {
        "model": str(model.cfg.model_name),
        "fingerprint": identity(model),
        "reads": str(reads),
        "writes": str(writes),
        "source": source if isinstance(source, str) else type(source).__name__,
        "overlap": seen,
        "tokens": int(counts[begin:].sum()),
        "tokens_fitted": moments.n,
        "length": tokens.shape[1],
        "seed": seed,
        "skip": skip,
        "special": special,
        "dense_above": dense_above,
        "dead_on": "no token that counts",
        "features": {name: len(methods[name].W_dec) for name in ("dictionary", *BASELINES)},
        "active_in_baselines": {"random": methods["random"].k, "PCA": len(methods["PCA"].W_dec)},
    }
    return _report(tallies, losses, counts[begin:, :-1].sum(0).double().cpu(), about)


def texts(source: Any, model: Any, n: int, length: int, seed: int) -> Int[Tensor, "text pos"]:
    """Token ids of texts, where the model is."""
    return corpus(source, model, n, length, seed).to(next(model.parameters()).device)


def halves(
    source: Any, model: Any, n: int | None, length: int | None, seed: int, share: float
) -> tuple[Int[Tensor, "text pos"], int]:
    """Texts to fit on and to judge on, and where the latter begin. They share no document, where there are several."""
    n, length = sized(source, n, length, 32, 256)
    if isinstance(source, Tensor) or (source not in CORPORA and len(set(documents(source))) < 2):
        tokens = texts(source, model, n, length, seed)
        return tokens, split(len(tokens), share)
    begin = split(n, share)
    numbers = {"find": begin, "score": n - begin}
    sides = [corpus(source, model, number, length, seed, split=side) for side, number in numbers.items()]
    return torch.cat(sides).to(next(model.parameters()).device), begin


def split(n: int, share: float) -> int:
    """How many of n texts are for fitting; at least one is left on each side.

    Raises:
        UsageError: Fewer than two texts, or a share outside of (0, 1).
    """
    if n < 2 or not 0 < share < 1:
        raise UsageError(
            f"baselines are fitted on some texts and judged on others: give two texts or more and a share between 0 "
            f"and 1; got {n} and {share}"
        )
    return min(max(1, round(n * share)), n - 1)


def fitted(
    parts: Parts, dictionary: Any, tokens: Int[Tensor, "text pos"], counts: Bool[Tensor, "text pos"], batch: int = 4
) -> tuple[Moments, float]:
    """Moments of what a dictionary reads and should write, and its mean number of active features.

    Raises:
        UsageError: No position counts.
    """
    reads, writes = places(dictionary, parts.graph)
    if not counts.any():
        raise UsageError("no position of the texts for fitting counts; give more texts")
    moments = Moments(reads.width(parts.graph), writes.width(parts.graph), parts.device)
    active = 0
    for first in range(0, len(tokens), batch):
        run = CleanRun(parts, tokens[first : first + batch], reads, writes)
        for row, at in enumerate(counts[first : first + batch]):
            moments.add(run.read[row][at], run.written[row][at])
            active += int((encode(dictionary, run.read[row][at]) != 0).sum())
    return moments, active / moments.n


def repaired(
    run: CleanRun, guess: Float[Tensor, "batch pos d_out"], clean: Float[Tensor, "batch pos d_model"]
) -> Float[Tensor, "batch pos d_model"]:
    """The final residual stream with reconstruction and error put in. Where their sum is the activation to the last
    bit, as float64 makes it for activations of fewer bits, that is the clean one, and nothing is run."""
    whole = guess.double()
    sum_of_both = (whole + (run.written.double() - whole)).to(run.written.dtype)
    return clean if torch.equal(sum_of_both, run.written) else run.final(sum_of_both)


def compared(
    parts: Parts, finals: Mapping[str, Float[Tensor, "batch pos d_model"]], targets: Int[Tensor, "batch next"]
) -> dict[str, Float[Tensor, "2 batch next"]]:
    """Loss on the next tokens and KL(clean || this), in nats, of each final residual stream; one is ``clean``."""
    places_at_once = max(1, _LOGITS // parts.graph.d_vocab)
    found = {name: torch.zeros(2, *targets.shape, dtype=torch.float64) for name in finals}
    for row, target in enumerate(targets.to(parts.device)):
        for first in range(0, len(target), places_at_once):
            at = slice(first, min(first + places_at_once, len(target)))
            clean = _log_probabilities(parts, finals["clean"][row, at])
            for name, final in finals.items():
                same = final is finals["clean"]
                theirs = clean if same else _log_probabilities(parts, final[row, at])
                found[name][0, row, at] = -theirs.gather(-1, target[at, None])[:, 0].double().cpu()
                if not same:
                    found[name][1, row, at] = (clean.exp() * (clean - theirs)).sum(-1).double().cpu()
    return found


def _log_probabilities(parts: Parts, resid: Tensor) -> Tensor:
    logits = parts.logits(resid)
    return torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), -1)


def recovered(ce: float, clean: float, ablated: float) -> float:
    """The share of an ablation's cost that a reconstruction saves; NaN where the ablation costs nothing."""
    return (ablated - ce) / (ablated - clean) if ablated > clean else float("nan")


def undefined(clean: float, zero: float, mean: float) -> dict[str, str]:
    """Which shares of an ablation's cost are NaN, and why."""
    ablated = {"ce_recovered": ("zero", zero), "ce_recovered_mean": ("mean", mean)}
    return {
        metric: f"{name} ablation costs nothing (loss {loss:.4g} with it, {clean:.4g} without)"
        for metric, (name, loss) in ablated.items()
        if not loss > clean
    }


def _report(tallies: Mapping[str, Tally], losses: Mapping[str, Tensor], n: Tensor, about: dict[str, Any]) -> Report:
    """Sums to numbers."""
    mean = {name: (sums.sum(1) / n.sum()).tolist() for name, sums in losses.items()}
    clean, zero, average = mean["clean"][0], mean["zero"][0], mean["mean"][0]

    table, positions = [], []
    for name in METHODS:
        ce, kl = mean[name]
        row = {"ce": ce, "kl": kl, "ce_with_error": mean[name + _ERROR][0], "kl_with_error": mean[name + _ERROR][1]}
        row |= {"ce_recovered": recovered(ce, clean, zero), "ce_recovered_mean": recovered(ce, clean, average)}
        row |= tallies[name].measures(about["skip"], about["dense_above"])
        table.append([row[metric] for metric in METRICS])
        here = tallies[name].by_position()
        each = torch.nn.functional.pad(losses[name] / torch.where(n > 0, n, torch.nan), (0, 1), value=torch.nan)
        here |= {"ce": each[0], "kl": each[1]}
        positions.append(torch.stack([values.cpu() for values in here.values()]))
    about |= {"ce_clean": clean, "ce_zero": zero, "ce_mean": average}
    about["undefined"] = undefined(clean, zero, average)
    labels = {"method": list(METHODS), "metric": list(METRICS)}
    where = {"method": list(METHODS), "metric": list(here)}
    return Report(
        scores(
            np.array(table), ("method", "metric"), labels, name="value", allow_nan=True, units=dict(METRICS), **about
        ),
        scores(torch.stack(positions), ("method", "metric", "position"), where, name="value", allow_nan=True, **about),
        {
            name: scores(tallies[name].density, ("component",), name="density", units="share of tokens", **about)
            for name in ("dictionary", *BASELINES)
        },
    )
