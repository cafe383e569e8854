"""Scores to and from files, chosen by the suffix."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from interp.checking import checked, damaged, parsed, read_json, read_tensors
from interp.errors import InterpError, UsageError, unknown_name
from interp.results import finding_files
from interp.results.confirming import confirm
from interp.results.files import replacing
from interp.results.findings import Finding
from interp.results.header import FORMAT, NUMBERS, decode_array, describe, encode_array, rebuild
from interp.results.tables import to_frame

__all__ = ["load_scores", "save", "to_json"]


def save(scores: xr.DataArray | Finding, path: str | os.PathLike[str]) -> Path:
    """Write scores with all their labels and attributes, or a finding; complete, or not at all.

    Args:
        scores: any labelled array of real numbers, or a finding, which goes into a folder or a `.json` file with the
            arrays beside it.
        path: the suffix chooses the format: `.safetensors` (also without a suffix), `.json`, `.nc` (netCDF 3), or
            `.csv`, a table for other programs that can't be loaded again. Missing folders are made.

    Returns:
        The path written, with its suffix.

    Raises:
        UsageError: unknown suffix, or labels and attributes that a file can't hold.
        InterpError: the file can't be written.
    """
    if isinstance(scores, Finding):
        return finding_files.save(scores, path)
    target = _with_suffix(path)
    if target.suffix not in _WRITERS:
        raise unknown_name("file format", target.suffix, _WRITERS)
    header = describe(scores)
    confirm(scores.attrs.get("fingerprint"))
    with replacing(target) as aside:
        _WRITERS[target.suffix](scores, header, aside)
    return target


def load_scores(path: str | os.PathLike[str]) -> xr.DataArray:
    """Read scores that `save` wrote: the same values, dtype, labels and attributes.

    Args:
        path: a `.safetensors`, `.json` or `.nc` file.

    Raises:
        UsageError: another suffix.
        InterpError: the file is missing, cut short or not scores.
    """
    target = Path(path)
    if target.suffix not in _READERS:
        raise unknown_name("file format", target.suffix, _READERS)
    if not target.is_file():
        raise InterpError(f"{target} {'is a folder' if target.is_dir() else 'does not exist'}")
    header, read = _READERS[target.suffix](target)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InterpError(f"{target} does not hold scores: it has no header of format {FORMAT!r}")
    return rebuild(header, read(header), target)


def to_json(scores: xr.DataArray, indent: int | None = None) -> str:
    """Scores as one strict JSON text, the same that `save` writes to a `.json` file."""
    document = {**describe(scores), "data": encode_array(scores.values)}
    return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=indent)


_Reader = Callable[[dict[str, Any]], np.ndarray]


def _write_safetensors(scores: xr.DataArray, header: dict[str, Any], path: Path) -> None:
    from safetensors.numpy import save_file

    values = np.array(scores.values, order="C", copy=True)
    save_file({"values": values}, str(path), metadata={"interp": json.dumps(header)})


def _read_safetensors(path: Path) -> tuple[Any, _Reader]:
    held, about = read_tensors(path, "np")
    return parsed(about.get("interp", "null"), path), lambda _: held.get("values", np.empty(0))


def _write_json(scores: xr.DataArray, header: dict[str, Any], path: Path) -> None:
    path.write_text(to_json(scores) + "\n", encoding="utf-8", newline="\n")


def _read_json(path: Path) -> tuple[Any, _Reader]:
    document = read_json(path)
    return document, lambda header: decode_array(header, path)


def _write_netcdf(scores: xr.DataArray, header: dict[str, Any], path: Path) -> None:
    """The values and labels as other programs read them, and the exact header as one attribute.

    netCDF 3 has no 64-bit integers, no half floats and no booleans: those values are stored as doubles.
    """
    values = scores.values
    stored = values if values.dtype.name in ("float32", "float64") else values.astype(np.float64)
    if values.dtype.kind in "iu" and not np.array_equal(stored.astype(values.dtype), values):
        raise UsageError("integers beyond 2**53 don't fit into netCDF; save as .safetensors or .json")
    coords = {
        name: (coord.dims, coord.values.astype(_plain(coord.values)))
        for name, coord in scores.coords.items()
        if coord.size and name not in ("scores", "interp")
    }
    attrs = {
        k: v for k, v in scores.attrs.items() if k in ("units", "metric", "task", "model") and isinstance(v, str) and v
    }
    variable = xr.Variable(scores.dims, stored, attrs, encoding={"_FillValue": None})
    file = xr.Dataset({"scores": variable}, coords, {"interp": json.dumps(header)})
    file.to_netcdf(path, engine="scipy", format="NETCDF3_64BIT")


def _plain(labels: np.ndarray) -> Any:
    if labels.dtype.kind in "OU":
        return object
    if labels.dtype.kind in "iu" and abs(labels.min()) < 2**31 and labels.max() < 2**31:
        return np.int32
    return np.float32 if labels.dtype == np.float32 else np.float64


def _read_netcdf(path: Path) -> tuple[Any, _Reader]:
    try:
        with xr.open_dataset(path, engine="scipy", decode_cf=False, mask_and_scale=False) as file:
            about = str(file.attrs.get("interp", "null"))
            values = file["scores"].values.copy() if "scores" in file else np.empty(0)
    except Exception as error:  # a damaged file can make the library fail in any way
        raise damaged(path, str(error).removeprefix("Error: ").partition("\n")[0]) from error
    return parsed(about, path), lambda h: values.astype(checked(h, "dtype", str, path, among=NUMBERS))


def _write_csv(scores: xr.DataArray, header: dict[str, Any], path: Path) -> None:
    to_frame(scores).to_csv(path, index=False, lineterminator="\n")


def _with_suffix(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    return target if target.suffix else target.with_name(target.name + ".safetensors")


_WRITERS = {".safetensors": _write_safetensors, ".json": _write_json, ".nc": _write_netcdf, ".csv": _write_csv}
_READERS = {".safetensors": _read_safetensors, ".json": _read_json, ".nc": _read_netcdf}
