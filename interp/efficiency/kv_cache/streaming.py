"""StreamingLLM: the first tokens, where attention collects, and the most recent ones.

Xiao et al. 2023 (arXiv 2309.17453), section 3.2: attention sinks and a rolling window, positions numbered within the
cache. It fails wherever something between has to be found again: by design.
"""

from __future__ import annotations

from typing import Any, Literal

from interp.efficiency.kv_cache.geometry import Geometry
from interp.efficiency.kv_cache.method import CacheMethod, sinks_of
from interp.errors import unknown_name
from interp.results.findings import SinkPositions

__all__ = ["StreamingCache"]


class StreamingCache(CacheMethod):
    """Keeps sinks and a window.

    Args:
        budget: The share of the cache's bytes that is kept at `length` tokens.
        sinks: Where the sinks are, or how many tokens at the start are kept; 4 unless given.
        positions: "kept": tokens stay where they stood; "reindexed": the sinks are moved up to the window, as in the
            paper, so that distances never grow beyond the cache. Needs rotary embeddings.
        length: The prompt's length that the budget is for.
        prefill_chunk: Tokens of a prompt that are processed at once.

    Example:
        >>> plan = StreamingCache(budget=0.1, length=4096).plan(model)
    """

    name = "streaming"

    def __init__(
        self,
        *,
        budget: float = 0.15,
        sinks: SinkPositions | int | None = None,
        positions: Literal["kept", "reindexed"] = "kept",
        length: int | None = None,
        prefill_chunk: int | None = None,
    ) -> None:
        super().__init__(budget=budget, length=length, prefill_chunk=prefill_chunk)
        if positions not in ("kept", "reindexed"):
            raise unknown_name("way to number positions", positions, ("kept", "reindexed"))
        self.sinks, self.positions = sinks, positions

    def findings(self) -> list[SinkPositions]:
        return [self.sinks] if isinstance(self.sinks, SinkPositions) else []

    def policies(self, shape: Geometry, length: int) -> dict[tuple[int, int], dict[str, Any]]:
        sinks = sinks_of(self.sinks, self.name)
        beside = sinks / 2 if self.positions == "reindexed" else 0  # the sinks' keys as they came
        window = self.entries(shape, length, sinks + 1, 1, lambda _: beside) - sinks
        kept = {"keep": "window", "sinks": sinks, "window": window, "positions": self.positions}
        return dict.fromkeys(shape.compressible, kept)
