"""From a prompt to its attribution graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.identity import identity, versions
from interp.engine.progress import track
from interp.engine.verify import verified
from interp.errors import UsageError
from interp.gradients import gradients
from interp.tasks.corpora import longest_input
from interp.tasks.tokens import Encoder
from interp.tracing.assembly import Assembly
from interp.tracing.bases import basis_of
from interp.tracing.explore import choose
from interp.tracing.frozen import FrozenRun
from interp.tracing.graph import AttributionGraph, Origin
from interp.tracing.linear import LocalModel
from interp.tracing.streaming import Stream
from interp.tracing.targets import Target, directions, parse, salient

__all__ = ["assembled", "attached", "frozen", "trace"]


@gradients()
@torch.no_grad()
def trace(
    model: TransformerBridge,
    prompt: str | Sequence[int] | Tensor,
    basis: Any = "neurons",
    targets: Any = None,
    *,
    max_nodes: int = 1000,
    max_edges: int | None = 5000,
    fold_prefix: bool = True,
    batch: int = 64,
) -> AttributionGraph:
    """The attribution graph of one prompt: direct effects of tokens, features and errors on each other and on logits.

    The model is made linear around the prompt: attention patterns and the scales of all norms are constants, and MLPs
    (or the residual stream) are replaced by the basis's nodes. What is written by units that are not chosen as nodes
    stays in the error node of their layer and position, so that the graph is exact whatever `max_nodes` is. Where the
    model caps its logits, targets are logits before the cap.

    Every token and layer has an error node, so that a long prompt has very many edges, most of them next to nothing:
    at 4,096 tokens of a model of 30 layers 128,000 into each node. Of each node's the strongest `max_edges` are kept,
    and the others are counted before they are dropped: ``influence`` and ``about["scores"]`` are of all edges.

    Args:
        model: Any bridge.
        prompt: A text, which gets what the model wants before every text, or token ids, which are taken as they are.
        basis: ``"neurons"``, transcoders or residual autoencoders by layer, or any `interp.tracing.Basis`.
        targets: What the graph explains: a token as text or id, a tuple of two for their logits' difference, or a list
            of such; by default the smallest set of next tokens with probability 0.95, at most 10.
        max_nodes: How many features become nodes at most, chosen by their influence on the targets.
        max_edges: How many edges into each node are kept at most, the strongest by absolute weight; None for all. The
            edges and the bias sum to a node's value where none was dropped; ``about["strongest"]`` tells how many were,
            and the least share of a node's absolute inputs that was kept.
        fold_prefix: Tokens that the model wants before every text, such as BOS, see nothing of the prompt, so that all
            that is written at their positions is the same for every prompt, however large (SmolLM2's massive
            activations are there). It counts as written by their token nodes, which stay exact. With False these
            positions have features and errors as all others have.
        batch: Targets that are pulled back together at most, and that are chosen before influence is counted anew;
            fewer are pulled back together where a prompt is long.

    Returns:
        The graph, unpruned.

    Raises:
        UsageError: An empty prompt or one over the model's context, a target of several tokens, a basis that does not
            fit the model, or a `max_nodes`, `max_edges` or `batch` that makes no sense.

    Reference:
        Ameisen et al. 2025, "Circuit Tracing: Revealing Computational Graphs in Language Models"; circuit-tracer 0.5.
        Deviations: unchosen features are part of the errors instead of being left out; what is written at the first
        position is folded into its token or kept, where circuit-tracer drops it; learned position embeddings are part
        of the token nodes.

    Example:
        >>> graph = trace(model, "The capital of France is", targets=(" Paris", " London"))     # doctest: +SKIP
        >>> graph.pruned().paths()                                                              # doctest: +SKIP
    """
    for name, number in {"max_nodes": max_nodes, "max_edges": max_edges, "batch": batch}.items():
        if number is not None and number < 1:
            raise UsageError(f"{name} must be at least 1, got {number}")
    encoder, chosen_basis = Encoder(model), basis_of(basis)
    tokens = _tokens(model, encoder, prompt)
    named = None if targets is None else parse(encoder, targets, int(model.cfg.d_vocab))
    parts, fingerprint = verified(model), identity(model)
    chosen_basis.check(parts, fingerprint)
    chosen_basis = chosen_basis.to(parts.device)

    run = FrozenRun(parts, torch.tensor(tokens, device=parts.device))
    wanted = salient(encoder, run.logits) if named is None else named
    folded = _folded(encoder, tokens) if fold_prefix else 0
    local = LocalModel(run, chosen_basis, folded)
    logits = local.logit_reads(*directions(parts, wanted))
    weight = np.array([target.weight for target in wanted])
    n_active = sum(len(part.activations) for part in local.replaced)
    with track(min(max_nodes, n_active) * 2 + len(wanted), "trace") as done:
        chosen = choose(local, logits, weight, max_nodes, batch, done)
        found = Assembly(local, chosen, logits)
        stream = Stream(found, weight, max_edges)
        for rows, effects, constants in local.rows(found.reads, found.writes, found.n_sources, batch):
            stream.add(rows, effects, constants)
            done(len(rows))

    about = {
        "model": str(model.cfg.model_name),
        "fingerprint": fingerprint,
        "n_layers": parts.graph.n_layers,
        "basis": chosen_basis.about(),
        "settings": {
            "max_nodes": max_nodes,
            "max_edges": max_edges,
            "targets": [target.name for target in wanted],
            "named": named is not None,
            "folded": folded,
        },
        "active": n_active,
        "capped_logits": parts.logit_softcap,
        "versions": versions(),
    }
    words = encoder.decode(tokens)
    nodes, order = found.table(words, wanted, run, stream.constants)
    nodes["influence"] = stream.influence(order, len(nodes))
    return AttributionGraph(
        prompt if isinstance(prompt, str) else encoder.text(tokens),
        tokens,
        words,
        nodes,
        *stream.edges(order),
        about={**about, "scores": stream.scores(), **stream.about()},
        origin=Origin(model, chosen_basis),
    )


@gradients()
def frozen(graph: AttributionGraph) -> LocalModel:
    """The locally linear model that a graph was traced in, computed again."""
    origin = graph.traced_in
    parts = verified(origin.model)
    run = FrozenRun(parts, torch.tensor(graph.tokens, device=parts.device))
    return LocalModel(run, origin.basis, graph.about["settings"]["folded"])


def assembled(graph: AttributionGraph) -> Assembly:
    """A graph's sources, computed again.

    Raises:
        UsageError: The graph was read from a file, or has supernodes.
    """
    if (graph.nodes["kind"] == "group").any():
        raise UsageError("take the graph without supernodes: they can't be found again in the model")
    local, nodes = frozen(graph), graph.nodes[graph.nodes["kind"] == "feature"]
    chosen = []
    for part in local.replaced:
        here = nodes[nodes["layer"] == part.layer]
        units = [part.unit(int(p), int(f)) for p, f in zip(here["position"], here["feature"], strict=True)]
        chosen.append(torch.tensor(sorted(units), dtype=torch.long, device=local.run.final.device))
    targets = [Target.named(str(name)) for name in graph.nodes.index[graph.nodes["kind"] == "logit"]]
    return Assembly(local, chosen, local.logit_reads(*directions(local.parts, targets)))


def attached(graph: AttributionGraph, model: TransformerBridge, basis: Any = "neurons") -> AttributionGraph:
    """A graph with the model and basis that it was traced in.

    Raises:
        UsageError: The model has other weights, or the basis is another one.
    """
    found, fingerprint = basis_of(basis), identity(model)
    if graph.about.get("fingerprint") != fingerprint:
        raise UsageError(
            f"this graph was traced in {graph.about.get('model', 'another model')} with fingerprint "
            f"{graph.about.get('fingerprint')}, the model given has {fingerprint}"
        )
    if graph.about.get("basis") != found.about():
        raise UsageError(f"this graph was traced in the basis {graph.about.get('basis')}, not in {found.about()}")
    return replace(graph, origin=Origin(model, found))


def _folded(encoder: Encoder, tokens: tuple[int, ...]) -> int:
    """How many tokens the prompt begins with that the model wants before every text; never all of it."""
    prefix = encoder.prefix
    return len(prefix) if tokens[: len(prefix)] == prefix and len(prefix) < len(tokens) else 0


def _tokens(model: TransformerBridge, encoder: Encoder, prompt: str | Sequence[int] | Tensor) -> tuple[int, ...]:
    if isinstance(prompt, str):
        if not prompt:
            raise UsageError("the prompt is empty; give a text of one token at least")
        tokens = encoder.encode(prompt).ids
    else:
        given = torch.as_tensor(prompt)
        given = given[0] if given.dim() == 2 and len(given) == 1 else given
        if given.dim() != 1 or not given.numel():
            raise UsageError(f"token ids must be one row of one at least, got the shape {tuple(given.shape)}")
        tokens = tuple(int(token) for token in given)
        size = int(model.cfg.d_vocab)
        bad = [token for token in tokens if not 0 <= token < size]
        if bad:
            raise UsageError(f"token {bad[0]} is out of range: the vocabulary has the ids 0 to {size - 1}")
    limits = [limit for limit in (encoder.context, longest_input(model)) if limit]
    if limits and len(tokens) > min(limits):
        raise UsageError(f"the prompt has {len(tokens)} tokens, and this model reads {min(limits)} at most; shorten it")
    return tokens
