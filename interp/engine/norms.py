"""Norms as plain functions of tensors, and what stands where a model has none."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from interp.errors import UsageError

__all__ = ["NOTHING", "Factor", "Norm", "factor", "head_norm_of", "norm_of", "times"]


@dataclass(frozen=True)
class Norm:
    """LayerNorm or RMSNorm over the last axis.

    Args:
        centred: The mean is subtracted (LayerNorm).
        weight: What the result is multiplied by; of queries or keys also "head d_head", where heads have their own.
        bias: What is added at the end.
        eps: What is added to the mean square.
        joint: Over all heads together, the last two axes "head d_head" (OLMo 2's queries and keys).
    """

    centred: bool
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    joint: bool = False

    def __call__(self, x: Tensor, constant_scale: bool = False) -> Tensor:
        """The normalised input; with `constant_scale`, nothing flows back through the scale."""
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        scale = self.inverse_scale(wide.detach() if constant_scale else wide)
        out = self.centre(wide) * scale
        if self.weight is not None:
            out = out * self.weight.to(wide.dtype)
        if self.bias is not None:
            out = out + self.bias.to(wide.dtype)
        return out.to(x.dtype)

    def centre(self, x: Tensor) -> Tensor:
        """The input less its mean, if the norm does that."""
        return x - x.mean(self.axes, keepdim=True) if self.centred else x

    def inverse_scale(self, x: Tensor) -> Tensor:
        """What the norm multiplies its (centred) input by, before its weight."""
        x = self.centre(x)
        squares = torch.linalg.vecdot(x, x).unsqueeze(-1)
        return torch.rsqrt((squares.sum(-2, keepdim=True) if self.joint else squares) / self.width(x) + self.eps)

    def scale_of_head(self, x: Tensor, head: int) -> Tensor:
        """What one head's channels of x "... head d_head" are multiplied by, before its weight: "... 1"."""
        return self.inverse_scale(x)[..., 0, :] if self.joint else self.inverse_scale(x[..., head, :])

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes that are normed together."""
        return (-2, -1) if self.joint else (-1,)

    def width(self, x: Tensor) -> int:
        """How many numbers of x are normed together."""
        return math.prod(x.shape[axis] for axis in self.axes)

    def weight_of_head(self, head: int) -> Tensor | None:
        """The weight of one head's channels."""
        return self.weight if self.weight is None or self.weight.ndim == 1 else self.weight[head]

    def of_heads(self, count: int) -> Norm:
        """The norm where key-value heads were repeated for each query head: each copy has its head's weights."""
        if self.weight is None or self.weight.ndim != 2 or len(self.weight) == count:
            return self
        return replace(self, weight=self.weight.repeat_interleave(count // len(self.weight), 0))


@dataclass(frozen=True)
class Factor(Norm):
    """What stands where a model has no norm: multiplies by its weight, or does nothing where that is None.

    Granite multiplies what attention and the MLP add by a number; OLMo 2 has no norms before them.
    """

    def __call__(self, x: Tensor, constant_scale: bool = False) -> Tensor:
        """The input times the weight."""
        return x if self.weight is None else x * self.weight.to(x.dtype)

    def inverse_scale(self, x: Tensor) -> Tensor:
        """One, "... 1"."""
        return torch.ones_like(x[..., :1])


NOTHING = Factor(False, None, None, 0.0)
"""No norm."""


def factor(number: float, width: int, device: torch.device) -> Factor | None:
    """What multiplies by a number; none where it is one."""
    weight = torch.full((1,), float(number), device=device).expand(width)
    return None if number == 1 else Factor(False, weight, None, 0.0)


def norm_of(bridge: Any) -> Norm:
    """The norm of a bridge's part."""
    original, bare = bridge.original_component, type(bridge).__name__.endswith("PreBridge")
    weight = None if bare else getattr(original, "weight", None)  # OLMo's norm has none
    if weight is not None and bridge.uses_weight_offset:
        weight = 1.0 + weight.float()
    eps = getattr(original, "eps", getattr(original, "variance_epsilon", None))
    return Norm(
        centred=not bridge.uses_rms_norm,
        weight=weight,
        bias=None if bare else getattr(original, "bias", None),
        eps=float(eps if eps is not None else bridge.config.eps),
    )


def head_norm_of(bridge: Any, d_head: int) -> Norm:
    """The norm of queries or keys: of each head alone or (OLMo 2) of all together, with weights for all or for each.

    Raises:
        UsageError: One that takes the mean of all heads together.
    """
    original = bridge.original_component
    if each := getattr(original, "norms", None):  # StableLM: a norm for each head
        biases = [norm.bias for norm in each if norm.bias is not None]
        return Norm(
            centred=True,
            weight=torch.stack([norm.weight for norm in each]),
            bias=torch.stack(biases) if biases else None,
            eps=float(each[0].eps),
        )
    norm = norm_of(bridge)
    if norm.weight is None or norm.weight.ndim != 1 or norm.weight.numel() == d_head:
        return norm
    if norm.centred:
        raise UsageError(
            "this architecture can't be described as a graph: unknown to it is a LayerNorm over all queries or keys"
        )
    bias = None if norm.bias is None else norm.bias.unflatten(0, (-1, d_head))
    return replace(norm, weight=norm.weight.unflatten(0, (-1, d_head)), bias=bias, joint=True)


def times(norm: Norm, factor: float) -> Norm:
    """The final norm with a factor of the logits in it, so that nothing behind it needs to know of that."""
    if factor == 1:
        return norm
    weight = factor if norm.weight is None else norm.weight.float() * factor
    return replace(norm, weight=torch.as_tensor(weight), bias=None if norm.bias is None else norm.bias.float() * factor)
