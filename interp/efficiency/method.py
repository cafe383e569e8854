"""A method: findings and a budget go in, a plan comes out that says how it was made, so that others can be made so."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from interp.efficiency.deployment import deployment
from interp.efficiency.plan import Plan
from interp.efficiency.registry import METHODS, method
from interp.errors import InterpError, UsageError
from interp.results.finding import Finding
from interp.results.finding_files import from_json, to_json

__all__ = ["CONTROLS", "Method", "maker"]

CONTROLS = ("random", "inverted")
"""The plans that a method may make beside its own: `random_plan` and `inverted_plan`."""


class Method(ABC):
    """Makes plans. It keeps the arguments that it was made with as `given`, also those of its subclasses."""

    name: ClassVar[str]
    budget: float | None
    given: dict[str, Any]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = _remembering(cls.__init__)  # type: ignore[method-assign]

    @abstractmethod
    def plan(self, model: Any) -> Plan:
        """The plan for a model, a bridge or a deployed one."""

    def findings(self) -> Sequence[Finding]:
        """The findings that it was given."""
        return ()

    def about(self, model: PreTrainedModel, name: str) -> dict[str, Any]:
        """What every plan says.

        Args:
            model: A deployed model.
            name: The plan's: the method's own, or that of a control.

        Raises:
            UsageError: A finding about another model.
        """
        found = deployment(model)
        for finding in self.findings():
            finding.check(found.fingerprint)
        control = name.endswith(tuple(f", {kind}" for kind in CONTROLS))
        return {
            "model": found.name,
            "fingerprint": found.fingerprint,
            "method": name,
            "budget": self.budget,
            "findings": tuple(type(finding).__name__ for finding in self.findings()),
            "made": {"unknown": "it is a control itself"} if control else {**self._how, "behind": len(found.plans)},
        }

    @functools.cached_property
    def _how(self) -> dict[str, Any]:
        """How it was made, see `Plan.made`; or why that can't be said."""
        place = f"{type(self).__module__.removeprefix('interp.efficiency.')}:{type(self).__name__}"
        name = next((name for name, card in METHODS.items() if card.made_by == place), None)
        if name is None:
            return {"unknown": f"{type(self).__name__} is not in interp.efficiency.METHODS"}
        options, findings = {}, {}
        for argument, value in self.given.items():
            try:
                if isinstance(value, Finding):
                    findings[argument] = to_json(value)
                else:
                    options[argument] = _plain(value)
            except TypeError as error:
                return {"unknown": f"{argument} is or has a {error}, which a plan can't hold; give the method instead"}
            except UsageError as error:
                return {"unknown": str(error)}
        return {"method": name, "options": options, "findings": findings}


def maker(plan: Plan) -> Method:
    """The method that made a plan, as it was.

    Raises:
        UsageError: The plan does not say how it was made, or no method is made like that; the message goes on a
            "because".
    """
    if "method" not in plan.made:
        raise UsageError(str(plan.made.get("unknown", "it does not say how it was made")))
    made = plan.made
    try:
        findings = {argument: from_json(text) for argument, text in made["findings"].items()}
        return method(made["method"]).load()(**made["options"], **findings)
    except UsageError:
        raise
    except (InterpError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"what it says of how it was made makes no sense ({error})") from error


def _remembering(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)
    further = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")

    @functools.wraps(init)
    def remembering(self: Method, *args: Any, **kwargs: Any) -> None:
        if "given" not in vars(self):  # the outermost class's arguments are those that make it again
            given = signature.bind(self, *args, **kwargs).arguments
            del given["self"]
            self.given = {**given.pop(further, {}), **given}
        init(self, *args, **kwargs)

    return remembering


def _plain(value: Any) -> Any:
    """A value of JSON's types, tuples instead of lists.

    Raises:
        TypeError: It has none; the message names its type.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return tuple(_plain(one) for one in value)
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    raise TypeError(type(value).__name__)
