"""Patterns by head from findings: streaming heads see sinks and a window, retrieval heads everything.

Xiao et al. 2024, DuoAttention (arXiv 2410.10819), section 2, splits heads like this for the cache, by gates that are
trained; here query heads are chosen for prefill, by what `RetrievalHeads` measured (Wu et al. 2024, arXiv 2404.15574),
and `SinkPositions` says what all others keep of the start.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from interp.efficiency.kv_cache.geometry import Geometry
from interp.efficiency.kv_cache.method import sinks_of
from interp.efficiency.registry import missing
from interp.efficiency.sparse_attention.a_shape import widest, window_share
from interp.efficiency.sparse_attention.method import Source, SparseMethod
from interp.efficiency.sparse_attention.patterns import DENSE
from interp.efficiency.sparse_attention.plan import PrefillPlan
from interp.errors import UsageError, unknown_name
from interp.results.finding import Finding, HeadScores
from interp.results.findings import SinkPositions

__all__ = ["HeadPatterns"]

_FOR_WINDOWS = 0.5
"""Share of the budget that windows take at most where none is asked for; the rest goes to retrieval heads."""

_RETRIEVAL: dict[str, dict[str, Any]] = {
    "dense": DENSE,
    "flexprefill": {"pattern": "flexprefill", "gamma": 0.95, "tau": 0.1, "least": 512},
}


class HeadPatterns(SparseMethod):
    """The query heads that retrieve most see everything, all others sinks and a window.

    Args:
        retrieval: Which heads retrieve.
        budget: The share of the causal blocks that is computed at `length` tokens: windows come first, and as many
            heads see everything as the rest has room for.
        sinks: Where the sinks are, or how many tokens at the start all heads see; 4 unless given.
        window: Tokens that the queries of all other heads see at least; unless given, what half of the budget has room
            for, or what `full` leaves of it.
        full: Share of the heads that see everything; with it and `window`, the plan's budget is what they come to.
        pattern: Of the heads that retrieve: "dense", or "flexprefill", which is counted as dense by the budget and
            computes less.
        length: The prompt's length that the budget is for.
        block: Tokens of a block.
        backend: How blocks are computed, see `PrefillPlan`.
        source: The text that densities are measured on where they depend on it.

    Example:
        >>> plan = HeadPatterns(retrieval=finding, sinks=sinks, budget=0.25, length=4096).plan(model)
        >>> with plan.applied(hf):
        ...     hf.generate(**prompt)
    """

    name = "head_patterns"

    def __init__(
        self,
        *,
        retrieval: HeadScores | None = None,
        budget: float | None = None,
        sinks: SinkPositions | int | None = None,
        window: int | None = None,
        full: float | None = None,
        pattern: str = "dense",
        length: int | None = None,
        block: int = 128,
        backend: str = "gathered",
        source: Source = "prose",
    ) -> None:
        super().__init__(budget=budget, length=length, block=block, backend=backend, source=source)
        if retrieval is None:
            raise missing("head_patterns", "RetrievalHeads")
        if not isinstance(retrieval, HeadScores):
            kind = type(retrieval).__name__
            raise UsageError(f"head_patterns: retrieval must be a finding with a score for every head, got {kind}")
        if pattern not in _RETRIEVAL:
            raise unknown_name("pattern of retrieval heads", pattern, _RETRIEVAL)
        if full is not None and not 0 <= full <= 1:
            raise UsageError(f"head_patterns: full, the share that sees everything, must be in [0, 1], got {full}")
        self.retrieval, self.sinks, self.pattern = retrieval, sinks, pattern
        self.window, self.full = self.tokens("window", window), full
        if window is None or full is None:
            self.one_of("budget")
        elif budget is not None and budget < 1:
            raise UsageError("head_patterns: budget, window and full all given; leave out one of them")

    def findings(self) -> Sequence[Finding]:
        return [self.retrieval, *([self.sinks] if isinstance(self.sinks, SinkPositions) else [])]

    def scores(self, shape: Geometry) -> Mapping[tuple[int, int], float]:
        values = self.retrieval.scores.values
        return {(layer, head): float(values[layer, head]) for layer, head in self.heads(shape)}

    def rules(self, shape: Geometry, length: int) -> dict[tuple[int, int], dict[str, Any]]:
        scores = self.scores(shape)
        return self._split(sorted(scores, key=lambda at: -scores[at]), shape, length)

    def random_plan(self, model: Any, seed: int = 0) -> PrefillPlan:
        """As many random heads see everything."""

        def shuffled(shape: Geometry, length: int) -> dict[tuple[int, int], dict[str, Any]]:
            order = self.heads(shape)
            random.Random(seed).shuffle(order)
            return self._split(order, shape, length)

        return self._plan(model, shuffled, f"{self.name}, random")

    def inverted_plan(self, model: Any) -> PrefillPlan:
        """As many heads see everything, those that retrieve least."""

        def least(shape: Geometry, length: int) -> dict[tuple[int, int], dict[str, Any]]:
            scores = self.scores(shape)
            return self._split(sorted(scores, key=lambda at: scores[at]), shape, length)

        return self._plan(model, least, f"{self.name}, inverted")

    def _split(
        self, order: Sequence[tuple[int, int]], shape: Geometry, length: int
    ) -> dict[tuple[int, int], dict[str, Any]]:
        """The first heads of an order see everything."""
        full, settings = self._sizes(len(order), length)
        chosen = {at: (_RETRIEVAL[self.pattern] if n < full else settings) for n, at in enumerate(order)}
        return {at: chosen[at] for at in self.heads(shape)}

    def _sizes(self, heads: int, length: int) -> tuple[int, dict[str, Any]]:
        """How many heads see everything, and the others' settings.

        Raises:
            UsageError: No room for one head; the message says which budget works.
        """
        sinks = sinks_of(self.sinks, self.name)
        most = None if self.full is None else round(self.full * heads)
        if self.window is None:
            assert self.budget is not None
            room = (
                _FOR_WINDOWS * self.budget if most is None else (self.budget - most / heads) / (1 - most / heads or 1)
            )
            back, least = widest(room, length, self.block, sinks)
            if not back and most is not None:
                raise self._no_room(least + (1 - least) * most / heads, length)
            back = max(back, 1)
        else:
            back = -(-(self.window - 1) // self.block)
        if most is None:
            assert self.budget is not None
            share = window_share(length, self.block, sinks, back)
            most = heads if share == 1 else int((self.budget - share) / (1 - share) * heads + 1e-6)
            if most < 1:
                raise self._no_room(share + (1 - share) / heads, length)
        return most, {"pattern": "window", "sinks": sinks, "back": back}

    def _no_room(self, least: float, length: int) -> UsageError:
        return self.too_small(least, length, "sinks and a window, and heads that see everything")
