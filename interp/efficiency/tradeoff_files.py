"""Trade-offs to and from a folder: one table for people, one JSON with all that was measured, and a picture."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.checking import damaged, read_json
from interp.efficiency.plan import Plan
from interp.efficiency.tradeoff import Row, Tradeoff
from interp.errors import InterpError
from interp.results.files import write_text
from interp.results.folders import settle, together

__all__ = ["ABOUT", "FORMAT", "load", "save"]

FORMAT, ABOUT = "interp.tradeoff/1", "tradeoff.json"


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
    try:
        plans = {name: Plan.from_dict(plan) for name, plan in record["plans"].items()}
        known = [item.name for item in fields(Row) if item.name not in ("name", "plan")]
        rows = [
            Row(row["row"], plan=plans.get(row["row"]), **{name: row[name] for name in known}) for row in record["rows"]
        ]
        values = pd.DataFrame(record["values"]).astype({"repetition": int, "value": float})
        return Tradeoff(tuple(rows), values, dict(record["better"]), dict(record["about"]))
    except InterpError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(file, f"{type(error).__name__}: {error}") from None


def _plain(value: Any) -> Any:
    """JSON's types for numpy's numbers and tuples, and null for what is no finite number."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
