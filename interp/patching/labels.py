"""The axes and labels of scores that lie along layers, heads or neurons, and positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr

from interp.errors import UsageError
from interp.graph import INDEX_OF_SITE, Graph, Node
from interp.results import scores
from interp.tasks import Task

__all__ = ["Axes", "concatenated", "labelled", "place_of", "positions_of"]


@dataclass(frozen=True)
class Axes:
    """What an array of scores of one kind of node runs over.

    Attributes:
        layers: The layers.
        indices: The heads, key-value heads or neurons; one None where the kind has none.
        places: The positions; one None for all at once, or a tensor with one for each example.
        dims: The names of the dimensions.
        coords: Their labels.
    """

    layers: list[int]
    indices: Sequence[int | None]
    places: list[Any]
    dims: list[str]
    coords: dict[str, Any]

    @classmethod
    def of(
        cls,
        graph: Graph,
        task: Task,
        site: str,
        by_position: bool | str,
        layers: Sequence[int] | None,
        indices: Sequence[int] | None,
        positions: Sequence[int] | None,
    ) -> Axes:
        """The axes of what is asked for; see `interp.patching.activation`.

        Raises:
            UsageError: Layers, heads, neurons or positions that the model or task does not have.
        """
        layer_labels = list(range(graph.n_layers)) if layers is None else [int(layer) for layer in layers]
        dims: list[str] = ["layer"]
        coords: dict[str, Any] = {"layer": layer_labels}
        index_labels: Sequence[int | None] = [None]
        if index_dim := INDEX_OF_SITE.get(site):
            index_labels = list(range(graph.size(site))) if indices is None else [int(index) for index in indices]
            dims, coords = [*dims, index_dim], {**coords, index_dim: index_labels}
        elif indices is not None:
            raise UsageError(f"{site} has no heads or neurons to choose with indices")
        for layer in layer_labels:
            graph.check(Node(site, layer))
        for index in index_labels:
            graph.check(Node(site, 0, index))
        places, labels = positions_of(task, by_position, positions)
        if by_position:
            dims, coords = [*dims, "position"], {**coords, **labels}
        return cls(layer_labels, index_labels, places, dims, coords)

    @property
    def shape(self) -> list[int]:
        """The length of each dimension."""
        return [len(self.coords[dim]) for dim in self.dims]


def concatenated(kinds: Sequence[str], each: Sequence[xr.DataArray]) -> xr.DataArray:
    """Scores of several kinds of node with the same dimensions, along a dimension ``kind``."""
    together = xr.concat(each, xr.Variable("kind", list(kinds)), combine_attrs="drop")
    together.attrs = {
        **each[0].attrs,
        "nodes": list(kinds),
        "seconds": sum(one.attrs["seconds"] for one in each),
        "interventions": sum(one.attrs["interventions"] for one in each),
    }
    return together


def positions_of(task: Task, by_position: bool | str, positions: Sequence[int] | None):
    """The places to patch, and their labels as coordinates."""
    if not by_position:
        if positions is not None:
            raise UsageError("positions are chosen with by_position=True")
        return [None], {}
    if by_position == "named":
        if positions is not None:
            raise UsageError("by_position='named' patches all named positions; choose with by_position=True instead")
        return list(task.positions.values()), {
            "position": list(range(len(task.positions))),
            "token": ("position", list(task.positions)),
        }
    if by_position is not True:
        raise UsageError(f"by_position must be True, False or 'named', got {by_position!r}")
    if not task.aligned:
        raise UsageError(
            f"task {task.name!r} has prompts of {int(task.lengths.min())} to {int(task.lengths.max())} tokens, so a "
            f"position means something else in each; build it without mixed_lengths, or use by_position='named'"
        )
    length = task.clean.shape[1]
    chosen = list(range(length)) if positions is None else [int(position) for position in positions]
    for position in chosen:
        if not 0 <= position < length:
            raise UsageError(f"position {position} is out of range: the prompts have positions 0 to {length - 1}")
    tokens = task.position_labels()
    return chosen, {"position": chosen, "token": ("position", [tokens[position] for position in chosen])}


def place_of(task: Task, position: int | str | None):
    if isinstance(position, str):
        if position not in task.positions:
            raise UsageError(f"task {task.name!r} has no position {position!r}; it has {', '.join(task.positions)}")
        return task.positions[position]
    if position is not None and not 0 <= position < task.clean.shape[1]:
        raise UsageError(
            f"position {position} is out of range: the prompts have positions 0 to {task.clean.shape[1] - 1}"
        )
    return position


def labelled(experiment, effects, dims, coords, metrics, per_example, **attrs) -> xr.DataArray:
    """Effects "... example metric" as scores."""
    experiment.note_rounding(effects.double().mean(-2))
    if metrics is None:
        effects = effects.squeeze(-1)
    else:
        effects, dims, coords = effects.movedim(-1, 0), ["metric", *dims], {"metric": list(metrics), **coords}
    effects = effects.movedim(-1, 0) if per_example else effects.double().mean(-1)
    if per_example:
        dims = ["example", *dims]
    else:
        effects = effects.float()
    provenance = experiment.provenance()
    return scores(effects.numpy(), dims, coords, **{**provenance, **attrs})
