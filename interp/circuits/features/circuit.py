"""A feature circuit: which features and errors of some dictionaries carry a behaviour, and the edges between them."""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pandas as pd

from interp.checking import checked, damaged, read_json
from interp.errors import InterpError, UsageError
from interp.patching.features.dictionaries import NodeName
from interp.results import overlap as overlaps
from interp.results.circuit import Circuit, Edge
from interp.results.files import write_text

__all__ = ["FeatureCircuit"]

FORMAT = "interp.feature_circuit/1"
_TEXTS = ("task", "model", "fingerprint", "method")
_SHOWN = 10


@dataclass(frozen=True, eq=False, repr=False)
class FeatureCircuit:
    """Nodes of dictionaries, scored, and the set of them that makes up the circuit.

    Nodes are named ``resid_post.15.f17`` (a feature), ``resid_post.15.error``, ``mlp_out.3.skip``, and with ``@4`` if
    they stand for one position only. Edges end at such a node, or at ``logits``.

    Args:
        nodes: The effect of each node that has one; nodes that are the same in both runs are left out.
        in_nodes: The nodes of the circuit.
        edges: The score of each edge that has one.
        in_edges: The edges of the circuit.
        dictionaries: For each dictionary's name a hash of its weights.
        task: The behaviour.
        model: The model's name.
        fingerprint: That of the model's weights.
        method: How the effects were found.
        settings: Its settings, of JSON's types.
        versions: Of the libraries used.

    Raises:
        UsageError: A name that is none, or a score that is not finite.
    """

    nodes: Mapping[str, float]
    in_nodes: frozenset[str]
    edges: Mapping[Edge, float] = field(default_factory=dict)
    in_edges: frozenset[Edge] = frozenset()
    dictionaries: Mapping[str, str] = field(default_factory=dict)
    task: str = ""
    model: str = ""
    fingerprint: str = ""
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", {node: float(score) for node, score in self.nodes.items()})
        object.__setattr__(self, "edges", {edge: float(score) for edge, score in self.edges.items()})
        object.__setattr__(self, "in_nodes", frozenset(self.in_nodes))
        object.__setattr__(self, "in_edges", frozenset(self.in_edges))
        ends = {end for edge in (*self.edges, *self.in_edges) for end in edge} - {"logits"}
        for node in {*self.nodes, *self.in_nodes, *ends}:
            NodeName.parse(node)
        for name, score in (*self.nodes.items(), *self.edges.items()):
            if not math.isfinite(score):
                raise UsageError(f"the score of {name} is {score}; leave out what has no score")

    @property
    def features(self) -> int:
        """How many of its nodes are features; the others are errors and skip connections."""
        return sum(NodeName.parse(node).is_feature for node in self.in_nodes)

    def check(self, fingerprint: str, dictionaries: Mapping[str, str]) -> None:
        """Refuses a circuit of another model or of other dictionaries.

        Raises:
            UsageError: It is one.
        """
        if self.fingerprint and self.fingerprint != fingerprint:
            raise UsageError(
                f"this circuit belongs to {self.model or 'another model'} with fingerprint {self.fingerprint}, the "
                f"model given has {fingerprint}"
            )
        if missing := sorted(set(self.dictionaries) - set(dictionaries)):
            raise UsageError(f"this circuit has nodes of {', '.join(missing)}; give those dictionaries by these names")
        for name, digest in self.dictionaries.items():
            if dictionaries[name] != digest:
                raise UsageError(
                    f"the dictionary {name} is not the one in which this circuit was found: its weights differ"
                )

    def overlap(self, other: FeatureCircuit) -> dict[str, dict[str, float]]:
        """How far two circuits agree, in nodes and in edges, beside chance; see `interp.results.overlap.overlap`.

        Chance is that of drawing among the nodes that either circuit has scores of: those that are active and differ.
        """
        return overlaps.overlap(cast(Circuit, self), cast(Circuit, other))

    def to_frame(self, of: str = "nodes") -> pd.DataFrame:
        """A row for each scored node (or edge), those of largest magnitude first.

        Args:
            of: "nodes" (columns node, dictionary, feature, position, score, in_circuit) or "edges" (source, target,
                score, in_circuit).
        """
        rows: list[dict[str, Any]] = []
        if of == "nodes":
            for node, score in self.nodes.items():
                name = NodeName.parse(node)
                number = int(name.part[1:]) if name.is_feature else -1
                row = {"node": node, "dictionary": name.dictionary, "feature": number, "position": name.position}
                rows.append({**row, "score": score, "in_circuit": node in self.in_nodes})
            columns = ["node", "dictionary", "feature", "position", "score", "in_circuit"]
        elif of == "edges":
            for edge, score in self.edges.items():
                rows.append({"source": edge[0], "target": edge[1], "score": score, "in_circuit": edge in self.in_edges})
            columns = ["source", "target", "score", "in_circuit"]
        else:
            raise UsageError(f"a feature circuit has 'nodes' and 'edges', not {of!r}")
        frame = pd.DataFrame(rows, columns=columns)
        return frame.sort_values("score", key=lambda s: -s.abs(), kind="stable").reset_index(drop=True)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the circuit as JSON; complete, or not at all.

        Raises:
            UsageError: The settings hold something that JSON can't.
            InterpError: The file can't be written.
        """
        document = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in _TEXTS},
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "dictionaries": dict(self.dictionaries),
            "nodes": self.nodes,
            "in_nodes": sorted(self.in_nodes),
            "edges": [[*edge, score] for edge, score in self.edges.items()],
            "in_edges": [list(edge) for edge in sorted(self.in_edges)],
        }
        try:
            text = json.dumps(document, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the circuit's settings can't be saved: {error}; give text, numbers and lists") from None
        return write_text(path, text + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FeatureCircuit:
        """Read a circuit that `save` wrote.

        Raises:
            InterpError: The file is missing, cut short, or not a feature circuit.
        """
        document = read_json(path)
        if document.get("format") != FORMAT:
            raise InterpError(f"{path} is no feature circuit: it has no format {FORMAT!r}")
        edges = checked(document, "edges", list[tuple[str, str, float]], path)
        inside = checked(document, "in_edges", list[tuple[str, str]], path)
        try:
            return cls(
                nodes=checked(document, "nodes", dict[str, float], path),
                in_nodes=frozenset(checked(document, "in_nodes", list[str], path)),
                edges={(source, target): score for source, target, score in edges},
                in_edges=frozenset((source, target) for source, target in inside),
                dictionaries=checked(document, "dictionaries", dict[str, str], path),
                settings=checked(document, "settings", dict, path),
                versions=checked(document, "versions", dict[str, str], path),
                **{name: checked(document, name, str, path) for name in _TEXTS},
            )
        except UsageError as error:
            raise damaged(path, str(error)) from None

    def __repr__(self) -> str:
        parts = [part for part in (self.task, self.model and f"on {self.model}", self.method) if part]
        others = len(self.in_nodes) - self.features
        counts = f"{self.features} features and {others} errors of {len(self.nodes)} scored nodes"
        return f"FeatureCircuit({', '.join([*parts, counts, f'{len(self.in_edges)} edges'])})"

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        table = frame[frame["in_circuit"]].head(_SHOWN)[["node", "score"]]
        return f"<p>{html.escape(repr(self))}</p>{table.to_html(index=False, float_format=lambda x: f'{x:.4g}')}"
