"""What the tracer asks of a basis: which nodes a layer has on a prompt, what each one reads, and what it writes.

A basis replaces places of the model by sums of nodes. On a prompt it gives `Replaced` parts: each reads the stream at
one place, has active units (position, number, activation), and writes at one or more places. What a part does not
write through its nodes is its constant, what it carries on linearly, and an error that the tracer works out itself.
The tracer knows nothing else of neurons, transcoders or autoencoders.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.engine.forward import Visitor
from interp.engine.parts import Parts

if TYPE_CHECKING:
    from interp.tracing.frozen import FrozenRun

__all__ = ["Basis", "Carried", "Held", "Place", "Replaced", "Stated", "Watching", "units_by_position"]

Place = tuple[str, int]
"""A site and layer where nodes write: ``("mlp_out", 3)`` or ``("resid_post", 3)``."""


class Carried(ABC):
    """A linear way through a layer's MLP, past its nodes: a skip connection, or the MLP itself under rules."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "*batch pos d_model"]) -> Float[Tensor, "*batch pos d_model"]:
        """From the MLP's (normed) input to its share of ``mlp_out``, without any constant."""

    @abstractmethod
    def backward(self, gradient: Float[Tensor, "*batch pos d_model"]) -> Float[Tensor, "*batch pos d_model"]:
        """The transpose of `forward`."""


@dataclass(frozen=True, eq=False)
class Stated:
    """What a layer's MLP (or stream) is besides its nodes and its error.

    Args:
        constant: What is written whatever is read, "pos d_model".
        carried: A linear way through, if there is one.
        exact: Nothing is left as an error.
    """

    constant: Float[Tensor, "pos d_model"]
    carried: Carried | None = None
    exact: bool = False


@dataclass(frozen=True, eq=False)
class Held:
    """Units of a part that are held at values, in some rows of a walk.

    Args:
        rows: The row of each.
        units: Which unit.
        values: Its new activation.
    """

    rows: Int[Tensor, " held"]
    units: Int[Tensor, " held"]
    values: Float[Tensor, " held"]


class Watching(Visitor):
    """Sees activations go by; `found` is "row unit" after the walk."""

    found: Float[Tensor, "row unit"]


class Replaced(ABC):
    """The nodes that read at one place of one prompt's run.

    Attributes:
        layer: The layer they are named after.
        reads: ``mlp`` (what the MLP's norm reads) or ``resid_post``.
        normed: Whether their reading vectors meet the norm's output instead of the stream.
        writes: Where they write.
        positions: Of each active unit.
        features: Number of each active unit.
        activations: Of each active unit; not zero.
    """

    layer: int
    reads: str
    normed: bool
    writes: tuple[Place, ...]
    positions: Int[Tensor, " unit"]
    features: Int[Tensor, " unit"]
    activations: Float[Tensor, " unit"]

    @abstractmethod
    def reading(self, which: Int[Tensor, " some"]) -> tuple[Float[Tensor, "some d_model"], Float[Tensor, " some"]]:
        """Reading vectors and constants: vector times what is read, plus constant, is the unit's activation."""

    @abstractmethod
    def writing(self, place: Place, which: Int[Tensor, " some"]) -> Float[Tensor, "some d_model"]:
        """What units write at a place: activation times direction."""

    @abstractmethod
    def effects(self, place: Place, gradient: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row unit"]:
        """Gradient times what is written, of all units; the gradient may end before the last position."""

    @abstractmethod
    def written(self, place: Place) -> Float[Tensor, "pos d_model"]:
        """The sum of what all units write at a place."""

    @abstractmethod
    def unit(self, position: int, feature: int) -> int:
        """Which unit a feature at a position is.

        Raises:
            UsageError: It is not active there.
        """

    @abstractmethod
    def held(self, held: Held) -> Visitor:
        """A visitor that holds units at values in a walk of the real model, whatever they read there."""

    @abstractmethod
    def watched(self, which: Int[Tensor, " some"]) -> Watching:
        """A visitor that sees units' activations in a walk of the real model."""


class Basis(ABC):
    """A way to see a model's MLPs or residual stream as sums of nodes."""

    name: str

    @abstractmethod
    def check(self, parts: Parts, fingerprint: str) -> None:
        """Refuses a model that the basis was not made for.

        Raises:
            UsageError: The message names the layer or place that does not fit.
        """

    @abstractmethod
    def stated(self, run: FrozenRun) -> dict[Place, Stated]:
        """What each place is besides nodes and error. Places that are left out are errors as a whole (``mlp_out``)."""

    @abstractmethod
    def replaced(self, run: FrozenRun) -> list[Replaced]:
        """The nodes of a prompt."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What the graph's file says about the basis, of JSON's types; equal for equal bases."""

    def to(self, device: torch.device) -> Basis:
        """The basis with its tensors on a device; itself if they are there."""
        return self

    # From the weights alone, for input-invariant connections

    @abstractmethod
    def readers(self, parts: Parts, layer: int) -> dict[str, Float[Tensor, "feature d_model"]]:
        """What units of a layer read the stream along, norm weights folded in and scales left out, by kind of input."""

    @abstractmethod
    def writers(self, parts: Parts, layer: int) -> dict[Place, Float[Tensor, "feature d_model"]]:
        """What one unit of activation writes, by place."""

    def label(self, layer: int, feature: int) -> str:
        """A unit in words."""
        return f"{layer}.{feature}"


def units_by_position(positions: Int[Tensor, " unit"], length: int) -> list[Tensor]:
    """The units at each position; units are sorted by position."""
    return list(
        torch.arange(len(positions), device=positions.device).split(
            torch.bincount(positions, minlength=length).tolist()
        )
    )
