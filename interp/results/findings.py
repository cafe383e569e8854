"""The findings that there are: about sinks, neurons, layers and inputs here, about heads in `head_findings`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import xarray as xr

from interp.errors import UsageError, unknown_name
from interp.results.finding import Finding, Head, HeadScores
from interp.results.head_findings import CalibrationHeads, HeadImportance, HeadKinds, RetrievalHeads, SinkHeads
from interp.results.tables import to_frame

__all__ = [
    "FINDINGS",
    "ActivationStatistics",
    "CalibrationHeads",
    "Finding",
    "Head",
    "HeadImportance",
    "HeadKinds",
    "HeadScores",
    "LayerRedundancy",
    "MassiveActivations",
    "NeuronRelevance",
    "RetrievalHeads",
    "SinkHeads",
    "SinkPositions",
    "positions_or",
]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SinkPositions(Finding):
    """Where attention collects whatever stands there: positions at the start, and tokens further on.

    Args:
        positions: absolute positions that are sinks in most texts, most often (0,).
        tokens: ids of tokens that become sinks where they stand later in a text.
        threshold: the mean attention from which on a position counts as a sink of a head.

    Evidence: ``attention`` "layer position", the mean attention that a position gets from those that see it; ``rate``
    "position", if known, the share of the texts in which it is a sink; others as the analysis has them.
    """

    positions: Sequence[int]
    tokens: Sequence[int] = ()
    threshold: float = 0.3

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"attention": ("layer", "position")}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("positions", "tokens"):
            values = tuple(int(v) for v in getattr(self, name))
            if any(v < 0 for v in values) or len(set(values)) < len(values):
                raise UsageError(f"SinkPositions: {name} must be different numbers from 0 on, got {values}")
            object.__setattr__(self, name, values)

    @property
    def n(self) -> int:
        """How many positions at the start a cache has to keep to hold all sinks that stand there."""
        return max(self.positions) + 1 if self.positions else 0

    def summary(self) -> str:
        rate = self.evidence.get("rate")
        shares = {p: "" if rate is None else f" ({float(rate[p]):.0%} of the texts)" for p in self.positions}
        where = f"position {', '.join(f'{p}{share}' for p, share in shares.items())}" if shares else "no position"
        count = len(self.tokens)
        further = f"; {'one token' if count == 1 else f'{count} tokens'} further on" if count else ""
        return f"sinks at {where}{further}"

    def to_frame(self) -> pd.DataFrame:
        mean = self.evidence["attention"].mean("layer")
        frame = pd.DataFrame({"position": mean["position"].values, "attention": mean.values})
        frame["sink"] = frame["position"].isin(self.positions)
        if "rate" in self.evidence:
            frame["rate"] = self.evidence["rate"].values
        return frame.sort_values("attention", ascending=False, kind="stable").reset_index(drop=True)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class MassiveActivations(Finding):
    """Channels of the residual stream that carry enormous values at a few positions (Sun et al. 2024).

    Args:
        channels: the channels, largest first.
        appears: the first layer whose output has them.
        vanishes: the first later layer whose output has them no more; the number of layers if they stay.
        positions: absolute positions where they are in most texts.
        ratio: the largest one's size against the median size of that layer's values.

    Evidence: ``size`` "layer position", the largest absolute value of each position's residual stream behind each
    layer; others as the analysis has them.
    """

    channels: Sequence[int]
    appears: int
    vanishes: int
    positions: Sequence[int]
    ratio: float

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"size": ("layer", "position")}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("channels", "positions"):
            object.__setattr__(self, name, tuple(int(v) for v in getattr(self, name)))
        n_layers = self.evidence["size"].sizes["layer"]
        if self.channels and not 0 <= self.appears < self.vanishes <= n_layers:
            raise UsageError(
                f"MassiveActivations: they must appear before they vanish within {n_layers} layers, got "
                f"appears={self.appears} and vanishes={self.vanishes}"
            )

    def summary(self) -> str:
        if not self.channels:
            return "no massive activations"
        where = ", ".join(map(str, self.positions)) or "none in particular"
        return (
            f"channels {', '.join(map(str, self.channels))} at positions {where}, from the output of layer "
            f"{self.appears} up to layer {self.vanishes}; the largest is {self.ratio:,.0f} times the median"
        )

    def to_frame(self) -> pd.DataFrame:
        frame = to_frame(self.evidence["size"]).rename(columns={"value": "size"})
        return frame.sort_values("size", ascending=False, kind="stable").reset_index(drop=True)


def positions_or(
    finding: SinkPositions | MassiveActivations | None, default: Sequence[int], who: str
) -> tuple[int, ...]:
    """The positions that a finding names; the default without one, and, with a warning, where it names none.

    That nothing was found where was looked is no evidence that nothing is needed.

    Args:
        finding: of sinks or massive activations.
        default: what is done without a finding.
        who: what reads it, for the warning.
    """
    if finding is None:
        return tuple(default)
    if not finding.positions:
        warnings.warn(
            f"{who}: the {type(finding).__name__} given names no position ({finding.summary()}), which does not say "
            "that none is needed; it goes on as without a finding",
            stacklevel=3,
        )
    return tuple(finding.positions or default)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class NeuronRelevance(Finding):
    """How much each MLP neuron matters: the larger the score, the worse its loss.

    Args:
        method: how it was measured.
        target: what it matters for: a task's name, or the corpus.

    Evidence: ``scores`` "layer neuron"; others as the analysis has them.
    """

    method: str = ""
    target: str = ""

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"scores": ("layer", "neuron")}

    @property
    def scores(self) -> xr.DataArray:
        """Score of every neuron: "layer neuron"."""
        return self.evidence["scores"]

    def top(self, k: int = 5) -> list[tuple[int, int]]:
        """Layer and number of the `k` neurons with the largest scores."""
        order = np.argsort(-self.scores.values.reshape(-1), kind="stable")[:k]
        return [divmod(int(i), self.scores.sizes["neuron"]) for i in order]

    def summary(self) -> str:
        named = ", ".join(f"{layer}.{neuron}" for layer, neuron in self.top())
        return f"for {self.target or 'text'} by {self.method}: most relevant {named}"

    def to_frame(self) -> pd.DataFrame:
        frame = to_frame(self.scores).rename(columns={"value": "score"})
        return frame.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class LayerRedundancy(Finding):
    """How little each block changes the residual stream, and how little is lost without it.

    Args:
        target: the corpus that it was measured on.

    Evidence: ``influence`` "layer", 1 - cosine of a block's input and output; ``distance`` "layer length", the angle
    between what enters a block and what leaves the run of that many blocks from it on, as a share of pi, missing where
    the run would be too long; ``harm`` "layer", how much the loss rises without the block, in nats, where measured.
    """

    target: str = ""

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {"influence": ("layer",), "distance": ("layer", "length")}

    def summary(self) -> str:
        order = np.argsort(self.evidence["influence"].values, kind="stable")[:5]
        named = ", ".join(f"{i} ({float(self.evidence['influence'][i]):.3f})" for i in order)
        return f"for {self.target or 'text'}: blocks that change least {named}"

    def to_frame(self) -> pd.DataFrame:
        frame = pd.DataFrame({"layer": np.arange(self.evidence["influence"].size)})
        for name in ("influence", "harm"):
            if name in self.evidence:
                frame[name] = self.evidence[name].values
        return frame.sort_values("influence", kind="stable").reset_index(drop=True)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ActivationStatistics(Finding):
    """How large the inputs of linear layers are, channel by channel, with sinks and without.

    Args:
        positions: absolute positions that the second set of numbers leaves out.
        tokens: ids of tokens that it leaves out.

    Evidence: for the inputs of queries, keys and values, of the attention's output, of the MLP's first layers and of
    its last one ``qkv``, ``o``, ``mlp`` and ``down``, each "kind metric layer channel": kinds ``all`` and ``without
    sinks``; metrics ``mean`` and ``max`` of the absolute value, and ``square``, the mean square.
    """

    positions: Sequence[int] = ()
    tokens: Sequence[int] = ()

    needs: ClassVar[Mapping[str, tuple[str, ...]]] = dict.fromkeys(
        ("qkv", "o", "mlp", "down"), ("kind", "metric", "layer", "channel")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("positions", "tokens"):
            object.__setattr__(self, name, tuple(int(v) for v in getattr(self, name)))

    def of(self, inputs: str, metric: str = "mean", *, sinks: bool = False) -> xr.DataArray:
        """A metric of some inputs: "layer channel"; `sinks` says whether they are counted.

        Raises:
            UsageError: unknown inputs or metric.
        """
        if inputs not in self.needs:
            raise unknown_name("inputs", inputs, self.needs)
        found = self.evidence[inputs]
        if metric not in found["metric"].values:
            raise unknown_name("metric", metric, [str(name) for name in found["metric"].values])
        return found.sel(kind="all" if sinks else "without sinks", metric=metric)

    def summary(self) -> str:
        first = self.to_frame().iloc[0]
        where = ", ".join(map(str, self.positions)) or "none"
        return (
            f"sinks (positions {where}) make the inputs of {first['inputs']} in layer {first['layer']} "
            f"{first['ratio']:,.0f} times as large as all other tokens do: {first['max']:,.0f} against "
            f"{first['max without sinks']:,.1f}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row for each layer's inputs: the largest value with sinks and without, and their ratio, largest first."""
        rows = []
        for name in self.needs:
            every = self.of(name, "max", sinks=True).max("channel").values
            others = self.of(name, "max").max("channel").values
            for layer, (most, rest) in enumerate(zip(every, others, strict=True)):
                ratio = float(most / max(rest, 1e-12))
                rows.append((layer, name, float(most), float(rest), ratio))
        frame = pd.DataFrame(rows, columns=["layer", "inputs", "max", "max without sinks", "ratio"])
        return frame.sort_values("ratio", ascending=False, kind="stable").reset_index(drop=True)


FINDINGS: dict[str, type[Finding]] = {
    kind.__name__: kind
    for kind in (
        HeadKinds,
        SinkPositions,
        SinkHeads,
        MassiveActivations,
        RetrievalHeads,
        HeadImportance,
        NeuronRelevance,
        LayerRedundancy,
        ActivationStatistics,
        CalibrationHeads,
    )
}
"""The types of finding, by the name that their files carry."""
