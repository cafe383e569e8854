"""What the methods for calibration share: budgets, heads chosen by findings, and the plans beside a plan."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from transformers import PreTrainedModel

from interp.efficiency.calibration.plan import CalibrationPlan
from interp.efficiency.calibration.rules import Rule
from interp.efficiency.deployment import deployment
from interp.efficiency.kv_cache.geometry import deployed
from interp.efficiency.method import Method
from interp.efficiency.plan import Plan
from interp.efficiency.pruning.anatomy import Anatomy, anatomy
from interp.efficiency.registry import check_budget
from interp.errors import UsageError
from interp.results.finding import Head, HeadScores
from interp.results.findings import HeadKinds

__all__ = ["AttentionMethod", "CalibrationMethod", "head_scores"]


class CalibrationMethod(Method):
    """Makes plans for calibration.

    Args:
        budget: The share that is kept of what is turned down, in (0, 1]; 1 is the dense model.
    """

    budget: float

    def __init__(self, *, budget: float) -> None:
        self.budget = check_budget(self.name, budget)

    @abstractmethod
    def random_plan(self, model: Any, seed: int = 0) -> Plan:
        """A plan of the same size that does not look at what it changes."""

    @abstractmethod
    def inverted_plan(self, model: Any) -> Plan:
        """The plan of the inverted finding."""


class AttentionMethod(CalibrationMethod):
    """Calibrates attention in some heads."""

    @abstractmethod
    def rule(self, model: PreTrainedModel) -> Rule:
        """Which keys are sinks."""

    def made(
        self, model: Any, name: str, heads: Sequence[Head], rule: Rule, sign: int = 1, scores: Any = None
    ) -> CalibrationPlan:
        """The plan for some heads; none at a budget of 1."""
        hf = deployed(model)
        chosen = [] if self.budget == 1 else sorted(heads)
        return CalibrationPlan(
            **self.about(hf, name),
            heads=tuple((int(layer), int(head)) for layer, head in chosen),
            strength=round(sign * (1 - self.budget), 12),
            sinks=rule.settings(),
            scores=() if scores is None else tuple(float(scores[head]) for head in chosen),
        )


def all_heads(body: Anatomy) -> list[Head]:
    """The heads of the whole model's blocks that are left."""
    return [(layer, head) for layer in body.layers for head in range(body.heads)]


def head_scores(finding: HeadScores | HeadKinds, kind: str | None, model: Any) -> xr.DataArray:
    """The scores that heads are chosen by: "layer head".

    Raises:
        UsageError: A `HeadKinds` without a kind, or scores of another shape than the model.
    """
    if isinstance(finding, HeadKinds):
        if kind is None:
            raise UsageError(f"say which kind of heads: kind= one of {', '.join(finding.kinds)}")
        found = finding.kind(kind)
    else:
        found = finding.scores
    shape = (len(deployment(model).layers), anatomy(model).heads)
    if found.shape[1] != shape[1] or found.shape[0] <= max(deployment(model).layers):
        raise UsageError(f"the finding has scores of shape {found.shape}, the model has {shape} layers and heads")
    if not np.isfinite(found.values).all():
        raise UsageError("every head needs a score, some are NaN or infinite")
    return found
