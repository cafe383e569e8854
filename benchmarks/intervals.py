"""95 % intervals for the tables of the other scripts."""

from __future__ import annotations

from interp.statistics.intervals import of_mean, of_share

__all__ = ["of_mean", "of_share", "shown"]


def shown(low: float, high: float, digits: int = 2) -> str:
    """Such as `[.12, 1.30]`."""
    return f"[{low:.{digits}f}, {high:.{digits}f}]"
