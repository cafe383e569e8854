"""Attention sinks: where attention collects whatever stands there, in which heads, and on which kind of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from interp.attention.sinks.census import census, check_threshold
from interp.attention.sinks.evidence import heads_finding, positions_finding
from interp.attention.sinks.massive import massive_finding
from interp.engine.identity import identity, versions
from interp.engine.verify import verified
from interp.errors import UsageError
from interp.results import scores
from interp.results.findings import MassiveActivations, SinkHeads, SinkPositions
from interp.tasks.corpora import corpus, sized
from interp.tasks.splits import half_of_corpus
from interp.tasks.tokens import Encoder

__all__ = [
    "DOMAINS",
    "SinkSurvey",
    "domain_texts",
    "extreme_tokens",
    "named_domains",
    "sink_heads",
    "sink_metric",
    "sink_positions",
    "survey_sinks",
]

DOMAINS = ("prose", "code", "dialogue")
Domains = Sequence[str] | Mapping[str, Any] | Int[Tensor, "text pos"]
"""Names of corpora, names with whatever `interp.tasks.corpus` reads (a file, texts, token ids), or token ids alone."""


@dataclass(frozen=True, eq=False)
class SinkSurvey:
    """What one pass over the texts says about sinks."""

    heads: SinkHeads
    positions: SinkPositions
    massive: MassiveActivations


def sink_metric(model: Any, tokens: Int[Tensor, "text pos"], threshold: float = 0.3, position: int = 0) -> xr.DataArray:
    """The published sink metric of every head: how often a key's importance is above a threshold.

    alpha_k = 1/(T-k+1) sum over i >= k of A[i, k], counted from 1; Sink_k = mean over texts of 1[alpha_k > threshold].

    Args:
        model: any bridge.
        tokens: token ids; the paper takes 100 texts of 64 tokens.
        threshold: the paper has 0.3.
        position: the key k, counted from 0.

    Returns:
        Share of texts, "layer head"; its mean over all heads is the paper's number for the model.

    Raises:
        UsageError: a threshold outside of (0, 1), or a position that there is not.

    Reference: Gu et al. 2024, "When Attention Sink Emerges in Language Models", arXiv:2410.10781, section 3.1.
    """
    check_threshold(threshold)
    if not 0 <= position < tokens.shape[-1]:
        raise UsageError(f"position {position} is out of range: the texts have positions 0 to {tokens.shape[-1] - 1}")
    found = census(model, tokens).sinks(threshold)[..., position].float().mean(1)
    about = _about(model)
    return scores(
        found,
        ("layer", "head"),
        name="sink rate",
        units="share of texts",
        threshold=threshold,
        position=position,
        n=len(tokens),
        length=int(tokens.shape[1]),
        **about,
    )


def survey_sinks(
    model: Any,
    domains: Domains = DOMAINS,
    n: int | None = None,
    length: int | None = None,
    threshold: float = 0.3,
    seed: int = 0,
    *,
    split: str | None = "find",
    prefix: bool = True,
    top: int = 1,
) -> SinkSurvey:
    """Sink heads, sink positions and massive activations from one pass over texts of several kinds.

    Args:
        model: any bridge.
        domains: the kinds of text, see `interp.tasks.corpus`; a mapping of names to its sources; or token ids.
        n: texts of each kind; 32, or all rows of token ids.
        length: tokens of each text; 64, or all of the token ids. Importance is a mean over all queries that see a key,
            so it falls with the length.
        threshold: the importance above which a key is a sink of a head.
        seed: of the choice of texts.
        split: of the documents of a shipped corpus, so that what is measured on ``score`` has not been seen; None takes
            all. Text that is given is not split.
        prefix: let what the model wants before a text (BOS) stand first. Without it an ordinary token does.
        top: for the share of texts in which the first position is among a head's `top` most important keys.

    Returns:
        The three findings.

    Raises:
        UsageError: a threshold outside of (0, 1), `n` below 1, `length` below 2, an unknown domain.
        InterpError: attention that is not finite.
    """
    check_threshold(threshold)
    named, length = named_domains(domains, length, 64)
    if not 1 <= top < length:
        raise UsageError(f"top must be between 1 and {length - 1}, the keys besides one; got {top}")
    texts = domain_texts(model, named, n, 32, length, seed, prefix, split)
    numbers = {name: len(rows) for name, rows in texts.items()}
    whole = census(model, torch.cat(list(texts.values())))
    settings = {
        "domains": list(texts),
        "n": numbers if len(set(numbers.values())) > 1 else next(iter(numbers.values())),
        "length": length,
        "seed": seed,
        "split": split,
        "prefix": prefix,
        "threshold": threshold,
        "first_token": Encoder(model).decode((int(whole.tokens[0, 0]),))[0] if prefix else "",
        "versions": versions(),
    }
    ends = dict(zip(texts, accumulate(numbers.values()), strict=True))
    by_domain = {name: whole.rows(slice(end - numbers[name], end)) for name, end in ends.items()}
    about = _about(model)
    return SinkSurvey(
        heads_finding(about, by_domain, threshold, top, {**settings, "top": top}),
        positions_finding(about, Encoder(model), whole, threshold, settings),
        massive_finding(model, whole, settings),
    )


def sink_heads(
    model: Any,
    domains: Domains = DOMAINS,
    n: int | None = None,
    length: int | None = None,
    threshold: float = 0.3,
    seed: int = 0,
    *,
    split: str | None = "find",
    prefix: bool = True,
    top: int = 1,
) -> SinkHeads:
    """How often each head's attention goes to the first position, over all texts and by kind of text.

    Args and Raises: as for `survey_sinks`, which has this beside other findings for the price of one.

    Returns:
        ``scores`` and, by domain, ``domains``: the share of texts with an importance above the threshold (the published
        metric). ``attention`` and ``domain_attention``: the mean attention of the later queries, without a threshold
        (our own: the first token's own query, which has no choice, is left out), with its standard error over the
        texts, ``domain_error``. ``top`` and ``domain_top``: the share of texts where the first position is among the
        head's most important keys.
    """
    return survey_sinks(model, domains, n, length, threshold, seed, split=split, prefix=prefix, top=top).heads


def sink_positions(
    model: Any,
    domains: Domains = DOMAINS,
    n: int | None = None,
    length: int | None = None,
    threshold: float = 0.3,
    seed: int = 0,
    *,
    split: str | None = "find",
    prefix: bool = True,
) -> SinkPositions:
    """Which positions are sinks in half of the texts at least, and which tokens become sinks further on.

    A position is a sink of a text if a tenth of all heads has an importance above the threshold there. Keys that
    fewer than 16 queries see are not judged.

    Args and Raises: as for `survey_sinks`.

    Returns:
        ``positions``; ``tokens``, those that are sinks where they first stand in a text, in half of the texts that
        have them and in two at least. Evidence: ``attention`` "layer position"; ``rate``, the share of
        texts in which a position is a
        sink; ``token_rate`` and ``token_rate_again`` by token (coordinates ``token``, ``word``, ``texts``) for a
        token's first place in a text and for later ones (NaN where there is none); ``token_attention`` "layer k", the
        attention that these tokens get at their first place; ``value_ratio`` "layer kv_head" and ``resid_ratio``
        "layer", the norm at the first position over the median of the others (value drains, residual peaks).
    """
    return survey_sinks(model, domains, n, length, threshold, seed, split=split, prefix=prefix).positions


def extreme_tokens(model: Any, tokens: Int[Tensor, "text pos"], threshold: float = 0.3) -> dict[str, xr.DataArray]:
    """The three signs of extreme tokens at every position, means over the texts.

    Args:
        model: any bridge.
        tokens: token ids.
        threshold: the importance above which a key is a sink of a head.

    Returns:
        ``sink`` (share of texts) and ``attention`` (importance) "layer head position", ``value_norm`` "layer kv_head
        position", ``resid_norm`` "layer position" behind each layer.

    Raises:
        UsageError: a threshold outside of (0, 1), or token ids of another shape.

    Reference: Guo et al. 2024, "Active-Dormant Attention Heads", arXiv:2410.13835, section 1: attention sinks,
    value-state drains and residual-state peaks.
    """
    check_threshold(threshold)
    found, about = census(model, tokens), _about(model)
    by_head, by_group = ("layer", "head", "position"), ("layer", "kv_head", "position")
    return {
        "sink": scores(
            found.sinks(threshold).float().mean(1), by_head, name="sink rate", units="share of texts", **about
        ),
        "attention": scores(found.importance.mean(1), by_head, name="importance", units="share of attention", **about),
        "value_norm": scores(found.value_norm.mean(1), by_group, name="value norm", units="norm", **about),
        "resid_norm": scores(
            found.resid_norm.mean(1), ("layer", "position"), name="residual norm", units="norm", **about
        ),
    }


def named_domains(domains: Domains, length: int | None, tokens: int) -> tuple[dict[str, Any], int]:
    """Kinds of text by name, and the one length that they have: that of the token ids, or `tokens`, unless said."""
    named: dict[str, Any] = {"token ids": domains} if isinstance(domains, Tensor) else {}
    named |= {} if named else domains if isinstance(domains, Mapping) else {name: name for name in domains}
    if not named:
        raise UsageError(f"at least one kind of text is needed, such as {', '.join(DOMAINS)}")
    given = {source.shape[1] for source in named.values() if getattr(source, "ndim", 0) == 2}
    if length is None and len(given) > 1:
        raise UsageError(f"all kinds of text have one length, and token ids of {sorted(given)} are given; say length=")
    return named, next(iter(given), tokens) if length is None else length


def domain_texts(
    model: Any,
    named: Mapping[str, Any],
    n: int | None,
    texts: int,
    length: int,
    seed: int,
    prefix: bool = True,
    split: str | None = None,
) -> dict[str, Int[Tensor, "text pos"]]:
    """Token ids of each kind of text, all read before anything is computed, so that an unknown one costs nothing.

    Args:
        model: any bridge.
        named: see `named_domains`.
        n, texts: how many were asked for, or None, and how many are taken of what has no shape.
        length, seed, prefix, split: as for `survey_sinks`.
    """
    found = {}
    for name, source in named.items():
        number, _ = sized(source, n, length, texts, length)
        half = half_of_corpus(source, split)
        found[str(name)] = corpus(source, model, number, length, seed, split=half, prefix=prefix)
    return found


def _about(model: Any) -> dict[str, Any]:
    verified(model)
    return {"model": str(model.cfg.model_name), "fingerprint": identity(model)}
