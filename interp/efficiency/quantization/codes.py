"""Weights as small codes: integers on a grid of their own for each group, or numbers with a 4-bit floating point.

A group is a run of weights that share a scale. It runs along the inputs of one output channel, as is usual, or along
the outputs of one input channel, so that an input channel with outliers spoils no scale but its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from interp.checking import arguments
from interp.errors import UsageError, unknown_name

__all__ = ["FLOATS", "Codes", "Scheme", "grid", "nearest", "rounded"]

_SMALLEST = 1e-8

FLOATS: dict[str, tuple[int, int]] = {"e1m2": (1, 2), "e2m1": (2, 1), "e3m0": (3, 0)}
"""The 4-bit floating-point formats: bits of exponent and of mantissa beside the sign."""


@dataclass(frozen=True)
class Scheme:
    """How a layer's weights are stored, and what is done with its inputs.

    Args:
        bits: 8 or 4.
        format: ``symmetric``, integers and a scale; ``affine``, integers, a scale and a zero; or one of `FLOATS`.
        group: Weights that share a scale; none for a whole channel.
        axis: What a group runs along: ``input``, the inputs of an output channel, or ``output``.
        solver: ``nearest`` code for each weight, or ``gptq``, where later weights make up for earlier ones' errors.
        rank: Of the matrix in bfloat16 that makes up for the error; 0 for none.
        activations: Inputs as integers of 8 bits with a scale for each ``token`` or each ``sequence``; none: as they
            are.
        scaled: What each input channel is scaled by, so that weights are scaled the other way: ``awq`` or ``smooth``.
    """

    bits: int = 8
    format: str = "symmetric"
    group: int | None = None
    axis: str = "input"
    solver: str = "nearest"
    rank: int = 0
    activations: str | None = None
    scaled: str | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("format", self.format, ("symmetric", "affine", *FLOATS)),
            ("axis", self.axis, ("input", "output")),
            ("solver", self.solver, ("nearest", "gptq")),
            ("activations", self.activations, (None, "token", "sequence")),
            ("scaled", self.scaled, (None, "awq", "smooth")),
        ):
            if value not in known:
                raise unknown_name(name, str(value), [str(one) for one in known])
        if self.bits not in (4, 8) or (self.format in FLOATS and self.bits != 4):
            raise UsageError(f"weights are stored in 8 or 4 bits (floating-point formats in 4), not {self.bits}")
        if self.activations and set(self.to_dict()) - {"activations", "scaled", "rank"}:
            raise UsageError("inputs in 8 bits need symmetric weights in 8 bits with one scale for each output channel")
        if self.group is not None and self.group < 2:
            raise UsageError(f"a group must have 2 weights at least, got {self.group}")
        if self.rank < 0:
            raise UsageError(f"the rank must be 0 or more, got {self.rank}")

    def to_dict(self) -> dict[str, Any]:
        """What differs from the default."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Scheme:
        """What `to_dict` gave."""
        return cls(**arguments(found, cls, "the plan"))

    def changed(self, **changes: Any) -> Scheme:
        """The scheme with some settings changed."""
        return Scheme(**{**asdict(self), **changes})

    def words(self) -> str:
        """The scheme in words."""
        said = [f"{self.bits} bits" if self.format not in FLOATS else self.format]
        along = f"groups of {self.group}" if self.group else "one scale"
        said += [f"{along} along the {self.axis}s"]
        said += ["GPTQ"] if self.solver == "gptq" else []
        said += [f"{self.scaled} scales"] if self.scaled else []
        said += [f"rank {self.rank} beside it"] if self.rank else []
        said += [f"inputs in 8 bits by {self.activations}"] if self.activations else []
        return ", ".join(said)


@dataclass(frozen=True)
class Codes:
    """Weights as codes. Groups run along the columns: for ``axis="output"`` the rows are the input channels.

    Args:
        codes: From 0 to ``2**bits - 1``, "row column"; with bits=8 and no zero, 128 stands for the weight 0.
        scale: "row group", bfloat16.
        zero: "row group", bfloat16; none where the grid is symmetric.
        scheme: How they were made.
    """

    codes: UInt8[Tensor, "row column"]
    scale: Float[Tensor, "row group"]
    zero: Float[Tensor, "row group"] | None
    scheme: Scheme

    def decoded(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "output input"]:
        """The weights that the codes stand for."""
        if self.scheme.format in FLOATS:
            numbers = grid(self.scheme, self.codes.device, dtype)[self.codes.int()]
        else:
            numbers = self.codes.to(dtype).sub_(2 ** (self.scheme.bits - 1))
        rows, groups = self.scale.shape
        found = numbers.view(rows, groups, -1) * self.scale.to(dtype)[..., None]
        if self.zero is not None:
            found = found + self.zero.to(dtype)[..., None]
        found = found.view(self.codes.shape)
        return found.T if self.scheme.axis == "output" else found


def grid(scheme: Scheme, device: torch.device, dtype: torch.dtype = torch.float32) -> Float[Tensor, code]:
    """What each code stands for before scale and zero, from the smallest to the largest.

    A floating-point number of e bits of exponent and m of mantissa is ``2**(p - bias) * (1 + d / 2**m)``, without the
    1 for p = 0; the bias is part of the scale, which may be any number (Liu et al. 2023, LLM-FP4, arXiv 2310.16836,
    equations 1 to 6). The two zeros share their code, so there are 15.
    """
    if scheme.format not in FLOATS:
        half = 2 ** (scheme.bits - 1)
        return torch.arange(-half, half, device=device).to(dtype)
    exponent, mantissa = FLOATS[scheme.format]
    p = torch.arange(2**exponent, device=device).repeat_interleave(2**mantissa)
    d = torch.arange(2**mantissa, device=device).repeat(2**exponent) / 2**mantissa
    sizes = torch.where(p == 0, 2 * d, 2.0**p * (1 + d))
    return torch.cat([-sizes[1:].flip(0), sizes]).to(dtype)


def rounded(weight: Float[Tensor, "output input"], scheme: Scheme, clip: float = 1.0) -> Codes:
    """The code nearest to each weight.

    Args:
        weight: Of a linear layer.
        scheme: Bits, format, group and axis; the rest is not looked at.
        clip: The share of a group's largest value that the grid reaches, for floating-point formats.

    Raises:
        UsageError: The group does not divide the channel.
    """
    rows = (weight.T if scheme.axis == "output" else weight).float()
    size = scheme.group or rows.shape[1]
    if rows.shape[1] % size:
        raise UsageError(f"groups of {size} do not divide the {rows.shape[1]} {scheme.axis}s")
    grouped = rows.reshape(rows.shape[0], -1, size)
    scale, zero = scales(grouped, scheme, clip)
    return Codes(nearest(grouped, scale, zero, scheme).view(rows.shape), scale, zero, scheme)


def scales(grouped: Float[Tensor, "row group item"], scheme: Scheme, clip: float = 1.0) -> tuple[Tensor, Tensor | None]:
    """Scale and zero "row group" of groups, in bfloat16, which is what the kernels read."""
    if scheme.format == "affine":
        low, high = grouped.amin(-1), grouped.amax(-1)
        scale = _up((high - low).clamp(min=_SMALLEST) / (2**scheme.bits - 1))
        middle = 2 ** (scheme.bits - 1)
        return scale, (low + middle * scale.float()).to(torch.bfloat16)
    largest = grouped.abs().amax(-1).clamp(min=_SMALLEST)
    if scheme.format == "symmetric":
        return _up(largest / (2 ** (scheme.bits - 1) - 1)), None
    top = grid(scheme, torch.device("cpu"))[-1].item()
    return (clip * largest / top).to(torch.bfloat16), None


def nearest(
    grouped: Float[Tensor, "row group item"],
    scale: Float[Tensor, "row group"],
    zero: Float[Tensor, "row group"] | None,
    scheme: Scheme,
) -> UInt8[Tensor, "row group item"]:
    """The nearest codes under given scales."""
    x = grouped if zero is None else grouped - zero.float()[..., None]
    x = x / scale.float()[..., None]
    if scheme.format in FLOATS:
        levels = grid(scheme, x.device)
        return torch.bucketize(x.contiguous(), (levels[1:] + levels[:-1]) / 2).to(torch.uint8)
    half = 2 ** (scheme.bits - 1)
    lowest = 1 - half if scheme.format == "symmetric" else -half
    return (x.round().clamp(lowest, half - 1) + half).to(torch.uint8)


def _up(scale: Float[Tensor, "row group"]) -> Float[Tensor, "row group"]:
    """In bfloat16, never smaller than before: the largest value keeps a code of its own."""
    return (scale * (1 + 2**-8)).to(torch.bfloat16)
