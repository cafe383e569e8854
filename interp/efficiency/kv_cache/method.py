"""What the methods for the cache share: budgets turned into entries, and the plans beside a plan."""

from __future__ import annotations

import bisect
import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedModel

from interp.efficiency.deployment import deployment
from interp.efficiency.kv_cache.geometry import Geometry, deployed, geometry
from interp.efficiency.kv_cache.plan import KVPlan
from interp.efficiency.kv_cache.policies import FULL, entry_bytes
from interp.efficiency.method import Method
from interp.efficiency.registry import check_budget
from interp.errors import UsageError
from interp.results.findings import SinkPositions, positions_or

__all__ = ["SINKS", "CacheMethod", "sinks_of"]

SINKS = 4
"""Sinks that are kept where no finding says how many there are, as in StreamingLLM."""

_LENGTH = 2048


class CacheMethod(Method):
    """Makes plans for the cache.

    Args:
        budget: The share of the cache's bytes that is kept at `length` tokens, in (0, 1]. 1 keeps everything. Layers
            that see a window by design keep it, and what they take comes off the budget of the others.
        length: The prompt's length that the budget is for, in tokens; 2,048 or the model's context unless given.
        prefill_chunk: Tokens of a prompt that are processed at once, see `KVPlan`.
    """

    budget: float

    def __init__(self, *, budget: float = 1.0, length: int | None = None, prefill_chunk: int | None = None) -> None:
        for what, value in (("length", length), ("prefill_chunk", prefill_chunk)):
            if value is not None and value < 1:
                raise UsageError(f"{self.name}: {what} must be at least 1 token, got {value}")
        self.budget, self.length, self.prefill_chunk = check_budget(self.name, budget), length, prefill_chunk

    @abstractmethod
    def policies(self, shape: Geometry, length: int) -> dict[tuple[int, int], dict[str, Any]]:
        """The policy of each layer and key-value head, for a budget below 1."""

    def random_policies(self, shape: Geometry, length: int, seed: int) -> dict[tuple[int, int], dict[str, Any]]:
        """As many bytes for each head, but random entries of those that are not sinks or recent."""
        return {at: _random(kept, seed, at, shape, length) for at, kept in self.policies(shape, length).items()}

    def scores(self, shape: Geometry) -> Mapping[tuple[int, int], float]:
        """What heads are chosen by; empty where none are."""
        return {}

    def prepare(self, model: PreTrainedModel) -> None:
        """Measures what the choice needs of a deployed model, for a budget below 1."""

    def plan(self, model: Any) -> KVPlan:
        """The plan for a model.

        Args:
            model: A bridge, or a deployed model.

        Raises:
            UsageError: A finding about another model, a budget too small, or a length beyond the model's context.
        """
        return self._plan(model, self.policies, self.name)

    def random_plan(self, model: Any, seed: int = 0) -> KVPlan:
        """A plan of the same size that does not look at what it keeps."""
        return self._plan(
            model, lambda shape, length: self.random_policies(shape, length, seed), f"{self.name}, random"
        )

    def _plan(self, model: Any, choose: Any, name: str) -> KVPlan:
        hf: PreTrainedModel = deployed(model)
        shape, found, about = geometry(hf), deployment(hf), self.about(hf, name)
        if not shape.compressible:
            raise UsageError(
                f"every layer of {found.name} sees no more than sliding_window={shape.own_windows[0]} tokens by "
                "design: there is no cache to compress"
            )
        length = self.length or min(_LENGTH, shape.context)
        if length > shape.context:
            raise UsageError(f"{self.name}: length={length} is more than the {shape.context} tokens of {found.name}")
        if self.budget < 1:
            self.prepare(hf)
        chosen = dict.fromkeys(shape.compressible, FULL) if self.budget == 1 else choose(shape, length)
        table: list[dict[str, Any]] = []
        for policy in chosen.values():
            if policy not in table:
                table.append(policy)
        scores = self.scores(shape)
        return KVPlan(
            **about,
            policies=tuple(table),
            heads=tuple((layer, head, table.index(chosen[layer, head])) for layer, head in shape.compressible),
            length=length,
            prefill_chunk=self.prefill_chunk,
            instruction=self.instruction(hf) if self.budget < 1 else (),
            scores=tuple(scores[at] for at in shape.compressible) if scores else (),
        )

    def instruction(self, model: PreTrainedModel) -> tuple[int, ...]:
        """Tokens that are to ask behind every chunk."""
        return ()

    def share(self, what: str, value: float) -> float:
        """A share in (0, 1].

        Raises:
            UsageError: It is not.
        """
        if not 0 < value <= 1:
            raise UsageError(f"{self.name}: {what} must be a share in (0, 1], got {value}")
        return value

    def room(self, shape: Geometry, length: int) -> float:
        """The budget as a share of what the layers hold that see the whole text; the others' windows come off it."""
        windows, whole = shape.entries(length)
        return (self.budget * (windows + whole) - windows) / whole

    def entries(
        self, shape: Geometry, length: int, least: int, each: float = 1.0, beside: Callable[[int], float] = lambda _: 0
    ) -> int:
        """The budget in entries of each head that sees the whole text.

        Args:
            shape: The cache's.
            length: Tokens of the prompt.
            least: Fewer entries make no sense.
            each: What an entry takes with the numbers kept for it, as a multiple of its key and value.
            beside: What else a head holds, in entries, behind a prompt of so many tokens.

        Raises:
            UsageError: Fewer than `least`; the message says which budget works, or which length.
        """

        def found(length: int) -> int:
            return int((self.room(shape, length) * length - beside(length)) / each + 1e-9)

        if (n := found(length)) >= least:
            return n
        raise self.too_small(
            f"{max(n, 0)} entries of each head, and sinks and recent tokens alone are {least}",
            (least * each + beside(length)) / length,
            shape,
            length,
            lambda at: found(at) >= least,
        )

    def too_small(
        self, what: str, needed: float, shape: Geometry, length: int, fits: Callable[[int], bool] | None = None
    ) -> UsageError:
        """What is raised where a budget has no room.

        Args:
            what: What the budget is.
            needed: The least that works, as a share of what the layers hold that see the whole text.
            shape: The cache's.
            length: Tokens of the prompt.
            fits: Whether the budget works at a length, for where no budget works at this one.
        """
        windows, whole = shape.entries(length)
        said = f"{self.name}: a budget of {self.budget:.3g} at {length} tokens is {what}"
        if windows:
            said += f"; windows that layers have by design are {windows / (windows + whole):.0%} of the cache already"
        least = (needed * whole + windows) / (windows + whole)
        if least <= 1 or fits is None:
            return UsageError(f"{said}; the least that works is {math.ceil(least * 1000 - 1e-6) / 1000:g}")
        longest = next(length << doubled for doubled in itertools.count() if fits(length << doubled))
        shortest = length + bisect.bisect_left(range(length, longest), True, key=fits)
        return UsageError(f"{said}; no budget works at this length, and this one does from {shortest} tokens on")


def sinks_of(sinks: SinkPositions | int | None, who: str, default: int = SINKS) -> int:
    """How many tokens at the start are kept: what a finding says, a number, or the default."""
    if sinks is None or isinstance(sinks, SinkPositions):
        return max(positions_or(sinks, range(default), who), default=-1) + 1
    if sinks < 0:
        raise UsageError(f"{who}: sinks must be a number of tokens or a SinkPositions finding, got {sinks}")
    return sinks


def _random(policy: dict[str, Any], seed: int, at: tuple[int, int], shape: Geometry, length: int) -> dict[str, Any]:
    if policy["keep"] not in ("window", "top"):
        return policy
    n = entry_bytes(policy, length, shape) // shape.entry_bytes  # what scores take beside entries goes into entries
    window = policy["window"] if policy["keep"] == "top" else min(policy["window"], n // 4)
    options = {"seed": seed * 1_000_003 + at[0] * 1009 + at[1]}
    return {"keep": "top", "score": "random", "n": n, "window": window, "sinks": policy["sinks"], "options": options}
