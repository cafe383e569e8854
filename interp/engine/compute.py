"""Half-precision weights that are computed with in float32, each matrix cast for the moment it is used.

A backward pass in bfloat16 takes 50 times as long as in float32 on a processor without instructions for it (RelP of a
billion parameters: 219 s against 4.1). Here activations and gradients are float32 and the weights stay as they are:
a projection's are cast in the forward pass, not kept for the backward pass, and cast again in it.
"""

from __future__ import annotations

import warnings
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from interp.engine.parts import Block, Multiplied, Parts
from interp.engine.precision import HALF
from interp.errors import UsageError, unknown_name

__all__ = ["COMPUTE", "has_instructions", "in_compute", "note_slow"]

COMPUTE = ("float32",)
"""What half-precision weights can be computed with in."""
_FLAGS = {
    torch.bfloat16: {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"},
    torch.float16: {"avx512_fp16", "amx_fp16", "asimdhp"},
}
"""Names in /proc/cpuinfo, x86's and ARM's, of instructions that multiply in half precision."""


class Widened:
    """A projection with half-precision weights, computed in float32.

    Args:
        module: A linear layer, or a `Conv1D` of transformers.
    """

    def __init__(self, module: Any) -> None:
        self.module = module

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """The weights in float32, made when they are asked for."""
        weight = self.module.weight.detach().float()
        return weight.T if type(self.module).__name__ == "Conv1D" else weight

    @property
    def bias(self) -> Float[Tensor, " d_out"] | None:
        bias = getattr(self.module, "bias", None)
        return None if bias is None else bias.detach().float()

    def __call__(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return _Project.apply(x, self)


class _Project(torch.autograd.Function):
    """A projection that keeps nothing for the way back: there the weights are cast again."""

    @staticmethod
    def forward(ctx, x: Tensor, by: Widened) -> Tensor:
        ctx.by = by
        return linear(x, by.weight, by.bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.by.weight, None


def in_compute(parts: Parts, compute: str | None) -> Parts:
    """The parts, computed with in a precision; as they are if that is None or the weights' own.

    Args:
        parts: A model's parts.
        compute: ``"float32"`` for float32, whatever half precision the weights are in; None for theirs.

    Raises:
        UsageError: Another precision, or weights of a kind that can't be cast for the moment.
    """
    if compute is not None and compute not in COMPUTE:
        raise unknown_name("precision to compute in", str(compute), COMPUTE)
    if compute is None or parts.dtype not in HALF:
        return parts
    if parts.graph.n_experts:
        raise UsageError(
            "compute='float32' casts a matrix at a time, and a mixture of experts holds many in one; load the model "
            "with dtype=torch.float32 instead"
        )
    return replace(
        parts,
        dtype=torch.float32,
        embed=_looked_up(parts.embed),
        pos_embed=None if parts.pos_embed is None else _looked_up(parts.pos_embed),
        blocks=tuple(_widened_block(block) for block in parts.blocks),
        unembed=Widened(parts.unembed),
    )


def note_slow(parts: Parts) -> None:
    """Says once a precision that a backward pass in it is slow on this processor, and what to do."""
    if parts.device.type == "cpu" and parts.dtype in HALF and not has_instructions(parts.dtype):
        _warn(str(parts.dtype).removeprefix("torch."))


@cache
def _warn(dtype: str) -> None:
    warnings.warn(
        f"this processor has no instructions for {dtype}, and a backward pass in it takes up to 50 times as long as in "
        f"float32: attribution and discover take compute='float32' (--compute float32), which casts each matrix for "
        f"the moment and needs no more memory; elsewhere load the model with dtype=torch.float32",
        stacklevel=2,
    )


@cache
def has_instructions(dtype: torch.dtype) -> bool:
    """Whether this machine's processor multiplies in a half precision; True where that can't be told."""
    flags = _processor_flags()
    return not flags or bool(flags & _FLAGS.get(dtype, flags))


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    found = (line.partition(":")[2] for line in lines if line.partition(":")[0].strip() in ("flags", "Features"))
    return set(next(found, "").split())


def _widened_block(block: Block) -> Block:
    changed: dict[str, Any] = {}
    for field in fields(block):
        part: Any = getattr(block, field.name)
        if not isinstance(part, nn.Module) or not any(p.dtype in HALF for p in part.parameters()):
            continue
        weight = getattr(part, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            raise UsageError(
                f"compute='float32' casts matrices, and {field.name} is {type(part).__name__}; load the model with "
                f"dtype=torch.float32 instead"
            )
        changed[field.name] = Widened(part)
    return replace(block, **changed)


def _looked_up(table: Any) -> Any:
    """A table of embeddings whose rows are float32 when they have been looked up, before they are scaled as Gemma's."""
    if isinstance(table, Multiplied):
        return replace(table, table=_looked_up(table.table))
    scale: Tensor | None = getattr(table, "embed_scale", None)
    if scale is None:
        return lambda ids: table(ids).float()
    return lambda ids: embedding(ids, table.weight).float() * scale
