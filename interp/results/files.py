"""Files that are either complete or absent.

What is written lies aside until it is complete, in a folder of its own beside its place, and is then renamed. The
folder is locked while its process lives, so that the next who writes there clears away what a killed one has left.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from interp.errors import InterpError

try:
    import fcntl
except ImportError:  # a system without it: nothing is locked there, and what is left over stays
    fcntl = None  # type: ignore[assignment]

__all__ = ["aside_of", "locked", "replacing", "staging", "write_text", "writing"]

_ASIDE = ".interp-aside-"


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file aside and put it in place only when it is complete.

    Several files that belong together are replaced with `interp.results.folders.together`.

    Args:
        path: where the file shall stand; missing folders are made.

    Yields:
        A path of the same name to write to. When the block ends well it replaces `path`; when it raises, also on
        Ctrl-C, it is removed and what stood at `path` stays as it was.

    Raises:
        InterpError: the file can't be written.
    """
    target = Path(path)
    with writing(target):
        if aside_of(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield target
            return
        with staging(target.parent) as aside:
            yield aside / target.name
            os.replace(aside / target.name, target)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 text, complete or not at all; returns the path."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def aside_of(path: Path) -> bool:
    """Whether a path lies aside already, so that what is written there needs no more care."""
    return any(part.startswith(_ASIDE) for part in path.parts)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the path when something can't be written.

    Raises:
        InterpError: for any error of the system's or of safetensors'.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InterpError(f"could not write {path}: {getattr(error, 'strerror', None) or error}") from error


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A new folder inside another one, for files on their way; it is gone afterwards.

    What killed processes have left of theirs goes as well; those of processes that live are locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_ASIDE}*"):
        with locked(left) as ours:
            if ours:
                shutil.rmtree(left, ignore_errors=True)
    while True:
        aside = folder / f"{_ASIDE}{secrets.token_hex(4)}"
        aside.mkdir()
        with locked(aside, wait=True):
            if not aside.is_dir():  # cleared away by another process before it was locked
                continue
            try:
                yield aside
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            return


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[bool]:
    """Holds the lock of a folder, which goes with its process, and with the folder when it is renamed.

    Args:
        folder: any folder.
        wait: until another process lets it go.

    Yields:
        Whether it is held: not if another process has it, or where folders can't be locked.
    """
    handle = None
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                handle = os.open(folder, os.O_RDONLY)
        held = False
        if handle is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                held = True
        yield held
    finally:
        if handle is not None:
            os.close(handle)
