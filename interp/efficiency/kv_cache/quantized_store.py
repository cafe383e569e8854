"""A store that keeps everything as small integers, with sinks and the most recent tokens in full precision.

Liu et al. 2024, KIVI (arXiv 2402.02750), section 3: keys have channels that are large throughout, so their scales are
by channel, over a group of tokens; values have none, so theirs are by token. A group is turned into integers once it is
full; until then its tokens stay as they are. Sinks are left out, since their keys and values are unlike all others'.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.efficiency.kv_cache.attention import Step, attend, visible
from interp.efficiency.kv_cache.geometry import Geometry
from interp.efficiency.kv_cache.stores import Store, sinks_first
from interp.errors import UsageError

__all__ = ["Codes", "Quantized"]


class Codes:
    """Numbers as unsigned integers of 8 or 4 bits, each group with a scale and a smallest value.

    Args:
        x: "row kv_head entry d", or "row kv_head group token d".
        bits: 8 or 4; two codes of 4 bits share a byte, along the last dimension.
        dim: The dimension that a group runs along: tokens, or channels.
    """

    def __init__(self, x: Float[Tensor, "row kv_head *rest d"], bits: int, dim: int) -> None:
        self.bits, self.dtype = bits, x.dtype
        low, high = x.amin(dim, keepdim=True).float(), x.amax(dim, keepdim=True).float()
        scale = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
        codes = ((x.float() - low) / scale).round().clamp(0, 2**bits - 1).to(torch.uint8)
        self.scale, self.low = scale.to(x.dtype), low.to(x.dtype)
        self.codes: Int[Tensor, "row kv_head *rest byte"] = codes if bits == 8 else _packed(codes)

    def decoded(self) -> Float[Tensor, "row kv_head *rest d"]:
        """The numbers, as near as the codes say."""
        codes = self.codes if self.bits == 8 else torch.stack(self._halves(), -1).flatten(-2)
        return codes.to(self.dtype) * self.scale + self.low

    def append(self, more: Codes) -> None:
        """Adds entries, or groups, behind the others."""
        pairs = zip(self.tensors(), more.tensors(), strict=True)
        self.codes, self.scale, self.low = (torch.cat(pair, 2) for pair in pairs)

    def tensors(self) -> list[Tensor]:
        """All that it holds on to."""
        return [self.codes, self.scale, self.low]

    def rows(self, index: Tensor) -> None:
        """Takes these rows of the batch, in this order."""
        self.codes, self.scale, self.low = (t.index_select(0, index) for t in self.tensors())

    def products(self, query: Float[Tensor, "row kv_head n d"]) -> Float[Tensor, "row kv_head n entry"]:
        """Products of queries with keys "row kv_head group token d", each group with a scale for each channel.

        ``q . (c s + l) = (q s) . c + q . l``: scales move over to the queries, so that of the codes nothing is
        computed but the product.
        """
        wide = query.float()[:, :, None]
        scaled, codes = wide * self.scale.float(), self._numbers()
        found = wide @ self.low.float().transpose(3, 4)
        for own, half in zip(_apart(scaled, len(codes)), codes, strict=True):
            found = found + own @ half.transpose(3, 4)
        return found.transpose(2, 3).flatten(3)

    def sums(self, weights: Float[Tensor, "row kv_head n entry"]) -> Float[Tensor, "row kv_head n d"]:
        """Sums of values "row kv_head entry d", each with a scale of its own: ``sum w (c s + l)``."""
        scaled = weights * self.scale.float().transpose(2, 3)
        found = torch.stack([scaled @ half for half in self._numbers()], -1).flatten(-2)
        return found + weights @ self.low.float()

    def _numbers(self) -> list[Tensor]:
        """The codes in float32; of 4 bits those of even channels, and those of odd ones."""
        return [half.float() for half in ([self.codes] if self.bits == 8 else self._halves())]

    def _halves(self) -> list[Tensor]:
        return [self.codes & 15, self.codes >> 4]


class Quantized(Store):
    """Keeps everything; the buffer has sinks first, then the tokens whose group is not yet full.

    Args:
        bits: 8 or 4.
        group: Tokens that share a key's scales.
        sinks: Tokens at the start that stay in full precision.
        residual: Recent tokens that stay in full precision in any case.
    """

    def __init__(self, bits: int = 8, group: int = 32, sinks: int = 4, residual: int = 32) -> None:
        super().__init__()
        if bits not in (4, 8):
            raise UsageError(f"keys and values are stored in 8 or 4 bits, not {bits}")
        if group < 1:
            raise UsageError(f"a group has at least 1 token, got {group}")
        self.bits, self.group, self.sinks, self.residual = bits, group, sinks, residual
        self.codes: tuple[Codes, Codes] | None = None  # of keys, by group, and of values
        self.coded = 0

    @property
    def entries(self) -> int:
        return self.buffer.n + self.coded

    def step(self, query: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
        held, new = self.entries, keys.shape[2]
        mask = visible(held, new, step, self.valid, keys.device)
        if new == 1 and self.codes is not None and not step.probing:
            self.valid = self._real(keys.shape[0], new, step, keys.device)
            self.buffer.append(keys, values)
            found = self._one(query, step, mask)
            self._encode()
            return found
        if held == 0:
            found = attend(query, keys, values, step, mask)
        else:
            earlier = self.decoded()
            found = attend(query, torch.cat([earlier[0], keys], 2), torch.cat([earlier[1], values], 2), step, mask)
        if step.probing:
            return found
        real = self._real(keys.shape[0], new, step, keys.device)
        if held == 0 and real is not None:  # sinks are the first real tokens: padding goes behind them
            order = sinks_first(real, self.sinks)
            wide = order[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
            keys, values, real = keys.gather(2, wide), values.gather(2, wide), real.gather(1, order)
        self.valid = None if real is None or bool(real.all()) else real
        self.buffer.append(keys, values)
        self._encode()
        return found

    def decoded(self) -> tuple[Tensor, Tensor]:
        """Keys and values "row kv_head entry d" of all entries, in order."""
        if self.codes is None:
            return self.buffer.keys, self.buffer.values
        first, (keys, values) = self._first, self.codes
        pairs = zip(
            (self.buffer.keys, self.buffer.values), (keys.decoded().flatten(2, 3), values.decoded()), strict=True
        )
        found = [torch.cat([own[:, :, :first], coded, own[:, :, first:]], 2) for own, coded in pairs]
        return found[0], found[1]

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), *(t for codes in self.codes or () for t in codes.tensors())]

    def rows(self, index: Tensor) -> None:
        super().rows(index)
        for codes in self.codes or ():
            codes.rows(index)

    def bytes_of(self, length: int, shape: Geometry) -> int:
        """Bytes of a head's entries behind a prompt of so many tokens."""
        coded = self._groups(length - min(self.sinks, length)) * self.group
        codes = 2 * coded * math.ceil(shape.head_dim * self.bits / 8)
        scales = 2 * shape.itemsize * (coded + coded // self.group * shape.head_dim)
        return (length - coded) * shape.entry_bytes + codes + scales

    @property
    def _first(self) -> int:
        """How many of the buffer's entries stand before the codes."""
        return min(self.sinks, self.buffer.n)

    def _one(self, query: Tensor, step: Step, mask: Tensor | None) -> Tensor:
        """Attention of one token to all entries, the last its own; codes are multiplied as they are."""
        assert self.codes is not None
        first, stop, (keys, values) = self._first, self._first + self.coded, self.codes
        packed = query.reshape(len(query), self.buffer.keys.shape[1], -1, query.shape[3])
        plain = (packed @ self.buffer.keys.transpose(2, 3)).float()
        scores = torch.cat([plain[..., :first], keys.products(packed), plain[..., first:]], 3) * step.scaling
        if step.softcap is not None:
            scores = step.softcap * torch.tanh(scores / step.softcap)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        beside = torch.cat([weights[..., :first], weights[..., stop:]], 3).to(query.dtype)
        found = beside @ self.buffer.values + values.sums(weights[..., first:stop])
        return found.to(query.dtype).reshape(*query.shape[:3], -1)

    def _groups(self, after_sinks: int) -> int:
        return max(after_sinks - self.residual, 0) // self.group

    def _encode(self) -> None:
        """Turns full groups into integers."""
        sinks = self._first
        groups = self._groups(self.buffer.n - sinks)
        if not groups:
            return
        stop = sinks + groups * self.group
        keys, values = self.buffer.keys, self.buffer.values
        by_group = keys[:, :, sinks:stop].unflatten(2, (groups, self.group))
        new = Codes(by_group, self.bits, 3), Codes(values[:, :, sinks:stop], self.bits, 3)
        if self.codes is None:
            self.codes = new
        else:
            for held, more in zip(self.codes, new, strict=True):
                held.append(more)
        self.coded += groups * self.group
        rest = [torch.cat([x[:, :, :sinks], x[:, :, stop:]], 2) for x in (keys, values)]
        self.buffer.set(rest[0], rest[1])


def _apart(x: Tensor, parts: int) -> list[Tensor]:
    """Channels as codes have them: all, or even and odd ones."""
    return [x[..., part::parts] for part in range(parts)]


def _packed(codes: Tensor) -> Tensor:
    if codes.shape[-1] % 2:
        codes = torch.cat([codes, codes[..., :1]], -1)
    return codes[..., ::2] | (codes[..., 1::2] << 4)
