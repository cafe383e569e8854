"""AtP*: attribution patching with a softmax recomputed for queries and keys, and with layers dropped in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine import rules as rule_sets
from interp.engine.forward import Walk
from interp.engine.gradient import STREAM, Flow
from interp.engine.parts import Block
from interp.engine.rules import Rules
from interp.errors import UsageError
from interp.gradients import gradients
from interp.graph import site_of
from interp.patching.attribution import check_kinds
from interp.patching.estimates import Batch, Estimated, Plan, assembled, effect, labelled_estimates, reduced, room
from interp.patching.labels import concatenated
from interp.tasks import Task

__all__ = ["atp_star", "key_effects", "star_estimates"]


@gradients()
def atp_star(
    model: TransformerBridge,
    task: Task,
    nodes: str | Sequence[str] = "heads",
    by_position: bool | Literal["named"] = False,
    mode: Literal["denoising", "noising"] = "denoising",
    *,
    qk_fix: bool = True,
    grad_drop: bool = True,
    rules: str | Rules = "gradient",
    metric: str | Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    indices: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    per_example: bool = False,
    max_memory: int | None = None,
) -> xr.DataArray:
    """AtP*: `attribution` with two corrections for effects that a gradient misses.

    *Query and key correction* (kinds ``q`` and ``k``): where the softmax is saturated its gradient vanishes although
    another query or key would change the pattern. So the pattern with the patched query or key is computed exactly,
    and the estimate is (that pattern - the base run's) times the gradient at the pattern. A key changes one column
    of the scores for all queries after it, which has a closed form: the cost stays of the order of the pattern's own
    size. With grouped-query attention a key counts in all heads that share it.

    *GradDrop*: a node's direct and indirect effect may cancel in the gradient. So the estimate is made once for every
    layer, with the attention and MLP of that layer passing nothing back, and the absolute estimates are averaged. The
    paper's factor 1 / (L - 1) is this mean, since of L passes the one that drops a node's own layer says nothing about
    it; nodes of the residual stream are cut off by no layer, so theirs is the mean over all L. The paper's result is a
    magnitude. Here it is given the sign of the estimate without dropping, example by example, so that it compares
    with `activation`; where that estimate is close to 0 the sign means little.

    Args:
        qk_fix: Make the query and key correction.
        grad_drop: Make one backward pass for each layer instead of one, and average.
        rules: What flows back; the paper's method has plain gradients.
        The rest as in `attribution`.

    Returns:
        Estimated effects with the dims, labels and attributes of `activation`, and ``method``, ``rules``, ``qk_fix``
        and ``grad_drop``.

    Raises:
        UsageError: As `attribution`; and GradDrop on a model of one layer.
        InterpError: Logits or gradients that are not finite.

    Reference: Kramár, Lieberum, Shah, Nanda 2024, "AtP*: An efficient and scalable method for localizing LLM
    behaviour to components", arXiv 2403.00745: eqs. 7 to 10 (queries and keys), algorithm 4 (keys at the cost of the
    pattern), eq. 11 (GradDrop).
    """
    kinds = [nodes] if isinstance(nodes, str) else list(nodes)
    check_kinds(kinds)
    chosen = rule_sets.rules(rules)
    began = time.perf_counter()
    plan = Plan(model, task, kinds, by_position, mode, metric, layers, indices, positions, max_memory)
    found = star_estimates(plan, chosen, qk_fix, grad_drop)
    attrs = {"method": "atp*", "rules": str(chosen), "qk_fix": qk_fix, "grad_drop": grad_drop}
    each = labelled_estimates(plan, found, per_example, time.perf_counter() - began, **attrs)
    return each[0] if isinstance(nodes, str) else concatenated(kinds, each)


def star_estimates(
    plan: Plan, chosen: Rules, qk_fix: bool = True, grad_drop: bool = True
) -> dict[str, Float[Tensor, "*node example metric"]]:
    """Estimates of all kinds of node of a plan, as `interp.patching.attribution.estimates` gives them."""
    n_layers = plan.parts.graph.n_layers
    if grad_drop and n_layers < 2:
        raise UsageError("GradDrop averages over the other layers, and this model has one; use grad_drop=False")
    here = partial(_star, plan, chosen, qk_fix, grad_drop)
    return assembled(plan, here, _begin, (plan.given, chosen, qk_fix, grad_drop))


def _begin(model: TransformerBridge, given: dict[str, Any], *settings: Any) -> Callable[[slice], Estimated]:
    """Computes estimates of some examples on a worker's own model."""
    return partial(_star, Plan(model, **given), *settings)


@gradients()
def _star(plan: Plan, chosen: Rules, qk_fix: bool, grad_drop: bool, examples: slice) -> Estimated:
    n_layers = plan.parts.graph.n_layers
    corrected = plan.sites & {"q", "k"} if qk_fix else set()
    sites = plan.sites | ({"q", "k", "pattern", "k_rotated"} if corrected else set())
    batch = Batch(plan, examples, sites, chosen)
    found = {kind: room(plan, kind, batch) for kind in plan.kinds}
    for number in range(len(plan.experiment.metrics)):
        flow = batch.backward(number, sites, drops=grad_drop)
        estimate = _Estimate(batch, flow, corrected)
        plain = {kind: estimate.of(kind, flow.gradients, range(n_layers)) for kind in plan.kinds}
        once = {kind: reduced(plan, kind, plain[kind], batch.examples) for kind in plan.kinds}
        if grad_drop:
            total = {kind: torch.zeros_like(once[kind]) for kind in plan.kinds}
            for layer in range(n_layers):
                dropped = flow.drop(layer)
                for kind in plan.kinds:
                    effects = {**plain[kind], **estimate.of(kind, dropped, range(layer + 1))}
                    total[kind] += reduced(plan, kind, effects, batch.examples).abs()
            once = {
                kind: once[kind].sign() * total[kind] / (n_layers - (site_of(kind) not in STREAM))
                for kind in plan.kinds
            }
        for kind in plan.kinds:
            found[kind][..., number] = once[kind]
    base, other = batch.logits()
    return found, base.cpu(), other.cpu()


class _Estimate:
    """From what flows back to the effects of a kind's nodes, in a batch."""

    def __init__(self, batch: Batch, flow: Flow, corrected: set[str]) -> None:
        self.batch, self.values, self.corrected = batch, flow.values, corrected
        self.all_at_once = not batch.plan.by_position
        self.walk = Walk(batch.plan.parts, batch.plan.stop)

    def of(self, kind: str, gradients: dict[tuple[str, int], Tensor], layers: range) -> dict[int, Tensor]:
        """The effects "batch *index pos" in some of the layers that the kind's axes have."""
        site, wanted = site_of(kind), set(self.batch.plan.axes[kind].layers)
        effects = {}
        for layer in sorted(wanted & set(layers)):
            if site in self.corrected:
                effects[layer] = self._by_pattern(site, layer, gradients["pattern", layer])
            else:
                at = (site, layer)
                effects[layer] = effect(site, self.batch.other[at] - self.values[at], gradients[at])
        return effects

    @torch.no_grad()
    def _by_pattern(self, site: str, layer: int, gradient: Tensor) -> Tensor:
        walk, block, values = self.walk, self.walk.parts.blocks[layer], self.values
        first = walk.length - gradient.shape[2]
        keys, other = values["k_rotated", layer], self.batch.other[site, layer]
        if site == "q":
            patched = walk._pattern(block, walk.turned(block, other[:, first:], "q", first), keys, first)
            return ((patched - values["pattern", layer]) * gradient).sum(-1)
        queries = walk.turned(block, values["q", layer][:, first:], "q", first)
        patched_keys = walk.turned(block, other, "k", 0)
        if self.all_at_once:
            change = walk._pattern(block, queries, patched_keys, first) - values["pattern", layer]
            effects = (change * gradient).sum((-2, -1)).unsqueeze(-1)
        else:
            effects = key_effects(walk, block, queries, keys, patched_keys, gradient, first)
        return effects.unflatten(1, (keys.shape[2], -1)).sum(2)


def key_effects(
    walk: Walk,
    block: Block,
    queries: Float[Tensor, "batch query head d_head"],
    keys: Float[Tensor, "batch key kv_head d_head"],
    patched: Float[Tensor, "batch key kv_head d_head"],
    gradient: Float[Tensor, "batch head query key"],
    first: int,
) -> Float[Tensor, "batch head key"]:
    """For each key by itself: the change of all later queries' patterns, if it were patched, times the gradient.

    A patched key changes one score of a query's row, from s to s'. If R is the log of the sum of exp over all other
    scores of the row, the key's own share goes from p = sigmoid(s - R) to p' = sigmoid(s' - R), and the others' shares
    shrink or grow alike, so the row's change times the gradient G is (p' - p) (G - G's mean over the others, weighted
    by exp(score - R)). Sums over all scores but one come from cumulative sums from both ends; in logarithms, since
    1 - p would lose all its digits just where the softmax is saturated.

    Args:
        walk: The walk that the patterns belong to.
        block: The block.
        queries: Rotated queries, whose first position is `first`.
        keys: Rotated keys of the base run.
        patched: Rotated keys to patch in.
        gradient: At the pattern.
        first: The first query's position.
    """
    old = walk.scores(block, queries, keys, first).double()
    new = walk.scores(block, queries, patched, first).double()
    rest = _all_but_one(old)
    if block.sinks is not None:  # a share that stays with no key
        rest = torch.logaddexp(rest, block.sinks.double()[:, None, None])
    change = torch.sigmoid(new - rest) - torch.sigmoid(old - rest)
    above, below = (_all_but_one(old + (sign * gradient.double()).clamp(min=0).log()) for sign in (1, -1))
    others = torch.exp(above - rest) - torch.exp(below - rest)
    return torch.where(change == 0, 0.0, change * (gradient - others)).sum(2).to(gradient.dtype)


def _all_but_one(x: Float[Tensor, "... key"]) -> Float[Tensor, "... key"]:
    """For each entry the log of the sum of exp of all others."""
    edge = torch.full_like(x[..., :1], -torch.inf)
    before = torch.cat([edge, x.logcumsumexp(-1)[..., :-1]], -1)
    after = torch.cat([x.flip(-1).logcumsumexp(-1).flip(-1)[..., 1:], edge], -1)
    return torch.logaddexp(before, after)
