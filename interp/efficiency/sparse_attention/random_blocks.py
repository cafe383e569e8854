"""Random blocks, as many as another pattern chooses: the control of every pattern.

The first key block, where the sinks are, and the query block's own stay where the other pattern has them.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.efficiency.sparse_attention.blocks import BlockList
from interp.efficiency.sparse_attention.patterns import Pattern, View, pattern

__all__ = ["Random"]


class Random(Pattern):
    """As many blocks and columns for each head and query block as another pattern has, but random ones.

    Args:
        of: The other pattern's settings.
        seed: Of the choice; every layer and head draws anew.
    """

    def __init__(self, of: dict[str, Any], seed: int) -> None:
        self.of, self.seed = pattern(of), seed
        self.fixed = self.of.fixed  # type: ignore[misc]

    def select(self, view: View) -> BlockList:
        chosen = self.of.select(view)
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + view.layer)
        kept = chosen.kept.cpu() & view.causal.cpu()
        stay = view.own.cpu().clone()
        stay[:, 0] = True
        free = view.causal.cpu().expand_as(kept).clone()
        if chosen.columns is not None:  # what stands at the start as columns stays so, see below
            free[..., 0] &= kept[..., 0] | ~chosen.columns[..., : view.block].cpu().any(2)
        random = _as_many(kept, free, kept & stay, draw).to(view.query.device)
        if chosen.columns is None:
            return view.listed(random)
        before = (view.causal & ~view.own).cpu().repeat_interleave(view.block, 1)[:, : view.total]
        free = before & ~random.cpu().repeat_interleave(view.block, 2)[..., : view.total]
        wanted = chosen.columns.cpu() & ~kept.repeat_interleave(view.block, 2)[..., : view.total] & before
        stay = wanted & (torch.arange(view.total) < view.block)  # sinks, as above
        columns = _as_many(wanted, free | stay, stay, draw)
        return view.listed(random, columns.to(view.query.device))

    def words(self, block: int) -> str:
        return f"random blocks, as many as: {self.of.words(block)}"


def _as_many(
    wanted: Bool[Tensor, "head row item"], free: Tensor, stay: Tensor, draw: torch.Generator
) -> Bool[Tensor, "head row item"]:
    """As many items of each row as are wanted, out of those that are free, those first that stay."""
    order = torch.rand(wanted.shape, generator=draw).masked_fill(~free, 2.0).masked_fill(stay, -1.0)
    rank = order.argsort(-1).argsort(-1)
    return (rank < wanted.sum(-1, keepdim=True)) & (order < 2)
