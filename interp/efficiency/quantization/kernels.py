"""Torch's kernels for small integers, behind functions that say whether they can be used on a device.

Their names begin with an underscore, so torch promises nothing: each is tried once a device on a small product, and
what gives another result than plain arithmetic is not used. Activations must be bfloat16: with float32 the packed
products run a slow scalar path on a processor. `torch._int_mm` multiplies integers exactly. The kernel for 4 bits has
an order of its own on each device and is used on processors only; elsewhere 4 bits are turned back into numbers.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import BFloat16, Float, Int8, Int32, UInt8
from torch import Tensor

__all__ = [
    "BLOCK",
    "FEW",
    "aligned",
    "available",
    "dense_dtype",
    "int4_mm",
    "int8_both_mm",
    "int8_mm",
    "pack4",
    "unpack4",
]

BLOCK = 64
"""Output channels that are packed together for 4 bits."""

_LEAST = 24
"""Tokens that `torch._int_mm` gets off the processor at least: above 16, and in eights."""

FEW = {"int8": 12, "int4": 24}
"""Tokens up to which a packed product is faster than turning the weights back into numbers once and multiplying."""


@functools.cache
def available(name: str, kind: str = "cpu") -> bool:
    """Whether a kernel is there and right on a kind of device: ``int8``, ``int4`` or ``int8_both``."""
    device = torch.device("cpu" if kind == "meta" else kind)
    if name == "int4" and device.type != "cpu":
        return False
    try:
        return {"int8": _int8_works, "int4": _int4_works, "int8_both": _both_work}[name](device)
    except (AttributeError, RuntimeError):  # torch has no such operator, or not for this device
        return False


def takes(name: str, inputs: int, device: torch.device | str = "cpu") -> bool:
    """Whether a kernel can be used for weights with so many input channels: its loops need a multiple of 32."""
    return inputs % 32 == 0 and available(name, torch.device(device).type)


@functools.cache
def dense_dtype() -> torch.dtype:
    """What weights are turned back into for many tokens: bfloat16 where the processor multiplies it fast."""
    try:
        fast = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        fast = False
    return torch.bfloat16 if fast else torch.float32


def int8_mm(
    x: BFloat16[Tensor, "token input"], codes: Int8[Tensor, "output input"], scale: BFloat16[Tensor, output]
) -> BFloat16[Tensor, "token output"]:
    """``x @ (codes * scale).T``."""
    return _torch()._weight_int8pack_mm(aligned(x), aligned(codes), scale)


def aligned(x: Tensor) -> Tensor:
    """The tensor where a kernel can read it: the one for 8 bits ends the process at an address that is not aligned.

    What is read from a file, or is a slice of something, may lie anywhere; torch's own memory is aligned.
    """
    return (
        x
        if x.is_meta or (x.is_contiguous() and x.data_ptr() % 64 == 0)
        else x.clone(memory_format=torch.contiguous_format)
    )


def int8_both_mm(x: Int8[Tensor, "token input"], codes: Int8[Tensor, "output input"]) -> Int32[Tensor, "token output"]:
    """``x @ codes.T``, exactly.

    Off the processor the kernel takes more than 16 tokens, and outputs in eights: both are filled up with zeros.
    """
    if x.is_cpu:
        return _torch()._int_mm(x, codes.t())
    tokens, outputs = len(x), len(codes)
    x = F.pad(x, (0, 0, 0, max(_LEAST - tokens, -tokens % 8)))
    codes = F.pad(codes, (0, 0, 0, -outputs % 8)) if outputs % 8 else codes
    return _torch()._int_mm(x, codes.t())[:tokens, :outputs]


def int4_mm(
    x: BFloat16[Tensor, "token input"],
    packed: UInt8[Tensor, "output half_input"],
    group: int,
    scales: BFloat16[Tensor, "group output two"],
) -> BFloat16[Tensor, "token output"]:
    """``x @ ((codes - 8) * scale + zero).T`` of what `pack4` packed; `scales` holds scale and zero."""
    return _torch()._weight_int4pack_mm_for_cpu(x, packed, group, scales)


def pack4(codes: UInt8[Tensor, "output input"]) -> UInt8[Tensor, "output half_input"]:
    """Codes 0 to 15 in the kernel's order; the outputs must be a multiple of `BLOCK`. The processor packs them."""
    if codes.is_meta:
        return codes.new_empty(codes.shape[0], codes.shape[1] // 2)
    packed = _torch()._convert_weight_to_int4pack_for_cpu(codes.cpu().to(torch.int32).contiguous(), 1)
    return packed.to(codes.device)


def unpack4(packed: UInt8[Tensor, "output half_input"]) -> UInt8[Tensor, "block input row"]:
    """The codes that `pack4` packed, in blocks of outputs: output ``block * BLOCK + row``."""
    outputs, inputs = packed.shape[0], 2 * packed.shape[1]
    pairs = packed.view(outputs // BLOCK, inputs, BLOCK // 2)
    order = _order()
    both = torch.cat([pairs & 15, pairs >> 4], -1)
    return both if order is None else both[..., order.to(both.device)]


@functools.cache
def _order() -> Tensor | None:
    """Where in (low halves, high halves) of a block's bytes each output's code stands; none if in order.

    The order depends on the processor, so it is read off a block whose codes are the outputs' own numbers.
    """
    number = torch.arange(BLOCK)[:, None].expand(BLOCK, 2)
    found = torch.zeros(BLOCK, dtype=torch.long)
    for shift in (0, 4):
        packed = pack4(((number >> shift) & 15).to(torch.uint8)).reshape(2, BLOCK // 2)[0]
        found += torch.cat([packed & 15, packed >> 4]).long() << shift
    order = torch.argsort(found)
    return None if bool((order == torch.arange(BLOCK)).all()) else order


def _torch() -> Any:
    return torch


def _random(*shape: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _close(found: Float[Tensor, ...], expected: Float[Tensor, ...]) -> bool:
    return bool((found.float() - expected).abs().max() <= 0.02 * expected.abs().max())


def _int8_works(device: torch.device) -> bool:
    x, codes = (
        _random(2, 64, low=-9, high=9, dtype=torch.bfloat16).to(device),
        _random(48, 64, low=-127, high=128, dtype=torch.int8).to(device),
    )
    scale = torch.linspace(0.5, 2, 48).bfloat16().to(device)
    return _close(int8_mm(x, codes, scale), x.float() @ (codes.float() * scale.float()[:, None]).T)


def _both_work(device: torch.device) -> bool:
    x, codes = (
        _random(33, 64, low=-127, high=128, dtype=torch.int8),
        _random(50, 64, low=-127, high=128, dtype=torch.int8),
    )
    there = codes.to(device)
    return all(
        torch.equal(int8_both_mm(x[:n].to(device), there).cpu(), x[:n].int() @ codes.int().T) for n in (1, 3, 17, 33)
    )


def _int4_works(device: torch.device) -> bool:
    codes = _random(2 * BLOCK, 64, low=0, high=16, dtype=torch.uint8)
    packed = pack4(codes)
    if not torch.equal(unpack4(packed).transpose(1, 2).reshape(2 * BLOCK, 64), codes):
        return False
    x, scales = _random(2, 64, low=-9, high=9, dtype=torch.bfloat16), torch.rand(2, 2 * BLOCK, 2).bfloat16()
    wide = scales.float().transpose(0, 1).repeat_interleave(32, 1)
    weight = (codes.float() - 8) * wide[..., 0] + wide[..., 1]
    return _close(int4_mm(x, packed, 32, scales), x.float() @ weight.T)
