"""Numbers on the command line: which ones make sense stands beside each option, and is checked before anything else."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from typer.models import OptionInfo

from interp.errors import UsageError

__all__ = ["Range", "check"]


@dataclass(frozen=True)
class Range:
    """From which number on, and up to which, an option makes sense; NaN never does.

    Args:
        least: The smallest, or with `above` the largest that is too small.
        most: The largest.
        above: Leave `least` itself out.
    """

    least: float = 1
    most: float = 2**31 - 1
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.least < value if self.above else self.least <= value) and value <= self.most

    def __str__(self) -> str:
        return f"{'above' if self.above else 'from'} {self.least:,} up to {self.most:,}"


def check(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuses the first option of a command that is out of its range.

    Args:
        function: The command, whose annotations hold a `Range` beside typer's option.
        given: Its arguments.

    Raises:
        UsageError: One is; the message has the option, its value and the range.
    """
    for name, (option, kind, wanted) in _ranges(function).items():
        value = given.get(name)
        if value is not None and value not in wanted:
            raise UsageError(f"{option} is {value}, {kind} {wanted} is needed")


@functools.cache
def _ranges(function: Callable[..., Any]) -> dict[str, tuple[str, str, Range]]:
    """Of each argument with a range: the option's name, what kind of number it is, and the range."""
    found = {}
    for name, hint in typing.get_type_hints(function, include_extras=True).items():
        about = getattr(hint, "__metadata__", ())
        for wanted in about:
            if isinstance(wanted, Range):
                info = next(one for one in about if isinstance(one, OptionInfo))
                spelled = [one for one in (info.default, *(info.param_decls or ())) if isinstance(one, str)]
                option = max(spelled, key=len, default=f"--{name.replace('_', '-')}")
                whole = float not in (hint.__origin__, *typing.get_args(hint.__origin__))
                found[name] = option, "a whole number" if whole else "a number", wanted
    return found
