"""What was read about features: contexts, samples, logit effects and companions, as a value that can be saved."""

from __future__ import annotations

import hashlib
import html
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors
import safetensors.numpy
from jaxtyping import Float64, Int64

from interp.checking import checked, damaged, read_json
from interp.errors import InterpError, UsageError
from interp.results.files import write_text
from interp.results.folders import settle, together

__all__ = ["Context", "FeatureReadings", "LogitEffects"]

FORMAT = "interp.readings/1"
ABOUT, TENSORS = "readings.json", "readings.safetensors"


@dataclass(frozen=True)
class Context:
    """A token on which a feature is active, and what stands around it.

    Args:
        tokens: The texts of the tokens, as they are, no further than the row that the model saw.
        activations: The feature on each of them; NaN where none was harvested (a special token).
        at: Which of them the context is about.
        document: Number of the document in the source.
        position: Of the token in the model's input.
        index: Of the token in the store.
    """

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    at: int
    document: int
    position: int
    index: int

    @property
    def value(self) -> float:
        """The feature's activation on the token."""
        return self.activations[self.at]

    @property
    def token(self) -> str:
        """The token's text."""
        return self.tokens[self.at]

    def __str__(self) -> str:
        before, after = "".join(self.tokens[: self.at]), "".join(self.tokens[self.at + 1 :])
        return f"{before}<<{self.token}>>{after}"


@dataclass(frozen=True)
class LogitEffects:
    """Which tokens a feature raises and lowers most: pairs of a token's text and the effect, the strongest first."""

    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False, repr=False)
class FeatureReadings:
    """What `interp.features.read_features` found.

    Args:
        features: Numbers of the features in their dictionary; all methods take one of these.
        about: Model, places, corpus and settings, of JSON's types.
        strings: The text of each token id that occurs.
        arrays: By name, "feature ...": ``active`` (tokens on which it is), ``mean`` and ``peak`` (of its activations
            above zero), ``bins`` and ``exponent`` of the histogram, ``effects.ids``, ``effects.values``,
            ``together.ids``, ``together.tokens`` and ``together.phi``; and of ``top`` and ``sample`` (by band)
            ``.index``, ``.document``, ``.position``, ``.tokens`` and ``.values``.
    """

    features: Int64[np.ndarray, " feature"]
    about: Mapping[str, Any]
    strings: Mapping[int, str]
    arrays: Mapping[str, np.ndarray]

    def top(self, feature: int) -> list[Context]:
        """The contexts of the highest activations, one from each row of the corpus, the highest first."""
        return self._contexts("top", (self._row(feature),))

    def samples(self, feature: int) -> list[list[Context]]:
        """Contexts drawn at random from each quantile of the activations above zero, the lowest quantile first."""
        row = self._row(feature)
        return [self._contexts("sample", (row, band)) for band in range(self.about["quantiles"])]

    def logits(self, feature: int) -> LogitEffects:
        """The tokens that the feature's decoder row raises and lowers most.

        Returns:
            Effects in logits for an activation of 1, before the final norm divides: right between tokens and between
            features, but not in size. Nothing for a place that does not write to the residual stream.
        """
        row = self._row(feature)
        ids, values = self.arrays["effects.ids"][row], self.arrays["effects.values"][row]
        pairs = [(self.strings[int(i)], float(v)) for i, v in zip(ids, values, strict=True)]
        half = len(pairs) // 2
        return LogitEffects(tuple(pairs[:half]), tuple(pairs[half:][::-1]))

    def together(self, feature: int) -> pd.DataFrame:
        """The features that are most often active together with one.

        Returns:
            ``feature``, ``tokens`` on which both are active, ``share`` of this feature's tokens, ``phi`` (the
            correlation of being active); the highest phi first.
        """
        row = self._row(feature)
        tokens = self.arrays["together.tokens"][row]
        there = tokens > 0
        return pd.DataFrame(
            {
                "feature": self.arrays["together.ids"][row][there],
                "tokens": tokens[there],
                "share": tokens[there] / max(1, int(self.arrays["active"][row])),
                "phi": self.arrays["together.phi"][row][there].astype(np.float64),
            }
        )

    def density(self, feature: int) -> float:
        """The share of the tokens on which the feature is active."""
        return float(self.arrays["active"][self._row(feature)] / self.about["n_tokens"])

    def peak(self, feature: int) -> float:
        """The highest activation; 0 for a feature that is never active."""
        return float(self.arrays["peak"][self._row(feature)])

    def histogram(self, feature: int) -> tuple[Float64[np.ndarray, " edge"], Int64[np.ndarray, " bin"]]:
        """How many tokens have which activation above zero: edges, and counts of the bins between them.

        Returns:
            32 to 64 bins of equal width from zero up to the highest activation; none for a feature never active.
        """
        row = self._row(feature)
        counts = np.trim_zeros(self.arrays["bins"][row], "b")
        width = 2.0 ** int(self.arrays["exponent"][row]) / self.arrays["bins"].shape[1]
        return np.arange(len(counts) + 1) * width, counts

    def to_frame(self) -> pd.DataFrame:
        """One row a feature: ``density``, ``mean`` and ``peak`` of its activations above zero."""
        density = self.arrays["active"] / self.about["n_tokens"]
        columns = {"density": density, "mean": self.arrays["mean"], "peak": self.arrays["peak"]}
        return pd.DataFrame(columns, index=pd.Index(self.features, name="feature"))

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Writes ``readings.safetensors`` and ``readings.json``, both complete or neither.

        Raises:
            InterpError: The files can't be written.
        """
        folder = Path(directory)
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        data = safetensors.numpy.save({**arrays, "features": self.features}, {"format": FORMAT})
        said = {"format": FORMAT, "sha256": hashlib.sha256(data).hexdigest(), "about": dict(self.about)}
        with together(folder) as aside:
            (aside / TENSORS).write_bytes(data)
            write_text(aside / ABOUT, json.dumps(said | {"strings": self.strings}, ensure_ascii=False, indent=1))
        return folder

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> FeatureReadings:
        """Reads what `save` wrote.

        Raises:
            InterpError: No readings, of another version, or damaged.
        """
        folder = Path(directory)
        settle(folder)
        path, tensors = folder / ABOUT, folder / TENSORS
        for one in (path, tensors):
            if not one.is_file():
                raise InterpError(f"{folder} holds no readings of features: {one.name} is missing")
        said = read_json(path)
        if said.get("format") != FORMAT:
            raise InterpError(f"{path} is of the format {said.get('format')!r}, this version reads {FORMAT}")
        data = tensors.read_bytes()
        if hashlib.sha256(data).hexdigest() != checked(said, "sha256", str, path):
            raise InterpError(f"{tensors} is damaged or not of {ABOUT}: its SHA-256 differs; read again")
        try:
            arrays = safetensors.numpy.load(data)
        except Exception as error:  # the library's own error, or whichever one numpy has for a shape
            raise damaged(tensors, str(error)) from None
        about = checked(said, "about", dict, path)
        for name in ("model", "fingerprint", "reads", "writes"):
            checked(about, name, str, path)
        for name in ("n_tokens", "d_sae"):
            checked(about, name, int, path, least=1)
        if "features" not in arrays or "sample.index" not in arrays:
            raise damaged(tensors, "it lacks arrays that readings have")
        checked(about, "quantiles", int, path, among=[arrays["sample.index"].shape[1]])
        texts = checked(said, "strings", dict[str, str], path)
        strings = {int(key): text for key, text in texts.items() if key.isdecimal() and len(key) < 10}
        used = [arrays[name].ravel() for name in ("effects.ids", "top.tokens", "sample.tokens") if name in arrays]
        if missing := {int(one) for some in used for one in np.unique(some[some >= 0])} - set(strings):
            raise damaged(path, f"its strings lack the text of the token {min(missing)}")
        return cls(arrays.pop("features"), about, strings, arrays)

    def summary(self) -> str:
        """What was read, in a sentence."""
        about, dead = self.about, int((self.arrays["active"] == 0).sum())
        return (
            f"{len(self.features):,} of {about['d_sae']:,} features at {about['reads']} of {about['model']}, read on "
            f"{about['n_tokens']:,} tokens; {dead:,} of them never active"
        )

    def __repr__(self) -> str:
        return f"FeatureReadings({self.summary()})"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.summary())}</p>{self.to_frame().head(20).to_html()}"

    @cached_property
    def _rows(self) -> dict[int, int]:
        return {int(feature): row for row, feature in enumerate(self.features)}

    def _row(self, feature: int) -> int:
        if int(feature) not in self._rows:
            raise UsageError(
                f"feature {feature} was not read; there are {len(self.features):,} here, from {self.features.min()} "
                f"to {self.features.max()}"
            )
        return self._rows[int(feature)]

    def _contexts(self, kind: str, at: tuple[int, ...]) -> list[Context]:
        index, document, position, tokens, values = (
            self.arrays[f"{kind}.{name}"][at] for name in ("index", "document", "position", "tokens", "values")
        )
        return [
            self._context(tokens[i], values[i], int(document[i]), int(position[i]), int(index[i]))
            for i in np.flatnonzero(index >= 0)
        ]

    def _context(self, tokens: np.ndarray, values: np.ndarray, document: int, position: int, index: int) -> Context:
        there = np.flatnonzero(tokens >= 0)
        texts = tuple(self.strings[int(i)] for i in tokens[there])
        centre = int(np.searchsorted(there, len(tokens) // 2))
        return Context(texts, tuple(map(float, values[there])), centre, document, position, index)
