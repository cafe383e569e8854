"""The plan for attention: in which heads sinks give attention on to the other tokens."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go
from transformers import PreTrainedModel

from interp.efficiency.calibration.account import Running
from interp.efficiency.calibration.attention import NAMES, Flagging, Spot
from interp.efficiency.calibration.costs import attention_ledger
from interp.efficiency.calibration.rules import ByChannels, rule
from interp.efficiency.kv_cache.running import cache_plan
from interp.efficiency.ledger import Ledger
from interp.efficiency.plan import Plan, Undo
from interp.efficiency.pruning.anatomy import anatomy
from interp.errors import UsageError
from interp.upstream import attend_with, implementation, takes_function

__all__ = ["CalibrationPlan"]


@dataclass(frozen=True, kw_only=True)
class CalibrationPlan(Plan):
    """In some heads, a share of the sinks' attention goes to the other tokens. Nothing is saved by it.

    Args:
        heads: Layer and head, by their original numbers.
        strength: The share that sinks give, 1 - budget; below 0 they take.
        sinks: Which keys are sinks, see `interp.efficiency.calibration.rules`.
        scores: For each of `heads`, what it was chosen by; may be empty.
    """

    heads: tuple[tuple[int, int], ...]
    strength: float
    sinks: dict[str, Any]
    scores: tuple[float, ...] = ()

    kind: ClassVar[str] = "calibration"

    def __post_init__(self) -> None:
        super().__post_init__()
        rule(self.sinks)
        if len(self.scores) not in (0, len(self.heads)):
            raise UsageError(f"the plan has {len(self.scores)} scores for {len(self.heads)} heads")

    @property
    def identity(self) -> str:
        """What tells the caches filled with this plan from others."""
        return hashlib.sha256(json.dumps(self.decided(), sort_keys=True).encode()).hexdigest()[:16]

    def in_layer(self, layer: int) -> list[int]:
        """The heads of a layer."""
        return [head for at, head in self.heads if at == layer]

    def change(self, model: PreTrainedModel, undo: Undo) -> None:
        if not self.heads:
            return
        before = implementation(model)
        _check(model, before)
        running, sinks, body = Running(self.identity), rule(self.sinks), anatomy(model)
        for layer, block in zip(body.layers, body.blocks, strict=True):
            part = body.attention(layer)
            at = tuple(part.heads.index(head) for head in self.in_layer(layer) if head in part.heads)
            if not at:
                continue
            undo.set(part.module, "calibration", Spot(layer, at, self.strength, sinks, running))
            if isinstance(sinks, ByChannels):
                hook = Flagging(layer, sinks, running)
                undo.callback(block.register_forward_pre_hook(hook, with_kwargs=True).remove)
        undo.callback(model.register_forward_pre_hook(running.before, with_kwargs=True).remove)
        undo.callback(model.register_forward_hook(running.behind, always_call=True).remove)
        undo.callback(attend_with, model, attend_with(model, NAMES[before]))

    def ledger(self, model: PreTrainedModel, length: int, batch: int = 1) -> Ledger:
        return attention_ledger(self, model, length, batch)

    def to_frame(self) -> pd.DataFrame:
        """One row a head: ``layer``, ``head``, ``strength`` and its ``score``."""
        scores = self.scores or (None,) * len(self.heads)
        rows = [(*head, self.strength, score) for head, score in zip(self.heads, scores, strict=True)]
        return pd.DataFrame(rows, columns=["layer", "head", "strength", "score"])

    def figure(self) -> go.Figure:
        """The calibrated heads by layer and head."""
        from interp.efficiency.calibration.picture import calibrated_heads

        return calibrated_heads(self)


def _check(model: PreTrainedModel, implementation: str) -> None:
    name = type(model).__name__
    takes_function(model, "calibration")
    if cache_plan(model) is not None:
        raise UsageError("calibration needs every key, so no plan for the cache can be in force with it")
    if implementation not in NAMES:
        raise UsageError(
            f"the attention of {name} is {implementation!r}, and calibration builds on {' or '.join(NAMES)}: one plan "
            "for attention at a time"
        )
