"""PyramidKV: SnapKV's choice with more room in low layers than in high ones.

Cai et al. 2024 (arXiv 2406.02069), section 4: attention is spread widely in low layers and narrows to a few tokens in
high ones, so budgets fall evenly from layer to layer. With C entries a layer on average beside the observation window,
the last layer gets C / beta, the first 2 C - C / beta. With shape="measured" the budgets are instead in proportion to
the number of entries that attention is really spread over in each layer, see `interp.efficiency.kv_cache.spread`.
"""

from __future__ import annotations

from typing import Any, Literal

from transformers import PreTrainedModel

from interp.efficiency.kv_cache.geometry import Geometry
from interp.efficiency.kv_cache.snapkv import SnapKVCache
from interp.efficiency.kv_cache.spread import attention_spread, shared_out
from interp.errors import UsageError, unknown_name

__all__ = ["PyramidKVCache"]


class PyramidKVCache(SnapKVCache):
    """Keeps what the end of the prompt attends to, more of it in low layers.

    Args:
        budget: The share of the cache's bytes that is kept at `length` tokens, over all layers.
        beta: How steep the pyramid is; the paper has 20.
        shape: "even": the paper's; "measured": from the model's own attention on a text.
        options: `window`, `kernel`, `pooling`, `length` and `prefill_chunk` as in `SnapKVCache`; the paper has a
            window of 8.
    """

    name = "pyramidkv"

    def __init__(
        self,
        *,
        budget: float = 0.15,
        beta: float = 20,
        shape: Literal["even", "measured"] = "even",
        window: int = 8,
        **options: Any,
    ) -> None:
        super().__init__(budget=budget, window=window, **options)
        if beta < 1:
            raise UsageError(f"{self.name}: beta must be at least 1, got {beta}")
        if shape not in ("even", "measured"):
            raise unknown_name("shape of the pyramid", shape, ("even", "measured"))
        self.beta, self.shape = beta, shape

    def prepare(self, model: PreTrainedModel) -> None:
        self.spread = attention_spread(model) if self.shape == "measured" else {}

    def policies(self, shape: Geometry, length: int) -> dict[tuple[int, int], dict[str, Any]]:
        layers = sorted({layer for layer, _ in shape.compressible})
        room = self.entries(shape, length, self.window + 1) - self.window
        most = length - self.window
        if self.shape == "measured":
            budgets = shared_out([self.spread[layer] for layer in layers], room, most)
        else:
            budgets = even(len(layers), room, self.beta, most)
        by_layer = dict(zip(layers, budgets, strict=True))
        return {at: self.kept(by_layer[at[0]] + self.window) for at in shape.compressible}


def even(layers: int, mean: int, beta: float, most: int) -> list[int]:
    """Budgets that fall evenly from the first layer to the last, `mean` on average.

    Args:
        layers: How many.
        mean: Entries on average.
        beta: The last layer gets ``mean / beta``.
        most: The most that the first layer can use.
    """
    last = mean / beta
    if 2 * mean - last > most:
        last = 2 * mean - most
    first = 2 * mean - last
    if layers == 1:
        return [mean]
    return [max(int(first - at * (first - last) / (layers - 1) + 1e-9), 0) for at in range(layers)]
