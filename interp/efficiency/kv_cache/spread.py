"""How widely each layer's attention is spread, and room shared out by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interp.efficiency.kv_cache.cache import KVCache, Part
from interp.efficiency.kv_cache.geometry import geometry
from interp.efficiency.kv_cache.running import with_cache
from interp.efficiency.kv_cache.stores import Full
from interp.efficiency.kv_cache.top import View
from interp.tasks.corpora import corpus
from interp.tasks.splits import half_of_corpus
from interp.upstream import cached

__all__ = ["attention_spread", "shared_out"]


class _Spread(Full):
    """A store that notes how many entries the attention of the last tokens is spread over."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last
        self.found = 0.0

    def step(self, query: Tensor, keys: Tensor, values: Tensor, step: object) -> Tensor:
        view = View(query, keys, values, 0, step, None, None, 0)  # type: ignore[arg-type]
        rows = [-(p * p.clamp(min=1e-30).log()).sum(-1) for p, _ in view.attention(self.last)]
        self.found = float(torch.cat(rows, -1).exp().mean())
        return super().step(query, keys, values, step)  # type: ignore[arg-type]


@torch.no_grad()
def attention_spread(
    model: PreTrainedModel, text: str = "prose", length: int = 512, last: int = 64, seed: int = 0
) -> dict[int, float]:
    """Over how many entries attention is spread: the exponential of its entropy, by layer.

    Args:
        model: A deployed model.
        text: A corpus's name or a file, see `interp.tasks.corpus`.
        length: Tokens of the text.
        last: How many of the last tokens' attention is looked at.
        seed: Of the stretch of text.

    Returns:
        By original layer number, entries, the mean over heads and tokens.
    """
    shape = geometry(model)
    length = min(length, shape.context)
    tokens = corpus(text, model, 1, length, seed, split=half_of_corpus(text, "find")).to(model.device)
    stores = [_Spread(last) for _ in shape.layers]
    parts = [_one(store, len(groups)) for store, groups in zip(stores, shape.groups, strict=True)]
    cache = KVCache("spread", [partial(list, [part]) for part in parts], [len(g) for g in shape.groups])
    with with_cache(model, cache, tokens.shape[0], tokens.shape[1]):
        model(**cached(model, cache, input_ids=tokens, use_cache=True))
    return {layer: store.found for layer, store in zip(shape.layers, stores, strict=True)}


def _one(store: Full, heads: int) -> Part:
    return list(range(heads)), store


def shared_out(weights: Sequence[float], mean: int, most: int) -> list[int]:
    """Room in proportion to weights, `mean` on average and at least 1; what is above `most` goes to the others."""
    left, found = float((mean - 1) * len(weights)), [1] * len(weights)  # one each, and the rest by weight
    order = sorted(range(len(weights)), key=lambda at: -weights[at])
    total = math.fsum(weights)
    for at in order:
        share = left * weights[at] / total if total > 0 else left
        found[at] += max(min(int(share + 1e-9), most - 1), 0)
        left, total = left - found[at] + 1, total - weights[at]
    return found
