"""Edges between features: how much of an upstream node's effect goes through a downstream node.

The model is cut at every dictionary: what each node writes there is taken as given, so that nothing flows through a
dictionary but what a node of it carries. The score of the edge u -> d is then

    (grad_d m) . (d d / d u) . (u_other - u_base)

the gradient of the metric at d (through the whole model behind it) times the Jacobian of d with respect to u (through
the part of the model between their dictionaries only) times u's change. Over all d, and the logits, u's edges add up
to the estimate of u's effect by attribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.forward import Visitor, Walk
from interp.engine.progress import track
from interp.engine.rules import GRADIENT
from interp.errors import UsageError
from interp.gradients import gradients
from interp.patching.estimates import Batch, Plan, batches
from interp.patching.features.dictionaries import Standing, State, difference, find, standing
from interp.tasks import Task

__all__ = ["feature_edges"]

Found = tuple[Standing, int, int | None]


@gradients()
def feature_edges(
    model: TransformerBridge,
    task: Task,
    dictionaries: Any,
    nodes: Sequence[str],
    mode: str = "noising",
    *,
    metric: str | None = None,
    max_memory: int | None = None,
) -> dict[tuple[str, str], float]:
    """Scores of the edges from each of some nodes to each later one and to the logits.

    Args:
        model: Any bridge; it is only read.
        task: The prompt pairs.
        dictionaries: As in `interp.patching.feature_effects`. All of them cut the model, whether they have nodes here
            or not.
        nodes: ``resid_post.15.f17``, ``mlp_out.3.error``, ...; with ``@4`` at one position only. A backward pass each.
        mode: ``noising`` (as in the paper) or ``denoising``.
        metric: Instead of the task's own.
        max_memory: Bytes for what a batch of examples keeps for the backward passes.

    Returns:
        For each pair of nodes, or node and ``logits``, the mean over the examples, in the metric's units. Edges that
        are exactly 0, as those across another dictionary on the residual stream, are left out.

    Raises:
        UsageError: An unknown node, or a metric without a gradient.

    Reference: Marks et al. 2024, "Sparse Feature Circuits", arXiv:2403.19647, appendix A.1. There the
    paths through nodes between u and d are subtracted; here they are cut, which comes to the same to first order.
    """
    if isinstance(nodes, str) or not nodes:
        raise UsageError(f"nodes must be a list of one node or more, got {nodes!r}")
    plan = Plan(model, task, [], False, mode, metric, max_memory=max_memory)
    stand = standing(dictionaries, plan.parts)
    found = dict(zip(nodes, find(nodes, stand), strict=True))
    sites = {at[0] for one in stand for at in (one.read_at, one.at)}
    total: dict[tuple[str, str], float] = {}
    with track(len(task) * (1 + len(nodes)), "edges") as advance:
        for batch in batches(plan, sites, GRADIENT):
            cut = _CutRun(batch, stand, sites)
            goals: list[tuple[str, Found | None]] = [("logits", None), *found.items()]
            for name, goal in goals:
                for source, score in cut.edges(goal, found).items():
                    total[source, name] = total.get((source, name), 0.0) + score / len(task)
                advance(len(batch.base))
    return {edge: score for edge, score in total.items() if score != 0}


class _CutRun:
    """The base run of a batch, cut at the dictionaries, and what is to be multiplied with its Jacobians."""

    def __init__(self, batch: Batch, dictionaries: list[Standing], sites: set[str]) -> None:
        flow = batch.backward(0, sites)
        with torch.no_grad():
            self.change = {
                one.name: difference(one.state_of(batch.other), one.state_of(flow.values)) for one in dictionaries
            }
        self.slopes = {one.name: flow.gradients[one.at].flatten(2) for one in dictionaries}
        self.cut = _Cutting(dictionaries)
        plan = batch.plan
        with gradients():
            walk = Walk(plan.parts, plan.stop)
            with torch.no_grad():
                embedded = walk.embed(batch.base)
            final = walk(embedded, self.cut, read_from=plan.first)
            rows = torch.arange(len(final), device=final.device)
            logits = plan.parts.logits(final[rows, batch.ends - plan.first])
            self.metric = batch.measure(0)(logits).sum()
        self.length = plan.stop

    def edges(self, goal: Found | None, sources: dict[str, Found]) -> dict[str, float]:
        """The scores of the edges into one node, or into the logits if it is None, summed over the examples."""
        names = list(self.cut.leaves) if goal is None else self.cut.before[goal[0].name]
        leaves = [leaf for name in names for leaf in self.cut.leaves[name]]
        if not leaves:
            return {}
        aim = self.metric if goal is None else self._carried(*goal)
        if not aim.requires_grad:
            return {}
        gradients = torch.autograd.grad(aim, leaves, retain_graph=True, allow_unused=True)
        each, back, at = {}, {}, 0
        for name in names:
            size = len(self.cut.leaves[name])
            back[name] = gradients[at : at + size]
            at += size
        for text, (one, number, position) in sources.items():
            if one.name not in back:
                continue
            part = 0 if number < one.size else 1 + number - one.size
            gradient = back[one.name][part]
            if gradient is None:
                continue
            change = self.change[one.name]
            if part == 0:
                product = change.features[..., number] * gradient[..., number]
            else:
                product = torch.linalg.vecdot(change.rest[one.rest[part - 1]], gradient)
            each[text] = float(self._at(product, position).sum())
        return each

    def _carried(self, one: Standing, number: int, position: int | None) -> Tensor:
        """The gradient of the metric at a node times the node, which is to be differentiated."""
        state, slope = self.cut.states[one.name], self.slopes[one.name]
        if number < one.size:
            steep = slope.to(one.rows.dtype) @ one.rows[number]
            product = steep * state.features[..., number]
        else:
            product = torch.linalg.vecdot(slope, state.rest[one.rest[number - one.size]])
        return self._at(product, position).sum()

    def _at(self, x: Tensor, position: int | None) -> Tensor:
        """Of "batch pos" the one position, or all; in the last block the first ones are missing."""
        if position is None:
            return x
        at = position - (self.length - x.shape[1])
        return x[:, at : at + 1] if 0 <= at < x.shape[1] else x[:, :0]


class _Cutting(Visitor):
    """Lets the run pass through each dictionary's nodes, taken as given, and keeps how each node came about.

    Attributes:
        states: The nodes, which know what they came from.
        leaves: The nodes, as given: features, then errors and skips.
        before: For each dictionary's name those that wrote before it did.
    """

    def __init__(self, dictionaries: list[Standing]) -> None:
        self.dictionaries = dictionaries
        self.read: dict[str, Tensor] = {}
        self.states: dict[str, State] = {}
        self.leaves: dict[str, list[Tensor]] = {}
        self.before: dict[str, list[str]] = {}

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        for one in self.dictionaries:
            if (site, layer) == one.read_at:
                self.read[one.name] = one.read(x)
            if (site, layer) == one.at:
                x = self._cut(one, x)
        return x

    def _cut(self, one: Standing, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        state = one.state(self.read[one.name][:, -flat.shape[1] :], flat)
        self.before[one.name], self.states[one.name] = list(self.leaves), state
        leaves = [part.detach().requires_grad_() for part in (state.features, *(state.rest[p] for p in one.rest))]
        self.leaves[one.name] = leaves
        # Each difference is 0: the run goes on from the very same activation, and only gradients see the leaves.
        written = (leaves[0] - leaves[0].detach()) @ one.rows
        new = flat.detach() + written.to(flat.device, flat.dtype)
        for leaf in leaves[1:]:
            new = new + (leaf - leaf.detach())
        return new.reshape(x.shape)
