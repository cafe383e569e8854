"""Finding a circuit: score every edge by some method, then choose among them."""

from __future__ import annotations

import time
import warnings

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.circuits.acdc import acdc
from interp.circuits.attribution import edge_attribution
from interp.circuits.exact import EdgeExperiment, exact_edges
from interp.circuits.methods import ABLATIONS, METHODS, SEARCHES, check_choice
from interp.circuits.search import above, greedy, of_nodes, strongest
from interp.engine.identity import identity, versions
from interp.errors import UsageError, unknown_name
from interp.gradients import gradients
from interp.graph import Graph
from interp.patching.experiment import Experiment
from interp.results.circuit import Circuit
from interp.tasks import Task

__all__ = ["discover", "mask_of", "score_edges", "scores_of"]


@gradients()
def score_edges(
    model: TransformerBridge,
    task: Task,
    method: str = "eap-ig",
    *,
    ablation: str = "corrupted",
    steps: int | None = None,
    metric: str | None = None,
    compute: str | None = None,
) -> Float[Tensor, "node port"]:
    """What every edge is worth: positive if it pushes towards the clean answer.

    Args:
        model: Any bridge; it is only read.
        task: The prompt pairs.
        method: One of `METHODS`.
        ablation: ``corrupted``: the effect of giving an edge of the corrupted run its clean write (denoising).
            ``zero`` or ``mean``: minus the effect of taking an edge of the clean run away (noising).
        steps: Of the methods with integrated gradients; by default 5.
        metric: Instead of the task's own.
        compute: ``float32`` to compute in it with the weights of a model in half precision, as in
            `interp.patching.attribution`.

    Returns:
        Means over the prompts, in the metric's units; rows as `Graph.nodes`, columns as `Graph.ports`, zero where
        there is no edge.

    Raises:
        UsageError: An unknown method or ablation.
    """
    if method not in METHODS:
        raise unknown_name("method", method, [*METHODS, "acdc"])
    if ablation not in ABLATIONS:
        raise unknown_name("ablation", ablation, ABLATIONS)
    metrics, steps = [metric] if metric else None, steps or METHODS[method].steps
    if ablation == "corrupted":
        scores = _scored(method, Experiment(model, task, metrics=metrics, compute=compute), None, steps)
    else:
        experiment = Experiment(model, task, mode="noising", metrics=metrics, compute=compute)
        scores = -_scored(method, experiment, ablation, steps)
    if not scores.any():
        warnings.warn(
            f"all edges score zero: {metrics[0] if metrics else task.measure.name!r} does not depend on what differs "
            f"between the two runs of task {task.name!r}",
            stacklevel=3,
        )
    return scores.mean(0).cpu()


def _scored(
    method: str, experiment: Experiment, alternative: str | None, steps: int
) -> Float[Tensor, "example node port"]:
    """The effect of replacing each edge of the experiment's base run, in the metric's units."""
    card = METHODS[method]
    if card.rules is None:
        return exact_edges(experiment, alternative)
    return edge_attribution(experiment, alternative=alternative, rules=card.rules, steps=steps, along=card.along)


def discover(
    model: TransformerBridge,
    task: Task,
    method: str = "eap-ig",
    *,
    edges: int | None = None,
    nodes: int | None = None,
    threshold: float | None = None,
    search: str = "strongest",
    absolute: bool = True,
    ablation: str = "corrupted",
    steps: int | None = None,
    metric: str | None = None,
    candidates: Circuit | None = None,
    compute: str | None = None,
) -> Circuit:
    """Finds the circuit of a behaviour.

    Args:
        model: Any bridge; it is only read.
        task: The prompt pairs.
        method: One of `METHODS`, or ``acdc``.
        edges: Take so many edges (some may then be pruned because they lead nowhere); by default 1 % of the graph's.
        nodes: Take all edges among so many nodes instead.
        threshold: Take the edges whose absolute score exceeds this instead, in the metric's units. With ``acdc``, by
            how much a removal may change the metric; it must be given.
        search: ``strongest`` edges, or ``greedy`` growth from the logits.
        absolute: Take edges by absolute value, or by signed score.
        ablation: What an edge outside carries: see `score_edges`.
        steps: Of integrated gradients.
        metric: Instead of the task's own.
        candidates: With ``acdc``, only this circuit's edges are tried and all others are removed beforehand.
        compute: As in `score_edges`.

    Returns:
        The circuit, with every edge's score and where it comes from.

    Raises:
        UsageError: An unknown method, or arguments that contradict each other.

    Reference: Syed et al. 2023 (arXiv 2310.10348), Hanna et al. 2024 (arXiv 2403.17806), Jafari et al. 2025
    (arXiv 2508.21258), Conmy et al. 2023 (arXiv 2304.14997).
    """
    graph = Graph.of(model)
    check_choice(method, edges, nodes, threshold)
    if edges is not None and edges > graph.n_edges():
        raise UsageError(f"can't take {edges} edges: the graph has {graph.n_edges()}")
    if steps is not None and steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}")
    if search not in SEARCHES:
        raise unknown_name("search", search, SEARCHES)
    began = time.perf_counter()
    settings: dict[str, object] = {
        "n": len(task),
        "seed": task.seed,
        "split": task.split,
        "metric": metric or task.measure.name,
    }
    settings["ablation"] = ablation
    if compute is not None:
        settings["compute"] = compute
    if method == "acdc":
        assert threshold is not None
        metrics = [metric] if metric else None
        experiment = Experiment(model, task, mode="noising", metrics=metrics, compute=compute)
        if ablation not in ABLATIONS:
            raise unknown_name("ablation", ablation, ABLATIONS)
        experiments = EdgeExperiment(experiment, None if ablation == "corrupted" else ablation)
        tried = None if candidates is None else mask_of(candidates, graph)
        found = acdc(experiments, threshold, candidates=tried)
        mask, scores = found.mask, -found.change.T
        settings |= {"threshold": threshold, "runs": found.runs}
    else:
        if candidates is not None:
            raise UsageError(f"candidates are for method='acdc', not {method!r}")
        scores = score_edges(model, task, method, ablation=ablation, steps=steps, metric=metric, compute=compute)
        if threshold is not None:
            mask, settings["threshold"] = above(scores, graph, threshold), threshold
        elif nodes is not None:
            mask, settings["nodes"] = of_nodes(scores.sum(1), graph, nodes, absolute=absolute), nodes
        else:
            edges = graph.n_edges() // 100 if edges is None else edges
            choose = greedy if search == "greedy" else strongest
            mask, settings["edges"] = choose(scores, graph, edges, absolute=absolute), edges
        settings |= {"search": search, "absolute": absolute, "steps": steps or METHODS[method].steps}
    settings["seconds"] = round(time.perf_counter() - began, 2)
    return _circuit(model, task, method, graph, scores, mask, settings)


def mask_of(circuit: Circuit, graph: Graph) -> Bool[Tensor, "port node"]:
    """A circuit's edges as a mask."""
    from interp.circuits.exact import edge_mask

    return edge_mask(graph, circuit.in_edges)


def scores_of(circuit: Circuit, graph: Graph) -> Float[Tensor, "node port"]:
    """A circuit's scores as a matrix; zero where an edge has none."""
    node = {name: i for i, name in enumerate(graph.nodes()[:-1])}
    port = {name: i for i, name in enumerate(graph.ports())}
    scores = torch.zeros(len(node), len(port))
    for (source, target), score in circuit.edges.items():
        scores[node[source], port[target]] = score
    return scores


def _circuit(model, task, method, graph, scores, mask, settings) -> Circuit:
    names, ports = graph.nodes()[:-1], graph.ports()
    number = {name: i for i, name in enumerate(names)}
    values = scores.tolist()
    edges = {
        (source, port): values[number[source]][i] for i, port in enumerate(ports) for source in graph.upstream(port)
    }
    chosen = [(names[node], ports[port]) for port, node in mask.nonzero().tolist()]
    return Circuit(
        nodes=dict(zip(names, scores.sum(1).tolist(), strict=True)),
        edges=edges,
        in_edges=frozenset(chosen),
        heads_per_kv=graph.n_heads // graph.n_kv_heads,
        task=task.name,
        model=str(model.cfg.model_name),
        fingerprint=identity(model),
        method=method,
        settings=settings,
        versions=versions(),
    )
