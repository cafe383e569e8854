"""What is asked before something is saved under a model's fingerprint, by whoever knows living models."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["asked", "confirm"]

asked: list[Callable[[str], None]] = []
"""Called with the fingerprint; `interp.engine.identity` is there once it has been imported, and reads the weights."""


def confirm(fingerprint: object) -> None:
    """Ask all, before a file is written that names this fingerprint; nothing is asked where it names none."""
    if isinstance(fingerprint, str) and fingerprint:
        for ask in asked:
            ask(fingerprint)
