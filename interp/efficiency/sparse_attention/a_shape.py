"""A-shape: every head sees the first tokens and a window, nothing between.

The finding-free baseline: StreamingLLM's attention (Xiao et al. 2023, arXiv 2309.17453, section 3.2) during prefill,
called A-shape by MInference (Jiang et al. 2024, arXiv 2407.02490, section 3.1). What stands between is lost by design.
"""

from __future__ import annotations

from typing import Any

import torch

from interp.efficiency.kv_cache.geometry import Geometry
from interp.efficiency.kv_cache.method import sinks_of
from interp.efficiency.sparse_attention.blocks import BlockList, window_blocks
from interp.efficiency.sparse_attention.method import SparseMethod
from interp.efficiency.sparse_attention.patterns import Pattern, View
from interp.results.finding import Finding
from interp.results.findings import SinkPositions

__all__ = ["AShape", "Window", "widest", "window_share"]


class Window(Pattern):
    """The first tokens, and the query block's own with some directly before it.

    Args:
        sinks: Tokens at the start.
        back: Key blocks before the query block's own.
    """

    fixed = True

    def __init__(self, sinks: int, back: int) -> None:
        self.sinks, self.back = sinks, back

    def select(self, view: View) -> BlockList:
        kept = window_blocks(view.first, view.total, view.block, self.back).to(view.query.device)
        first = torch.arange(view.total, device=kept.device) < self.sinks
        columns = first.expand(len(view.kv), len(kept), -1) if self.sinks else None
        return view.listed(kept.expand(len(view.kv), -1, -1), columns)

    def words(self, block: int) -> str:
        return f"first {self.sinks} and last {self.back * block} to {(self.back + 1) * block - 1} tokens"


class AShape(SparseMethod):
    """Sinks and a window in every head.

    Args:
        budget: The share of the causal blocks that is computed at `length` tokens.
        sinks: Where the sinks are, or how many tokens at the start are seen by all; 4 unless given.
        window: Tokens that each query sees at least, itself among them; unless given, what the budget has room for.
        length: The prompt's length that the budget is for.
        block: Tokens of a block.
        backend: How blocks are computed, see `PrefillPlan`.

    Example:
        >>> plan = AShape(budget=0.2, length=4096).plan(model)
    """

    name = "a_shape"

    def __init__(
        self,
        *,
        budget: float | None = None,
        sinks: SinkPositions | int | None = None,
        window: int | None = None,
        length: int | None = None,
        block: int = 128,
        backend: str = "gathered",
    ) -> None:
        super().__init__(budget=budget, length=length, block=block, backend=backend)
        self.sinks, self.window = sinks, self.tokens("window", window)
        self.one_of("budget", "window")

    def findings(self) -> list[Finding]:
        return [self.sinks] if isinstance(self.sinks, SinkPositions) else []

    def rules(self, shape: Geometry, length: int) -> dict[tuple[int, int], dict[str, Any]]:
        sinks = sinks_of(self.sinks, self.name)
        if self.window is not None:
            back = -(-(self.window - 1) // self.block)
        else:
            assert self.budget is not None
            back, least = widest(self.budget, length, self.block, sinks)
            if not back:
                raise self.too_small(least, length, "the sinks, each query block's own and the one before it")
        settings = {"pattern": "window", "sinks": sinks, "back": back}
        return dict.fromkeys(self.heads(shape), settings)


def widest(budget: float, length: int, block: int, sinks: int) -> tuple[int, float]:
    """The most blocks before the query block's own that a budget has room for beside the sinks'.

    At least one: a block's first query would see nothing of what stands directly before it.

    Returns:
        The number, 0 where there is no room for one; and the least budget that works.
    """
    shares = [window_share(length, block, sinks, back) for back in range(1, max(-(-length // block), 2))]
    return sum(share <= budget + 1e-9 for share in shares), shares[0]


def window_share(length: int, block: int, sinks: int, back: int) -> float:
    """The share of the causal blocks that sinks and a window are, a sink counted as what it is of a block."""
    number = torch.arange(-(-length // block))
    beside = ((number - back).clamp(min=0) * block).clamp(max=sinks)
    kept = (number.clamp(max=back) + 1).sum() + beside.sum() / block
    return float(kept / (number + 1).sum())
