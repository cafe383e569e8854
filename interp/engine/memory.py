"""How many rows fit: the memory budget of a sweep."""

from __future__ import annotations

import torch

from interp.errors import UsageError
from interp.graph import Graph
from interp.models._memory import free_on

__all__ = ["available_bytes", "budget_bytes", "bytes_per_row"]

_DEFAULT_ON_CPU = 1 << 30
_UNTOLD = 4 << 30
"""Taken where a device does not tell how much is free."""


def available_bytes(device: torch.device) -> int:
    """Free memory on the device, in bytes."""
    found = free_on(device)
    return _UNTOLD if found is None else found


def budget_bytes(device: torch.device, wanted: int | None = None) -> int:
    """What a sweep may use for its rows, in bytes: a gigabyte on a processor, half of what is free elsewhere.

    Raises:
        UsageError: More is wanted than the device has free.
    """
    free = available_bytes(device)
    if wanted is None:
        return min(_DEFAULT_ON_CPU, free // 2) if device.type == "cpu" else free // 2
    if wanted <= 0:
        raise UsageError(f"max_memory must be positive, got {wanted}")
    if wanted > free:
        raise UsageError(
            f"max_memory of {wanted / 2**30:.1f} GiB is more than the {free / 2**30:.1f} GiB free on {device}; "
            f"ask for less"
        )
    return wanted


def bytes_per_row(graph: Graph, span: int, length: int, vocabulary: int, element: int = 4) -> int:
    """An upper estimate of what one row of a walk holds at once, in bytes.

    Args:
        graph: The model's shape.
        span: Positions computed.
        length: Positions attended to.
        vocabulary: Logits read at the end.
        element: Bytes of one number.
    """
    attention = span * graph.n_heads * (5 * graph.d_head + 3 * length) + 4 * length * graph.n_kv_heads * graph.d_head
    mlp = span * 3 * graph.d_mlp
    return element * (span * 5 * graph.d_model + max(attention, mlp) + 3 * vocabulary)
