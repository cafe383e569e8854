"""Attention over what a cache still holds: grouped-query heads packed, causal within the new tokens.

While a plan for the cache is in force and its cache is in use, the model's attention layers call `cached_attention`
through transformers' `AttentionInterface`; the cache hands it a `Deferred` in place of keys, which knows where the
earlier entries are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import UsageError
from interp.upstream import register

__all__ = ["NAME", "Deferred", "Step", "attend", "cached_attention", "probabilities", "visible"]

NAME = "interp_kv_cache"
"""The name of the attention function in transformers' registry."""


@dataclass(frozen=True)
class Step:
    """One forward pass as a layer sees it.

    Args:
        scaling: What scores are multiplied by before the softmax.
        softcap: Where scores are bent to by tanh, as Gemma 2 does; none otherwise.
        real: "row new", which of the new tokens are none of padding; none where all are.
        own_window: How many keys back a query of this layer sees by the model's own design; none for all.
        probing: The new tokens only ask and are not to be kept, see `KVCache.probe`.
        computed: Their attention "row head new d", where it is known already; none where it is to be computed.
    """

    scaling: float
    softcap: float | None = None
    real: Bool[Tensor, "row new"] | None = None
    own_window: int | None = None
    probing: bool = False
    computed: Float[Tensor, "row head new d"] | None = None


class Deferred:
    """What a layer of the cache returns in place of keys and values: new ones, and the layer that has the others.

    Anything but `cached_attention` that touches it gets an error that says how the cache is to be used.
    """

    def __init__(self, layer: Any, keys: Tensor, values: Tensor) -> None:
        vars(self).update(layer=layer, new_keys=keys, new_values=values)

    def __getattr__(self, name: str) -> NoReturn:
        self._refuse()

    @classmethod
    def __torch_function__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        cls._refuse()

    @staticmethod
    def _refuse() -> NoReturn:
        raise UsageError(
            "this cache works only in the model that its plan is in force for: call model(...) or model.generate(...) "
            "within `with plan.applied(model)`, or of what plan.made_permanent(model) gave"
        )


def cached_attention(
    module: Any, query: Float[Tensor, "row head new d"], key: Any, value: Any, attention_mask: Any, **options: Any
) -> tuple[Float[Tensor, "row new head d"], None]:
    """What the model's attention layers call, see transformers' `AttentionInterface`."""
    if not isinstance(key, Deferred):
        raise UsageError("a cache of another plan, or none, reached the attention of a plan for the cache")
    found: Tensor = key.layer.step(query, key.new_keys, key.new_values, options)
    return found.transpose(1, 2), None


register(NAME, cached_attention)


def attend(
    query: Float[Tensor, "row head new d"],
    keys: Float[Tensor, "row kv_head entry d"],
    values: Float[Tensor, "row kv_head entry d"],
    step: Step,
    mask: Bool[Tensor, "row one new entry"] | None,
) -> Float[Tensor, "row head new d"]:
    """Attention of the new tokens to entries.

    Args:
        query: Of the query heads that share these key-value heads, in order.
        keys: Of the entries, the new tokens' own last.
        values: The same.
        step: Scale and softcap.
        mask: Which entries each new token sees; none: all of them, or causally those before it where there are as
            many entries as new tokens.
    """
    if step.computed is not None:
        return step.computed
    rows, heads, new, _ = query.shape
    groups = heads // keys.shape[1]
    causal = mask is None and new > 1
    if causal and keys.shape[2] != new:
        raise ValueError("several new tokens behind earlier entries need a mask")
    if step.softcap is not None:
        return _softcapped(query, keys, values, step, mask)
    if new == 1:
        # packed: torch's own grouped-query path is 2.4 times slower in bfloat16 on a CPU
        packed = query.reshape(rows, keys.shape[1], groups, -1)
        found = F.scaled_dot_product_attention(packed, keys, values, attn_mask=mask, scale=step.scaling)
        return found.reshape(rows, heads, 1, -1)
    if mask is not None and groups > 1:
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=causal, scale=step.scaling, enable_gqa=causal and groups > 1
    )


def probabilities(
    query: Float[Tensor, "row head new d"],
    keys: Float[Tensor, "row kv_head entry d"],
    step: Step,
    mask: Bool[Tensor, "row one new entry"] | None,
) -> Float[Tensor, "row kv_head group new entry"]:
    """What the new tokens' attention is, in float32: the softmax over the entries."""
    rows, heads, new, width = query.shape
    packed = query.reshape(rows, keys.shape[1], -1, width)
    found = (packed @ keys.transpose(2, 3)).float() * step.scaling
    if step.softcap is not None:
        found = step.softcap * torch.tanh(found / step.softcap)
    found = found.reshape(rows, keys.shape[1], heads // keys.shape[1], new, -1)
    if mask is not None:
        found = found.masked_fill(~mask[:, :, None], torch.finfo(found.dtype).min)
    return found.softmax(-1)


def visible(
    entries: int,
    new: int,
    step: Step,
    valid: Bool[Tensor, "row entry"] | None,
    device: torch.device,
    first: int = 0,
) -> Bool[Tensor, "row one new entry"] | None:
    """Which of the earlier entries and of the new tokens each new token sees.

    Args:
        entries: Earlier ones, in the order of the text, next to the new ones.
        new: New tokens.
        step: Padding among them, and the layer's own window.
        valid: Which of the earlier ones are no padding; none where all are.
        device: Where the mask is wanted.
        first: Leave out the rows of so many new tokens at the start.

    Returns:
        None where plain attention, causal among new tokens, does the same.
    """
    window = step.own_window if step.own_window and step.own_window < entries + new else None
    padded = valid is not None or step.real is not None
    if not padded and window is None and (new == 1 or (entries == 0 and first == 0)):
        return None
    at = torch.arange(entries + new, device=device)
    query = at[entries + first :, None]
    mask = at <= query
    if window is not None:
        mask &= at > query - window
    mask = mask[None, None]
    if padded:
        rows = (valid if valid is not None else step.real).shape[0]  # type: ignore[union-attr]
        earlier = valid if valid is not None else torch.ones(rows, entries, dtype=torch.bool, device=device)
        later = step.real if step.real is not None else torch.ones(rows, new, dtype=torch.bool, device=device)
        # padding sees itself, so that its softmax has something to sum over
        mask = (mask & torch.cat([earlier, later], 1)[:, None, None]) | (at == query)
    return mask


def _softcapped(query: Tensor, keys: Tensor, values: Tensor, step: Step, mask: Tensor | None) -> Tensor:
    if mask is None and query.shape[2] > 1:
        none = torch.ones(query.shape[0], 0, dtype=torch.bool, device=query.device)
        mask = visible(0, query.shape[2], step, none, query.device)
    found = probabilities(query, keys, step, mask).to(values.dtype)
    return torch.einsum("bkgqs,bksd->bkgqd", found, values).flatten(1, 2)
