"""A circuit: which nodes and edges of a model carry a behaviour, with their scores and where these come from."""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.checking import checked, damaged, read_json
from interp.errors import InterpError, UsageError
from interp.results.confirming import confirm
from interp.results.files import write_text

if TYPE_CHECKING:
    from interp.graph import Graph

__all__ = ["Circuit", "Edge", "depth", "owners"]

FORMAT = "interp.circuit/1"
Edge = tuple[str, str]
"""A node and the port that reads it: `("a0.h1", "m0")`."""
_SHOWN, _MOST_SHARED = 10, 4096
_TEXTS = ("task", "model", "fingerprint", "method")


@dataclass(frozen=True, eq=False, repr=False)
class Circuit:
    """Nodes and edges of one model's graph, scored, and the set of them that makes up the circuit.

    Nodes and ports are named as in `interp.graph`: nodes "input", "a0.h1", "m0", "logits"; ports "a0.h1<q>", "m0",
    "logits". Under grouped-query attention the `<k>` and `<v>` ports belong to key-value heads.

    Args:
        nodes: score of each node that has one. Scores are effects; which, `method` and `settings` tell.
        edges: score of each edge that has one; all edges of the graph where a method scores all.
        in_nodes: the nodes of the circuit. None takes those that its edges touch.
        in_edges: the edges of the circuit.
        heads_per_kv: query heads that share one key-value head.
        task: the behaviour.
        model: the model's name.
        fingerprint: that of the model's weights, see `interp.models.fingerprint`; "" where it is unknown.
        method: how the scores were made.
        settings: its settings, of JSON's types.
        versions: of the libraries used.

    Raises:
        UsageError: a name that is no node or port, an edge that runs backwards, a score that is not finite.
    """

    nodes: Mapping[str, float]
    edges: Mapping[Edge, float]
    in_nodes: frozenset[str] = None  # type: ignore[assignment]
    in_edges: frozenset[Edge] = frozenset()
    heads_per_kv: int = 1
    task: str = ""
    model: str = ""
    fingerprint: str = ""
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("nodes", {node: float(score) for node, score in self.nodes.items()})
        put("edges", {(node, port): float(score) for (node, port), score in self.edges.items()})
        put("in_edges", frozenset((node, port) for node, port in self.in_edges))
        if not isinstance(self.heads_per_kv, int) or not 1 <= self.heads_per_kv <= _MOST_SHARED:
            raise UsageError(f"heads_per_kv must be a whole number from 1 to {_MOST_SHARED}, got {self.heads_per_kv!r}")
        for node, port in [*self.edges, *self.in_edges]:
            if not depth(node) < depth(port, port=True):
                raise UsageError(f"there is no edge from {node} to {port}: it would run backwards")
        put("in_nodes", frozenset(self._touched() if self.in_nodes is None else self.in_nodes))
        for node in (*self.nodes, *self.in_nodes):
            depth(node)
        for name, score in (*self.nodes.items(), *self.edges.items()):
            if not math.isfinite(score):
                shown = name if isinstance(name, str) else "->".join(name)
                raise UsageError(f"the score of {shown} is {score}; leave out what has no score")

    @classmethod
    def of(cls, edges: Iterable[Iterable[str]], **provenance: Any) -> Circuit:
        """The circuit of these edges, each with score 1, such as `known_circuit("toy-count")["edges"]`."""
        pairs = [(node, port) for node, port in edges]
        return cls({}, dict.fromkeys(pairs, 1.0), in_edges=frozenset(pairs), **provenance)

    def check(self, model_fingerprint: str) -> None:
        """Refuses another model's circuit.

        Raises:
            UsageError: the circuit was found in a model with other weights.
        """
        if self.fingerprint and self.fingerprint != model_fingerprint:
            raise UsageError(
                f"this circuit belongs to {self.model or 'another model'} with fingerprint {self.fingerprint}, the "
                f"model given has {model_fingerprint}; load the model that it was found in, or discover it anew"
            )

    def pruned(self) -> Circuit:
        """The circuit without what lies on no path from the input to the logits.

        An attention head is reached through any of its three ports, and a key-value head's port leads to all heads of
        its group that are in the circuit.

        Reference: Hanna et al. 2024, arXiv:2403.17806 (`prune` of their code removes the same).
        """
        inside = self.in_nodes | {"input", "logits"}
        ahead = {
            (node, port): [owner for owner in owners(port, self.heads_per_kv) if owner in inside]
            for node, port in sorted(self.in_edges, key=lambda edge: depth(edge[1], port=True))
            if node in inside
        }
        reached, leads = {"input"}, {"logits"}
        for (node, _), heads in ahead.items():
            if node in reached:
                reached.update(heads)
        for (node, _), heads in reversed(ahead.items()):
            if leads.intersection(heads):
                leads.add(node)
        kept = reached & leads
        edges = {edge for edge, heads in ahead.items() if edge[0] in kept and kept.intersection(heads)}
        return replace(self, in_nodes=frozenset(kept if edges else ()), in_edges=frozenset(edges))

    def overlap(self, other: Circuit, graph: Graph | None = None) -> dict[str, dict[str, float]]:
        """How far two circuits agree, beside chance; see `interp.results.overlap.overlap`."""
        from interp.results.overlap import overlap

        return overlap(self, other, graph)

    def to_frame(self, of: str = "edges") -> pd.DataFrame:
        """A row for each scored edge (or node), those of largest magnitude first.

        Args:
            of: "edges" (columns node, port, score, in_circuit) or "nodes" (node, score, in_circuit).
        """
        if of not in ("edges", "nodes"):
            raise UsageError(f"a circuit has 'edges' and 'nodes', not {of!r}")
        if of == "nodes":
            columns: dict[str, list[Any]] = {
                "node": list(self.nodes),
                "score": list(self.nodes.values()),
                "in_circuit": [node in self.in_nodes for node in self.nodes],
            }
        else:
            columns = {
                "node": [node for node, _ in self.edges],
                "port": [port for _, port in self.edges],
                "score": list(self.edges.values()),
                "in_circuit": [edge in self.in_edges for edge in self.edges],
            }
        frame = pd.DataFrame(columns)
        return frame.sort_values("score", key=lambda s: -s.abs(), kind="stable").reset_index(drop=True)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the circuit as JSON; complete, or not at all.

        Raises:
            UsageError: `settings` or `versions` hold something that JSON can't.
            InterpError: the file can't be written.
        """
        confirm(self.fingerprint)
        scores: dict[str, dict[str, float]] = {}
        for (node, port), score in self.edges.items():
            scores.setdefault(port, {})[node] = score
        inside: dict[str, list[str]] = {}
        for node, port in sorted(self.in_edges):
            inside.setdefault(port, []).append(node)
        document = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in (*_TEXTS, "heads_per_kv")},
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "in_nodes": sorted(self.in_nodes),
            "in_edges": inside,
            "nodes": self.nodes,
            "edges": scores,
        }
        try:
            text = json.dumps(document, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the circuit's settings can't be saved: {error}; give text, numbers and lists") from None
        return write_text(path, text + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Circuit:
        """Read a circuit that `save` wrote.

        Raises:
            InterpError: the file is missing, cut short, or not a circuit.
        """
        document = read_json(path)
        if document.get("format") != FORMAT:
            hint = "; read it with Circuit.from_eap_ig" if {"cfg", "nodes", "edges"} <= set(document) else ""
            raise InterpError(f"{path} is no circuit: it has no format {FORMAT!r}{hint}")
        edges = checked(document, "edges", dict[str, dict[str, float]], path)
        inside = checked(document, "in_edges", dict[str, list[str]], path)
        try:
            return cls(
                nodes=checked(document, "nodes", dict[str, float], path),
                edges={(node, port): score for port, column in edges.items() for node, score in column.items()},
                in_nodes=frozenset(checked(document, "in_nodes", list[str], path)),
                in_edges=frozenset((node, port) for port, nodes in inside.items() for node in nodes),
                heads_per_kv=checked(document, "heads_per_kv", int, path),
                settings=checked(document, "settings", dict, path),
                versions=checked(document, "versions", dict[str, str], path),
                **{name: checked(document, name, str, path) for name in _TEXTS},
            )
        except UsageError as error:
            raise damaged(path, str(error)) from None

    def to_eap_ig(self, path: str | os.PathLike[str], graph: Graph) -> Path:
        """Write EAP-IG's graph JSON; see `interp.results.eap_ig.write`."""
        from interp.results import eap_ig

        return eap_ig.write(self, path, graph)

    @classmethod
    def from_eap_ig(cls, path: str | os.PathLike[str], graph: Graph | None = None, **provenance: Any) -> Circuit:
        """Read EAP-IG's graph JSON; see `interp.results.eap_ig.read`."""
        from interp.results import eap_ig

        return eap_ig.read(path, graph, **provenance)

    def __repr__(self) -> str:
        parts = [part for part in (self.task, self.model and f"on {self.model}", self.method) if part]
        counts = f"{len(self.in_edges)} of {len(self.edges)} scored edges, {len(self.in_nodes)} nodes"
        return f"Circuit({', '.join([*parts, counts])})"

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        frame = frame[frame["in_circuit"]].head(_SHOWN)
        rows = "".join(
            f"<tr><td>{html.escape(str(row.node))}</td><td>{html.escape(str(row.port))}</td><td>{row.score:.4g}</td></tr>"
            for row in frame.itertuples()
        )
        more = len(self.in_edges) - len(frame)
        last = f"<tr><td colspan='3'>and {more} more</td></tr>" if more > 0 else ""
        return (
            f"<p>{html.escape(repr(self))}</p><table><tr><th>node</th><th>port</th><th>score</th></tr>"
            f"{rows}{last}</table>"
        )

    def _touched(self) -> set[str]:
        """The nodes at either end of the circuit's edges; of a group of heads, those that have edges of their own."""
        sources = {node for node, _ in self.in_edges}
        touched = set(sources)
        for _, port in self.in_edges:
            heads = owners(port, self.heads_per_kv)
            touched.update(heads if len(heads) == 1 else sources.intersection(heads))
        return touched


@cache
def depth(name: str, port: bool = False) -> float:
    """Where a node or port stands in the order of computation.

    Raises:
        UsageError: the name is none.
    """
    if name == "logits":
        return math.inf
    if name == "input" and not port:
        return -1
    match = re.fullmatch(
        r"a(\d{1,9})\.h\d{1,9}<[qkv]>|m(\d{1,9})" if port else r"a(\d{1,9})\.h\d{1,9}|m(\d{1,9})", str(name)
    )
    if match is None:
        kind, examples = ("port", "a0.h1<q>, m0 or logits") if port else ("node", "input, a0.h1, m0 or logits")
        raise UsageError(f"{name!r} names no {kind}; {kind}s are named {examples}")
    return 2.0 * int(match[1]) if match[1] else 2.0 * int(match[2]) + 1


@cache
def owners(port: str, heads_per_kv: int) -> tuple[str, ...]:
    """The nodes that a port feeds: one, but for a shared key or value all heads of the group."""
    head = re.fullmatch(r"(a\d{1,9})\.h(\d{1,9})<([qkv])>", port)
    if head is None:
        return (port,)
    layer, index = head[1], int(head[2])
    if head[3] == "q":
        return (f"{layer}.h{index}",)
    return tuple(f"{layer}.h{h}" for h in range(index * heads_per_kv, (index + 1) * heads_per_kv))
