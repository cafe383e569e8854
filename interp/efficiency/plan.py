"""A plan: what a method decided for one model, to be looked at, applied for a while, made permanent, or saved.

A *method* takes findings and a budget and makes a plan; a *plan* is data. Applying one changes a deployed model in
ways that are all undone at the end, whatever is raised.
"""

from __future__ import annotations

import copy
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from transformers import PreTrainedModel

from interp.checking import arguments, checked, read_json, typed
from interp.efficiency.deployment import deployment
from interp.efficiency.in_force import InForce, Undo
from interp.errors import InterpError, UsageError
from interp.results.confirming import confirm
from interp.results.files import write_text
from interp.upstream import is_compiled

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from interp.efficiency.ledger import Ledger

__all__ = ["Plan", "Undo", "fit"]

VERSION = 2
_BEFORE = {1: "it was saved by an earlier version, which did not say how plans are made; make it again"}
"""Earlier versions that are read, and what their plans have for `made`."""
_WHY = ("method", "findings", "made", "scores", "reasons", "errors")
"""Fields that say why, not what."""


@dataclass(frozen=True, kw_only=True)
class Plan(ABC):
    """What a method decided for one model. Fields of a subclass are of JSON's types, tuples instead of lists.

    Args:
        model: The model's name.
        fingerprint: Of the weights that it is for.
        method: The name of the method that made it, see `interp.efficiency.METHODS`.
        budget: The share that is kept, in the method's own terms; 1 keeps everything.
        findings: What it was made from, in words.
        made: How it was made, so that its controls can be: the ``method`` by its name in the registry, the ``options``
            and the ``findings`` (as text) that it had, and how many plans were in force (``behind``). Where that is
            not known, ``unknown`` says why.
    """

    model: str
    fingerprint: str
    method: str
    budget: float
    findings: tuple[str, ...] = ()
    made: dict[str, Any] = field(default_factory=dict)

    kind: ClassVar[str] = ""
    """The name of this class of plans in files."""
    real: ClassVar[bool] = True
    """Whether what is saved is really saved; a plan that is not is called simulated wherever seconds would stand."""

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise UsageError(f"a plan's budget must be in (0, 1], got {self.budget}")

    # What a subclass adds

    @abstractmethod
    def change(self, model: PreTrainedModel, undo: Undo) -> None:
        """Changes the model, each change through `undo`."""

    @abstractmethod
    def ledger(self, model: PreTrainedModel, length: int, batch: int = 1) -> Ledger:
        """Bytes and FLOPs before and after, for prompts of `length` tokens; the plan need not be in force."""

    @abstractmethod
    def to_frame(self) -> pd.DataFrame:
        """What is kept where, and why: one row a decision."""

    @abstractmethod
    def figure(self) -> go.Figure:
        """A picture of what is kept where."""

    def shape(self, model: PreTrainedModel, undo: Undo) -> None:
        """Gives a model without weights the shape that `change` gives one with weights, before they are loaded."""
        self.change(model, undo)

    def summary(self) -> str:
        """The plan in a sentence."""
        made = f" from {', '.join(self.findings)}" if self.findings else ""
        return f"{self.method} at {self.budget:.0%}{made}"

    # What all plans do

    def check(self, model: PreTrainedModel) -> None:
        """Refuses a model that the plan was not made for.

        Raises:
            UsageError: It was not deployed, was compiled, or has other weights.
        """
        found = deployment(model)
        if is_compiled(model):
            raise UsageError(
                f"{found.name} was compiled, and what is compiled goes on without the plan: apply it to the model as "
                "interp.deploy gives it, and compile what made_permanent gives"
            )
        if found.fingerprint != self.fingerprint:
            raise UsageError(
                f"this plan is for {self.model} with the fingerprint {self.fingerprint}, the model is {found.name} "
                f"with {found.fingerprint}; make the plan for this model"
            )

    @contextmanager
    def applied(self, model: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The model with the plan in force; afterwards it is bit-identical to before, whatever is raised.

        Args:
            model: A deployed model, perhaps with other plans in force.

        Raises:
            UsageError: A model that it was not made for, or that can't take it.

        Example:
            >>> with plan.applied(model):
            ...     model.generate(tokens, max_new_tokens=20)
        """
        self.check(model)
        mine = InForce(self, model)
        try:
            yield model
        finally:
            mine.end()

    def made_permanent(self, model: PreTrainedModel) -> PreTrainedModel:
        """A model of its own with the plan in force for good; `model` stays as it is, and unchanged weights are shared.

        It is saved with `interp.efficiency.save` and loads on its own with `interp.efficiency.load`.
        """
        self.check(model)
        own = copied(model)
        undo = Undo()
        with torch.inference_mode(False):
            self.change(own, undo)
        undo.pop_all()
        deployment(own).plans.append(self)
        return own

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON."""
        confirm(self.fingerprint)
        write_text(path, json.dumps(self.to_dict(), indent=1) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """The plan in JSON's types."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"kind": self.kind, "version": VERSION, **values, "made": values.pop("made")}

    def decided(self) -> dict[str, Any]:
        """What is decided, without why and from what: the same for two plans that do the same."""
        return {name: value for name, value in self.to_dict().items() if name not in _WHY}

    @classmethod
    def from_dict(cls, found: dict[str, Any], where: str | os.PathLike[str] = "the plan") -> Plan:
        """The plan that `to_dict` gave; `where` is what messages call it.

        Raises:
            UsageError: Of an unknown kind or another version, or with fields that make no sense.
        """
        from interp.efficiency.registry import plan_class

        try:
            name, version = (checked(typed(found, dict, where), key, str | int, where) for key in ("kind", "version"))
            made = plan_class(str(name))
            if version not in (VERSION, *_BEFORE):
                raise UsageError(
                    f"{os.fspath(where)} has version {version}, this library reads {min(_BEFORE)} to {VERSION}; make "
                    "the plan again"
                )
            values = {key: _frozen(value) for key, value in found.items() if key not in ("kind", "version")}
            if version in _BEFORE:
                values["made"] = {"unknown": _BEFORE[version]}
            given = arguments(values, made, where)
        except UsageError:
            raise
        except InterpError as error:
            raise UsageError(f"this is no plan: {error}") from None
        try:
            return made(**given)
        except UsageError as error:
            raise UsageError(f"{os.fspath(where)}: {error}") from None

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Reads a plan that `save` wrote.

        Raises:
            InterpError: No such file, or not JSON.
            UsageError: A plan of an unknown kind or another version, or with fields that make no sense.
        """
        return Plan.from_dict(read_json(path), path)

    def __add__(self, other: Plan) -> Plan:
        """Both plans, this one first."""
        from interp.efficiency.composed import Composed

        return Composed.of(self, other)

    def with_name(self, method: str) -> Self:
        """The same decisions under another name, for tables."""
        return type(self)(**{**{f.name: getattr(self, f.name) for f in fields(self)}, "method": method})


def fit(rows: Sequence[Any], table: Sequence[Any], **columns: Sequence[Any]) -> None:
    """Refuses rows that end in a place that a table does not have, and columns that are not empty or as long.

    Raises:
        UsageError: One of those; the message names it.
    """
    for row in rows:
        if not 0 <= row[-1] < len(table):
            raise UsageError(f"a row of the plan, {row}, names the settings {row[-1]}; there are {len(table)}")
    for name, values in columns.items():
        if len(values) not in (0, len(rows)):
            raise UsageError(f"the plan has {len(values)} {name} for {len(rows)} rows")


def copied(model: PreTrainedModel) -> PreTrainedModel:
    """A deployed model with modules of its own around the same tensors."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    shared = {id(model.tokenizer): model.tokenizer} if getattr(model, "tokenizer", None) is not None else {}
    return copy.deepcopy(model, memo={**tensors, **shared})


def _frozen(value: Any) -> Any:
    """JSON's lists as tuples, at any depth."""
    if isinstance(value, list):
        return tuple(_frozen(one) for one in value)
    if isinstance(value, dict):
        return {name: _frozen(one) for name, one in value.items()}
    return value
