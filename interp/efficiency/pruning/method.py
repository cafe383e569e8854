"""What the methods that take parts out share: scores turned into a plan, and the plans beside it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from interp.efficiency.deployment import deployment
from interp.efficiency.kv_cache.geometry import deployed
from interp.efficiency.method import Method
from interp.efficiency.pruning.anatomy import Anatomy, anatomy
from interp.efficiency.pruning.choosing import Choice
from interp.efficiency.pruning.plan import PruningPlan
from interp.efficiency.pruning.removing import Removal
from interp.efficiency.registry import check_budget

__all__ = ["PruningMethod", "ScoredPruning", "inverted", "random_scores"]

Change = Callable[[np.ndarray], np.ndarray]


class PruningMethod(Method):
    """Makes plans that take parts out.

    Args:
        budget: The share of the units that is kept, in (0, 1]; 1 keeps everything.
    """

    budget: float

    def __init__(self, *, budget: float) -> None:
        self.budget = check_budget(self.name, budget)

    @abstractmethod
    def plan(self, model: Any) -> PruningPlan:
        """The plan for a model.

        Args:
            model: A bridge, or a deployed model.

        Raises:
            UsageError: A finding about another model, a budget too small, or a part that can't be cut.
        """

    def made(self, hf: PreTrainedModel, choice: Choice, name: str) -> PruningPlan:
        """A choice as a plan."""
        removal = choice.removal
        return PruningPlan(
            **self.about(hf, name),
            blocks=tuple(removal.blocks),
            heads=tuple((layer, tuple(heads)) for layer, heads in sorted(removal.heads.items()) if heads),
            neurons=tuple((layer, tuple(neurons)) for layer, neurons in sorted(removal.neurons.items()) if neurons),
            experts=tuple((layer, tuple(experts)) for layer, experts in sorted(removal.experts.items()) if experts),
            reasons=choice.reasons,
        )

    def ready(self, model: Any) -> PreTrainedModel:
        """The deployed model, after a check of the findings."""
        hf: PreTrainedModel = deployed(model)
        for finding in self.findings():
            finding.check(deployment(hf).fingerprint)
        return hf


class ScoredPruning(PruningMethod):
    """Makes plans out of scores: the lowest go."""

    @abstractmethod
    def scores(self, model: PreTrainedModel) -> np.ndarray:
        """A score for every unit, by original numbers; layers first."""

    @abstractmethod
    def choose(self, body: Anatomy, scores: np.ndarray) -> Choice:
        """What goes, for a budget below 1."""

    def plan(self, model: Any) -> PruningPlan:
        return self._plan(model, lambda scores: scores, self.name)

    def random_plan(self, model: Any, seed: int = 0) -> PruningPlan:
        """A plan of the same size by random scores."""
        return self._plan(model, random_scores(seed), f"{self.name}, random")

    def inverted_plan(self, model: Any) -> PruningPlan:
        """A plan of the same size in which the highest scores go."""
        return self._plan(model, inverted, f"{self.name}, inverted")

    def _plan(self, model: Any, change: Change, name: str) -> PruningPlan:
        hf = self.ready(model)
        if self.budget == 1:
            return self.made(hf, Choice(Removal()), name)
        return self.made(hf, self.choose(anatomy(hf), change(self.scores(hf))), name)


def random_scores(seed: int) -> Change:
    """Random scores of the same shape."""
    return lambda scores: np.random.default_rng(seed).random(scores.shape)


def inverted(scores: np.ndarray) -> np.ndarray:
    """The highest are the lowest."""
    return -scores
