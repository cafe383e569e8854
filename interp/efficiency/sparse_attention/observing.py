"""Looking at a model's queries and keys as patterns see them, while it runs densely."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from interp.efficiency.kv_cache.running import beneath
from interp.efficiency.sparse_attention.patterns import View
from interp.efficiency.sparse_attention.running import See, SparseForward

__all__ = ["observe", "views"]


def observe(model: PreTrainedModel, tokens: Int[Tensor, "row pos"], block: int, see: See) -> None:
    """Runs prompts densely and shows every layer that sees the whole text, row by row.

    Args:
        model: A deployed model.
        tokens: The prompts.
        block: Tokens of the views' blocks.
        see: Is called with a view of all heads and the values "kv_head key d".
    """
    forward = SparseForward(model, _Nothing(block), beneath(model), see)  # type: ignore[arg-type]
    with torch.no_grad():
        forward(input_ids=tokens.to(model.device), use_cache=False, logits_to_keep=1)


def views(model: PreTrainedModel, tokens: Int[Tensor, "row pos"], block: int) -> list[View]:
    """Queries and keys of every layer that sees the whole text; arguments as of `observe`."""
    found: list[View] = []
    observe(model, tokens, block, lambda view, values: found.append(view))
    return found


class _Nothing:
    """Stands for a plan that has no rules."""

    heads: tuple[Any, ...] = ()
    dense = True

    def __init__(self, block: int) -> None:
        self.block = block
