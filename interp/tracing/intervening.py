"""The graph's predictions beside the real model: nodes held at values, and what changes.

A node's write is its activation times a direction (1 for tokens and errors), and setting it changes the factor. The
graph predicts in two ways. *Direct*: the edges from the nodes that are set to the target, and nothing else. *Total*:
the change is carried on through all other nodes of the graph, each of which changes its activation by what its edges
bring, as the locally linear model does.

Reference: Ameisen et al. 2025, "Circuit Tracing", section on validating with interventions; circuit-tracer 0.5,
``feature_intervention`` (features are set to values; here errors and tokens can be, too).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from interp.engine.forward import Visitor, Walk
from interp.errors import UsageError, unknown_name
from interp.tracing.bases.basis import Held, Place, Replaced, Watching
from interp.tracing.frozen import FrozenRun, wide
from interp.tracing.graph import AttributionGraph
from interp.tracing.linear import LocalModel
from interp.tracing.targets import Target, directions
from interp.tracing.trace import frozen

__all__ = ["Bench", "Changes", "Intervened", "intervene", "predicted"]

_ATTENTION = ("free", "frozen")
_ROWS = 32
"""Interventions that are run together."""


@dataclass(frozen=True, eq=False)
class Intervened:
    """What an intervention does.

    Attributes:
        values: What was set.
        attention: Whether the patterns were free to change.
        targets: One row a target: ``clean`` and ``measured`` value in the real model, ``direct`` and ``predicted``
            value by the graph (along direct edges, and along all paths).
        activations: One row a feature that was not set: ``clean``, ``predicted``, ``measured``.
        logits: All logits of the last position.
        clean_logits: Those without the intervention.
    """

    values: dict[str, float]
    attention: str
    targets: pd.DataFrame
    activations: pd.DataFrame
    logits: Float[Tensor, " vocab"]
    clean_logits: Float[Tensor, " vocab"]


@torch.no_grad()
def intervene(graph: AttributionGraph, values: Mapping[str, float], attention: str = "free") -> Intervened:
    """Runs the real model with nodes set to values.

    Args:
        graph: The graph, in memory or `attached`.
        values: By node its new activation. Tokens and errors have 1: 0 removes what they write, 2 doubles it.
        attention: ``free``, or ``frozen``: patterns stay as they are on the prompt.

    Raises:
        UsageError: No such node, one that can't be set (a target, a group, a token that stands for its position), no
            value at all, or another word for `attention`.

    Example:
        >>> graph.intervene({"7.1229@3": 0.0}).targets     # doctest: +SKIP
    """
    if not values:
        raise UsageError("give one node at least and its value, e.g. {'7.1229@3': 0.0}")
    bench = Bench(graph, attention)
    bench.check(values)
    watch = [str(name) for name in graph.nodes.index[graph.nodes["kind"] == "feature"] if name not in values]
    run = bench.run([values], watch)
    changes = predicted(graph, values)
    table = graph.nodes.loc[list(bench.names)]
    targets = pd.DataFrame({"clean": run.values[0], "measured": run.values[1]}, index=table.index)
    for name, change in zip(("direct", "predicted"), (changes.direct, changes.total), strict=True):
        targets[name] = targets["clean"] + change[[graph.row(target) for target in targets.index]]
    clean = graph.nodes.loc[watch, "activation"]
    change = changes.total[[graph.row(name) for name in watch]]
    activations = pd.DataFrame({"clean": clean, "predicted": clean + change, "measured": run.watched[1]}, index=watch)
    return Intervened(dict(values), attention, targets, activations, run.logits[1], run.logits[0])


@dataclass(frozen=True, eq=False)
class Changes:
    """By node the change of its value: along the direct edges alone, and along all paths."""

    direct: Float[np.ndarray, " node"]
    total: Float[np.ndarray, " node"]


def predicted(graph: AttributionGraph, values: Mapping[str, float]) -> Changes:
    """What the graph says that setting nodes to values changes.

    Args:
        graph: Any graph whose nodes are in causal order; pruned ones predict along what is left.
        values: By node its new activation.

    Raises:
        UsageError: An edge runs backwards in the order of the nodes, as it can after merging.
    """
    if (graph.sources >= graph.targets).any():
        raise UsageError("an edge runs backwards in the order of the nodes; predict before merging nodes")
    activation = graph.nodes["activation"].to_numpy(float)
    start, rows = np.zeros(len(activation)), [graph.row(name) for name in values]
    for row, value in zip(rows, values.values(), strict=True):
        start[row] = (value - activation[row]) / activation[row] if activation[row] else 0.0
    matrix = graph.matrix()
    share = np.where(
        (graph.nodes["kind"] == "feature") & (activation != 0), 1 / np.where(activation, activation, 1), 0.0
    )
    share[rows] = 0.0
    carried = sparse.eye_array(len(start)) - sparse.diags_array(share) @ matrix
    relative = sparse.linalg.spsolve_triangular(carried.tocsr(), start, lower=True, unit_diagonal=True)
    return Changes(matrix @ start, matrix @ relative)


@dataclass(frozen=True, eq=False)
class _Measured:
    """Of each run, the first of which is the clean one: the targets' values, watched activations, logits."""

    values: Float[np.ndarray, "run target"]
    watched: Float[np.ndarray, "run node"]
    logits: Float[Tensor, "run vocab"]


class Bench:
    """The real model, ready to be run with nodes of a graph set."""

    def __init__(self, graph: AttributionGraph, attention: str) -> None:
        if attention not in _ATTENTION:
            raise unknown_name("kind of attention", str(attention), _ATTENTION)
        self.graph, self.attention = graph, attention
        self.local: LocalModel = frozen(graph)
        self.parts, self.run_clean = self.local.parts, self.local.run
        logits = graph.nodes[graph.nodes["kind"] == "logit"]
        self.names = [str(name) for name in logits.index]
        self.directions, self.offsets = directions(self.parts, [Target.named(name) for name in self.names])
        self.part_of: dict[int, Replaced] = {part.layer: part for part in self.local.replaced}

    def check(self, values: Iterable[str]) -> None:
        for name in values:
            kind, _, position, _ = self._place(name)
            if kind not in ("feature", "error", "token"):
                raise UsageError(f"{name} is a {kind} and can't be set; set features, errors or tokens")
            if kind == "error" and "pruned" in self.graph.about:
                raise UsageError(
                    f"{name} can't be set in a pruned graph, which does not say what else it held; take it whole"
                )
            if kind == "token" and position < self.local.folded:
                raise UsageError(f"{name} stands for all that is written at its position, and can't be set")

    def run(self, settings: Sequence[Mapping[str, float]], watch: Sequence[str] = ()) -> _Measured:
        """A clean run, then one for each of the settings."""
        at_once = self.local.at_once(_ROWS)
        found = [self._run(some, watch) for some in _some([{}, *settings], at_once)]
        return _Measured(
            np.concatenate([run.values for run in found]),
            np.concatenate([run.watched for run in found]),
            torch.cat([run.logits for run in found]),
        )

    def _run(self, settings: Sequence[Mapping[str, float]], watch: Sequence[str]) -> _Measured:
        run = self.run_clean
        walk = Walk(self.parts, run.length, queries_at_once=run.walk.queries_at_once)
        visitors, watching = self._setting(settings), self._watching(watch)
        frozen_patterns = [_Frozen(run)] if self.attention == "frozen" else []
        tokens = run.tokens[None].expand(len(settings), -1).to(self.parts.device)
        seers = [visitor for visitor, _ in watching]
        final = walk(walk.embed(tokens), _All([*frozen_patterns, *visitors, *seers]))[:, -1]
        normed = wide(self.parts.ln_final(final))
        watched = np.zeros((len(settings), len(watch)))
        for visitor, columns in watching:
            watched[:, columns] = visitor.found.double().cpu().numpy()
        values = (normed @ self.directions.T + self.offsets).double().cpu().numpy()
        return _Measured(values, watched, self.parts.unembedded(self.parts.ln_final(final)).float())

    def _setting(self, settings: Sequence[Mapping[str, float]]) -> list[Visitor]:
        units: dict[int, list[tuple[int, int, float]]] = {}
        added: list[tuple[int, str, float]] = []
        for row, values in enumerate(settings):
            for name, value in values.items():
                kind, layer, position, feature = self._place(name)
                if kind == "feature":
                    unit = self.part_of[layer].unit(position, feature)
                    units.setdefault(layer, []).append((row, unit, float(value)))
                else:
                    added.append((row, name, float(value) - 1))
        device = self.run_clean.final.device
        held: list[Visitor] = []
        for layer, entries in units.items():
            rows, which, values_of = (torch.tensor(column, device=device) for column in zip(*entries, strict=True))
            held.append(self.part_of[layer].held(Held(rows, which, values_of.to(self.run_clean.dtype))))
        return [*held, *(self._adding(*entry) for entry in added)]

    def _place(self, name: str) -> tuple[str, int, int, int]:
        """Kind, layer, position and feature of a node."""
        node = self.graph.nodes.iloc[self.graph.row(name)]
        return str(node["kind"]), int(node["layer"]), int(node["position"]), int(node["feature"])

    def _adding(self, row: int, name: str, factor: float) -> Visitor:
        kind, layer, position, _ = self._place(name)
        if kind == "token":
            return _Adding(("resid_pre", 0), row, position, factor * self.local.embedded[position])
        place = next(at for at in self.local.error_places if at[1] == layer)
        left = self.local.rest(place)[position].clone()
        features = self.graph.nodes[self.graph.nodes["kind"] == "feature"]
        for at, position_of, feature in zip(features["layer"], features["position"], features["feature"], strict=True):
            part = self.part_of[int(at)]
            if place in part.writes and position_of == position:
                which = torch.tensor([part.unit(position, int(feature))], device=left.device)
                left -= part.writing(place, which)[0]
        return _Adding(place, row, position, factor * left)

    def _watching(self, watch: Sequence[str]) -> list[tuple[Watching, list[int]]]:
        nodes, found = self.graph.nodes.loc[list(watch)], []
        for layer, part in self.part_of.items():
            columns = [i for i, at in enumerate(nodes["layer"]) if at == layer]
            if columns:
                some = nodes.iloc[columns]
                units = [part.unit(int(p), int(f)) for p, f in zip(some["position"], some["feature"], strict=True)]
                found.append((part.watched(torch.tensor(units, device=self.run_clean.final.device)), columns))
        return found


class _All(Visitor):
    """Several visitors, one after the other."""

    def __init__(self, visitors: Sequence[Visitor]) -> None:
        self.visitors = visitors

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        for visitor in self.visitors:
            x = visitor.visit(layer, site, first, x)
        return x


class _Frozen(Visitor):
    """Puts a prompt's own patterns in place of the others."""

    def __init__(self, run: FrozenRun) -> None:
        self.frozen_run = run

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        if site != "pattern":
            return x
        return self.frozen_run.pattern(layer, first, first + x.shape[2])[None].expand(x.shape).to(x.dtype)


class _Adding(Visitor):
    """Adds a vector at one place, row and position."""

    def __init__(self, place: Place, row: int, position: int, vector: Tensor) -> None:
        self.place, self.row, self.position, self.vector = place, row, position, vector

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        if (site, layer) == self.place and self.position >= first:
            x = x.clone()
            x[self.row, self.position - first] += self.vector.to(x.dtype)
        return x


def _some(settings: list[Mapping[str, float]], at_once: int) -> Iterable[list[Mapping[str, float]]]:
    return (settings[i : i + at_once] for i in range(0, len(settings), at_once))
