"""The two ways a call can go wrong, and how near names are suggested."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = ["InterpError", "UsageError", "reason", "unknown_name"]


_CUT = 200


class InterpError(RuntimeError):
    """Something failed while doing what was asked (missing file, no network, NaN in the logits).

    The command line prints the message and exits with 1.
    """


class UsageError(InterpError, ValueError):
    """What was asked makes no sense (unknown name, layer out of range, mismatched pair).

    The command line prints the message and exits with 2.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """A `UsageError` for an unknown name that lists the nearest known ones."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(known)}"
    return UsageError(f"unknown {kind} {name[:_CUT]!r}{'...' * (len(name) > _CUT)}; {hint}")


def reason(error: BaseException) -> str:
    """What an error of another library says, in one line: its first two lines, without the names of types."""
    lines = [re.sub(r"^(\w+\.)*\w+Error: ", "", line.strip()) for line in str(error).splitlines()]
    said = " ".join([line for line in lines if line][:2]) or type(error).__name__
    return said if len(said) <= 2 * _CUT else f"{said[: 2 * _CUT]}..."
