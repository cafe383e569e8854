"""Several plans in force together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import pandas as pd
import plotly.graph_objects as go
from transformers import PreTrainedModel

from interp.efficiency.counting import without_weights
from interp.efficiency.ledger import Ledger
from interp.efficiency.plan import Plan, Undo
from interp.errors import UsageError

__all__ = ["Composed"]


@dataclass(frozen=True, kw_only=True)
class Composed(Plan):
    """Plans that are applied one after another; ``plan + other`` makes one.

    Args:
        plans: The plans, or what their `to_dict` gives.
    """

    plans: tuple[Any, ...]

    kind: ClassVar[str] = "composed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.plans:
            raise UsageError("a composed plan needs plans, got none")
        made = tuple(plan if isinstance(plan, Plan) else Plan.from_dict(plan) for plan in self.plans)
        object.__setattr__(self, "plans", made)
        if len({plan.fingerprint for plan in made}) > 1:
            raise UsageError("plans for different models can't be composed; make them all for the same weights")

    @classmethod
    def of(cls, *plans: Plan) -> Self:
        """The plans as one, composed ones taken apart."""
        flat = [part for plan in plans for part in (plan.plans if isinstance(plan, Composed) else (plan,))]
        first = flat[0]
        return cls(
            model=first.model,
            fingerprint=first.fingerprint,
            method=" + ".join(plan.method for plan in flat),
            budget=min(plan.budget for plan in flat),
            findings=tuple(dict.fromkeys(name for plan in flat for name in plan.findings)),
            plans=tuple(flat),
        )

    def change(self, model: PreTrainedModel, undo: Undo) -> None:
        for plan in self.plans:
            plan.change(model, undo)

    def shape(self, model: PreTrainedModel, undo: Undo) -> None:
        for plan in self.plans:
            plan.shape(model, undo)

    def ledger(self, model: PreTrainedModel, length: int, batch: int = 1) -> Ledger:
        """Each plan's, counted on a model that the plans before it have gone through."""
        bare, undo, found = without_weights(model), Undo(), []
        for plan in self.plans:
            found.append(plan.ledger(bare, length, batch))
            plan.shape(bare, undo)
        undo.pop_all()
        return Ledger.composed(found)

    def to_frame(self) -> pd.DataFrame:
        frames = [plan.to_frame().assign(plan=plan.method) for plan in self.plans]
        return pd.concat(frames, ignore_index=True)

    def figure(self) -> go.Figure:
        raise UsageError("a composed plan has no picture of its own; draw its parts: [p.figure() for p in plan.plans]")

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "plans": [plan.to_dict() for plan in self.plans]}

    def decided(self) -> dict[str, Any]:
        return {**super().decided(), "plans": [plan.decided() for plan in self.plans]}
