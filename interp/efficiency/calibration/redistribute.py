"""Attention taken from some keys and given to the others, in proportion to what they have."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["redistributed"]


def redistributed(
    pattern: Float[Tensor, "*rows key"],
    sinks: Bool[Tensor, "*rows key"],
    strength: float,
    toward: Float[Tensor, "*rows key"] | None = None,
) -> Float[Tensor, "*rows key"]:
    """How attention changes when a share of what sinks get goes to all other keys; rows of the change sum to zero.

    A'[s] = (1 - strength) A[s] for sinks s, A'[i] = A[i] + strength sum_s A[s] * A[i] / sum_j A[j] for the others.

    Args:
        pattern: Attention; each row sums to one.
        sinks: Which keys give.
        strength: The share that they give, at most 1; below 0 they take as much, up to what the others have.
        toward: Attention in whose proportions the others get it; `pattern` unless given. Needs a strength of 0 or more.

    Returns:
        A' - A. Zero where there are no sinks, or nothing else.

    Reference: Yu et al. 2024, "Unveiling and Harnessing Hidden Attention Sinks", arXiv:2406.15765, section 4, with
    strength 1 - beta; as in the authors' code (github.com/GATECH-EIC/ACT, models/llama_modelling_aug.py).
    """
    taken = (pattern * sinks).sum(-1, keepdim=True)
    toward = pattern if toward is None else toward
    rest = (toward * ~sinks).sum(-1, keepdim=True)
    possible = (taken > 0) & (rest > torch.finfo(pattern.dtype).tiny)
    taken, rest = torch.where(possible, taken, 1.0), torch.where(possible, rest, 1.0)
    share = (-rest / taken).clamp(min=strength)
    change = torch.where(sinks, -share * pattern, share * taken / rest * toward)
    return torch.where(possible, change, 0.0)
