"""Rotary embeddings as models have them: which channels turn together, and by how much at which position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from interp.upstream import sines

__all__ = ["SineTable", "rotary_of"]


@dataclass(frozen=True)
class SineTable:
    """Cosines and sines from a table, each angle's twice next to each other.

    Args:
        table: "pos twice", the sines of all angles and behind them the cosines.
    """

    table: Tensor

    def forward(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines "row pos rotary" of positions "row pos"."""
        sin, cos = self.table.to(like.device)[positions].to(like.dtype).chunk(2, dim=-1)
        return cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)

    __call__ = forward


def rotary_of(model: Any) -> Any:
    """What makes cosines and sines; GPT-J has a table of them."""
    if hasattr(model, "rotary_emb"):
        return model.rotary_emb.original_component
    table = sines(model.original_model, model.blocks[0].attn.original_component)
    return None if table is None else SineTable(table)
