"""The header that every file of scores carries: dims, labels, attributes, as strict JSON."""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from interp.checking import checked, damaged
from interp.errors import UsageError

__all__ = ["FORMAT", "NUMBERS", "decode_array", "describe", "encode_array", "rebuild"]

FORMAT = "interp.scores/1"
NUMBERS = frozenset(
    ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
)
_SPARE = 256
"""How many times as many letters as its longest text a type of labels may have room for, and how many at least."""


def describe(scores: xr.DataArray) -> dict[str, Any]:
    """Everything about scores but their values, in JSON types.

    Raises:
        UsageError: a label or an attribute that JSON can't hold.
    """
    if not isinstance(scores, xr.DataArray):
        raise UsageError(f"expected an xarray DataArray of scores, got {type(scores).__name__}")
    if scores.dtype.name not in NUMBERS:
        raise UsageError(f"scores of dtype {scores.dtype} can't be saved; convert them with .astype('float32')")
    if scores.name is not None and not isinstance(scores.name, str):
        raise UsageError(f"the name of the scores must be a string, got {scores.name!r}")
    coords = {}
    for name, coord in scores.coords.items():
        coords[_text(name, "coordinate")] = {
            "dims": [_text(dim, "dimension") for dim in coord.dims],
            "indexed": name in scores.xindexes,
            **_encode_labels(str(name), coord),
        }
    return {
        "format": FORMAT,
        "name": scores.name,
        "dims": [_text(dim, "dimension") for dim in scores.dims],
        "shape": list(scores.shape),
        "dtype": scores.dtype.name,
        "coords": coords,
        "attrs": {_text(k, "attribute"): _encode(v, f"attribute {k!r}") for k, v in scores.attrs.items()},
    }


def rebuild(header: Any, values: np.ndarray, path: str | os.PathLike[str]) -> xr.DataArray:
    """Put the array together again.

    Raises:
        InterpError: a fault of the header, or values that it does not fit.
    """
    if checked(header, "shape", list[int], path) != list(values.shape):
        raise damaged(path, f"values of shape {tuple(values.shape)}, header says {tuple(header['shape'])}")
    dtype = checked(header, "dtype", str, path, among=NUMBERS)
    dims, name = checked(header, "dims", list[str], path), checked(header, "name", str | None, path)
    attrs = {key: _decode(value, path) for key, value in checked(header, "attrs", dict, path).items()}
    coords, bare = {}, []
    for label, entry in checked(header, "coords", dict[str, dict], path).items():
        along = checked(entry, "dims", list[str], path)
        coords[label] = (along, decode_array(entry, path))
        if along == [label] and not checked(entry, "indexed", bool, path):
            bare.append(label)
    try:
        result = xr.DataArray(values.astype(dtype, copy=False), coords, dims, name, attrs)
    except ValueError as error:  # labels that don't fit
        raise damaged(path, str(error)) from None
    return result.drop_indexes(bare) if bare else result


def encode_array(values: np.ndarray) -> Any:
    """Nested lists of an array; NaN becomes null and the infinities "inf" and "-inf", so the JSON is strict."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        boxed = values.astype(np.float64).astype(object)
        boxed[np.isnan(values)] = None
        boxed[np.isposinf(values)] = "inf"
        boxed[np.isneginf(values)] = "-inf"
        return boxed.tolist()
    return values.tolist()


def decode_array(record: Mapping[str, Any], path: str | os.PathLike[str]) -> np.ndarray:
    """The array of a record with `data` (what `encode_array` gave), `dtype` and `shape`.

    Raises:
        InterpError: another number of values than the shape needs, or values of another type.
    """
    dtype, shape = checked(record, "dtype", str, path), tuple(checked(record, "shape", list[int], path))
    held = np.array(record["data"], dtype=object) if "data" in record else np.array(None)
    if min(shape, default=0) < 0 or held.size != math.prod(shape):
        raise damaged(path, f"an array of shape {shape} has {held.size} values")
    letters = dtype[:1] == "U" and dtype[1:].isdecimal()
    longest = max((len(one) for one in held.reshape(-1) if isinstance(one, str)), default=0)
    if letters and int(dtype[1:]) > max(_SPARE, _SPARE * longest):
        raise damaged(path, f"texts of {longest} letters have the dtype {dtype!r}")
    if dtype != "object" and dtype not in NUMBERS and not letters:
        raise damaged(path, f"an array has the dtype {dtype!r}")
    boxed = np.empty(shape, dtype=object)
    boxed[...] = held.reshape(shape)
    if dtype.startswith("float"):
        missing = np.array([v is None for v in boxed.reshape(-1)], dtype=bool).reshape(boxed.shape)
        boxed[missing] = float("nan")
    try:
        return boxed if dtype == "object" else boxed.astype(dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise damaged(path, f"an array of dtype {dtype!r}: {error}") from None


def _encode_labels(name: str, coord: xr.DataArray) -> dict[str, Any]:
    values = coord.values
    if values.dtype.kind == "O" and all(isinstance(v, str) for v in values.reshape(-1)):
        dtype = "object"
    elif values.dtype.kind == "U":
        dtype = f"U{values.dtype.itemsize // 4}"
    elif values.dtype.name in NUMBERS:
        dtype = values.dtype.name
    else:
        raise UsageError(f"coordinate {name!r} of dtype {values.dtype} can't be saved; use numbers or strings")
    return {"dtype": dtype, "shape": list(values.shape), "data": encode_array(values)}


def _encode(value: Any, where: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"__float__": str(value)}
    if isinstance(value, Mapping):
        return {_text(k, f"key in {where}"): _encode(v, where) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return _encode(value.tolist(), where)
    if isinstance(value, list | tuple):
        return [_encode(v, where) for v in value]
    raise UsageError(
        f"{where} is a {type(value).__name__}, which a file can't hold; give text, numbers, lists or dicts"
    )


def _decode(value: Any, path: str | os.PathLike[str]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"__float__"}:
            return float(checked(value, "__float__", str, path, among=("nan", "inf", "-inf")))
        return {k: _decode(v, path) for k, v in value.items()}
    return [_decode(v, path) for v in value] if isinstance(value, list) else value


def _text(name: Hashable, what: str) -> str:
    if not isinstance(name, str):
        raise UsageError(f"{what} {name!r} must be a string to be saved")
    return name
