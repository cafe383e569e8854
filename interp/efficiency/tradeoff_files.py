"""Trade-offs to and from a folder: one table for people, one JSON with all that was measured, and a picture."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from interp.checking import checked, damaged, read_json
from interp.efficiency.method import CONTROLS
from interp.efficiency.plan import Plan
from interp.efficiency.tradeoff import Row, Tradeoff
from interp.errors import InterpError
from interp.results.files import write_text
from interp.results.folders import settle, together

__all__ = ["ABOUT", "FORMAT", "load", "save"]

FORMAT, ABOUT = "interp.tradeoff/1", "tradeoff.json"
_KINDS = ("dense", "plan", *CONTROLS)
_VALUE: dict[str, Any] = {"row": str, "group": str, "quantity": str, "repetition": int, "value": float | None}
_MOST = 10**6
"""Repetitions."""


def save(found: Tradeoff, directory: str | os.PathLike[str], quality: str | None, cost: str) -> None:
    """Writes ``tradeoff.json``, ``tradeoff.csv``, ``tradeoff.html`` and ``tradeoff.png``, all of them or none.

    Raises:
        UsageError: A quality or a cost that was not measured.
        InterpError: The files can't be written.
    """
    from interp.plots import save as save_picture

    frame = found.to_frame()
    record = {
        "format": FORMAT,
        "rows": frame.reset_index().to_dict("records"),
        "plans": {row.name: row.plan.to_dict() for row in found.rows if row.plan is not None},
        "values": found.values.to_dict("records"),
        "better": dict(found.better),
        "about": dict(found.about),
    }
    picture = found.picture(quality or next(name for name in frame.columns if name in found.better), cost)
    with together(directory) as aside:
        write_text(aside / ABOUT, json.dumps(_plain(record), allow_nan=False, indent=1) + "\n")
        write_text(aside / "tradeoff.csv", frame.to_csv())
        for suffix in ("html", "png"):
            save_picture(picture, aside / f"tradeoff.{suffix}")


def load(path: str | os.PathLike[str]) -> Tradeoff:
    """Reads a trade-off that `save` wrote, with its plans.

    Args:
        path: The folder, or its ``tradeoff.json``.

    Raises:
        InterpError: No trade-off there, one of another version, or a damaged one.
    """
    file = Path(path) if Path(path).suffix == ".json" else Path(path) / ABOUT
    settle(file.parent)
    record = read_json(file)
    if record.get("format") != FORMAT:
        raise InterpError(f"{file} is no trade-off of the format {FORMAT!r}; measure it again")
    plans = checked(record, "plans", dict[str, dict], file)
    rows = [_row(entry, plans, file) for entry in checked(record, "rows", list[dict], file)]
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise damaged(file, f"the row {next(name for name in names if names.count(name) > 1)!r} is there twice")
    for row in rows:
        checked(vars(row), "of", str, file, among=names)
    if lost := sorted(set(plans) - set(names)):
        raise damaged(file, f"it has a plan of {lost[0]!r}, which is no row")
    better = checked(record, "better", dict[str, Literal["higher", "lower"]], file)
    values = [_value(entry, names, file) for entry in checked(record, "values", list[dict], file)]
    if not values:
        raise damaged(file, "it has no values")
    about = checked(record, "about", dict, file)
    for name in ("model", "fingerprint"):
        checked(about, name, str, file)
    return Tradeoff(tuple(rows), pd.DataFrame(values, columns=list(_VALUE)).astype({"value": float}), better, about)


def _row(entry: dict[str, Any], plans: dict[str, dict], file: Path) -> Row:
    """A row, with its plan if it has one, which its budget must be of."""
    name = checked(entry, "row", str, file)
    kind, control = checked(entry, "kind", str, file, among=_KINDS), checked(entry, "control", str, file)
    if (name in plans) != (kind != "dense"):
        raise damaged(file, f"the row {name!r} is of the kind {kind!r} and has {'a' if name in plans else 'no'} plan")
    plan = Plan.from_dict(plans[name], file) if name in plans else None
    row = Row(name, kind, checked(entry, "of", str, file), plan, control)
    checked(entry, "budget", float, file, among=[1.0 if plan is None else plan.budget])
    checked(entry, "simulated", bool, file, among=[not row.real])
    return row


def _value(entry: dict[str, Any], names: list[str], file: Path) -> list[Any]:
    """A line of the table of what was measured; null is what was not, as the seconds of a simulated plan."""
    checked(entry, "row", str, file, among=names)
    checked(entry, "group", str, file, among=("quality", "cost"))
    checked(entry, "repetition", int, file, least=0, most=_MOST)
    value = checked(entry, "value", float | None, file)
    if value is not None and not math.isfinite(value):
        raise damaged(file, f"value is {value}, a finite number or null is needed")
    if entry["group"] == "cost" and value is not None and value < 0:
        raise damaged(file, f"a cost is {value:g}, a number from 0 is needed")
    return [checked(entry, name, hint, file) for name, hint in _VALUE.items()]


def _plain(value: Any) -> Any:
    """JSON's types for numpy's numbers and tuples, and null for what is no finite number."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
