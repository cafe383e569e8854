"""What stands where all heads or all neurons of a block were removed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from interp.efficiency.kv_cache.attention import Deferred
from interp.upstream import take_cache

__all__ = ["NoAttention", "NoMLP"]


class NoMLP(nn.Module):
    """Writes nothing, or the bias that its last map had.

    Args:
        bias: That bias.
    """

    def __init__(self, bias: Tensor | None = None) -> None:
        super().__init__()
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Zeros of the input's shape, plus the bias."""
        found = torch.zeros_like(hidden_states)
        return found if self.bias is None else found + self.bias


class NoAttention(NoMLP):
    """Writes nothing, or the bias that its last map had. A cache gets one number for each key and value: caches count
    tokens by what their first layer holds, and that must be right if this is it.

    Args:
        layer_idx: The layer of the cache.
        bias: That bias.
    """

    def __init__(self, layer_idx: int | None, bias: Tensor | None = None) -> None:
        super().__init__(bias)
        self.layer_idx = layer_idx

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Zeros of the input's shape, plus the bias, and no pattern."""
        cache = take_cache(kwargs)
        if cache is not None:
            rows, new = hidden_states.shape[:2]
            one = hidden_states.new_zeros(rows, 1, new, 1)
            found, _ = cache.update(one, one, self.layer_idx)
            if isinstance(found, Deferred) and not found.layer.state.probing:
                found.layer.seen += new
        return super().forward(hidden_states), None
