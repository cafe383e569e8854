"""A chat template is a program of whoever made the tokenizer: it gets a second and little memory.

transformers runs it in a sandbox without files and modules, in which loops need not end.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from interp.errors import InterpError

__all__ = ["around", "said"]

_SECONDS, _BYTES = 1.0, 64 << 20
_CODE = "<template>"
"""What jinja calls the file of a template's code."""
_MARK = "@@text@@"


def said(tokenizer: Any, text: str) -> str:
    """What a user says, as a tokenizer's chat template puts it before a model, with the beginning of the answer.

    Args:
        tokenizer: one with a chat template.
        text: what is said.

    Raises:
        InterpError: the template is faulty, takes longer than a second, or takes more than 64 MiB.
    """
    turn = [{"role": "user", "content": text}]
    try:
        with _watched():
            return str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template fails as it likes
        why = str(error).partition("\n")[0] or type(error).__name__
        raise _faulty(tokenizer, why) from None


def around(tokenizer: Any) -> tuple[str, str]:
    """What a chat template puts before and behind what a user says.

    Raises:
        InterpError: as of `said`, or the template leaves out what is said or repeats it.
    """
    parts = said(tokenizer, _MARK).split(_MARK)
    if len(parts) != 2:
        raise _faulty(tokenizer, f"what is said stands {len(parts) - 1} times in what it makes, not once")
    return parts[0], parts[1]


class _EndlessError(Exception):
    """A template does not come to an end."""


@contextmanager
def _watched() -> Iterator[None]:
    """Looks at the clock and at the memory before each line of a template, in this thread alone."""
    before, began, held = sys.gettrace(), time.monotonic(), _bytes()

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() - began > _SECONDS:
            raise _EndlessError(f"it takes longer than {_SECONDS:g} s")
        if frame.f_code.co_filename != _CODE:
            return None
        if _bytes() - held > _BYTES:
            raise _EndlessError(f"it takes more than {_BYTES >> 20} MiB")
        return look

    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


def _bytes() -> int:
    """The memory of this process; 0 where the system does not tell (only Linux does), so that there is no limit."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _faulty(tokenizer: Any, why: str) -> InterpError:
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    return InterpError(
        f"the chat template of {name} can't be used: {why}; set tokenizer.chat_template = None to do without, or to "
        "one that works"
    )
