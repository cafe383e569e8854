"""W8A8: weights and inputs in 8 bits, multiplied as integers, with sinks in full precision.

Weights have a scale for each output channel. Inputs have one for each token, found as they come, or one for each
sequence, which a sink's massive activation ruins unless sinks stay as they are. Where statistics are given, large
input channels are scaled down and their weights up, as in SmoothQuant (Xiao et al. 2022, arXiv 2211.10438, equation 4).
The output layer's inputs stay as they are: its errors go straight into the logits, and of a prompt it computes one row.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from interp.efficiency.quantization.codes import Scheme
from interp.efficiency.quantization.method import Choice, QuantMethod, without_sinks
from interp.efficiency.quantization.plan import QuantPlan
from interp.efficiency.quantization.spots import Spot
from interp.efficiency.quantization.statistics import key, text_of
from interp.errors import UsageError, unknown_name
from interp.results.findings import ActivationStatistics, MassiveActivations, SinkPositions, positions_or

__all__ = ["W8A8"]

_REACH = 64
"""Positions among which random ones are drawn."""


class W8A8(QuantMethod):
    """Weights and inputs in 8 bits; see the module.

    Args:
        sinks: Positions (and tokens, where the finding names some) whose inputs stay in full precision.
        statistics: What enters each layer; its largest values without sinks say which channels are scaled down.
        scales: Of inputs: ``token`` or ``sequence``.
        migration: How much of a channel's size goes over to the weights, in (0, 1); the paper has 0.5.
        budget, bits, head, skip: As `QuantMethod` takes them, without 4 bits.

    Raises:
        UsageError: Unknown scales, migration out of range, 4 bits.
    """

    name = "w8a8"
    default_bits = 8

    def __init__(
        self,
        sinks: SinkPositions | MassiveActivations | None = None,
        statistics: ActivationStatistics | None = None,
        *,
        scales: str = "token",
        migration: float = 0.5,
        budget: float | None = None,
        bits: int | None = None,
        head: bool = True,
        skip: Sequence[str] = (),
    ) -> None:
        super().__init__(budget=budget, bits=bits, head=head, skip=skip)
        if scales not in ("token", "sequence"):
            raise unknown_name("scales", scales, ["token", "sequence"])
        if not 0 < migration < 1:
            raise UsageError(f"w8a8: migration must be between 0 and 1, got {migration}")
        if self.bits != 8:
            raise UsageError("w8a8: weights have 8 bits; the least budget that works is 0.5")
        self.sinks, self.statistics, self.scales, self.migration = sinks, statistics, scales, migration
        self._parts: dict[str, str] = {}

    def findings(self) -> list[Any]:
        return [finding for finding in (self.sinks, self.statistics) if finding is not None]

    def choice(self, spot: Spot) -> Choice:
        if self.statistics is None:
            return Choice(Scheme(activations=self.scales))
        assert spot.layer is not None
        name = key(spot.layer, spot.part)
        if name not in self._parts:
            self._parts[name] = text_of(without_sinks(self.statistics, spot, "max"))
        return Choice(Scheme(activations=self.scales, scaled="smooth"), self.migration)

    def beside(self, model: PreTrainedModel) -> Mapping[str, Any]:
        found: dict[str, Any] = {"statistics": dict(self._parts)}
        if self.sinks is not None:
            positions, tokens = positions_or(self.sinks, (), self.name), tuple(getattr(self.sinks, "tokens", ()))
            found |= {"kept": {"positions": positions, "tokens": tokens}} if positions or tokens else {}
        return found

    def random_plan(self, model: Any, seed: int = 0) -> QuantPlan:
        """As many random positions are kept in full precision; none if no sinks were given."""
        found = self._plan(model, f"{self.name}, random")
        count = len(found.kept.get("positions", ()))
        drawn = tuple(sorted(random.Random(seed).sample(range(1, _REACH), count)))
        object.__setattr__(found, "kept", {"positions": drawn, "tokens": ()} if count else {})
        return found
