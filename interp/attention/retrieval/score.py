"""Retrieval heads: which heads copy a needle out of the haystack while the model writes the answer.

Wu et al. 2024, "Retrieval Head Mechanistically Explains Long-Context Factuality" (arXiv 2404.15574), section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy.stats import rankdata
from transformer_lens.model_bridge import TransformerBridge

from interp.attention.retrieval.answers import STEPS, SUCCESS, Answer, answers
from interp.engine.identity import identity
from interp.engine.verify import verified
from interp.errors import InterpError, UsageError
from interp.results import RetrievalHeads, scores
from interp.tasks.needles import Needle, NeedleSample, needle_samples
from interp.tasks.splits import one_split

__all__ = ["needle_recall", "retrieval_heads"]

_DRAWS = 2000
_SPLITS = 50
_TOP = 10


def retrieval_heads(
    model: TransformerBridge,
    samples: Sequence[NeedleSample] | None = None,
    *,
    haystack: str | Path | Sequence[str] = "prose",
    lengths: Sequence[int] = (256, 512, 1024),
    depths: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    needles: Sequence[Needle] | None = None,
    n: int = 2,
    chat: bool | None = None,
    steps: int = STEPS,
    threshold: float = 0.1,
    seed: int = 0,
    split: str | None = "find",
) -> RetrievalHeads:
    """Finds the heads that copy a needle out of its haystack, over lengths, depths and needles.

    A head copies a token if, at a step of the greedy answer, the key that it looks at most is a token of the needle's
    answer and is the token then written. Its score in a sample is |g & k| / |k|: the share of the needle's different
    tokens that it copied (equation 1 of the paper, in [0, 1]). The reference implementation counts steps instead, so
    that a token written twice counts twice; that number is kept as evidence ``step_scores``. Only samples that the
    model answers count (ROUGE-1 recall above 0.5), and none that it answers without the haystack as well.

    Args:
        model: any bridge.
        samples: prompts; unless given they are made by `interp.attention.needle_samples` of the next arguments.
        haystack: where the needles are hidden.
        lengths: tokens of a prompt.
        depths: where in the haystack, from 0 to 1.
        needles: facts.
        n: prompts of each length and depth.
        chat: whether prompts stand in the chat template; unless given, if there is one.
        steps: tokens that an answer may take.
        threshold: the score from which on a head counts as a retrieval head, 0.1 in the paper.
        seed: of the samples, the bootstrap and the random halves.
        split: of the needles and haystacks, see `needle_samples`.

    Returns:
        A finding with the evidence
        ``scores``, ``low``, ``high`` "layer head": mean over samples, and its 95 % bootstrap interval over samples;
        ``activation_rate`` "layer head": share of samples in which the head copies at all;
        ``step_scores`` "layer head"; ``recall`` "length depth": share of samples that the model answers;
        ``by_length``, ``by_depth``, ``by_needle``: the score in those samples alone;
        ``convergence`` "metric step": how two disjoint sets of so many samples (``step``) agree: Spearman's rho over
        all heads, and the share that their ten strongest heads have in common; mean of 50 random splits.
        ``settings`` say how many samples there were, and how many are left.

    Raises:
        UsageError: arguments that make no sense, see `needle_samples`.
        InterpError: the model answers none of the samples; the message has its recall.

    Example:
        >>> finding = retrieval_heads(model)       # doctest: +SKIP
        >>> finding.heads, finding.groups("max")   # doctest: +SKIP
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"the threshold must be in (0, 1], got {threshold}")
    asked: dict[str, Any] = {"haystack": "given with the samples"}
    if samples is None:
        samples = needle_samples(model, haystack, lengths, depths, needles, n, chat=chat, seed=seed, split=split)
        asked = {
            "haystack": str(haystack) if isinstance(haystack, str | Path) else f"{len(haystack)} texts",
            "n": n,
            "chat": "template if there is one" if chat is None else chat,
        }
    given = answers(model, samples, steps)
    known = _known(model, samples, steps)
    used = [answer for answer in given if answer.found and answer.sample.control not in known]
    recall = _recall(given)
    if not used:
        raise InterpError(_nothing_found(model, given, recall))
    about = {"model": str(model.cfg.model_name), "fingerprint": identity(model)}
    evidence = {**_head_evidence(used, seed), "recall": recall}
    return RetrievalHeads(
        **about,
        evidence={name: array.assign_attrs(**about) for name, array in evidence.items()},
        n_kv_heads=verified(model).graph.n_kv_heads,
        threshold=threshold,
        settings={
            **asked,
            "split": one_split(samples),
            "lengths": recall["length"].values.tolist(),
            "depths": recall["depth"].values.tolist(),
            "needles": sorted({sample.name for sample in samples}),
            "seed": seed,
            "steps": steps,
            "success": f"ROUGE-1 recall above {SUCCESS}",
            "samples": len(given),
            "samples_used": len(used),
            "recall": float(np.mean([answer.found for answer in given])),
            "verbatim": float(np.mean([answer.recall == 1 for answer in given])),
            "answered_without_haystack": len({sample.name for sample in samples if sample.control in known}),
            "interval": f"95 %, bootstrap over samples, {_DRAWS} draws",
        },
    )


def _head_evidence(used: Sequence[Answer], seed: int) -> dict[str, xr.DataArray]:
    """Every head's score and what stands beside it."""
    each, share = np.stack([answer.score for answer in used]), "share of the needle's tokens"
    low, high = _interval(each, seed)
    steps = np.mean([answer.step_score for answer in used], 0)
    heads = {
        "scores": (each.mean(0), share),
        "low": (low, share),
        "high": (high, share),
        "activation_rate": ((each > 0).mean(0), "share of samples"),
        "step_scores": (steps, "steps per token of the needle"),
    }
    found = {
        name: scores(values, ("layer", "head"), name="retrieval score" if name == "scores" else name, units=units)
        for name, (values, units) in heads.items()
    }
    parts: tuple[tuple[str, str, list[Any]], ...] = (
        ("by_length", "length", [answer.sample.length for answer in used]),
        ("by_depth", "depth", [answer.sample.depth for answer in used]),
        ("by_needle", "kind", [answer.sample.name for answer in used]),
    )
    for name, dim, of in parts:
        labels = sorted(set(of))
        means = np.stack([each[[value == label for value in of]].mean(0) for label in labels])
        found[name] = scores(means, (dim, "layer", "head"), {dim: labels}, name="retrieval score", units=share)
    return {**found, "convergence": _convergence(each, seed)} if len(used) > 1 else found


def needle_recall(model: TransformerBridge, samples: Sequence[NeedleSample], *, steps: int = STEPS) -> xr.DataArray:
    """How often a model finds the needle, by length of the prompt and depth.

    Args:
        model: any bridge.
        samples: prompts, see `interp.attention.needle_samples`.
        steps: tokens that an answer may take.

    Returns:
        Share of samples whose answer has more than half of the needle's words (ROUGE-1 recall, as in the reference
        implementation), "length depth"; NaN where there is no sample.

    Raises:
        UsageError: no sample, or one that is too long for the model.
    """
    about = {"model": str(model.cfg.model_name), "fingerprint": identity(model)}
    return _recall(answers(model, samples, steps)).assign_attrs(**about)


def _known(model: TransformerBridge, samples: Sequence[NeedleSample], steps: int) -> set[tuple[int, ...]]:
    """The prompts without haystack that the model answers all the same."""
    alone = {sample.control: sample for sample in samples if sample.control}
    asked = [NeedleSample(control, (0, 1), sample.answer, name=sample.name) for control, sample in alone.items()]
    return {answer.sample.tokens for answer in answers(model, asked, steps) if answer.found} if asked else set()


def _recall(given: Sequence[Answer]) -> xr.DataArray:
    lengths = sorted({answer.sample.length for answer in given})
    depths = sorted({answer.sample.depth for answer in given})
    values = np.full((len(lengths), len(depths)), np.nan)
    for row, length in enumerate(lengths):
        for column, depth in enumerate(depths):
            cell = [a.found for a in given if (a.sample.length, a.sample.depth) == (length, depth)]
            values[row, column] = np.mean(cell) if cell else np.nan
    return scores(
        values, ("length", "depth"), {"length": lengths, "depth": depths}, name="needle recall",
        units="share of samples", allow_nan=True, samples=len(given),
    )  # fmt: skip


def _nothing_found(model: TransformerBridge, given: Sequence[Answer], recall: xr.DataArray) -> str:
    answered = sum(answer.found for answer in given)
    by_length = ", ".join(
        f"{float(value):.0%} at {int(length)} tokens"
        for length, value in zip(recall["length"].values, np.nanmean(recall.values, 1), strict=True)
    )
    also = f", {answered} that it answers without the haystack as well" if answered else ""
    wrote = given[0].text or " ".join(map(str, given[0].tokens))
    return (
        f"no sample is left to score heads on: {model.cfg.model_name} finds {answered} of {len(given)} needles "
        f"({by_length}){also}; to one it answered {wrote.strip()[:60]!r}. Take shorter haystacks (lengths=), other "
        f"needles (needles=), the other kind of prompt (chat=), or a model that can do this"
    )


def _interval(each: Float[np.ndarray, "sample layer head"], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval of the mean over samples drawn with replacement."""
    count = len(each)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), _DRAWS)
    means = np.tensordot(weights, each, 1) / count
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low.clip(0, 1), high.clip(0, 1)


def _convergence(each: Float[np.ndarray, "sample layer head"], seed: int) -> xr.DataArray:
    """How two disjoint sets of samples agree about the heads, by the size of the sets."""
    rng, flat = np.random.default_rng(seed), each.reshape(len(each), -1)
    half, top = len(flat) // 2, min(_TOP, flat.shape[1])
    sizes = sorted({min(2**power, half) for power in range(half.bit_length() + 1)})
    values = np.empty((2, len(sizes), _SPLITS))
    for split in range(_SPLITS):
        order = rng.permutation(len(flat))
        for column, size in enumerate(sizes):
            a, b = (flat[order[part]].mean(0) for part in (slice(size), slice(size, 2 * size)))
            values[0, column, split] = _spearman(a, b)
            best = [set(np.argsort(-x, kind="stable")[:top].tolist()) for x in (a, b)]
            values[1, column, split] = len(best[0] & best[1]) / top
    return scores(
        np.nanmean(values, -1), ("metric", "step"), {"metric": ["spearman", f"top {top} in common"], "step": sizes},
        name="agreement", units="", allow_nan=True, splits=_SPLITS,
    )  # fmt: skip


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    a, b = rankdata(a), rankdata(b)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else np.nan
