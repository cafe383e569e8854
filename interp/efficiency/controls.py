"""What a plan has to beat: a plan of the same size made at random, and the plan of the inverted finding."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import PreTrainedModel

from interp.efficiency.composed import Composed
from interp.efficiency.method import maker
from interp.efficiency.plan import Plan
from interp.errors import InterpError, UsageError

__all__ = ["control"]


def control(plan: Plan, kind: str, model: PreTrainedModel, seed: int = 0, method: Any = None) -> Plan | None:
    """A plan's control. That of a composed plan is its parts' controls composed; parts that have none stay.

    Args:
        plan: A plan, perhaps from a file.
        kind: ``random`` or ``inverted``.
        model: The deployed model that the plan is for.
        seed: Of a random one.
        method: What made the plan, if it is at hand; else what the plan says of it.

    Returns:
        The control; none where the method has none, or none that decides otherwise.

    Raises:
        UsageError: It can't be made; the message goes on a "because".
    """
    parts = plan.plans if isinstance(plan, Composed) else (plan,)
    made: list[Plan] = []
    for part in parts:
        with ExitStack() as behind:
            if part.made.get("behind") and made:  # it was made for what the parts before it leave of the model
                for earlier in made:
                    behind.enter_context(earlier.applied(model))
            made.append(_one(part, kind, model, seed, method) or part)
    if all(one is part for one, part in zip(made, parts, strict=True)):
        return None
    return Composed.of(*made) if isinstance(plan, Composed) else made[0]


def _one(plan: Plan, kind: str, model: PreTrainedModel, seed: int, method: Any) -> Plan | None:
    """The control of a plan that is not composed."""
    make = getattr(maker(plan) if method is None else method, f"{kind}_plan", None)
    if make is None:
        return None
    try:
        found = make(model, seed=seed) if kind == "random" else make(model)
    except InterpError as error:
        raise UsageError(f"the {kind} plan can't be made: {error}") from error
    return None if found.decided() == plan.decided() else found
