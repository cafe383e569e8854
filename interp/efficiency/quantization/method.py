"""What the methods for quantisation share: which layers, how many bits, findings checked, plans put together."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from interp.efficiency.kv_cache.geometry import deployed
from interp.efficiency.method import Method
from interp.efficiency.quantization.codes import Scheme, rounded
from interp.efficiency.quantization.plan import QuantPlan
from interp.efficiency.quantization.solvers import output_error
from interp.efficiency.quantization.spots import HEAD, Spot, is_tied, spots
from interp.efficiency.quantization.statistics import sizes
from interp.efficiency.registry import check_budget
from interp.engine.progress import track
from interp.errors import UsageError
from interp.results.findings import ActivationStatistics

_ON_GRID = 1e-3
"""Share of error below which weights are what their codes say; rounding other weights in groups of 64 gives 0.8 %."""

__all__ = ["Choice", "QuantMethod", "bits_of", "integers", "without_sinks"]


@dataclass(frozen=True)
class Choice:
    """What a method decided for a layer.

    Args:
        scheme: How it is stored.
        value: The number that was chosen, see `QuantPlan`.
        error: The expected share of error in its outputs, if it was looked at.
    """

    scheme: Scheme
    value: float = 0.0
    error: float | None = None


class QuantMethod(Method):
    """Makes plans for quantisation.

    Args:
        budget: The share of 16 bits a weight that is kept, instead of `bits`: from 0.5 on 8 bits, from 0.25 on 4
            bits; 1 leaves the model as it is.
        bits: 8 or 4; the method's own default unless given.
        head: Store the output layer too, in 8 bits; an embedding tied to it then reads its codes.
        skip: Layers that stay as they are: parts of their names, as ``down_proj`` or ``layers.11.``.
    """

    budget: float
    default_bits: ClassVar[int] = 4

    def __init__(
        self, *, budget: float | None = None, bits: int | None = None, head: bool = True, skip: Sequence[str] = ()
    ) -> None:
        self.budget, self.bits = bits_of(self.name, budget, bits, self.default_bits)
        self.head, self.skip = head, tuple(skip)

    @abstractmethod
    def choice(self, spot: Spot) -> Choice:
        """How a layer in a block is stored."""

    def beside(self, model: PreTrainedModel) -> Mapping[str, Any]:
        """What else the plan has: statistics, calibration, tokens that are kept."""
        return {}

    def head_scheme(self) -> Scheme:
        """How the output layer is stored."""
        return Scheme()

    def plan(self, model: Any) -> QuantPlan:
        """The plan for a model.

        Args:
            model: A bridge, or a deployed model.

        Raises:
            UsageError: A finding about another model, or a layer that can't be stored like this; it is named.
        """
        return self._plan(model, self.name)

    def _plan(self, model: Any, name: str) -> QuantPlan:
        hf: PreTrainedModel = deployed(model)
        about = self.about(hf, name)
        rows = list(self._rows(hf)) if self.budget < 1 else []
        table: list[dict[str, Any]] = []
        for _, choice in rows:
            if choice.scheme.to_dict() not in table:
                table.append(choice.scheme.to_dict())
        errors = [choice.error for _, choice in rows if choice.error is not None]
        return QuantPlan(
            **about,
            schemes=tuple(table),
            layers=tuple((spot.name, table.index(choice.scheme.to_dict())) for spot, choice in rows),
            sizes=tuple(spot.size[1] for spot, _ in rows),
            values=tuple(choice.value for _, choice in rows),
            tied=is_tied(hf),
            errors=tuple(choice.error or 0.0 for _, choice in rows) if errors else (),
            **(self.beside(hf) if rows else {}),
        )

    @torch.no_grad()
    def _rows(self, hf: PreTrainedModel) -> Iterator[tuple[Spot, Choice]]:
        wanted = [spot for spot in spots(hf).values() if not any(part in spot.name for part in self.skip)]
        first = True
        with track(len(wanted), f"{self.name}: layers") as advance:
            for spot in wanted:
                advance(1)
                if spot.name == HEAD:
                    if self.head:
                        yield spot, Choice(self.head_scheme())
                    continue
                choice = self.choice(spot)
                columns = spot.size[1 if choice.scheme.axis == "input" else 0]
                if choice.scheme.group and columns % choice.scheme.group:
                    raise UsageError(
                        f"{self.name}: groups of {choice.scheme.group} do not divide the {columns} "
                        f"{choice.scheme.axis}s of {spot.name}; take one of {_divisors(columns)}"
                    )
                if first:
                    first = _tell_of_grid(self.name, spot, choice.scheme)
                yield spot, choice


def bits_of(name: str, budget: float | None, bits: int | None, default: int) -> tuple[float, int]:
    """Budget and bits, whichever was given.

    Raises:
        UsageError: Both, or out of range; the message says what works.
    """
    if budget is not None and bits is not None:
        raise UsageError(f"{name}: give a budget or bits, not both; {bits} bits are a budget of {bits / 16}")
    if bits is not None and bits not in (4, 8):
        raise UsageError(f"{name}: weights are stored in 8 or 4 bits, not {bits}")
    if budget is None:
        chosen = default if bits is None else bits
        return chosen / 16, chosen
    if check_budget(name, budget, "the share of 16 bits a weight that is kept") < 0.25:
        raise UsageError(f"{name}: a budget of {budget} is less than 4 bits a weight; the least that works is 0.25")
    return budget, 8 if budget >= 0.5 else 4


def integers(bits: int, group: int | None) -> Scheme:
    """Integers as the kernels take them: 8 bits with a scale for each output channel, or 4 bits in groups."""
    if bits == 8:
        return Scheme() if group is None else Scheme(format="affine", group=group)
    return Scheme(bits=4, format="affine", group=group)


def without_sinks(finding: ActivationStatistics, spot: Spot, metric: str) -> Float[Tensor, " input"]:
    """Statistics of what enters a layer, sinks left out."""
    assert spot.layer is not None
    return sizes(finding, spot.layer, spot.part, metric, sinks=False)


def _tell_of_grid(name: str, spot: Spot, scheme: Scheme) -> bool:
    """Warns where a layer's weights lie on the grid already, as those from a file in 4 bits do; false: told once."""
    plain = Scheme(bits=scheme.bits, format=scheme.format, group=scheme.group, axis=scheme.axis)
    if scheme.bits == 4 and not spot.weight.is_meta:
        weight = spot.weight.detach().float()
        error = output_error(weight, rounded(weight, plain).decoded(), None)
        if error < _ON_GRID:
            warnings.warn(
                f"{name}: the weights of {spot.name} are on a grid of 4 bits in groups of {scheme.group} already (from "
                "a file in 4 bits?), so the loss of this plan says nothing about the method; a group of "
                f"{2 * (scheme.group or 16)} would",
                stacklevel=2,
            )
    return False


def _divisors(columns: int) -> str:
    return ", ".join(str(size) for size in (256, 128, 64, 32, 16, 8, 4, 2) if columns % size == 0)
