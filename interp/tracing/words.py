"""An attribution graph in words: what its nodes are called, and the strongest paths from tokens to targets."""

from __future__ import annotations

import itertools

import pandas as pd

from interp.errors import UsageError
from interp.tracing.graph import AttributionGraph

__all__ = ["feature_noun", "path_in_words", "phrase", "short_name", "summary"]


def summary(graph: AttributionGraph, n: int = 3) -> str:
    """The graph in a few lines: its targets, its strongest paths with their share of the influence, and its scores.

    A path's share is the product, from the target down, of each edge's part of the absolute weights into its target,
    times the target's part of the targets' weights: of all that flows into the targets, what flows along this path.

    Args:
        graph: pruned or not; shares differ, as they are of what is in the graph.
        n: how many paths.

    Returns:
        Lines such as ``1. ' Mary' (position 4) -> neuron 11.1229 at ' to' -> logit ' Mary': 12 %``. The signs of the
        edges are left out of the shares; ``lowers`` marks a path whose effect is negative.

    Raises:
        UsageError: `n` is not positive, or the graph has loops, as after merging.

    Example:
        >>> print(summary(trace(model, prompt)))  # doctest: +SKIP
    """
    kinds = graph.nodes["kind"].value_counts()
    noun = feature_noun(graph)
    counted = [
        f"{int(kinds[kind]):,} {word}{'s' if kinds[kind] > 1 else ''}"
        for kind, word in (("token", "token"), ("feature", noun), ("error", "error node"), ("group", "supernode"))
        if kind in kinds
    ]
    targets = [phrase(graph, str(name)) for name in graph.nodes.index[graph.nodes["kind"] == "logit"]]
    scores = graph.scores()
    lines = [
        f"{', '.join(targets)}, from {graph.prompt or ''.join(graph.words)!r}",
        f"{', '.join(counted)} and {len(graph.weights):,} edges; replacement {scores['replacement']:.3f}, "
        f"completeness {scores['completeness']:.3f}, error share {scores['error_share']:.3f}",
        *_dropped(graph),
        "Strongest paths, with their share of what flows into the targets:",
    ]
    total = float(graph.nodes["weight"].abs().sum()) or 1.0
    for number, path in enumerate(graph.paths(n), 1):
        lines.append(f"{number}. {path_in_words(graph, path.nodes, path.share / total)}")
    return "\n".join(lines)


def _dropped(graph: AttributionGraph) -> list[str]:
    told = graph.about.get("strongest")
    if told is None:
        return []
    least = _percent(told["least_kept"])
    return [f"Of what is kept: the strongest {told['of_each']:,} edges into each node, {least} of its inputs at least."]


def path_in_words(graph: AttributionGraph, nodes: tuple[str, ...], share: float) -> str:
    """A path as its nodes' phrases with arrows between them, and its share in per cent."""
    told = " -> ".join(phrase(graph, node) for node in nodes)
    sign = _sign(graph, nodes)
    return f"{told}: {_percent(share)}{', lowers it' if sign < 0 else ''}"


def phrase(graph: AttributionGraph, node: str) -> str:
    """A node in words: ``' Mary' (position 4)``, ``neuron 11.1229 at ' to'``, ``logit ' Mary'``."""
    row = graph.nodes.iloc[graph.row(node)]
    position = int(row["position"])
    if node.startswith("group."):
        return f"group {row['label'] or node.removeprefix('group.')}"
    word = repr(graph.words[position]) if 0 <= position < len(graph.words) else f"position {position}"
    if row["kind"] == "token":
        return f"{word} (position {position})"
    if row["kind"] == "error":
        return f"error of layer {row['layer']} at {word}"
    if row["kind"] == "logit":
        return f"logit {_target(row)}"
    return f"{feature_noun(graph)} {short_name(graph, node)} at {word}"


def short_name(graph: AttributionGraph, node: str) -> str:
    """A node in as little room as a picture has: ``11.1229``, ``' Mary' 61 %``, ``error 7``."""
    row = graph.nodes.iloc[graph.row(node)]
    if node.startswith("group."):
        return str(row["label"] or node.removeprefix("group."))
    if row["kind"] == "token":
        return graph.words[int(row["position"])]
    if row["kind"] == "error":
        return f"error {row['layer']}"
    if row["kind"] == "feature":
        return str(row["label"] or node.split("@")[0])
    single = node.removeprefix("logit.").isdigit()
    return f"{_target(row)} {_percent(float(row['activation']))}" if single else _target(row)


def feature_noun(graph: AttributionGraph) -> str:
    """What this graph's features are called: "neuron" where the basis has them, else "feature"."""
    return "neuron" if "neuron" in str(graph.about.get("basis", "")) else "feature"


def _target(row: pd.Series) -> str:
    """A target's label without the probability that stands behind it."""
    return str(row["label"] or row["feature"]).split(" p=")[0]


def _sign(graph: AttributionGraph, nodes: tuple[str, ...]) -> int:
    """Of the path's effect: what a source adds to a node, as a share of its value, times what that node adds on."""
    if not nodes:
        raise UsageError("a path has at least one node")
    sign = 1
    for source, target in itertools.pairwise(nodes):
        a, b = graph.row(source), graph.row(target)
        edge = graph.weights[(graph.sources == a) & (graph.targets == b)]
        sign *= -1 if float(edge.sum()) < 0 else 1
    for node in nodes[1:-1]:
        sign *= -1 if float(graph.nodes["value"].iloc[graph.row(node)]) < 0 else 1
    return sign


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %") if share >= 0.0995 else f"{100 * share:.2g} %"
