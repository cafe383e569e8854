"""What judging a dictionary found, with its baselines beside it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

__all__ = ["METHODS", "METRICS", "Report"]

METHODS = ("dictionary", "random", "PCA", "mean", "zero")
METRICS = {
    "ce": "nats a token, with the reconstruction in place of the activation",
    "ce_with_error": "nats a token, with reconstruction and error in place of it: the clean loss",
    "ce_recovered": "share of the loss that zero ablation costs: (zero - spliced) / (zero - clean)",
    "ce_recovered_mean": "the same of what mean ablation costs",
    "kl": "nats a token, of the next token's distribution: KL(clean || spliced)",
    "kl_with_error": "nats a token, with reconstruction and error",
    "r2": "share of the variance, over the positions that count",
    "r2_with_first": "share of the variance, over all positions",
    "r2_without_first": "share of the variance, over all positions but the first",
    "cosine": "mean cosine of activation and reconstruction",
    "norm_ratio": "mean of the reconstruction's norm over the activation's",
    "gamma": "least squares: the reconstruction divided by it is nearest the activation; below 1 is shrinkage",
    "l0": "active features a token",
    "dead": "share of the features that are active on no token that counts",
    "dense": "share of the features that are active on more tokens than `dense_above`",
}
"""What is measured, and in what units."""


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What `judge` found.

    Args:
        scores: "method metric": the dictionary, its baselines and the two ablations; NaN where a metric means nothing;
            the attribute ``undefined`` says why a share of an ablation's cost is.
        by_position: "method metric position": ``error`` (squared, as a share of the activation's squared norm),
            ``cosine``, ``norm_ratio``, ``l0``, ``ce`` and ``kl`` (NaN at a position that does not count).
        density: for the dictionary and its baselines "component": on which share of the tokens each is active.
    """

    scores: xr.DataArray
    by_position: xr.DataArray
    density: Mapping[str, xr.DataArray]

    def value(self, metric: str, method: str = "dictionary") -> float:
        """One number."""
        return float(self.scores.loc[{"method": method, "metric": metric}])

    def to_frame(self) -> pd.DataFrame:
        """One row a metric, one column a method."""
        columns = {str(name): self.scores.loc[{"method": name}].values for name in self.scores["method"].values}
        return pd.DataFrame(columns, index=self.scores["metric"].values)

    def histogram(self, low: float = -6.0, bins: int = 12) -> pd.DataFrame:
        """How many features have which density, in bins of log10: columns for the edges and for each method.

        The first row counts the features that are never active; what is rarer than 10**`low` is in the second.
        """
        edges = np.linspace(low, 0, bins + 1)
        table = {"from": [np.nan, *edges[:-1]], "to": [np.nan, *edges[1:]]}
        for method, density in self.density.items():
            on = density.values[density.values > 0]
            counts, _ = np.histogram(np.clip(np.log10(on), low, 0), edges)
            table[method] = [density.size - on.size, *counts]
        return pd.DataFrame(table)

    def summary(self) -> str:
        """The main numbers in a sentence."""
        at, attrs, why = self.value, self.scores.attrs, self.scores.attrs["undefined"]
        seen = attrs["overlap"]
        training = "of unknown training text" if seen is None else f"of which {seen:.1%} was trained on"
        saved = (
            f"{at('ce_recovered'):.1%} (random {at('ce_recovered', 'random'):.1%}, PCA {at('ce_recovered', 'PCA'):.1%})"
        )
        if "ce_recovered" in why:
            saved = f"undefined, as {why['ce_recovered']}"
        return (
            f"{attrs['writes']} of {attrs['model']}: cross-entropy recovered {saved}, R2 {at('r2'):.3f} (without "
            f"the first position {at('r2_without_first'):.3f}), L0 {at('l0'):.1f}, dead {at('dead'):.1%} on "
            f"{attrs['tokens']:,} tokens, {training}"
        )

    def __repr__(self) -> str:
        return f"Report({self.summary()})"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.summary())}</p>{self.to_frame().to_html(float_format=lambda v: f'{v:.4g}')}"
