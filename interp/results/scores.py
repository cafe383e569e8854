"""Scores: a labelled array whose attributes say where the numbers come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from interp.errors import InterpError, UsageError, unknown_name

__all__ = ["DIMS", "attribute", "cell_name", "no_effect", "normalised", "scores"]

DIMS = (
    "layer", "head", "kv_head", "neuron", "expert", "channel", "component", "position", "query", "key", "metric",
    "node", "example", "kind", "domain", "method", "length", "depth", "step", "k", "writer", "reader",
)  # fmt: skip
"""The dimensions that scores may have."""

_NAMED = ("metric", "node", "kind", "domain", "method", "writer", "reader")


def scores(
    values: Any,
    dims: Sequence[str],
    coords: Mapping[str, Any] | None = None,
    *,
    name: str = "effect",
    allow_nan: bool = False,
    **attrs: Any,
) -> xr.DataArray:
    """Make a labelled array of scores, checked.

    Args:
        values: array or tensor with one axis for each of `dims`.
        dims: names out of `DIMS`, no name twice.
        coords: for each dimension its labels; further labels along a dimension as
            `name: (dim, labels)`, for instance `token=("position", ["0: When", "1: Mary"])`.
            A dimension of numbers that is left out counts from 0.
        name: what a value is, "effect" by default.
        allow_nan: let NaN stand for a cell that was not measured. Infinities are refused all the same.
        **attrs: provenance: `units`, `metric`, `higher_is_clean`, `mode`, `clean`, `corrupted`, `task`, `model`, ...

    Returns:
        The array, with dims in the order given.

    Raises:
        UsageError: unknown or repeated dimension, or labels that don't fit the values.
        InterpError: a value is NaN or infinite; the message names the first such cell.
    """
    array = _as_numpy(values)
    dims = tuple(dims)
    for dim in dims:
        if dim not in DIMS:
            raise unknown_name("dimension", dim, DIMS)
        if dims.count(dim) > 1:
            raise UsageError(f"dimension {dim!r} is given twice in {dims}")
    if array.ndim != len(dims):
        raise UsageError(f"values of shape {array.shape} need {array.ndim} dimension names, got {dims}")
    labels = dict(coords or {})
    for dim, size in zip(dims, array.shape, strict=True):
        if dim in labels:
            continue
        if dim in _NAMED:
            raise UsageError(f"dimension {dim!r} needs its {size} names in coords")
        labels[dim] = np.arange(size)
    try:
        result = xr.DataArray(array, dims=dims, coords=labels, name=name, attrs=attrs)
    except ValueError as error:
        raise UsageError(f"labels that don't fit values of dims {dims} and shape {array.shape}: {error}") from error
    if array.dtype.kind == "f":
        bad = np.isinf(array) if allow_nan else ~np.isfinite(array)
        if bad.any():
            first = tuple(int(i) for i in np.argwhere(bad)[0])
            raise InterpError(
                f"{name} is {array[first]} at {cell_name(result, first)} ({int(bad.sum())} of {bad.size} cells "
                "are not finite); look for overflow in the model's logits, or pass allow_nan=True for masked cells"
            )
    return result


def normalised(scores: xr.DataArray) -> xr.DataArray:
    """Put raw effects on the scale where 0 is the corrupted baseline and 1 the clean one.

    With effect = patched - baseline, both modes give (patched - corrupted) / (clean - corrupted): denoising starts
    from corrupted, so effect / gap; noising starts from clean, so 1 + effect / gap.

    Args:
        scores: raw effects with attributes `mode`, `clean` and `corrupted` (numbers, or one for each metric).

    Returns:
        Unitless scores of the same dims and dtype, marked `normalised=True`.

    Raises:
        UsageError: an attribute is missing, the scores are normalised already, or clean and corrupted are equal.

    Reference: Zhang and Nanda 2024, "Towards Best Practices of Activation Patching", section 2.
    """
    if scores.attrs.get("normalised"):
        raise UsageError("these scores are normalised already; take the raw effects")
    mode = attribute(scores, "mode")
    if mode is None:
        raise UsageError("can't normalise scores without the attribute 'mode' (denoising or noising)")
    if mode not in ("denoising", "noising"):
        raise unknown_name("mode", str(mode), ("denoising", "noising"))
    clean, corrupted = _baseline(scores, "clean"), _baseline(scores, "corrupted")
    gap = clean - corrupted
    size = np.maximum(1.0, np.maximum(np.abs(clean), np.abs(corrupted)))
    if bool((np.abs(gap) < 1e-6 * size).any()):
        task, metric = scores.attrs.get("task", "the task"), scores.attrs.get("metric", "metric")
        raise UsageError(
            f"can't normalise: {task}'s clean and corrupted prompts have the same {metric} "
            f"({_numbers(clean)} and {_numbers(corrupted)}); choose another metric, or corrupt what the metric reads"
        )
    values = scores / gap + (1.0 if mode == "noising" else 0.0)
    values = values.transpose(*scores.dims).astype(scores.dtype if scores.dtype.kind == "f" else float)
    values.name = scores.name
    values.attrs = {
        **scores.attrs,
        "normalised": True,
        "raw_units": scores.attrs.get("units"),
        "units": "fraction of clean - corrupted",
    }
    return values


def no_effect(scores: xr.DataArray) -> float:
    """The value that a node without any effect has: 1 for normalised noising scores, 0 for all others."""
    return 1.0 if scores.attrs.get("normalised") and attribute(scores, "mode") == "noising" else 0.0


def attribute(scores: xr.DataArray, key: str) -> Any:
    """An attribute of scores; where it is given for each metric or kind, the one of the selected metric or kind."""
    value = scores.attrs.get(key)
    if isinstance(value, Mapping):
        for dim in ("metric", "kind"):
            if dim in scores.coords and scores[dim].ndim == 0 and str(scores[dim].item()) in value:
                return value[str(scores[dim].item())]
        return None
    return value


def cell_name(scores: xr.DataArray, index: Sequence[int]) -> str:
    """Say a cell in words: "layer 3, head 2, position 4 (4: went)"."""
    words = []
    for dim, at in zip(scores.dims, index, strict=True):
        label = f"{dim} {scores[dim].values[at]}"
        extra = [str(c.values[at]) for n, c in scores.coords.items() if c.dims == (dim,) and n != dim]
        words.append(label + (f" ({', '.join(extra)})" if extra else ""))
    return ", ".join(words) or "the only cell"


def _baseline(scores: xr.DataArray, key: str) -> xr.DataArray:
    value = attribute(scores, key)
    given = scores.attrs.get(key)
    if value is None and isinstance(given, Mapping) and "metric" in scores.dims:
        names = [str(m) for m in scores["metric"].values]
        if set(names) <= set(given):
            return xr.DataArray([float(given[m]) for m in names], dims="metric", coords={"metric": names})
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not np.isfinite(value):
        raise UsageError(
            f"can't normalise scores whose attribute {key!r} is {given!r}; it must hold the {key} baseline"
        )
    return xr.DataArray(float(value))


def _numbers(values: xr.DataArray) -> str:
    return " / ".join(f"{v:.5g}" for v in np.atleast_1d(values.values))


def _as_numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":
            values = values.float()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise UsageError(f"scores must be real numbers, got values of dtype {array.dtype}")
    return array
