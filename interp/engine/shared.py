"""Whether workers see the folder that this process writes to: they do on one machine, and on a shared file system."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interp.engine.spread import elsewhere

__all__ = ["marked", "sees"]

_MARK = ".seen-by-workers-"


@contextmanager
def marked(folder: Path) -> Iterator[str]:
    """A mark in a folder, as long as the block lasts, if workers are in force.

    What a killed process has left of its own goes as well.
    """
    if elsewhere() is None:
        yield ""
        return
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_MARK}*"):
        left.unlink(missing_ok=True)
    mark = f"{_MARK}{secrets.token_hex(8)}"
    (folder / mark).touch()
    try:
        yield mark
    finally:
        (folder / mark).unlink(missing_ok=True)


def sees(folder: Path, mark: str) -> bool:
    """Whether this process sees the folder with that mark."""
    return (folder / mark).exists()
