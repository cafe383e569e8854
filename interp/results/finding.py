"""What a finding is: something an analysis says about a model, in a form that another program can act on.

A finding is frozen and checked when it is made, names the model whose weights it is about, and carries the numbers
that it rests on. Efficiency modules take findings as arguments; a file of one is refused for another model.
"""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import xarray as xr

from interp.errors import UsageError, unknown_name
from interp.results.tables import to_frame

__all__ = ["Finding", "Head", "HeadScores"]

Head = tuple[int, int]
"""A head as layer and index."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Finding(ABC):
    """A statement about one model.

    Args:
        model: the model's name.
        fingerprint: of its weights, see `interp.models.fingerprint`.
        evidence: the arrays that the statement rests on, by name.
        settings: how they were made, of JSON's types: the texts or the task, sizes, seeds, versions.

    Raises:
        UsageError: a field that makes no sense; the message names it.
    """

    model: str
    fingerprint: str
    evidence: Mapping[str, xr.DataArray]
    settings: Mapping[str, Any] = field(default_factory=dict)

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """The arrays that a finding of this type must have, and their dims."""

    def __post_init__(self) -> None:
        for name in ("model", "fingerprint"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise UsageError(f"{self._type}: {name} must be a text that is not empty, got {getattr(self, name)!r}")
        for name, dims in self.needs.items():
            if name not in self.evidence:
                raise UsageError(f"{self._type} needs the array {name!r} of dims {dims} in its evidence")
        for name, array in self.evidence.items():
            if not isinstance(array, xr.DataArray):
                raise UsageError(f"{self._type}: evidence {name!r} must be labelled scores, got {type(array).__name__}")
            if array.dims != self.needs.get(name, array.dims):
                raise UsageError(f"{self._type}: {name} must have the dims {self.needs[name]}, got {array.dims}")
        for name, dims in self.needs.items():
            if not self.evidence[name].size:
                raise UsageError(
                    f"{self._type}: {name} must not be empty, it has the shape {self.evidence[name].shape}"
                )
            for dim in dims:
                self._labels(name, dim)

    def _labels(self, name: str, dim: str) -> None:
        """Refuses an array without the names along `dim` that its methods look up."""
        labels = self.evidence[name].coords.get(dim)
        if dim in ("kind", "metric") and (labels is None or labels.dims != (dim,)):
            raise UsageError(f"{self._type}: {name} must have labels along {dim}")

    @property
    def _type(self) -> str:
        return type(self).__name__

    @property
    def statement(self) -> dict[str, Any]:
        """The fields of this type of finding: what it says, besides its evidence."""
        common = {item.name for item in fields(Finding)}
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in common}

    @abstractmethod
    def summary(self) -> str:
        """What the finding says, in a sentence."""

    def check(self, model: Any) -> None:
        """Refuses a model that the finding is not about.

        Args:
            model: a bridge or another model that has the bridge's parameters, or a fingerprint.

        Raises:
            UsageError: the fingerprint is another one.
        """
        from interp.engine.identity import identity

        theirs = model if isinstance(model, str) else identity(model)
        if theirs != self.fingerprint:
            raise UsageError(
                f"this {self._type} is about {self.model} with the fingerprint {self.fingerprint}, the model given has "
                f"{theirs}: its weights are others; find it anew for this model, or load it with any_model=True"
            )

    def save(self, path: Any) -> Any:
        """Writes ``finding.json`` and ``finding.safetensors`` into a folder, or under the name of a .json file."""
        from interp.results.finding_files import save

        return save(self, path)

    def __repr__(self) -> str:
        return f"{self._type}({self.summary()})"

    def _repr_html_(self) -> str:
        table = self.to_frame().head(10)
        shown = table.to_html(index=False, float_format=lambda v: f"{v:.3g}", border=0)
        about = f"{self._type} · {self.model} · {self.fingerprint}"
        return f"<p><b>{html.escape(about)}</b><br>{html.escape(self.summary())}</p>{shown}"

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """The finding as a table, what matters most first."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class HeadScores(Finding):
    """A number for every attention head; the larger, the more of what the finding is about.

    Args:
        n_kv_heads: how many key-value heads a layer has; ``n_heads / n_kv_heads`` query heads share each.
    """

    n_kv_heads: int

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"scores": ("layer", "head")}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not np.isfinite(self.scores.values).all():
            raise UsageError(f"{self._type}: every head needs a score, some are NaN or infinite")
        n_heads = self.scores.sizes["head"]
        if not isinstance(self.n_kv_heads, int) or self.n_kv_heads < 1 or n_heads % self.n_kv_heads:
            raise UsageError(f"{self._type}: {n_heads} heads can't share {self.n_kv_heads} key-value heads evenly")

    @property
    def scores(self) -> xr.DataArray:
        """Score of every head: "layer head"."""
        return self.evidence["scores"]

    def top(self, k: int) -> list[Head]:
        """The `k` heads with the largest scores, largest first."""
        return self._ranked(-self.scores.values, k)

    def lowest(self, k: int) -> list[Head]:
        """The `k` heads with the smallest scores, smallest first."""
        return self._ranked(self.scores.values, k)

    def above(self, threshold: float) -> list[Head]:
        """The heads whose score is at least `threshold`, largest first."""
        return [head for head in self.top(self.scores.size) if float(self.scores[head]) >= threshold]

    def groups(self, how: Literal["max", "mean", "sum"] = "max") -> xr.DataArray:
        """Score of every key-value head: "layer kv_head", over the query heads that share it.

        Keys and values are all that a cache holds, so a cache can treat groups apart, not the heads of a group.

        Raises:
            UsageError: `how` is none of max, mean and sum.
        """
        if how not in ("max", "mean", "sum"):
            raise unknown_name("way to join heads", how, ("max", "mean", "sum"))
        values = self.scores.values.reshape(self.scores.sizes["layer"], self.n_kv_heads, -1)
        return xr.DataArray(
            getattr(values, how)(axis=-1),
            dims=("layer", "kv_head"),
            coords={"layer": self.scores["layer"].values, "kv_head": np.arange(self.n_kv_heads)},
            name=self.scores.name,
            attrs={**self.scores.attrs, "joined": how},
        )

    def heatmap(self, **options: Any) -> Any:
        """The scores as a heatmap, "layer head"."""
        from interp.plots import heatmap

        return heatmap(self.scores, **options)

    def to_frame(self) -> pd.DataFrame:
        """One row a head, largest score first, with further evidence of the same dims beside it."""
        frame = to_frame(self.scores).rename(columns={"value": "score"})
        for name, array in self.evidence.items():
            if name != "scores" and array.dims == self.scores.dims:
                frame[name] = array.values.reshape(-1)
        return frame.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)

    def _ranked(self, keys: np.ndarray, k: int) -> list[Head]:
        if not 0 <= k <= keys.size:
            raise UsageError(f"k must be between 0 and {keys.size}, the number of heads; got {k}")
        order = np.argsort(keys.reshape(-1), kind="stable")[:k]
        return [(int(i) // keys.shape[1], int(i) % keys.shape[1]) for i in order]

    def _named(self, k: int = 5) -> str:
        return ", ".join(
            f"{layer}.{head} ({float(self.scores[layer, head]):.2f})"
            for layer, head in self.top(min(k, self.scores.size))
        )
