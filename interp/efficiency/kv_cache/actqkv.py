"""ActQKV: a probe query from the tokens whose activations stand out says what is worth keeping.

Xiao et al. 2025 (arXiv 2502.13542). In each window of tokens, a token's activation bias is the squared deviation of
its query from the window's mean, over the variance; the probe query is the mean of the queries weighted by it, and
retrieves keys by its attention to them. Room is shared out among layers by information density.

Known here: the abstract, and the formula of the activation bias, phi = (q - mean)^2 / variance, in a public summary of
the paper. Not found: how channels are joined (here: the mean over channels) and the formula of information density.
In its place room is in proportion to how many entries a layer's attention is spread over, see `spread`. The paper keeps
all entries aside and retrieves some of them at each step; here what is not retrieved is dropped.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from interp.efficiency.kv_cache.attention import probabilities
from interp.efficiency.kv_cache.geometry import Geometry
from interp.efficiency.kv_cache.method import CacheMethod
from interp.efficiency.kv_cache.spread import attention_spread, shared_out
from interp.efficiency.kv_cache.top import Scorer, View
from interp.errors import UsageError

__all__ = ["ActQKVCache", "ProbeQuery", "activation_bias"]


class ProbeQuery(Scorer):
    """Worth is the attention of probe queries, one for each window of the new tokens; the best window counts.

    Args:
        window: Tokens that share a probe query.
    """

    def __init__(self, window: int = 64) -> None:
        self.window = window

    def score(self, view: View) -> Float[Tensor, "row kv_head entry"]:
        found = torch.zeros(view.keys.shape[:3], device=view.keys.device)
        real = view.step.real
        held = None if view.valid is None and real is None else _known(view)
        for stop in range(view.new, 0, -self.window):
            start = max(stop - self.window, 0)
            part = None if real is None else real[:, start:stop]
            probe = probe_query(view.query[:, :, start:stop], part)
            mask = None if held is None else held[:, None, None]
            attention = probabilities(probe, view.keys, view.step, mask).squeeze(3).mean(2)
            if part is not None:
                attention = attention * part.any(1)[:, None, None]
            found = torch.maximum(found, attention)
        return found


def activation_bias(
    query: Float[Tensor, "row head new d"], real: Tensor | None = None
) -> Float[Tensor, "row head new"]:
    """How far each token's query is from the others': squared deviation over variance, the mean over channels."""
    x = query.float()
    weight = torch.ones_like(x[..., :1]) if real is None else real[:, None, :, None].float().expand(*x.shape[:3], 1)
    count = weight.sum(2, keepdim=True).clamp(min=1)
    mean = (x * weight).sum(2, keepdim=True) / count
    off = (x - mean).square() * weight
    variance = off.sum((2, 3), keepdim=True) / (count * x.shape[-1])
    return (off / variance.clamp(min=1e-12)).mean(-1)


def probe_query(query: Float[Tensor, "row head new d"], real: Tensor | None = None) -> Float[Tensor, "row head one d"]:
    """The mean of the queries, weighted by their activation bias."""
    weight = activation_bias(query, real) + 1e-12
    if real is not None:
        weight = weight * real[:, None]
    weight = weight / weight.sum(2, keepdim=True).clamp(min=1e-30)
    return (weight[..., None] * query.float()).sum(2, keepdim=True).to(query.dtype)


class ActQKVCache(CacheMethod):
    """Keeps what probe queries attend to, with room for each layer by how widely its attention is spread.

    Args:
        budget: The share of the cache's bytes that is kept at `length` tokens, over all layers.
        window: Tokens that share a probe query; as many recent ones are kept in any case, at most half of the room.
        sinks: Tokens at the start that are kept in any case.
        length: The prompt's length that the budget is for.
        prefill_chunk: Tokens of a prompt that are processed at once.
    """

    name = "actqkv"

    def __init__(
        self,
        *,
        budget: float = 0.15,
        window: int = 64,
        sinks: int = 4,
        length: int | None = None,
        prefill_chunk: int | None = None,
    ) -> None:
        super().__init__(budget=budget, length=length, prefill_chunk=prefill_chunk)
        if window < 1 or sinks < 0:
            raise UsageError(f"actqkv: window must be at least 1 and sinks at least 0, got {window} and {sinks}")
        self.window, self.sinks = window, sinks

    def prepare(self, model: PreTrainedModel) -> None:
        self.spread = attention_spread(model)

    def policies(self, shape: Geometry, length: int) -> dict[tuple[int, int], dict[str, Any]]:
        mean = self.entries(shape, length, self.sinks + 2)
        recent = min(self.window, (mean - self.sinks) // 2)
        layers = sorted({layer for layer, _ in shape.compressible})
        least = self.sinks + recent
        rooms = shared_out([self.spread[layer] for layer in layers], mean - least, length - least)
        kept = {"keep": "top", "score": "actqkv", "window": recent, "sinks": self.sinks}
        options = {"window": self.window}
        by_layer = {at: {**kept, "n": room + least, "options": options} for at, room in zip(layers, rooms, strict=True)}
        return {at: by_layer[at[0]] for at in shape.compressible}


def _known(view: View) -> Tensor:
    """Which entries are no padding: "row entry"."""
    rows, device = view.keys.shape[0], view.keys.device
    held = view.valid if view.valid is not None else torch.ones(rows, view.held, dtype=torch.bool, device=device)
    new = view.step.real if view.step.real is not None else torch.ones(rows, view.new, dtype=torch.bool, device=device)
    return torch.cat([held, new], 1)
