"""Plans that take blocks, heads, neurons and experts out of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import plotly.graph_objects as go
from transformers import PreTrainedModel

from interp.efficiency.counting import shape_ledger
from interp.efficiency.ledger import Ledger
from interp.efficiency.plan import Plan, Undo
from interp.efficiency.pruning.removing import Removal, remove

__all__ = ["PruningPlan", "Reason"]

Reason = tuple[str, int, int, float, float]
"""A unit's kind (``group``, ``head``, ``neurons``, ``block``), layer and number, the share of it that is kept, and what
it was chosen by. The neurons of a layer are one unit, number -1, with the share of their scores that is kept."""


@dataclass(frozen=True, kw_only=True)
class PruningPlan(Plan):
    """What is taken out, by original numbers. The model has smaller matrices and fewer blocks, not zeros.

    Args:
        blocks: Blocks that go.
        heads: Of each layer where some go, the layer and its query heads that go. A key-value head goes with the last
            query head that it serves.
        neurons: Of each layer where some go, the layer and its neurons that go.
        experts: Of each layer where some go, the layer and its experts that go; the router chooses among the others.
        reasons: Why, see `Reason`.
    """

    blocks: tuple[int, ...] = ()
    heads: tuple[tuple[int, tuple[int, ...]], ...] = ()
    neurons: tuple[tuple[int, tuple[int, ...]], ...] = ()
    experts: tuple[tuple[int, tuple[int, ...]], ...] = ()
    reasons: tuple[Reason, ...] = ()

    kind: ClassVar[str] = "pruning"

    @property
    def removal(self) -> Removal:
        """What is taken out."""
        return Removal(self.blocks, dict(self.heads), dict(self.neurons), dict(self.experts))

    def change(self, model: PreTrainedModel, undo: Undo) -> None:
        remove(model, self.removal, undo)

    def ledger(self, model: PreTrainedModel, length: int, batch: int = 1) -> Ledger:
        return shape_ledger(model, self.change, length, batch)

    def to_frame(self) -> pd.DataFrame:
        """One row a unit: ``unit``, ``layer``, ``number``, the share of it that is ``kept``, and its ``score``."""
        frame = pd.DataFrame(list(self.reasons), columns=["unit", "layer", "number", "kept", "score"])
        return frame.assign(number=frame["number"].where(frame["number"] >= 0))

    def figure(self) -> go.Figure:
        """What is kept of each layer's units."""
        from interp.efficiency.pruning.picture import kept_units

        return kept_units(self)
