"""SnapKV: what the end of the prompt attends to, and its neighbours.

Li et al. 2024 (arXiv 2404.14469), section 4: the attention of the last tokens, the observation window, is summed over
the window, pooled along the text so that clusters stay together, and the best entries are kept beside the window.
Chosen for each key-value head from the mean over the query heads that share it; decoded tokens are all kept.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp.efficiency.kv_cache.geometry import Geometry
from interp.efficiency.kv_cache.method import CacheMethod
from interp.efficiency.kv_cache.top import Scorer, View
from interp.errors import UsageError, unknown_name

__all__ = ["RecentAttention", "SnapKVCache", "pooled"]


class RecentAttention(Scorer):
    """Worth is the attention from the last tokens, pooled along the text.

    Args:
        window: How many of the last tokens.
        kernel: Entries that are pooled together, an odd number.
        pooling: "mean" or "max".
    """

    def __init__(self, window: int = 32, kernel: int = 5, pooling: Literal["mean", "max"] = "mean") -> None:
        self.window, self.kernel, self.pooling = window, kernel, pooling

    def score(self, view: View) -> Float[Tensor, "row kv_head entry"]:
        found = torch.zeros(view.keys.shape[:3], device=view.keys.device)
        for attention, _ in view.attention(self.window):
            found += attention.mean(2).sum(2)
        return pooled(found, self.kernel, self.pooling)


def pooled(scores: Float[Tensor, "row kv_head entry"], kernel: int, pooling: str) -> Float[Tensor, "row kv_head entry"]:
    """Scores pooled with their neighbours along the text."""
    if pooling == "max":
        return F.max_pool1d(scores, kernel, 1, kernel // 2)
    return F.avg_pool1d(scores, kernel, 1, kernel // 2)


class SnapKVCache(CacheMethod):
    """Keeps what the end of the prompt attends to.

    Args:
        budget: The share of the cache's bytes that is kept at `length` tokens.
        window: Observation window, tokens; kept in any case.
        kernel: Entries that are pooled together, an odd number.
        pooling: "mean" or "max".
        length: The prompt's length that the budget is for.
        prefill_chunk: Tokens of a prompt that are processed at once; what is kept is then chosen behind each chunk.
    """

    name = "snapkv"

    def __init__(
        self,
        *,
        budget: float = 0.15,
        window: int = 32,
        kernel: int = 5,
        pooling: Literal["mean", "max"] = "mean",
        length: int | None = None,
        prefill_chunk: int | None = None,
    ) -> None:
        super().__init__(budget=budget, length=length, prefill_chunk=prefill_chunk)
        if window < 1:
            raise UsageError(f"{self.name}: window must be at least 1 token, got {window}")
        if kernel < 1 or kernel % 2 == 0:
            raise UsageError(f"{self.name}: kernel must be an odd number of entries, got {kernel}")
        if pooling not in ("mean", "max"):
            raise unknown_name("pooling", pooling, ("mean", "max"))
        self.window, self.kernel, self.pooling = window, kernel, pooling

    def policies(self, shape: Geometry, length: int) -> dict[tuple[int, int], dict[str, Any]]:
        return dict.fromkeys(shape.compressible, self.kept(self.entries(shape, length, self.window + 1)))

    def kept(self, n: int) -> dict[str, Any]:
        """The policy that keeps so many entries."""
        options = {"window": self.window, "kernel": self.kernel, "pooling": self.pooling}
        return {"keep": "top", "score": "snapkv", "n": n, "window": self.window, "sinks": 0, "options": options}
