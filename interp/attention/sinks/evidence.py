"""What a census says about sinks: which heads have one at the first position, and which tokens become one."""

from __future__ import annotations

from typing import Any

import torch
import xarray as xr
from torch import Tensor

from interp.attention.sinks.census import Census
from interp.results import scores
from interp.results.findings import SinkHeads, SinkPositions
from interp.tasks.tokens import Encoder

__all__ = ["heads_finding", "positions_finding"]

_SHARE = 0.1
"""A position is a sink of a text if this share of all heads has a sink there."""
_TEXTS = 0.5
"""A position is a sink of a model if it is one of this share of the texts: not of all, since without BOS any token may
stand there, and some (as the # that code begins with) leave the sink to the next one."""
_SEEN = 16
"""Keys that fewer queries see are not judged: one query's glance would make a mean."""


def heads_finding(
    about: dict[str, Any], by_domain: dict[str, Census], threshold: float, top: int, settings: dict
) -> SinkHeads:
    """Sink heads of a census of each kind of text; what is in it: `interp.attention.sink_heads`.

    Args:
        about: the model's name and fingerprint.
        by_domain: a census of every kind of text.
        threshold: the importance above which a key is a sink of a head.
        top: how many of a head's most important keys count.
        settings: how the texts were chosen.
    """
    rate, attention, error, among = [], [], [], []
    for found in by_domain.values():
        rate.append(found.sinks(threshold)[..., 0].float().mean(1))
        first = found.from_others[..., 0]
        attention.append(first.mean(1))
        error.append(
            first.std(1) / len(found.tokens) ** 0.5 if len(found.tokens) > 1 else torch.zeros_like(first[:, 0])
        )
        judged = found.importance[..., : max(1, found.tokens.shape[1] - _SEEN + 1)]
        among.append(((judged > judged[..., :1]).sum(-1) < top).float().mean(1))
    labels = {"domain": list(by_domain)}
    evidence = {}
    for name, each, units in (
        ("domains", rate, "share of texts"),
        ("domain_attention", attention, "share of attention"),
        ("domain_error", error, "share of attention"),
        ("domain_top", among, "share of texts"),
    ):
        shown = {"name": "sink at the first position", "units": units, **about}
        evidence[name] = scores(torch.stack(each), ("domain", "layer", "head"), labels, **shown)
    for name, source in (("scores", "domains"), ("attention", "domain_attention"), ("top", "domain_top")):
        shown = {"name": "sink at the first position", "units": evidence[source].attrs["units"], **about}
        evidence[name] = scores(evidence[source].values.mean(0), ("layer", "head"), **shown)
    return SinkHeads(
        **about,
        evidence=evidence,
        settings=settings,
        n_kv_heads=next(iter(by_domain.values())).value_norm.shape[2],
        threshold=threshold,
    )


def positions_finding(
    about: dict[str, Any], encoder: Encoder, found: Census, threshold: float, settings: dict
) -> SinkPositions:
    """Sink positions of a census; what is in it: `interp.attention.sink_positions`.

    Args:
        about: the model's name and fingerprint.
        encoder: says the tokens in words.
        found: a census of all texts.
        threshold: the importance above which a key is a sink of a head.
        settings: how the texts were chosen.
    """
    judged = found.seen_by >= min(_SEEN, found.tokens.shape[1])
    is_sink = (found.sinks(threshold).float().mean((0, 2)) >= _SHARE) & judged
    positions = (is_sink.float().mean(0) >= _TEXTS).nonzero()[:, 0].tolist()
    tokens, evidence = _later(encoder, found, is_sink, judged, positions)
    value, resid = (_first_over_others(x) for x in (found.value_norm, found.resid_norm))
    attention = scores(
        found.importance.mean((1, 2)),
        ("layer", "position"),
        name="attention that a position gets",
        units="share of attention",
        **about,
    )
    return SinkPositions(
        **about,
        positions=positions,
        tokens=tokens,
        threshold=threshold,
        evidence={
            "attention": attention,
            "rate": scores(is_sink.float().mean(0), ("position",), name="sink rate", units="share of texts"),
            "value_ratio": scores(value, ("layer", "kv_head"), name="value norm, first / median of others"),
            "resid_ratio": scores(resid, ("layer",), name="residual norm, first / median of others"),
            **evidence,
        },
        settings={**settings, "share_of_heads": _SHARE, "share_of_texts": _TEXTS, "seen_by_at_least": _SEEN},
    )


def _first_over_others(norms: Tensor) -> Tensor:
    """Norm at the first position over the median of the others, mean over the texts (axis 1)."""
    return (norms[..., 0] / norms[..., 1:].median(-1).values.clamp(min=1e-30)).mean(1)


def _later(
    encoder: Encoder, found: Census, is_sink: Tensor, judged: Tensor, positions: list[int]
) -> tuple[list[int], dict[str, xr.DataArray]]:
    """Tokens that become sinks further on, and the evidence about every token that ever did."""
    tokens, length = found.tokens, found.tokens.shape[1]
    judged = judged.repeat(len(tokens), 1)
    judged[:, positions] = False
    candidates = tokens[is_sink & judged].unique()
    rows = []
    for token in candidates.tolist():
        here = (tokens == token) & judged
        first = here & (here.cumsum(1) == 1) & ~(tokens[:, positions] == token).any(1, keepdim=True)
        again = here & ~first
        rate = [float(is_sink[place].float().mean()) if place.any() else torch.nan for place in (first, again)]
        attention = (
            found.importance.mean(2)[:, first].mean(1) if first.any() else torch.full((len(found.size),), torch.nan)
        )
        rows.append((token, int(first.sum()), *rate, attention))
    rows.sort(key=lambda row: (-(row[2] * row[1] if row[1] else 0.0), row[0]))
    ids = [row[0] for row in rows]
    words = list(encoder.decode(tuple(ids)))
    labels = {
        "token": ("k", ids),
        "word": ("k", words),
        "texts": ("k", [row[1] for row in rows]),
    }
    if not rows:
        return [], {}
    options: dict[str, Any] = {"allow_nan": True, "length": length}
    evidence = {
        "token_rate": scores([row[2] for row in rows], ("k",), labels, name="sink rate", **options),
        "token_rate_again": scores([row[3] for row in rows], ("k",), labels, name="sink rate", **options),
        "token_attention": scores(
            torch.stack([row[4] for row in rows], 1), ("layer", "k"), labels, name="importance", **options
        ),
    }
    return [row[0] for row in rows if row[2] >= 0.5 and row[1] * row[2] >= 2], evidence
