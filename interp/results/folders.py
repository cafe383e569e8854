"""Several files that belong together: all of them are replaced, or none.

The files are written aside, in one folder. Renaming that folder to `.interp-whole` is the moment from which they count:
before it, all old files stand; after it, the new ones do, whether in place yet or not. They are then moved one by one.
Who finds a `.interp-whole`, because the process that moved its files was killed, moves the rest (`settle`) before it
reads or writes. Moving is renaming, so that several processes may do it at once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from interp.errors import InterpError
from interp.results.files import aside_of, locked, staging, writing

__all__ = ["settle", "together"]

_WHOLE, _GONE = ".interp-whole", ".gone.json"
_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)


@contextlib.contextmanager
def together(folder: str | os.PathLike[str], instead_of: Collection[str] = ()) -> Iterator[Path]:
    """Write several files aside and put all of them in place only when all are complete.

    Other files in the folder stay as they are.

    Args:
        folder: where the files shall stand; missing folders are made.
        instead_of: names, as seen from the folder, of files that go if they are not written anew.

    Yields:
        A folder to write to, in folders of its own if need be. When the block ends well its files replace those of the
        same names in `folder`; when it raises, all of them stay as they were. A process that is killed leaves either
        all old ones, or all new ones for `settle` to put in place.

    Raises:
        InterpError: a file can't be written.
    """
    target = Path(folder)
    with writing(target):
        if aside_of(target):
            target.mkdir(parents=True, exist_ok=True)
            yield target
            return
        with staging(target) as aside:
            yield aside
            names = [path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file()]
            if stale := sorted(set(instead_of) - set(names)):
                (aside / _GONE).write_text(json.dumps(stale), encoding="utf-8")
            for name in (*names, *stale):
                _place(target, name)
            _count(aside, target)
        settle(target)


def settle(folder: str | os.PathLike[str]) -> None:
    """Ends what a killed process began: puts files in place that are complete and wait for it.

    To be called before a folder's files are read; where nothing was interrupted it costs one look.

    Raises:
        InterpError: they can't be put in place here, so that what stands there may be neither the old nor the new.
    """
    target = Path(folder)
    whole = target / _WHOLE
    while True:
        try:
            if not os.path.isdir(whole):
                return
            if not os.listdir(whole):
                with contextlib.suppress(OSError):
                    whole.rmdir()
                return
            trusted = os.stat(target).st_uid, getattr(os, "geteuid", int)()
            if whole.is_symlink() or os.stat(whole).st_uid not in trusted:
                raise InterpError(f"{whole} is a link or was put there by another user; have it removed")
            with locked(whole, wait=True):
                _move(whole, target)
        except FileNotFoundError:  # another process is moving them, too
            continue
        except (OSError, ValueError, TypeError) as error:
            raise InterpError(
                f"{target} was being replaced when that was interrupted, and the new files in {whole} can't be put in "
                f"place ({getattr(error, 'strerror', None) or error}); do so where the folder can be written"
            ) from error


def _count(aside: Path, target: Path) -> None:
    """The moment from which the new files count."""
    while True:
        settle(target)
        try:
            os.rename(aside, target / _WHOLE)
            return
        except OSError as error:  # another process was faster; its files come first
            if error.errno not in _NOT_EMPTY:
                raise


def _move(whole: Path, target: Path) -> None:
    for at, folders, names in os.walk(whole, topdown=False):
        here = Path(at)
        links = [name for name in folders if (here / name).is_symlink()]
        for path in (here / name for name in (*names, *links)):
            if path != whole / _GONE:
                place = _place(target, path.relative_to(whole).as_posix())
                place.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # moved by another process
                    os.replace(path, place)
        if here == whole and (whole / _GONE).is_file():
            for name in json.loads((whole / _GONE).read_text(encoding="utf-8")):
                _place(target, name).unlink(missing_ok=True)
            (whole / _GONE).unlink(missing_ok=True)
        try:
            here.rmdir()
        except OSError as error:  # files of another process have come
            if error.errno not in _NOT_EMPTY:
                raise


def _place(target: Path, name: str) -> Path:
    """Where a file goes.

    Raises:
        InterpError: out of the folder, or where a folder is.
    """
    place = target / name
    if not place.parent.resolve().is_relative_to(target.resolve()) or place.is_dir():
        raise InterpError(f"could not write {place}: it is a folder or leads out of {target}")
    return place
