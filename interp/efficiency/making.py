"""A method by its name, with the findings that it wants out of those that there are."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, get_type_hints

from interp.checking import mistyped
from interp.efficiency.registry import check_findings, method
from interp.errors import UsageError
from interp.results.finding import Finding

__all__ = ["arguments", "make"]

_PLAIN = (str, int, float, bool, list, tuple, dict, type(None))
"""Types of values whose hints can be compared; a tensor or a function is what its method makes of it."""


def make(name: str, findings: Sequence[Finding] = (), **options: Any) -> Any:
    """A method of the registry, ready to `plan`.

    Args:
        name: Of the method, see `interp.efficiency.METHODS`.
        findings: Each is handed to the argument that takes its type.
        **options: The method's own arguments, `budget` among them.

    Raises:
        UsageError: An unknown method or option, a finding that it has no use for, two of one type, or one that it
            needs and that is not there (the message names the command that makes it).

    Example:
        >>> interp.efficiency.make("retrieval", [heads, sinks], budget=0.15).plan(model)
    """
    card, made = method(name), method(name).load()
    takes = {**card.needs, **card.takes}
    given: dict[str, Finding] = {}
    for finding in findings:
        kind = type(finding).__name__
        fitting = [argument for argument, wanted in takes.items() if kind in wanted.split(" or ")]
        if not fitting:
            wants = ", ".join(sorted(set(takes.values()))) or "none"
            raise UsageError(f"{name} has no use for a finding of type {kind}; it takes {wants}")
        if fitting[0] in given:
            raise UsageError(f"{name} takes one finding of type {kind}, got two; leave one out")
        given[fitting[0]] = finding
    check_findings(name, {**given, **options})
    known = [argument for argument in arguments(made) if argument not in takes]
    if unknown := [option for option in options if option not in known and option not in takes]:
        raise UsageError(f"{name} has no option {unknown[0]!r}; it has {', '.join(known)}")
    for option, value in options.items():
        if type(value) in _PLAIN and (why := mistyped(value, arguments(made).get(option, Any), option)):
            raise UsageError(f"{name}: {why}")
        if isinstance(value, float) and math.isnan(value):
            raise UsageError(f"{name}: {option} is {value}, a number is needed")
    return made(**given, **options)


def arguments(made: type) -> dict[str, Any]:
    """What a method's class takes by name, with what it hands on to the classes that it is made of: names and types."""
    found: dict[str, Any] = {}
    for one in made.__mro__:
        if "__init__" not in vars(one):
            continue
        parameters, hints = inspect.signature(one).parameters, get_type_hints(vars(one)["__init__"])
        for name, given in parameters.items():
            if given.kind is not given.VAR_KEYWORD:
                found.setdefault(name, hints.get(name, Any))
        if all(given.kind is not given.VAR_KEYWORD for given in parameters.values()):
            break
    return found
