"""Attention over lists of key blocks: the keys of a query block are gathered, and plain fused attention does the rest.

A block of queries with some gathered keys is a small dense problem, so this runs at the speed of torch's own attention
on any device, without a compiler. Heads that attend the same keys are computed together, and those that share a
key-value head share what is gathered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp.efficiency.sparse_attention.blocks import BlockList, causal_blocks, window_blocks

__all__ = ["dense", "gathered", "windowed"]


def gathered(
    query: Float[Tensor, "head new d"],
    keys: Float[Tensor, "kv_head key d"],
    values: Float[Tensor, "kv_head key d_value"],
    kv: Sequence[int],
    chosen: BlockList,
    scaling: float,
    softcap: float | None = None,
    own_window: int | None = None,
) -> Float[Tensor, "head new d_value"]:
    """Attention of each query to the keys that its block's list has, and that don't stand behind it.

    Args:
        query: Of the new tokens, which are the last of the keys' tokens.
        keys: Of all tokens.
        values: Of all tokens.
        kv: The key-value head of each query head, in order.
        chosen: The lists.
        scaling: What scores are multiplied by.
        softcap: Where scores are bent to by tanh; none otherwise.
        own_window: How many keys back a query sees by the model's design, itself among them; none for all.
    """
    found = query.new_empty(*query.shape[:2], values.shape[2])
    for at in range(chosen.query_blocks):
        start, stop = chosen.queries(at)
        mine = slice(start - chosen.first, stop - chosen.first)
        for heads, positions in chosen.rows(at):
            bias = _bias(query, start, stop, positions, own_window)
            where = _where(positions, keys.device)
            for groups, members in _batches(heads, kv):
                held = _taken(keys, groups, where), _taken(values, groups, where)
                found[members, mine] = _attend(query[members, mine], *held, scaling, softcap, bias)
    return found


def dense(
    query: Float[Tensor, "head new d"],
    keys: Float[Tensor, "kv_head key d"],
    values: Float[Tensor, "kv_head key d_value"],
    kv: Sequence[int],
    block: int,
    scaling: float,
    softcap: float | None = None,
) -> Float[Tensor, "head new d_value"]:
    """Attention to every key that does not stand behind the query; arguments as of `gathered`."""
    new, total = query.shape[1], keys.shape[1]
    if new < total or softcap is not None:
        kept = causal_blocks(total - new, total, block).expand(len(kv), -1, -1)
        return gathered(query, keys, values, kv, BlockList(block, total - new, total, kept), scaling, softcap)
    found = query.new_empty(*query.shape[:2], values.shape[2])
    for groups, members in _batches(range(len(kv)), kv):
        k, v = (x[groups].repeat_interleave(len(members) // len(groups), 0)[None] for x in (keys, values))
        found[members] = F.scaled_dot_product_attention(query[members][None], k, v, is_causal=True, scale=scaling)[0]
    return found


def windowed(
    query: Float[Tensor, "head new d"],
    keys: Float[Tensor, "kv_head key d"],
    values: Float[Tensor, "kv_head key d_value"],
    kv: Sequence[int],
    block: int,
    scaling: float,
    window: int,
    softcap: float | None = None,
) -> Float[Tensor, "head new d_value"]:
    """Attention of a layer that sees `window` keys by design; arguments as of `gathered`."""
    total = keys.shape[1]
    first = total - query.shape[1]
    kept = window_blocks(first, total, block, -(-window // block)).expand(len(kv), -1, -1)
    return gathered(query, keys, values, kv, BlockList(block, first, total, kept), scaling, softcap, window)


def _attend(
    query: Float[Tensor, "head new d"],
    keys: Float[Tensor, "kv_head key d"],
    values: Float[Tensor, "kv_head key d_value"],
    scaling: float,
    softcap: float | None,
    bias: Float[Tensor, "new key"],
) -> Float[Tensor, "head new d_value"]:
    """Attention where each key-value head serves equally many query heads, in order; nothing is repeated for it."""
    grouped = query.unflatten(0, (keys.shape[0], -1))
    keys, values = (x[:, None].expand(-1, grouped.shape[1], -1, -1) for x in (keys, values))
    if softcap is None:
        return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=bias, scale=scaling).flatten(0, 1)
    scores = softcap * torch.tanh((grouped @ keys.transpose(2, 3)).float() * scaling / softcap) + bias
    return (scores.softmax(-1).to(values.dtype) @ values).flatten(0, 1)


def _bias(query: Tensor, start: int, stop: int, positions: np.ndarray, window: int | None) -> Float[Tensor, "new key"]:
    """Zero where a query sees a key; only keys at or behind the first query can be hidden, or those out of a window."""
    bias = query.new_zeros(stop - start, len(positions))
    at = torch.arange(start, stop, device=query.device)[:, None]
    late = int(np.searchsorted(positions, start))
    later = torch.from_numpy(positions[late:]).to(query.device)
    bias[:, late:].masked_fill_(later > at, float("-inf"))
    if window is not None:
        bias.masked_fill_(torch.from_numpy(positions).to(query.device) <= at - window, float("-inf"))
    return bias


def _where(positions: np.ndarray, device: torch.device) -> slice | Tensor:
    """Positions as a slice where they are a run, which copies nothing."""
    if len(positions) and positions[-1] - positions[0] + 1 == len(positions):
        return slice(int(positions[0]), int(positions[-1]) + 1)
    return torch.from_numpy(positions).to(device)


def _taken(
    x: Float[Tensor, "kv_head key d"], groups: list[int], where: slice | Tensor
) -> Float[Tensor, "group taken d"]:
    """Some tokens of some heads; runs of either copy nothing."""
    run = groups == list(range(groups[0], groups[-1] + 1))
    if run:
        x = x[groups[0] : groups[-1] + 1]
        return x[:, where] if isinstance(where, slice) else x.index_select(1, where)
    if isinstance(where, slice):
        return x[:, where][groups]
    return x[torch.tensor(groups, device=x.device)[:, None], where]


def _batches(heads: Sequence[int], kv: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Heads in batches in which each key-value head serves equally many: the key-value heads, and the heads."""
    served: dict[int, list[int]] = {}
    for head in heads:
        served.setdefault(kv[head], []).append(head)
    sizes: dict[int, list[int]] = {}
    for group, members in served.items():
        sizes.setdefault(len(members), []).append(group)
    for groups in sizes.values():
        yield groups, [head for group in groups for head in served[group]]
