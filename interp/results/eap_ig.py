"""The graph JSON of EAP-IG and of the MIB circuit track, written and read.

Their file is `{"cfg": {...}, "nodes": {name: {"in_graph", "score"?}}, "edges": {name: {"score", "in_graph"}}}` with
edges named "input->a0.h0<q>", "a0.h0->m0" and "m0->logits". It lists every edge of the graph, and gives every query
head a key and a value edge of its own. Under grouped-query attention these meet in one port of ours: the scores of a
group's edges add up to ours, as gradients do, and one of ours is in the graph if any of theirs is. Written, ours is
shared out evenly and all of the group's edges are in the graph, or none.

Reference: Hanna et al. 2024, Have Faith in Faithfulness, arXiv:2403.17806; `to_json` and `from_json` of their code.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.checking import checked, damaged, read_json
from interp.errors import UsageError
from interp.results.circuit import Circuit, Edge
from interp.results.files import write_text

if TYPE_CHECKING:
    from interp.graph import Graph

__all__ = ["read", "write"]

KV_HEADS = "n_key_value_heads"
"""An entry of `cfg` that EAP-IG does not use: it tells how many key-value heads to read back."""


def write(circuit: Circuit, path: str | os.PathLike[str], graph: Graph) -> Path:
    """Write a circuit as EAP-IG's graph JSON.

    Args:
        circuit: its unscored edges are written with score 0.
        graph: of the circuit's model, whose edges are all listed.

    Raises:
        UsageError: the circuit has an edge or a node that the graph does not have.
        InterpError: the file can't be written.
    """
    group = graph.n_heads // graph.n_kv_heads
    strange = (set(circuit.nodes) | circuit.in_nodes) - set(graph.nodes())
    strange |= {"->".join(edge) for edge in (set(circuit.edges) | circuit.in_edges) - set(graph.edges())}
    if strange:
        raise UsageError(f"the graph has no {min(strange)}: the circuit is that of another model")
    nodes: dict[str, dict[str, Any]] = {}
    for node in graph.nodes():
        nodes[node] = {"in_graph": node in circuit.in_nodes or node == "logits"}
        if circuit.nodes and node != "logits":
            nodes[node]["score"] = circuit.nodes.get(node, math.nan)
    edges: dict[str, dict[str, Any]] = {}
    for node, port in graph.edges(ungrouped=True):
        ours, share = (node, _grouped(port, group)), group if port.endswith(("<k>", "<v>")) else 1
        edges[f"{node}->{port}"] = {"score": circuit.edges.get(ours, 0.0) / share, "in_graph": ours in circuit.in_edges}
    cfg = {
        "n_layers": graph.n_layers,
        "n_heads": graph.n_heads,
        "parallel_attn_mlp": graph.parallel,
        "d_model": graph.d_model,
        KV_HEADS: graph.n_kv_heads,
    }
    return write_text(path, json.dumps({"cfg": cfg, "nodes": nodes, "edges": edges}))


def read(path: str | os.PathLike[str], graph: Graph | None = None, **provenance: Any) -> Circuit:
    """Read EAP-IG's graph JSON.

    Args:
        path: the file; what it says of neurons is left out.
        graph: of the model, where the file does not tell that it has fewer key-value heads than query heads.
        provenance: task, model, fingerprint, method, ... which the file does not hold.

    Raises:
        UsageError: the file is the graph of a model of another shape than `graph`.
        InterpError: the file is missing, cut short, or no such graph.
    """
    document = read_json(path)
    cfg = checked(document, "cfg", dict, path)
    heads, layers = (checked(cfg, name, int, path, least=1) for name in ("n_heads", "n_layers"))
    kv_heads = checked(cfg, KV_HEADS, int, path, least=1, most=heads, default=heads)
    if graph is not None:
        kv_heads = graph.n_kv_heads
        if (graph.n_heads, graph.n_layers) != (heads, layers):
            raise UsageError(
                f"{path} has {layers} layers of {heads} heads, the model {graph.n_layers} of {graph.n_heads}"
            )
    scores: dict[Edge, float] = {}
    inside: set[Edge] = set()
    for name, entry in checked(document, "edges", dict[str, dict], path).items():
        node, arrow, port = name.partition("->")
        if not arrow:
            raise damaged(path, f"it has the edge {name[:40]!r}, which is not written as a0.h0->m0")
        edge = (node, _grouped(port, heads // kv_heads))
        scores[edge] = scores.get(edge, 0.0) + checked(entry, "score", float, path)
        if checked(entry, "in_graph", bool | int, path):
            inside.add(edge)
    nodes = checked(document, "nodes", dict[str, dict], path)
    given = {node: checked(entry, "score", float | None, path, default=None) for node, entry in nodes.items()}
    try:
        return Circuit(
            nodes={node: score for node, score in given.items() if score is not None and math.isfinite(score)},
            edges=scores,
            in_nodes=frozenset(node for node, entry in nodes.items() if checked(entry, "in_graph", bool | int, path)),
            in_edges=frozenset(inside),
            heads_per_kv=heads // kv_heads,
            **provenance,
        )
    except UsageError as error:
        raise damaged(path, str(error)) from None


def _grouped(port: str, group: int) -> str:
    """Their port of a query head's key or value as ours of the key-value head."""
    match = re.fullmatch(r"(a\d{1,9}\.h)(\d{1,9})(<[kv]>)", port)
    return port if match is None else f"{match[1]}{int(match[2]) // group}{match[3]}"
