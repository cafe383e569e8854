"""GPTQ: weights are rounded one input channel after another, and later ones make up for earlier ones' errors.

Frantar et al. 2022 (arXiv 2210.17323); see `interp.efficiency.quantization.solvers.gptq`. The plan carries the
calibration text; the codes are found when it is first applied, in one pass over that text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from interp.efficiency.quantization.method import Choice, QuantMethod, integers
from interp.efficiency.quantization.plan import QuantPlan
from interp.efficiency.quantization.spots import Spot
from interp.errors import UsageError
from interp.results.findings import MassiveActivations, SinkPositions, positions_or
from interp.tasks import corpus, sized
from interp.tasks.splits import half_of_corpus

__all__ = ["GPTQ"]


class GPTQ(QuantMethod):
    """GPTQ; see the module.

    Args:
        sinks: Positions that the calibration leaves out, since their activations outweigh all others'; without, the
            first one of each text counts like any other. On SmolLM2, in groups of 64, leaving the sinks out costs 0.58
            nats and counting them 0.23 (rounding to nearest 0.26): what the weights do at the sink has to be right.
        source: The calibration text, see `interp.tasks.corpus`.
        n: Stretches of it; 8, or all rows of token ids.
        length: Tokens of each; 256, or all of the token ids.
        seed: Of the choice of stretches.
        group: As for `RTN`.
        budget, bits, head, skip: As `QuantMethod` takes them.

    Raises:
        UsageError: `n` below 1 or `length` below 2.
    """

    name = "gptq"

    def __init__(
        self,
        sinks: SinkPositions | MassiveActivations | None = None,
        *,
        source: Any = "prose",
        n: int | None = None,
        length: int | None = None,
        seed: int = 1,
        group: int | None = None,
        budget: float | None = None,
        bits: int | None = None,
        head: bool = True,
        skip: Sequence[str] = (),
    ) -> None:
        super().__init__(budget=budget, bits=bits, head=head, skip=skip)
        n, length = sized(source, n, length, 8, 256)
        if n < 1 or length < 2:
            raise UsageError(f"gptq: n must be at least 1 and length 2, got {n} and {length}")
        self.sinks, self.source, self.n, self.length, self.seed = sinks, source, n, length, seed
        self.group = 32 if group is None and self.bits == 4 else group

    def findings(self) -> list[SinkPositions | MassiveActivations]:
        return [] if self.sinks is None else [self.sinks]

    def choice(self, spot: Spot) -> Choice:
        return Choice(integers(self.bits, self.group).changed(solver="gptq"))

    def beside(self, model: PreTrainedModel) -> Mapping[str, Any]:
        tokens = corpus(self.source, model, self.n, self.length, self.seed, split=half_of_corpus(self.source, "find"))
        positions = tuple(p for p in positions_or(self.sinks, (), self.name) if p < self.length)
        return {"calibration": tuple(map(tuple, tokens.tolist())), "left_out": positions}

    def random_plan(self, model: Any, seed: int = 0) -> QuantPlan:
        """Calibrated on random tokens."""
        other = GPTQ(
            self.sinks,
            source="random",
            n=self.n,
            length=self.length,
            seed=seed,
            group=self.group,
            bits=self.bits,
            head=self.head,
            skip=self.skip,
        )
        return other._plan(model, f"{self.name}, random")
