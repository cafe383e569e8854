"""The methods that score all edges, by name."""

from __future__ import annotations

from dataclasses import dataclass

from interp.engine.rule_sets import GRADIENT, RELP, Rules
from interp.errors import UsageError

__all__ = ["ABLATIONS", "METHODS", "SEARCHES", "Method", "check_choice"]


@dataclass(frozen=True)
class Method:
    """A way to score all edges.

    Args:
        name: How it is asked for.
        description: What the score is.
        rules: What the backward pass of `edge_attribution` does; None for path patching of every edge.
        steps: 1 for the gradient at the base run; more for integrated gradients, unless other steps are asked for.
        along: Which way integrated gradients go: ``inputs`` or ``activations``.
    """

    name: str
    description: str
    rules: Rules | None = GRADIENT
    steps: int = 1
    along: str = "inputs"


METHODS = {
    method.name: method
    for method in (
        Method("eap", "the gradient at the base run"),
        Method("eap-ig", "gradients along the way between the two runs' embeddings", steps=5),
        Method(
            "eap-ig-activations",
            "gradients along the way between the two runs' writes, layer by layer",
            steps=5,
            along="activations",
        ),
        Method("relp", "relevance coefficients at the base run", RELP),
        Method("relp-ig", "relevance coefficients along the way between the two runs' embeddings", RELP, steps=5),
        Method("exact", "path patching of every single edge", None),
    )
}
"""The methods that score all edges. ``acdc`` is the other one: it removes edges one after the other."""

ABLATIONS = ("corrupted", "zero", "mean")
"""What an edge outside a circuit carries."""

SEARCHES = ("strongest", "greedy")
"""How edges are chosen by their scores."""


def check_choice(
    method: str, edges: int | None = None, nodes: int | None = None, threshold: float | None = None
) -> None:
    """Refuses ways to choose a circuit that contradict each other, which is told before any edge is scored.

    Raises:
        UsageError: More than one is given, acdc has no threshold, or one is a number that makes no sense.
    """
    if sum(given is not None for given in (edges, nodes, threshold)) > 1:
        raise UsageError("give one of edges, nodes and threshold")
    if method == "acdc" and threshold is None:
        raise UsageError("acdc needs a threshold: by how much a removal may change the metric, in its units")
    for name, value in {"edges": edges, "nodes": nodes}.items():
        if value is not None and value < 0:
            raise UsageError(f"{name} must not be negative, got {value}")
    if threshold is not None and not threshold >= 0:
        raise UsageError(f"the threshold must not be negative, got {threshold}")
