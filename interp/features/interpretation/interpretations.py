"""Explanations of features with their scores and controls, as a value that can be saved."""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.checking import arguments, checked, damaged, read_json
from interp.errors import InterpError, UsageError
from interp.results.files import write_text

__all__ = ["Interpretation", "Interpretations"]

FORMAT = "interp.explanations/1"


@dataclass(frozen=True)
class Interpretation:
    """What one feature is said to be about, and how well that predicts it.

    Args:
        feature: Its number.
        explanation: What was said; empty if there were too few contexts.
        density: The share of the tokens on which it is active.
        scores: By name; NaN where one can't be had.
        shuffled: The same scores of another feature's explanation, on this feature's contexts.
        other: Which feature that explanation is of.
        random: A random dictionary's feature of about the same density, explained and scored in the same way:
            ``feature``, ``explanation``, ``scores``.
        note: Why there are no scores, if so.
    """

    feature: int
    explanation: str
    density: float
    scores: Mapping[str, float] = field(default_factory=dict)
    shuffled: Mapping[str, float] = field(default_factory=dict)
    other: int | None = None
    random: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def to_frame(self) -> pd.DataFrame:
        """One row a score: ``score``, ``shuffled`` and ``random``."""
        control = self.random.get("scores", {})
        columns = {"score": self.scores, "shuffled": self.shuffled, "random": control}
        return pd.DataFrame(
            {name: [values.get(score, math.nan) for score in self.scores] for name, values in columns.items()},
            index=pd.Index(list(self.scores), name="scorer"),
            dtype=float,
        )


@dataclass(frozen=True, eq=False, repr=False)
class Interpretations:
    """What `interp.features.interpretation.interpret.interpret` found.

    Args:
        rows: One for each feature.
        about: Model, places, corpus and settings, of JSON's types; ``chance`` has what each score is for an
            explanation that says nothing.
    """

    rows: Sequence[Interpretation]
    about: Mapping[str, Any]

    def __getitem__(self, feature: int) -> Interpretation:
        if int(feature) not in self._by_feature:
            raise UsageError(f"feature {feature} was not explained; there are {', '.join(map(str, self.features))}")
        return self._by_feature[int(feature)]

    def __contains__(self, feature: object) -> bool:
        return feature in self._by_feature

    @property
    def features(self) -> list[int]:
        """Which features were explained."""
        return [row.feature for row in self.rows]

    def to_frame(self) -> pd.DataFrame:
        """One row a feature: ``explanation``, ``density``, each score, and its controls as ``score.shuffled`` and
        ``score.random``."""
        table = []
        for row in self.rows:
            scores = row.to_frame()
            cells: dict[str, Any] = {"explanation": row.explanation, "density": row.density}
            for name in self.about["chance"]:
                for column, suffix in (("score", ""), ("shuffled", ".shuffled"), ("random", ".random")):
                    cells[name + suffix] = float(scores.loc[name, column]) if name in scores.index else math.nan
            table.append(cells)
        return pd.DataFrame(table, index=pd.Index(self.features, name="feature"))

    def means(self) -> pd.DataFrame:
        """One row a score: its mean over features, that of both controls, what chance is, and the standard error of
        the mean difference from each control."""
        frame, table = self.to_frame(), {}
        for name, chance in self.about["chance"].items():
            found, shuffled, random = (frame[name + suffix] for suffix in ("", ".shuffled", ".random"))
            table[name] = {
                "score": found.mean(),
                "shuffled": shuffled.mean(),
                "random": random.mean(),
                "chance": chance,
                "se_shuffled": _standard_error(found - shuffled),
                "se_random": _standard_error(found - random),
                "features": int(found.notna().sum()),
            }
        return pd.DataFrame.from_dict(table, orient="index").rename_axis("scorer")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes JSON, complete or not at all.

        Raises:
            InterpError: The file can't be written.
        """
        said = {"format": FORMAT, "about": dict(self.about), "features": [asdict(row) for row in self.rows]}
        return write_text(path, json.dumps(_finite(said), ensure_ascii=False, indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Interpretations:
        """Reads what `save` wrote.

        Raises:
            InterpError: No such file, of another version, or damaged.
        """
        if not Path(path).is_file():
            raise InterpError(f"there are no explanations at {os.fspath(path)}")
        said = read_json(path)
        if said.get("format") != FORMAT:
            raise InterpError(f"{path} is of the format {said.get('format')!r}, this version reads {FORMAT!r}")
        about = checked(said, "about", dict, path)
        for name in ("reads", "model"):
            checked(about, name, str, path)
        checked(about, "chance", dict[str, float], path)
        rows = tuple(_row(entry, path) for entry in checked(said, "features", list[dict], path))
        if len({row.feature for row in rows}) < len(rows):
            raise damaged(path, "it explains a feature twice")
        return cls(rows, about)

    def summary(self) -> str:
        """What was found, in a sentence or two."""
        means, first = self.means(), next(iter(self.about["chance"]), None)
        said = f"{len(self.rows)} features at {self.about['reads']} of {self.about['model']} explained"
        if first is None or not means.loc[first, "features"]:
            return said
        row = means.loc[first]
        return (
            f"{said}; mean {first} {row['score']:.3f} over {int(row['features'])} of them, with another feature's "
            f"explanation {row['shuffled']:.3f}, of random features {row['random']:.3f}, by chance {row['chance']:g}"
        )

    def __repr__(self) -> str:
        return f"Interpretations({self.summary()})"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.summary())}</p>{self.means().to_html()}{self.to_frame().head(20).to_html()}"

    @cached_property
    def _by_feature(self) -> dict[int, Interpretation]:
        return {row.feature: row for row in self.rows}


def _standard_error(values: pd.Series) -> float:
    known = values.dropna()
    return float(known.std() / np.sqrt(len(known))) if len(known) > 1 else math.nan


def _finite(value: Any) -> Any:
    """NaN as null."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row(entry: dict[str, Any], path: str | os.PathLike[str]) -> Interpretation:
    def numbers(record: Mapping[str, Any], name: str) -> dict[str, float]:
        found = checked(record, name, dict[str, float | None], path)
        return {score: math.nan if value is None else float(value) for score, value in found.items()}

    random = dict(checked(entry, "random", dict, path))
    if "scores" in random:
        random["scores"] = numbers(random, "scores")
    whole = {**entry, "random": random, **{name: numbers(entry, name) for name in ("scores", "shuffled")}}
    return Interpretation(**arguments(whole, Interpretation, path))
