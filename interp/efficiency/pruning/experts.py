"""Experts taken out of a mixture: their weights, and their rows of the router, which chooses among those that are left.

Lu et al. 2024, "Not All Experts are Equal" (arXiv 2402.14800), section 3.2: experts are dropped as a whole, and tokens
that were routed to one go to the best of the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from interp.efficiency.plan import Undo
from interp.efficiency.pruning.absent import NoMLP
from interp.errors import UsageError

__all__ = ["remove_experts"]

_WEIGHTS = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")


def remove_experts(block: Any, layer: int, gone: set[int], undo: Undo) -> None:
    """Takes experts out of a block; those that are gone already are passed over.

    Args:
        block: The block.
        layer: Its original number, for messages.
        gone: Original numbers of experts; a shared expert's is the one behind those that are routed to.
        undo: Takes it back.

    Raises:
        UsageError: The block's MLP is no mixture that is known, has no such expert, or none would be left.
    """
    if not gone:
        return
    mlp = block.mlp
    router: Any = getattr(mlp, "gate", getattr(mlp, "router", None))
    experts: Any = getattr(mlp, "experts", None)
    if router is None or not isinstance(getattr(experts, "gate_up_proj", None), nn.Parameter):
        raise UsageError(f"{type(mlp).__name__} of layer {layer} is no mixture of experts that is known")
    whole = vars(experts).get("all_experts", len(experts.gate_up_proj))
    kept = vars(experts).get("kept_experts", tuple(range(whole)))
    shared = hasattr(mlp, "shared_expert")
    if odd := sorted(gone - set(range(whole + shared))):
        raise UsageError(f"layer {layer} has experts 0 to {whole + shared - 1}, and none with the number {odd[0]}")
    if whole in gone and not isinstance(mlp.shared_expert, NoMLP):
        undo.set(mlp, "shared_expert", NoMLP())
    at = [place for place, expert in enumerate(kept) if expert not in gone]
    if not at:
        raise UsageError(f"layer {layer} would keep no expert to route to; keep at least one, or take its whole block")
    if len(at) == len(kept):
        return
    for owner, names in ((experts, _WEIGHTS), (router, ("weight", "bias"))):
        for name in names:
            if isinstance(before := getattr(owner, name, None), nn.Parameter):
                left = before.detach().index_select(0, torch.tensor(at, device=before.device))
                undo.set(owner, name, nn.Parameter(left, before.requires_grad))
    undo.set(experts, "all_experts", whole)
    undo.set(experts, "kept_experts", tuple(kept[place] for place in at))
    for owner in (mlp, router, experts):
        if "num_experts" in vars(owner):
            undo.set(owner, "num_experts", len(at))
        if "top_k" in vars(owner):
            undo.set(owner, "top_k", min(owner.top_k, len(at)))
