"""The scores that an explanation can get, by name."""

from __future__ import annotations

__all__ = ["SCORERS"]

SCORERS = ("detection", "fuzzing", "embedding", "simulation", "intervention")
