"""95 % intervals over prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["of_mean", "of_share"]

DRAWS = 2000


def of_mean(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Of a mean over prompts: percentiles of the bootstrap over prompts, the same draws for all rows of a table."""
    each = np.asarray(values, dtype=float)
    index = np.random.default_rng(0).integers(0, len(each), (DRAWS, len(each)))
    low, high = np.quantile(each[index].mean(1), [0.025, 0.975])
    return float(low), float(high)


def of_share(found: float, n: int) -> tuple[float, float]:
    """Of a share of n prompts: Wilson's score interval, which is not a point where all or none are found."""
    z = 1.959964
    middle, width = found + z * z / (2 * n), z * np.sqrt(found * (1 - found) / n + z * z / (4 * n * n))
    return float(max(0.0, (middle - width) / (1 + z * z / n))), float(min(1.0, (middle + width) / (1 + z * z / n)))
