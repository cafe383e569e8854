"""Edge attribution: an estimate of every edge's effect from one backward pass, or a few.

The score of the edge u -> v is the inner product of the difference of u's write between the two runs with what flows
back to v's input, summed over positions (EAP: Syed et al. 2023, arXiv 2310.10348; EAP-IG: Hanna et al. 2024, arXiv
2403.17806). With RelP's rules in place of the gradient it is edge-level relevance patching (Jafari et al. 2025,
arXiv 2508.21258).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.circuits.exact import EdgeExperiment
from interp.engine.edges import input_matrices
from interp.engine.gradient import Flow, backward
from interp.engine.norms import Factor, Norm
from interp.engine.parts import Parts
from interp.engine.progress import track
from interp.engine.rules import GRADIENT, Rules
from interp.errors import UsageError
from interp.gradients import gradients
from interp.patching.experiment import Experiment

__all__ = ["CONVENTIONS", "edge_attribution"]

CONVENTIONS = ("interp", "eap-ig")


@gradients()
@torch.no_grad()
def edge_attribution(
    experiment: Experiment,
    *,
    rules: Rules = GRADIENT,
    steps: int = 1,
    along: str = "inputs",
    alternative: str | Tensor | None = None,
    convention: str = "interp",
    ungrouped: bool = False,
    at_once: int = 4,
) -> Float[Tensor, "example node port"]:
    """Scores of all edges, in the metric's units; zero where there is no edge.

    Args:
        experiment: The model and the task. In the mode ``denoising`` scores estimate the effect of giving an edge of
            the corrupted run its clean write, in ``noising`` the effect of giving an edge of the clean run its
            corrupted write.
        rules: What the backward pass does; `Rules.linear` must be ``gradient``.
        steps: 1 for the gradient at the base run; more for integrated gradients.
        along: With more than one step: ``inputs`` interpolates the embeddings, ``activations`` the writes of one
            layer's heads or MLP at a time.
        alternative: What a replaced edge carries instead of the other prompt's write, see `EdgeExperiment`.
        convention: ``interp`` as said above, with the midpoint rule for integrated gradients. ``eap-ig`` reproduces
            that package: gradients on the clean run (EAP) or at z' + k/m (z - z') for k = 0 .. m-1 (inputs) or
            k = 1 .. m (activations), times clean minus corrupted, whatever the mode.
        ungrouped: As in `Graph.ports`.
        at_once: Examples per backward pass.

    Raises:
        UsageError: A setting that means nothing.
        InterpError: NaN or infinity flows back.
    """
    if convention not in CONVENTIONS:
        raise UsageError(f"convention must be 'interp' or 'eap-ig', got {convention!r}")
    if along not in ("inputs", "activations"):
        raise UsageError(f"along must be 'inputs' or 'activations', got {along!r}")
    if steps < 1:
        raise UsageError(f"steps must be 1 or more, got {steps}")
    if rules.linear != "gradient":
        raise UsageError(
            f"edges are read at the projections' inputs, which needs linear='gradient', not {rules.linear!r}"
        )
    parts, task = experiment.parts, experiment.task
    runs = EdgeExperiment(experiment, alternative)
    if convention == "eap-ig":
        if alternative is not None:
            raise UsageError("the convention 'eap-ig' compares the clean and the corrupted prompt: give no alternative")
        clean, corrupted = task.clean, task.corrupted
        runs.base, runs.alternative = (clean, corrupted) if steps == 1 else (corrupted, clean)
    same = min(runs.start, runs.stop - 1)
    scores = []
    with track(len(task), "edges") as advance:
        for begin in range(0, len(task), at_once):
            rows = slice(begin, min(begin + at_once, len(task)))
            base, other = runs.writes(rows)
            passes = _Passes(experiment, rules, ungrouped, rows, base.nodes, other)
            difference = (other - base.nodes)[:, :, same:].transpose(0, 1).flatten(2)
            found = torch.zeros(*difference.shape[:2], passes.ports, device=parts.device)
            for nodes, flow, weight in passes.flows(steps, along, convention):
                _accumulate(found, parts, rules, flow, difference, nodes, weight, same)
            scores.append(-found if convention == "eap-ig" and steps == 1 else found)
            advance(rows.stop - rows.start)
    return torch.cat(scores)


class _Passes:
    """The backward passes of one batch."""

    def __init__(self, experiment: Experiment, rules: Rules, ungrouped: bool, rows: slice, base: Tensor, other: Tensor):
        self.parts, self.rules, self.ungrouped, self.base, self.other = experiment.parts, rules, ungrouped, base, other
        graph = self.parts.graph
        kv_heads = graph.n_heads if ungrouped else graph.n_kv_heads
        self.ports = graph.n_layers * (graph.n_heads + 2 * kv_heads + 1) + 1
        self.ends = experiment.task.positions["end"][rows]
        self.answers = experiment.answer_tokens()
        reading = experiment.reading(self.answers)
        examples = torch.arange(rows.start, rows.stop, device=self.parts.device)
        self.metric: Callable[[Tensor], Tensor] = lambda logits: reading(logits, examples)[:, 0]

    def flow(self, embedded: Tensor, replace: dict | None = None) -> Flow:
        sites = {"resid_pre", "q", "k", "v", "mlp_port", "final"}
        settings: dict[str, Any] = {"rules": self.rules, "answers": self.answers, "ungrouped": self.ungrouped}
        return backward(self.parts, None, self.ends, self.metric, sites, embedded=embedded, replace=replace, **settings)

    def flows(self, steps: int, along: str, convention: str) -> Iterator[tuple[slice, Flow, float]]:
        """The nodes whose edges a pass scores, the pass, and its weight."""
        everything = slice(0, len(self.base))
        start, end = self.base[0], self.other[0]
        if steps == 1:
            yield everything, self.flow(start), 1.0
            return
        offset = 0.5 if convention == "interp" else (0.0 if along == "inputs" else 1.0)
        fractions = [(k + offset) / steps for k in range(steps)]
        if along == "inputs":
            for fraction in fractions:
                yield everything, self.flow(start + fraction * (end - start)), 1 / steps
            return
        for fraction in fractions:
            yield slice(0, 1), self.flow(start + fraction * (end - start)), 1 / steps
        heads = self.parts.graph.n_heads
        for layer in range(self.parts.graph.n_layers):
            first = 1 + layer * (heads + 1)
            for site, nodes in (
                ("attn_out", slice(first, first + heads)),
                ("mlp_out", slice(first + heads, first + heads + 1)),
            ):
                change = (self.other[nodes] - self.base[nodes]).sum(0)
                for fraction in fractions:
                    shift = fraction * change
                    yield nodes, self.flow(start, {(site, layer): lambda x, shift=shift: x + shift}), 1 / steps


def _accumulate(
    found: Tensor, parts: Parts, rules: Rules, flow: Flow, difference: Tensor, nodes: slice, weight: float, same: int
) -> None:
    """Adds one pass's scores "example node port" of the edges from some nodes.

    `difference` is "example node (pos d_model)", of the positions from `same` on; before, both runs are the same.
    """
    graph, constant = parts.graph, rules.norm == "constant"
    port, length = 0, flow.values["resid_pre", 0].shape[1]

    def score(upstream: int, back: Tensor) -> None:
        """Scores the next ports; `back` is what flows back to each, "example pos port d_model"."""
        nonlocal port
        known = slice(nodes.start, min(nodes.stop, upstream))
        if known.stop > known.start:
            product = torch.bmm(difference[:, known], back.transpose(1, 2).flatten(2).transpose(1, 2))
            found[:, known, port : port + back.shape[2]] += weight * product
        port += back.shape[2]

    for layer, block in enumerate(parts.blocks):
        before = 1 + layer * (graph.n_heads + 1)
        x = flow.values["resid_pre", layer][:, same:]
        for site, linear, heads in (
            ("q", block.q, graph.n_heads),
            ("k", block.k, graph.n_kv_heads),
            ("v", block.v, graph.n_kv_heads),
        ):
            gradient = flow.gradients[site, layer][:, same:]
            matrices = input_matrices(linear, heads, gradient.shape[2] // heads)
            back = torch.stack([gradient[:, :, head] @ matrix for head, matrix in enumerate(matrices)], 2)
            score(before, _through_norm(block.ln1, x, back, constant))
        after = before + (0 if graph.parallel else graph.n_heads)
        score(after, _padded(flow.gradients["mlp_port", layer], length)[:, same:, None])
    score(difference.shape[1], _padded(flow.gradients["final", graph.n_layers], length)[:, same:, None])


def _padded(back: Tensor, length: int) -> Tensor:
    """What flows back, "batch pos d_model", of which only the last positions were computed."""
    return torch.nn.functional.pad(back, (0, 0, length - back.shape[1], 0))


def _through_norm(norm: Norm, x: Tensor, back: Tensor, constant: bool) -> Tensor:
    """What flows back through a norm of x "batch pos d", for several outputs "batch pos port d" at once."""
    scale = norm.inverse_scale(x)[:, :, None]
    back = back if norm.weight is None else back * norm.weight.to(back.dtype)
    centred = (x - x.mean(-1, keepdim=True) if norm.centred else x)[:, :, None]
    out = scale * back
    if not (constant or isinstance(norm, Factor)):
        out = out - centred * scale**3 * (centred * back).mean(-1, keepdim=True)
    return out - out.mean(-1, keepdim=True) if norm.centred else out
