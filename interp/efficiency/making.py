"""A method by its name, with the findings that it wants out of those that there are."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from interp.efficiency.registry import check_findings, method
from interp.errors import UsageError
from interp.results.finding import Finding

__all__ = ["arguments", "make"]


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
    return made(**given, **options)


def arguments(made: type) -> list[str]:
    """What a method's class takes by name, with what it hands on to the classes that it is made of."""
    found: dict[str, None] = {}
    for one in made.__mro__:
        parameters = inspect.signature(one).parameters if "__init__" in vars(one) else {}
        found |= {name: None for name, given in parameters.items() if given.kind is not given.VAR_KEYWORD}
        if "__init__" in vars(one) and all(given.kind is not given.VAR_KEYWORD for given in parameters.values()):
            break
    return list(found)
