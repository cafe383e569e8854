"""What some of SAELens's dictionaries do to each activation: it is centred or resized by itself, and that is undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["NORMALISATIONS", "Normalised"]


class Normalised(NamedTuple):
    """An activation as it is encoded, and what a reconstruction of it is multiplied by and shifted by."""

    x: Float[Tensor, "*batch d_in"]
    size: Float[Tensor, "*batch 1"]
    centre: Float[Tensor, "*batch 1"]


def layer_norm(x: Float[Tensor, "*batch d_in"]) -> Normalised:
    """Mean 0 and standard deviation 1; what is added to the deviation before dividing is left out on the way back."""
    centre = x.mean(-1, keepdim=True)
    size = x.std(-1, keepdim=True)
    return Normalised((x - centre) / (size + 1e-5), size, centre)


def constant_norm(x: Float[Tensor, "*batch d_in"]) -> Normalised:
    """The root of the width as norm."""
    size = (x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5).clamp_min(torch.finfo(x.dtype).tiny)
    return Normalised(x / size, size, torch.zeros_like(size))


NORMALISATIONS: dict[str, Callable[[Float[Tensor, "*batch d_in"]], Normalised]] = {
    "layer_norm": layer_norm,
    "constant_norm_rescale": constant_norm,
}
"""By their names in SAELens's ``normalize_activations``."""
