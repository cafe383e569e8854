"""Retrieval heads keep everything, all other heads sinks and a window.

Xiao et al. 2024, DuoAttention (arXiv 2410.10819), section 2: two caches, a full one for retrieval heads and one of
constant length for the rest. There, gates are trained; here heads are chosen by a finding: what each copies (Wu et al.
2024, arXiv 2404.15574, `interp.attention.retrieval_heads`), or what an answer loses when a key-value head's reach is
cut (`interp.attention.head_reach`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from interp.efficiency.kv_cache.geometry import Geometry
from interp.efficiency.kv_cache.method import CacheMethod, sinks_of
from interp.efficiency.kv_cache.plan import KVPlan
from interp.efficiency.kv_cache.policies import FULL, entry_bytes
from interp.efficiency.registry import missing
from interp.errors import UsageError
from interp.results.finding import Finding, HeadScores
from interp.results.findings import SinkPositions

__all__ = ["RetrievalCache"]

_FOR_WINDOWS = 0.3
"""Share of the budget that windows take where none is asked for; the rest goes to heads that keep everything."""

_NO_ROOM = "less than the heads asked for take, and sinks and a window in the others"


class RetrievalCache(CacheMethod):
    """Keeps everything for the key-value heads that retrieve most, sinks and a window for the others.

    Args:
        retrieval: Which heads retrieve; any other finding that scores heads is taken, too.
        budget: The share of the cache's bytes that is kept at `length` tokens: windows come first, and as many heads
            keep everything as the rest has room for.
        sinks: Where the sinks are, or how many tokens at the start are kept; 4 unless given.
        window: Recent tokens that all other heads keep; unless given, what 30 % of the budget has room for.
        groups: Share of the key-value heads that keep everything; with it, the window has what is left.
        how: How the scores of the query heads that share a key-value head are joined: "sum", "max" or "mean".
        bits: 8 or 4: heads that keep everything keep it as integers, sinks in full precision (see `QuantizedCache`),
            so that there is room for more of them.
        length: The prompt's length that the budget is for.
        prefill_chunk: Tokens of a prompt that are processed at once.

    Example:
        >>> plan = RetrievalCache(retrieval=finding, sinks=sinks, budget=0.15, length=1024).plan(model)
        >>> with plan.applied(hf):
        ...     hf.generate(**prompt)
    """

    name = "retrieval"

    def __init__(
        self,
        *,
        retrieval: HeadScores | None = None,
        budget: float = 0.15,
        sinks: SinkPositions | int | None = None,
        window: int | None = None,
        groups: float | None = None,
        how: Literal["max", "mean", "sum"] = "sum",
        bits: int | None = None,
        length: int | None = None,
        prefill_chunk: int | None = None,
    ) -> None:
        super().__init__(budget=budget, length=length, prefill_chunk=prefill_chunk)
        if retrieval is None:
            raise missing("retrieval", "RetrievalHeads")
        if window is not None and groups is not None:
            raise UsageError("retrieval: window and groups both given; the budget decides one of them")
        if window is not None and window < 1:
            raise UsageError(f"retrieval: window must be at least 1 token, got {window}")
        if groups is not None and not 0 <= groups <= 1:
            raise UsageError(f"retrieval: groups, the share that keeps everything, must be in [0, 1], got {groups}")
        if bits not in (None, 4, 8):
            raise UsageError(f"retrieval: heads keep everything as it is, or in 8 or 4 bits, not {bits}")
        retrieval.groups(how)
        self.retrieval, self.sinks, self.window, self.groups = retrieval, sinks, window, groups
        self.how, self.bits = how, bits

    def findings(self) -> Sequence[Finding]:
        return [self.retrieval, *([self.sinks] if isinstance(self.sinks, SinkPositions) else [])]

    def scores(self, shape: Geometry) -> Mapping[tuple[int, int], float]:
        values = self.retrieval.groups(self.how).values
        return {(layer, head): float(values[layer, head]) for layer, head in shape.compressible}

    def policies(self, shape: Geometry, length: int) -> dict[tuple[int, int], dict[str, Any]]:
        scores = self.scores(shape)
        return self._split(shape, length, sorted(scores, key=lambda at: -scores[at]))

    def random_policies(self, shape: Geometry, length: int, seed: int) -> dict[tuple[int, int], dict[str, Any]]:
        """As many random heads keep everything."""
        order = shape.compressible
        random.Random(seed).shuffle(order)
        return self._split(shape, length, order)

    def inverted_plan(self, model: Any) -> KVPlan:
        """As many heads keep everything, those that retrieve least."""

        def least(shape: Geometry, length: int) -> dict[tuple[int, int], dict[str, Any]]:
            scores = self.scores(shape)
            return self._split(shape, length, sorted(scores, key=lambda at: scores[at]))

        return self._plan(model, least, f"{self.name}, inverted")

    def _split(
        self, shape: Geometry, length: int, order: Sequence[tuple[int, int]]
    ) -> dict[tuple[int, int], dict[str, Any]]:
        """The first heads of an order keep everything."""
        sinks = sinks_of(self.sinks, self.name)
        whole = FULL if self.bits is None else {"keep": "quantized", "bits": self.bits, "sinks": sinks}
        full, window = self._sizes(shape, length, entry_bytes(whole, length, shape) / shape.entry_bytes, sinks)
        kept = {"keep": "window", "sinks": sinks, "window": window, "positions": "kept"}
        return {at: (whole if number < full else kept) for number, at in enumerate(order)}

    def _sizes(self, shape: Geometry, length: int, whole: float, sinks: int) -> tuple[int, int]:
        """How many heads keep everything, at what that takes in entries, and the others' window.

        Raises:
            UsageError: No room for them; the message says which budget works.
        """
        heads, share = len(shape.compressible), self.room(shape, length)
        room = share * heads * length + 1e-6
        if self.groups is not None:
            full = round(self.groups * heads)
            others = heads - full
            window = min(int((room - full * whole) / others) - sinks, length) if others else 1
            if window < 1 or full * whole > room:
                raise self.too_small(_NO_ROOM, (full * whole + others * (sinks + 1)) / (heads * length), shape, length)
            return full, window
        window = max(int(_FOR_WINDOWS * share * length) - sinks, 1) if self.window is None else self.window
        window = max(min(window, int(whole) - sinks - 1), 1)
        full = min(int((room - heads * (sinks + window)) / (whole - sinks - window)), heads)
        if full < 1:
            least = (whole + (heads - 1) * (sinks + window)) / (heads * length)
            raise self.too_small(_NO_ROOM, least, shape, length)
        return full, window
