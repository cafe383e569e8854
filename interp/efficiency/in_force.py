"""Plans in force on a model: each can be taken back, in whichever order, and nothing of it is left."""

from __future__ import annotations

import copy
import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interp.efficiency.deployment import deployment
from interp.errors import UsageError

if TYPE_CHECKING:
    from interp.efficiency.plan import Plan

__all__ = ["InForce", "Undo"]


class Undo(ExitStack):
    """Changes of a model, taken back in reverse order when it closes."""

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Sets an attribute, or a parameter or submodule of a module, for the time."""
        own = vars(owner).get("_parameters", {}).get(name, vars(owner).get("_modules", {}).get(name, _ABSENT))
        before = own if own is not _ABSENT else vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)
        self.callback(_put_back, owner, name, before)


class InForce:
    """A plan that is in force on a model from here on until `end`.

    Args:
        plan: The plan.
        model: The model, perhaps with other plans in force.
    """

    def __init__(self, plan: Plan, model: PreTrainedModel) -> None:
        self.plan, self.model = plan, model
        self._begin()

    def end(self) -> None:
        """Takes the plan back; plans that came into force after it are as if it had never been."""
        stack = _STACKS[self.model]
        at = stack.index(self)
        after = stack[at + 1 :]
        for one in (*reversed(after), self):
            one.undo.close()
        del stack[at:]
        for one in after:
            one._begin()

    def _begin(self) -> None:
        with Undo() as undo:
            undo.set(self.model, "deployment", copy.deepcopy(deployment(self.model)))
            _Place(self.model, self.plan.method, undo)
            with torch.inference_mode(False):  # no gradient would go through weights made in it
                self.plan.change(self.model, undo)
            deployment(self.model).plans.append(self.plan)
            self.undo = undo.pop_all()
        _STACKS.setdefault(self.model, []).append(self)


_STACKS: weakref.WeakKeyDictionary[PreTrainedModel, list[InForce]] = weakref.WeakKeyDictionary()
"""What is in force on each model, in the order in which it came."""


class _Place:
    """The device and dtype of a model's weights while a plan is in force. What the plan took out has no other, so a
    model that was moved or cast meanwhile is not run, and is put back where it was in the end."""

    def __init__(self, model: PreTrainedModel, name: str, undo: Undo) -> None:
        self.model, self.name = weakref.ref(model), name
        self.weights = [(weight, weight.data) for weight in model.parameters()]
        # norms and biases are what plans rarely replace; a few tell as much as all
        kept = [pair for pair in self.weights if pair[0].ndim == 1] or self.weights
        self.looked_at = kept[:: max(len(kept) // 8, 1)]
        self.buffers = [(m._buffers, name, b) for m in model.modules() for name, b in m._buffers.items()]
        undo.callback(self.restore)
        undo.callback(model.register_forward_pre_hook(self).remove)

    def __call__(self, module: Any, args: Any) -> None:
        if module is not self.model():
            return
        for weight, data in self.looked_at:
            if _moved(weight, data):
                raise UsageError(
                    f"the model was moved or cast from {_place(data)} to {_place(weight)} with the plan {self.name!r} "
                    "in force: leave the plan first, and apply it to the model where it is then"
                )

    def restore(self) -> None:
        """Puts weights and buffers back that were moved or cast."""
        for weight, data in self.weights:
            if _moved(weight, data):
                weight.data = data
        for owner, name, buffer in self.buffers:
            now = owner[name]
            if buffer is not None and now is not None and _moved(now, buffer):
                owner[name] = buffer

    def __deepcopy__(self, memo: Any) -> _Place:
        return self  # a copy of the model may be moved, and has no plan to leave


def _moved(one: Tensor, other: Tensor) -> bool:
    return one.dtype != other.dtype or one.device != other.device


def _place(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


_ABSENT = object()


def _put_back(owner: Any, name: str, before: Any) -> None:
    if before is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, before)
