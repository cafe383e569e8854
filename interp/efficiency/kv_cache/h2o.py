"""H2O: heavy hitters, the entries that got most attention so far, and the most recent ones.

Zhang et al. 2023 (arXiv 2306.14048), section 4 and algorithm 1: the score of an entry is the sum of the attention that
all queries since gave it; with each token that comes, the entry with the least sum goes. Half of the budget is for
recent tokens, as in the authors' experiments. Scores of the query heads that share a key-value head are summed.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.efficiency.kv_cache.attention import Step
from interp.efficiency.kv_cache.geometry import Geometry
from interp.efficiency.kv_cache.method import CacheMethod
from interp.efficiency.kv_cache.top import Scorer, View

__all__ = ["H2OCache", "HeavyHitters"]


class HeavyHitters(Scorer):
    """Worth is the attention got so far."""

    numbers = 1
    evicts = True

    def score(self, view: View) -> Float[Tensor, "row kv_head entry"]:
        found = torch.zeros(view.keys.shape[:3], device=view.keys.device)
        if view.earlier is not None:
            found += view.padded(view.earlier)
        for attention, _ in view.attention():
            found += attention.sum((2, 3))
        return found

    def decoded(
        self, scores: Tensor, found: Tensor, query: Tensor, keys: Tensor, step: Step, mask: Tensor | None
    ) -> Tensor:
        return scores + found.sum(2)


class H2OCache(CacheMethod):
    """Keeps heavy hitters and recent tokens, also while it decodes.

    Args:
        budget: The share of the cache's bytes that is kept at `length` tokens, 4 bytes for each entry's score included.
        recent: Share of the entries that are the most recent ones.
        length: The prompt's length that the budget is for.
        prefill_chunk: Tokens of a prompt that are processed at once.
    """

    name = "h2o"

    def __init__(
        self,
        *,
        budget: float = 0.2,
        recent: float = 0.5,
        length: int | None = None,
        prefill_chunk: int | None = None,
    ) -> None:
        super().__init__(budget=budget, length=length, prefill_chunk=prefill_chunk)
        self.recent = self.share("recent", recent)

    def policies(self, shape: Geometry, length: int) -> dict[tuple[int, int], dict[str, Any]]:
        n = self.entries(shape, length, 2, 1 + 4 / shape.entry_bytes)
        window = max(int(self.recent * n), 1)
        kept = {"keep": "top", "score": "h2o", "n": n, "window": window, "sinks": 0}
        return dict.fromkeys(shape.compressible, kept)
