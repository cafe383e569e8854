"""From scores to panels: which dimension goes where, and the words around them.

Everything is read like a matrix: layers and queries run down the y axis from 0 at the top, heads, positions and keys
along the x axis (as in Wang et al. 2023, "Interpretability in the Wild", and TransformerLens's notebooks).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from interp.errors import UsageError, unknown_name
from interp.plots import style
from interp.plots.scale import Scale, choose_scale, units_of
from interp.results.scores import no_effect, normalised

__all__ = ["Axis", "Panel", "make_panels"]

_WITHIN_LAYER = ("head", "kv_head", "neuron", "expert")
_DOWN = ("query", "layer", "node", "example", *_WITHIN_LAYER, "kind", "metric", "position", "key")
_FACET = ("metric", "kind", "domain", "head", "kv_head", "example", "node", "layer", "neuron", "expert", "position")
_MOST_FACETS = 40


@dataclass(frozen=True)
class Axis:
    """One side of a panel: its name, a short label for each row or column, and the words for the hover text."""

    dim: str
    name: str
    labels: tuple[str, ...]
    hover: tuple[str, ...]
    is_text: bool


@dataclass(frozen=True)
class Panel:
    """One matrix of a figure; `down` is None for a single row of values."""

    title: str
    values: np.ndarray
    normal: np.ndarray | None
    down: Axis | None
    across: Axis
    scale: Scale
    units: str


def make_panels(
    scores: xr.DataArray,
    facet: str | None = None,
    zmax: float | None = None,
    colours: str | None = None,
    rows: int = 30,
) -> tuple[list[Panel], bool, str]:
    """Lay scores of one to four dimensions out as panels.

    Args:
        scores: any labelled array of real numbers.
        facet: the dimension that gets a panel for each label. By default metrics, then kinds; three-dimensional
            scores of heads (or neurons) by position become one row for each of the strongest heads instead.
        zmax: see `choose_scale`.
        colours: see `choose_scale`.
        rows: how many heads or neurons such a panel shows.

    Returns:
        The panels, whether they share one colour scale, and a note on what was left out ("" if nothing).

    Raises:
        UsageError: not scores, no cells, or more dimensions than a picture can show.
    """
    scores = _checked(scores)
    facet = _choose_facet(scores, facet)
    parts = [scores] if facet is None else [scores.isel({facet: i}) for i in range(scores.sizes[facet])]
    note = ""
    within = _within(parts[0]) if parts[0].ndim == 3 else None
    if within is not None:
        parts, note = _strongest_rows(parts, within, rows)
    if parts[0].ndim > 2:
        raise UsageError(
            f"a heatmap can't show the dims {scores.dims} at once; select one, such as scores.sel({scores.dims[0]}=...)"
            + (f", or facet={scores.dims[0]!r}" if scores.ndim == 3 and facet is None else "")
        )
    shared = not (facet == "metric" or (facet == "kind" and len({units_of(part) for part in parts}) > 1))
    common = choose_scale(parts[0], zmax, colours, limits=scores.values) if shared else None
    panels = []
    for part in parts:
        down, across = _orient(part)
        matrix = part.transpose(*down, across) if down else part.expand_dims("_one")
        panels.append(
            Panel(
                title="" if facet is None else _panel_title(part, facet),
                values=matrix.values.astype(float),
                normal=_normal(matrix),
                down=_axis(part, down[0]) if down else None,
                across=_axis(part, across),
                scale=common or choose_scale(part, zmax, colours),
                units=units_of(part),
            )
        )
    return panels, shared, note


def _checked(scores: xr.DataArray) -> xr.DataArray:
    if not isinstance(scores, xr.DataArray):
        raise UsageError(f"a heatmap needs an xarray DataArray of scores, got {type(scores).__name__}")
    if scores.dtype.kind not in "biuf":
        raise UsageError(f"a heatmap needs real numbers, got values of dtype {scores.dtype}")
    for dim in ("metric", "kind", "example"):
        if scores.sizes.get(dim) == 1:
            scores = scores.isel({dim: 0})
    if scores.ndim == 0 or scores.size == 0:
        raise UsageError(f"a heatmap needs at least one dimension with cells, got sizes {dict(scores.sizes)}")
    if scores.ndim > 4:
        raise UsageError(
            f"a heatmap shows at most 4 dimensions, got {scores.ndim}: {scores.dims}; "
            f"select some, such as scores.sel({scores.dims[0]}=...)"
        )
    return scores


def _choose_facet(scores: xr.DataArray, facet: str | None) -> str | None:
    dims = [str(dim) for dim in scores.dims]
    if facet is not None and facet not in dims:
        raise unknown_name("dimension to facet", facet, dims)
    if facet is not None and len(dims) == 1:
        raise UsageError(f"scores of the one dimension {facet!r} leave nothing to draw in its facets; drop facet=")
    if facet is None:
        if "metric" in dims and len(dims) > 1:
            facet = "metric"
        elif len(dims) >= 3 and ("kind" in dims or "domain" in dims):
            facet = "kind" if "kind" in dims else "domain"
        elif len(dims) == 3 and _within(scores) is None:
            facet = next((dim for dim in _FACET if dim in dims), dims[0])
    if facet is not None and scores.sizes[facet] > _MOST_FACETS:
        raise UsageError(
            f"{scores.sizes[facet]} panels, one for each {facet}, are too many (at most {_MOST_FACETS}); "
            f"choose some, such as scores.isel({facet}=slice(0, 12))"
        )
    return facet


def _within(scores: xr.DataArray) -> str | None:
    """The dimension that numbers the nodes within a layer, where layer and it can be one row each."""
    if scores.ndim != 3 or "layer" not in scores.dims:
        return None
    return next((dim for dim in _WITHIN_LAYER if dim in scores.dims), None)


def _strongest_rows(parts: list[xr.DataArray], within: str, rows: int) -> tuple[list[xr.DataArray], str]:
    if rows < 1:
        raise UsageError(f"rows must be at least 1, got {rows}")
    other = next(str(dim) for dim in parts[0].dims if dim not in ("layer", within))
    flat, strength = [], np.zeros(parts[0].sizes["layer"] * parts[0].sizes[within])
    for part in parts:
        cube = part.transpose("layer", within, other)
        matrix = cube.values.reshape(-1, cube.shape[2])
        reach = np.abs(np.nan_to_num(matrix - no_effect(part))).max(axis=1)
        strength = np.maximum(strength, reach / (reach.max() or 1.0))
        layers, nodes = np.meshgrid(cube["layer"].values, cube[within].values, indexing="ij")
        extra = {n: c for n, c in cube.coords.items() if c.dims in ((other,), ())}
        coords = {**extra, "_layer": ("node", layers.reshape(-1)), "_within": ("node", nodes.reshape(-1))}
        flat.append(xr.DataArray(matrix, dims=("node", other), coords=coords, name=part.name, attrs=part.attrs))
    keep = np.sort(np.argsort(-strength, kind="stable")[:rows])
    noun = {"head": "heads", "kv_head": "key-value heads", "neuron": "neurons", "expert": "experts"}[within]
    note = (
        f"{len(keep)} of {len(strength)} {noun}: those with the largest |effect|" if len(keep) < len(strength) else ""
    )
    named = [part.isel(node=keep).assign_attrs(_rows=f"layer.{within}") for part in flat]
    return named, note


def _orient(part: xr.DataArray) -> tuple[list[str], str]:
    dims = sorted((str(dim) for dim in part.dims), key=lambda d: (_DOWN.index(d) if d in _DOWN else -1, d))
    return dims[:-1], dims[-1]


def _panel_title(part: xr.DataArray, facet: str) -> str:
    label = style.literal(part[facet].item())
    if facet in ("metric", "kind", "domain", "node"):
        return label
    words = [
        style.literal(c.item()) for n, c in part.coords.items() if c.ndim == 0 and c.dtype.kind in "UO" and n == "token"
    ]
    return words[0] if facet == "position" and words else f"{_name(facet)} {label}"


def _axis(part: xr.DataArray, dim: str) -> Axis:
    if "_rows" in part.attrs and dim == "node":
        pairs = list(zip(part["_layer"].values, part["_within"].values, strict=True))
        within = _name(part.attrs["_rows"].split(".")[1])
        return Axis(
            dim=dim,
            name=f"layer.{within}",
            labels=tuple(f"{a}.{b}" for a, b in pairs),
            hover=tuple(f"layer {a}, {within} {b}" for a, b in pairs),
            is_text=False,
        )
    ids = [style.literal(v) for v in part[dim].values]
    words = next(
        (c.values for n, c in part.coords.items() if c.dims == (dim,) and n != dim and c.dtype.kind in "UOT"), None
    )
    if words is None:
        is_text = part[dim].dtype.kind in "UOT"
        hover = tuple(ids) if is_text else tuple(f"{_name(dim)} {i}" for i in ids)
        return Axis(dim, "" if is_text else _name(dim), tuple(map(style.shorten, ids)), hover, is_text)
    full = [style.literal(w) for w in words]
    name = {"query": "query (from)", "key": "key (to)"}.get(dim, "")
    hover = tuple(f"{_name(dim)} {word}" for word in full)
    return Axis(dim, name, tuple(map(style.shorten, full)), hover, True)


def _name(dim: str) -> str:
    return {"kv_head": "key-value head"}.get(dim, dim)


def _normal(part: xr.DataArray) -> np.ndarray | None:
    try:
        return normalised(part).values.astype(float)
    except UsageError:
        return None
