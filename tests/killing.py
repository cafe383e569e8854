"""Processes that are killed while they write: before every change of the file system, one after another."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from interp.results.files import staging

CHANGES = frozenset(("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.copyfile"))


def killed_at(step: int, write: Callable[[], Any], folder: Path) -> bool:
    """Runs `write` in a process that is killed before its `step`th change below `folder`; False if it made fewer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which do nothing here
        child = os.fork()
    if child == 0:
        seen = 0

        def stop(event: str, arguments: tuple) -> None:
            nonlocal seen
            opened = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if event in CHANGES or opened:
                inside = str(arguments[0]).startswith(str(folder)) or not os.path.isabs(str(arguments[0]))
                seen += inside
                if inside and seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            sys.addaudithook(stop)
            write()
            code = 0
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, "the writer failed"
        return False
    return True


def assert_old_or_new(
    folder: Path,
    old: Callable[[], Any],
    new: Callable[[], Any],
    read: Callable[[], Any],
) -> int:
    """Kills `new` over the files of `old` before every change; what is read is the one or the other, and whole.

    What was left over is gone when anything is written there again.

    Returns:
        How many times it was killed.
    """
    old()
    before, kept, copy = read(), files(folder), folder.with_name(f"{folder.name}-old")
    shutil.copytree(folder, copy)
    new()
    after, wanted = read(), files(folder)
    assert before != after, "old and new must differ to be told apart"
    counted = False
    for step in count(1):
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)
        killed = killed_at(step, new, folder)
        found = read()
        assert found == after or (found == before and not counted), f"neither old nor new after step {step}"
        counted = found == after
        with staging(folder):
            pass
        assert files(folder) == (wanted if counted else kept), f"left over after step {step}"
        if not killed:
            assert counted
            assert step > 4
            return step - 1
    raise AssertionError


def files(folder: Path) -> list[str]:
    """All files and folders below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
