"""circuit-tracer's graph JSON, which its own viewer and Neuronpedia's open.

Node ids are ``LAYER_FEATURE_POSITION`` for features, ``E_TOKEN_POSITION`` for tokens, and for errors
``LAYER_-1_POSITION``: older versions of circuit-tracer wrote ``0_LAYER_POSITION``, which is also the id of a feature of
layer 0. Targets stand at the number of layers plus one. What the format has no field for (values, biases, exact
influences) stands in an extra field ``interp``, which viewers leave alone.

Reference: circuit-tracer 0.5, ``frontend/graph_models.py``; Neuronpedia's ``graph-schema.json``.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.checking import checked, damaged, read_json
from interp.engine.identity import versions
from interp.errors import InterpError, UsageError
from interp.results.files import write_text
from interp.tracing.graph import COLUMNS, FORMAT, AttributionGraph, feature_name
from interp.tracing.influence import influence, normalised

__all__ = ["cantor", "read", "uncantor", "write"]

_TYPES = {
    "feature": "cross layer transcoder", "error": "mlp reconstruction error", "token": "embedding", "logit": "logit",
}  # fmt: skip
_DIFFERENCES = 1_000_000
"""Number of the first target that is no single token, above all vocabularies."""
_OURS = {
    "name": str, "feature": int, "value": float, "bias": float, "weight": float, "influence": float, "expanded": bool,
    "label": str,
}  # fmt: skip
"""What is said of a node in the extra field."""


def write(
    graph: AttributionGraph,
    path: str | os.PathLike[str],
    *,
    nodes: float | None = 0.8,
    edges: float | None = 0.98,
    slug: str | None = None,
    pinned: Sequence[str] = (),
    supernodes: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Writes a graph for circuit-tracer's viewer.

    Args:
        graph: pruned or not, with no nodes merged: the format keeps members and merges on the screen.
        path: a ``.json`` file.
        nodes: prune to this share of the influence, if the graph is not pruned yet; None for no pruning.
        edges: the same of edges.
        slug: the graph's short name; by default made of the prompt.
        pinned: nodes that the viewer shows as pinned at first.
        supernodes: names and their nodes, which the viewer shows as groups.

    Returns:
        The path.

    Raises:
        UsageError: merged nodes, or a pinned node or one of a supernode that is not in the (pruned) graph.
        InterpError: the file can't be written.
    """
    merged = [str(name) for name in graph.nodes.index if str(name).startswith("group.")]
    if merged:
        raise UsageError(
            f"{merged[0]!r} is a merged node; write the graph before merging and name groups in supernodes"
        )
    rank = _cumulative(graph)
    if "pruned" not in graph.about and not (nodes is None and edges is None):
        graph = graph.pruned(1.0 if nodes is None else nodes, 1.0 if edges is None else edges)
    ids = _ids(graph)
    for node in [*pinned, *(node for some in (supernodes or {}).values() for node in some)]:
        graph.row(node)
    held = [_node(graph, row, ids[str(name)], rank[str(name)]) for name, row in graph.nodes.iterrows()]
    done = graph.about.get("pruned", {})
    model = str(graph.about.get("model", "unknown"))
    metadata = {
        "slug": slug or re.sub(r"[^a-z0-9]+", "-", graph.prompt.lower()).strip("-")[:60] or "graph",
        "scan": model,
        "transcoder_list": [],
        "prompt_tokens": list(graph.words),
        "prompt": graph.prompt,
        "node_threshold": done.get("nodes"),
        "schema_version": 1,
        "info": {"generator": {"name": "interp", "version": str(versions().get("interp", ""))}},
        "pruning_settings": {f"{n[:-1]}_threshold": done[n] for n in ("nodes", "edges") if n in done},
        "interp": {"format": FORMAT, "tokens": list(graph.tokens), "about": graph.about},
    }
    parameters = {
        "pinnedIds": [ids[node] for node in pinned],
        "supernodes": [[name, *(ids[node] for node in some)] for name, some in (supernodes or {}).items()],
        "linkType": "both",
        "clickedId": "",
        "sg_pos": "",
    }
    names = [ids[name] for name in graph.nodes.index]
    links = [
        {"source": names[s], "target": names[t], "weight": float(w)}
        for s, t, w in zip(graph.sources, graph.targets, graph.weights, strict=True)
    ]
    whole = {"metadata": metadata, "qParams": parameters, "nodes": held, "links": links}
    return write_text(path, json.dumps(whole, ensure_ascii=False, allow_nan=False, indent=1))


def read(path: str | os.PathLike[str]) -> AttributionGraph:
    """Reads a graph in circuit-tracer's JSON: what `write` wrote as it was, and what circuit-tracer wrote.

    Of a file of circuit-tracer, values are the sums of the edges in it and biases zero, and influences are those of the
    (pruned) graph in the file.

    Raises:
        InterpError: the file is missing, no such graph, of another version, or two of its nodes have one id, as
            old versions of circuit-tracer wrote them.
    """
    held = read_json(path)
    metadata = checked(held, "metadata", dict, path)
    version = metadata.get("schema_version") or 1
    if version != 1:
        raise InterpError(f"{os.fspath(path)} is of schema_version {version!r}, and this program reads 1")
    ours = checked(metadata, "interp", dict | None, path, default=None) or {}
    if ours and ours.get("format") != FORMAT:
        raise InterpError(f"{os.fspath(path)} was written as {ours.get('format')!r}, and this program reads {FORMAT!r}")
    rows: dict[str, dict[str, Any]] = {}
    for node in checked(held, "nodes", list[dict], path):
        name = checked(node, "node_id", str, path)
        if name in rows:
            raise InterpError(
                f"{os.fspath(path)} has two nodes with the id {name!r} (circuit-tracer before 0.5 gave error nodes ids "
                "of features of layer 0), so that their edges can't be told apart; write it anew"
            )
        rows[name] = _row(node, path)
    try:
        return _graph(metadata, ours, rows, checked(held, "links", list[dict], path), path)
    except UsageError as error:
        raise damaged(path, str(error)) from None


def cantor(x: int, y: int) -> int:
    """Cantor's pairing of a layer and a feature."""
    return (x + y) * (x + y + 1) // 2 + y


def uncantor(z: int) -> tuple[int, int]:
    """The layer and the feature that `cantor` paired."""
    diagonal = (math.isqrt(8 * z + 1) - 1) // 2
    y = z - diagonal * (diagonal + 1) // 2
    return diagonal - y, y


def _cumulative(graph: AttributionGraph) -> dict[str, float]:
    """Of each node the share of all influence that it and the stronger ones have, which viewers prune by."""
    found = graph.nodes["influence"].to_numpy()
    order = np.argsort(-found, kind="stable")
    share = np.empty(len(found))
    share[order] = np.cumsum(found[order]) / (found.sum() or 1.0)
    return dict(zip(map(str, graph.nodes.index), share.tolist(), strict=True))


def _ids(graph: AttributionGraph) -> dict[str, str]:
    ids, differences = {}, 0
    columns = (graph.nodes[name] for name in ("kind", "layer", "position", "feature"))
    for name, kind, layer, position, feature in zip(graph.nodes.index, *columns, strict=True):
        if kind == "logit":
            if not name.removeprefix("logit.").isdigit():
                feature, differences = _DIFFERENCES + differences, differences + 1
            layer += 1
        first = "E" if kind == "token" else str(layer)
        ids[str(name)] = f"{first}_{-1 if kind == 'error' else feature}_{position}"
    return ids


def _node(graph: AttributionGraph, row: pd.Series, name: str, rank: float) -> dict[str, Any]:
    kind, position = row["kind"], int(row["position"])
    layer, number, _ = name.split("_")
    head = {"token": "E", "logit": "L"}.get(kind, layer)
    feature = {"token": position, "error": -1, "logit": int(number)}.get(kind)
    node = {
        "node_id": name,
        "feature": cantor(int(layer), int(number)) if feature is None else feature,
        "layer": layer,
        "ctx_idx": position,
        "feature_type": _TYPES[kind],
        "token_prob": float(row["activation"]) if kind == "logit" else 0.0,
        "is_target_logit": bool(kind == "logit" and row["weight"] == graph.nodes["weight"].max()),
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{head}_{number}-{0 if kind == 'feature' else position}",
        "clerp": str(row["label"]) if kind in ("logit", "token") else "",
        "influence": None if kind == "logit" else rank,
        "activation": float(row["activation"]) if kind == "feature" else None,
    }
    if kind == "feature" and row["label"] != f"{layer}.{number}":
        node["clerp"] = str(row["label"])
    own = {"name": str(row.name), **row}
    ours = {key: own[key].item() if hasattr(own[key], "item") else own[key] for key in _OURS}
    return {**node, "interp": ours}


def _row(node: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """A row of the table of nodes."""
    kinds = {text: kind for kind, text in _TYPES.items()}
    kind = kinds[checked(node, "feature_type", str, path, among=kinds)]
    position = checked(node, "ctx_idx", int, path, least=0)
    ours = checked(node, "interp", dict | None, path, default=None) or {}
    layer = -1 if kind == "token" else _whole(checked(node, "layer", str | int, path), path) - (kind == "logit")
    number = _whole((*node["node_id"].split("_"), "")[1], path)
    code = checked(node, "feature", int, path, least=0) if kind == "feature" else None
    if code is not None and cantor(layer, number) != code:
        number = uncantor(code)[1]
    feature = checked(ours, "feature", int, path, default=-1 if kind == "error" else number)
    probability = checked(node, "token_prob", float | None, path, default=None)
    activation = {"feature": checked(node, "activation", float | None, path, default=None), "logit": probability}.get(
        kind
    )
    clerp = checked(node, "clerp", str | None, path, default=None) or ""
    names = {
        "token": f"token@{position}",
        "error": f"error.{layer}@{position}",
        "feature": feature_name(layer, feature, position),
        "logit": f"logit.{feature}",
    }
    row = {
        "name": names[kind], "kind": kind, "layer": layer, "position": position, "feature": feature,
        "activation": 1.0 if activation is None else float(activation), "value": 0.0, "bias": 0.0,
        "weight": float(probability or 0.0) if kind == "logit" else 0.0, "influence": 0.0,
        "expanded": kind in ("feature", "logit"), "label": _label(kind, layer, feature, clerp),
    }  # fmt: skip
    return row | {name: checked(ours, name, hint, path) for name, hint in _OURS.items() if ours}


def _whole(text: str | int, path: str | os.PathLike[str]) -> int:
    """A number that stands in an id."""
    if not re.fullmatch(r"-?\d{1,9}", str(text)):
        raise damaged(path, f"it has the number {str(text)[:40]!r} in an id or as a layer")
    return int(text)


def _label(kind: str, layer: int, feature: int, clerp: str) -> str:
    """What this package calls a node that circuit-tracer wrote."""
    output = re.fullmatch(r'Output "(.*)" \(p=[\d.]+\)', clerp, re.S)
    if kind == "logit" and output:
        return repr(output[1])
    return clerp or {"feature": f"{layer}.{feature}", "error": "error"}.get(kind, "")


def _graph(
    metadata: Mapping[str, Any],
    ours: Mapping[str, Any],
    rows: Mapping[str, dict[str, Any]],
    links: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
) -> AttributionGraph:
    table = pd.DataFrame(list(rows.values()), columns=["name", *COLUMNS]).set_index("name").rename_axis("node")
    table = table.astype(COLUMNS)
    ids = {name: row for row, name in enumerate(rows)}
    targets, sources = (
        np.array([ids[checked(link, end, str, path, among=ids)] for link in links], np.int64)
        for end in ("target", "source")
    )
    weights = np.array([checked(link, "weight", float, path) for link in links], np.float32)
    prompt, words = checked(metadata, "prompt", str, path), tuple(checked(metadata, "prompt_tokens", list[str], path))
    if not all(np.isfinite(values).all() for values in (weights, table.select_dtypes(float).to_numpy())):
        raise damaged(path, "it has values that are not finite")
    if len(table) and table["position"].max() >= len(words):
        raise damaged(path, f"a node stands at {table['position'].max():,}, outside the {len(words)} tokens")
    if ours:
        tokens, about = checked(ours, "tokens", list[int], path), checked(ours, "about", dict, path)
        return AttributionGraph(prompt, tuple(tokens), words, table, targets, sources, weights, about)
    kinds = table["kind"].map({"token": 0, "feature": 1, "error": 2, "logit": 3})
    order = np.lexsort((table["position"], kinds, table["layer"]))
    new = np.empty(len(order), np.int64)
    new[order] = np.arange(len(order))
    table, targets, sources = table.iloc[order].copy(), new[targets], new[sources]
    blank = table["kind"].eq("token") & table["label"].eq("")
    table.loc[blank, "label"] = [words[position] for position in table["position"][blank]]
    table["value"] = np.bincount(targets, weights.astype(np.float64), len(table))
    read = dict(
        zip(table["position"][table["kind"] == "token"], table["feature"][table["kind"] == "token"], strict=True)
    )
    about = {"model": str(metadata.get("scan", "")), "basis": {"kind": "circuit-tracer", "scan": metadata.get("scan")}}
    if metadata.get("node_threshold") is not None:
        about["pruned"] = {"nodes": metadata["node_threshold"]}
    tokens = tuple(int(read.get(position, -1)) for position in range(len(words)))
    graph = AttributionGraph(prompt, tokens, words, table, targets, sources, weights, about)
    table["influence"] = influence(normalised(graph.matrix()), table["weight"].to_numpy())
    return graph
