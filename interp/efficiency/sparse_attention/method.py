"""What the methods for sparse prefill share: budgets turned into settings, densities, and the plans beside a plan."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from interp.efficiency.deployment import deployment
from interp.efficiency.kv_cache.geometry import Geometry, deployed
from interp.efficiency.method import Method
from interp.efficiency.registry import check_budget
from interp.efficiency.sparse_attention.observing import views
from interp.efficiency.sparse_attention.patterns import DENSE, View, pattern
from interp.efficiency.sparse_attention.plan import BACKENDS, PrefillPlan, supported
from interp.errors import UsageError, unknown_name
from interp.tasks import corpus

__all__ = ["Source", "SparseMethod", "TunedMethod"]

Source = str | Path | Sequence[str] | Int[Tensor, "text pos"]
"""A text as `interp.tasks.corpus` takes it."""

Rules = dict[tuple[int, int], dict[str, Any]]
"""The settings of each layer and query head."""

_LENGTH, _BUDGET = 2048, 0.25


class SparseMethod(Method):
    """Makes plans for sparse prefill.

    Args:
        budget: The share of the causal blocks that is computed at `length` tokens, in (0, 1], of the layers that see
            the whole text: layers that see a window by design keep it. 1 computes everything.
        length: The prompt's length that the budget is for, in tokens; 2,048 or the model's context unless given.
        block: Tokens of a block.
        backend: How blocks are computed, see `PrefillPlan`.
        source: The text that densities are measured on where they depend on it.
    """

    def __init__(
        self,
        *,
        budget: float | None = None,
        length: int | None = None,
        block: int = 128,
        backend: str = "gathered",
        source: Source = "prose",
    ) -> None:
        if budget is not None:
            check_budget(self.name, budget, "the share that is computed")
        if backend not in BACKENDS:
            raise unknown_name("backend", backend, BACKENDS)
        self.budget, self.source, self.backend = budget, source, backend
        self.length, self.block = self.tokens("length", length), block
        self.tokens("block", block)

    @abstractmethod
    def rules(self, shape: Geometry, length: int) -> Rules:
        """The settings of each layer and query head, for a budget below 1."""

    def scores(self, shape: Geometry) -> Mapping[tuple[int, int], float]:
        """What heads are chosen by; empty where none are."""
        return {}

    def prepare(self, model: PreTrainedModel, length: int) -> None:
        """Measures what the choice needs of a deployed model, for a budget below 1."""

    def plan(self, model: Any) -> PrefillPlan:
        """The plan for a model.

        Args:
            model: A bridge, or a deployed model.

        Raises:
            UsageError: A finding about another model, a budget too small, or a length beyond the model's context.
        """
        return self._plan(model, self.rules, self.name)

    def random_plan(self, model: Any, seed: int = 0) -> PrefillPlan:
        """A plan of the same density with random blocks; the first block and each query block's own stay."""

        def random(shape: Geometry, length: int) -> Rules:
            return {at: _random(rule, seed) for at, rule in self.rules(shape, length).items()}

        return self._plan(model, random, f"{self.name}, random")

    def _plan(self, model: Any, choose: Any, name: str) -> PrefillPlan:
        hf: PreTrainedModel = deployed(model)
        shape, found, about = supported(hf), deployment(hf), self.about(hf, name)
        if not self.heads(shape):
            raise UsageError(
                f"every layer of {found.name} sees no more than sliding_window={shape.own_windows[0]} tokens by "
                "design: its prefill is sparse already"
            )
        length = self.length or min(_LENGTH, shape.context)
        if length > shape.context:
            raise UsageError(f"{self.name}: length={length} is more than the {shape.context} tokens of {found.name}")
        self._views: list[View] | None = None
        if self.budget != 1:
            self.prepare(hf, length)
        chosen = dict.fromkeys(self.heads(shape), DENSE) if self.budget == 1 else choose(shape, length)
        table: list[dict[str, Any]] = []
        for rule in chosen.values():
            if rule not in table:
                table.append(rule)
        shares, scores = self._densities(hf, chosen, length), self.scores(shape)
        self._views = None
        return PrefillPlan(
            **{**about, "budget": self.budget or round(sum(shares.values()) / len(shares), 4)},
            rules=tuple(table),
            heads=tuple((*at, table.index(rule)) for at, rule in chosen.items()),
            densities=tuple(shares[at] for at in chosen),
            block=self.block,
            length=length,
            backend=self.backend,
            scores=tuple(scores[at] for at in chosen) if scores else (),
        )

    def heads(self, shape: Geometry) -> list[tuple[int, int]]:
        """Layer and query head, by their original numbers, of those that see the whole text."""
        per = shape.query_heads
        return [(layer, group * per + n) for layer, group in shape.compressible for n in range(per)]

    def tokens(self, what: str, value: int | None) -> int | None:
        """A number of tokens, or none.

        Raises:
            UsageError: It is below 1.
        """
        if value is not None and value < 1:
            raise UsageError(f"{self.name}: {what} must be at least 1 token, got {value}")
        return value

    def one_of(self, *names: str) -> None:
        """Refuses several ways to say how much is kept; without any, the budget is 0.25."""
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1 and self.budget != 1:
            raise UsageError(f"{self.name}: {' and '.join(given)} both given; either decides how much is computed")
        if not given:
            self.budget = _BUDGET

    def too_small(self, least: float, length: int, what: str) -> UsageError:
        """A budget that has no room for what is always computed."""
        return UsageError(
            f"{self.name}: a budget of {self.budget:.3g} at {length} tokens in blocks of {self.block} has no room for "
            f"{what}; the least that works is {least:.3g}"
        )

    def views(self, model: PreTrainedModel, length: int) -> list[View]:
        """Queries and keys of the dense model on the text, layer by layer."""
        if self._views is None:
            tokens = corpus(self.source, model, 1, length, 0)
            self._views = views(model, tokens, self.block)
        return self._views

    def _densities(self, model: PreTrainedModel, chosen: Rules, length: int) -> dict[tuple[int, int], float]:
        """The share of the causal blocks that each head computes."""
        fixed: dict[str, float] = {}
        found = {}
        for at, rule in chosen.items():
            made = pattern(rule)
            if made.fixed:
                if str(rule) not in fixed:
                    empty = torch.zeros(1, length, 1)
                    fixed[str(rule)] = float(made.select(View(empty, empty, (0,), self.block, 1.0)).density())
                found[at] = fixed[str(rule)]
        if len(found) < len(chosen):
            found.update(measured_densities(self.views(model, length), chosen))
        return found


class TunedMethod(SparseMethod):
    """A method with a number of its own that decides how much is computed; a budget is met by turning it.

    A subclass names the number (`dial`), its range (`reach`), and gives the `settings` for a value. The larger it is,
    the more is computed.
    """

    dial: ClassVar[str]
    reach: ClassVar[tuple[float, float]]

    @abstractmethod
    def settings(self, value: float) -> dict[str, Any]:
        """The pattern's settings."""

    def prepare(self, model: PreTrainedModel, length: int) -> None:
        """Finds the largest value that the budget allows, by bisection on the text."""
        self.value = getattr(self, self.dial)
        if self.budget is None:
            return

        def density(value: float) -> float:
            shares = [pattern(self.settings(value)).select(view).density() for view in self.views(model, length)]
            return float(torch.cat(shares).mean())

        low, high = self.reach
        if (least := density(low)) > self.budget:
            raise self.too_small(least, length, "what it always computes on this text")
        if density(high) <= self.budget:
            low = high
        for _ in range(12 if low < high else 0):
            middle = (low + high) / 2
            low, high = (middle, high) if density(middle) <= self.budget else (low, middle)
        self.value = low

    def rules(self, shape: Geometry, length: int) -> Rules:
        return dict.fromkeys(self.heads(shape), self.settings(self.value))


def measured_densities(seen: Sequence[View], chosen: Rules) -> dict[tuple[int, int], float]:
    """What each head's settings compute of the causal blocks, on queries and keys of a text."""
    found = {}
    for view in seen:
        mine = {head: rule for (layer, head), rule in chosen.items() if layer == view.layer}
        for rule in {str(rule): rule for rule in mine.values()}.values():
            shares = pattern(rule).select(view).density()
            for place, head in enumerate(view.heads):
                if mine.get(head) == rule:
                    found[view.layer, head] = float(shares[place])
    return found


def _random(rule: dict[str, Any], seed: int) -> dict[str, Any]:
    return rule if rule == DENSE else {"pattern": "random", "of": rule, "seed": seed}
