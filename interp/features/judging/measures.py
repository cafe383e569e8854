"""How well activations are reconstructed: sums in float64 over all batches, position by position."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.features.judging.splice import rebuilt

__all__ = ["Tally"]

_PER_POSITION = ("n", "error", "size", "rebuilt", "product", "cosine", "ratio", "active")


class Tally:
    """Counts, for one dictionary, what all measures of reconstruction are made of.

    Args:
        length: Positions in a text.
        d_out: Numbers in an activation.
        d_sae: How many features there are.
        device: Where the sums are kept.
    """

    def __init__(self, length: int, d_out: int, d_sae: int, device: torch.device | str = "cpu") -> None:
        wide: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self.sums = {name: torch.zeros(length, **wide) for name in _PER_POSITION}
        self.mean_sum = torch.zeros(length, d_out, **wide)
        self.fired = torch.zeros(d_sae, **wide)
        self.counted = 0

    def add(
        self,
        dictionary: Any,
        read: Float[Tensor, "batch pos d_in"],
        written: Float[Tensor, "batch pos d_out"],
        valid: Bool[Tensor, "batch pos"],
        counts: Bool[Tensor, "batch pos"],
    ) -> Float[Tensor, "batch pos d_out"]:
        """Reconstructs some texts, and returns the reconstruction.

        Args:
            dictionary: Anything with `encode` and `decode`.
            read: What it reads.
            written: What it should give.
            valid: The positions that are summed, each at its own place.
            counts: The positions on which features are counted as firing.
        """
        active = torch.zeros(read.shape[:2].numel(), dtype=torch.float64, device=read.device)
        flat = counts.flatten()

        def see(piece: slice, features: Tensor) -> None:
            on = features != 0
            active[piece] = on.sum(-1).to(active)
            self.fired += on[flat[piece].to(on.device)].sum(0).to(self.fired)

        guess = rebuilt(dictionary, read, see)
        self.counted += int(counts.sum())
        y, z, mask = written.double(), guess.double(), valid.double()
        size, other, product = y.square().sum(-1), z.square().sum(-1), (y * z).sum(-1)
        found = {
            "n": torch.ones_like(size),
            "error": (y - z).square().sum(-1),
            "size": size,
            "rebuilt": other,
            "product": product,
            "cosine": product / (size * other).sqrt(),
            "ratio": (other / size.where(size > 0, torch.nan)).sqrt(),
            "active": active.view_as(size),
        }
        for name, values in found.items():
            self.sums[name] += torch.where(valid, values, 0.0).sum(0)
        self.mean_sum += (y * mask[..., None]).sum(0)
        return guess

    def r2(self, start: int = 0) -> float:
        """Share of the variance explained at positions from `start` on: 1 - sum ||x - x^||^2 / sum ||x - mean||^2."""
        error, size, n = (float(self.sums[name][start:].sum()) for name in ("error", "size", "n"))
        spread = size - float(self.mean_sum[start:].sum(0).square().sum()) / n if n else 0.0
        return 1 - error / spread if spread > 0 else float("nan")

    def measures(self, start: int = 0, dense_above: float = 0.1) -> dict[str, float]:
        """All measures of the reconstruction at positions from `start` on; see `interp.features.judge`."""
        total = {name: float(values[start:].sum()) for name, values in self.sums.items()}
        n, share = total["n"], self.density
        some = len(share) > 0
        return {
            "r2": self.r2(start),
            "r2_with_first": self.r2(0),
            "r2_without_first": self.r2(1),
            "cosine": total["cosine"] / n,
            "norm_ratio": total["ratio"] / n,
            "gamma": total["rebuilt"] / total["product"] if total["product"] else float("nan"),
            "l0": total["active"] / n,
            "dead": float((share == 0).double().mean()) if some else float("nan"),
            "dense": float((share > dense_above).double().mean()) if some else float("nan"),
        }

    @property
    def density(self) -> Float[Tensor, " d_sae"]:
        """On which share of the counted tokens each feature is active."""
        return self.fired / max(1, self.counted)

    def by_position(self) -> dict[str, Float[Tensor, " pos"]]:
        """Measures at each position; NaN where nothing was summed."""
        s = self.sums
        n = torch.where(s["n"] > 0, s["n"], torch.nan)
        return {
            "error": s["error"] / s["size"].where(s["size"] > 0, torch.nan),
            "cosine": s["cosine"] / n,
            "norm_ratio": s["ratio"] / n,
            "l0": s["active"] / n,
        }
