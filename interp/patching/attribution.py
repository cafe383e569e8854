"""Estimated effects of all nodes at once: two forward passes and one backward."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Literal

import xarray as xr
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine import rules as rule_sets
from interp.engine.rules import Rules
from interp.errors import UsageError, unknown_name
from interp.gradients import gradients
from interp.graph import INDEX_OF_SITE, site_of
from interp.patching.estimates import Plan, estimates, labelled_estimates
from interp.patching.labels import concatenated
from interp.tasks import Task

__all__ = ["attribution", "check_kinds"]

ALONG = ("inputs", "activations")


@gradients()
def attribution(
    model: TransformerBridge,
    task: Task,
    nodes: str | Sequence[str] = "heads",
    by_position: bool | Literal["named"] = False,
    mode: Literal["denoising", "noising"] = "denoising",
    *,
    rules: str | Rules = "gradient",
    steps: int = 1,
    along: Literal["inputs", "activations"] = "inputs",
    metric: str | Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    indices: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    per_example: bool = False,
    max_memory: int | None = None,
    compute: Literal["float32"] | None = None,
) -> xr.DataArray:
    """An estimate of what `activation` measures, for all nodes from one backward pass.

    The estimate of a node is the inner product of (its activation in the other run - in the base run) with what
    flows back to it in the base run: the gradient (attribution patching), or what a set of rules lets flow back
    (`relp`, `secant`, ...). The base run is the corrupted one in denoising, the clean one in noising.

    Args:
        model: Any bridge. It is only read; its hooks are not used.
        task: Prompt pairs, answers and metric.
        nodes: As in `activation`; several kinds with the same dimensions come from the same passes.
        by_position: Each position by itself (of a pattern: each query), ``"named"`` for the task's named ones.
            Without it the estimates of a node's positions are added up.
        mode: As in `activation`.
        rules: A name in `interp.engine.rules.RULE_SETS`, or `Rules` of one's own.
        steps: Integrated gradients: the mean of what flows back at the midpoints of so many equal parts of the way
            from base to other (steps=1: at the base run itself). The midpoint rule's error falls with the square
            of the steps; EAP-IG's left end points (k = 0 .. m - 1) have one that falls with the steps.
        along: What is moved from base to other: ``inputs``, the embeddings of all positions at once, or
            ``activations``, all positions of all nodes of the kind in the layer whose nodes are estimated, which
            takes a pass of its own for each layer and kind.
        metric: One or several names of metrics, instead of the task's own; each takes a backward pass.
        layers: Only these layers.
        indices: Only these heads, key-value heads or neurons of each layer.
        positions: Only these positions, with `by_position`.
        per_example: Keep the examples apart, along a dimension ``example``.
        max_memory: Bytes for what a batch of examples keeps for the backward pass.
        compute: ``float32`` to compute in it with the weights of a model in half precision, each matrix cast for the
            moment: on a processor without instructions for bfloat16 a backward pass in it takes 50 times as long.

    Returns:
        Estimated effects with the dims, labels and attributes of `activation`, and the attributes ``method``,
        ``rules``, ``steps`` and ``along``.

    Raises:
        UsageError: Unknown names, nodes out of range, a metric without a gradient, combinations without meaning.
        InterpError: Logits or gradients that are not finite.

    Reference: Nanda 2023, "Attribution patching: activation patching at industrial scale"; Kramár et al. 2024,
    arXiv 2403.00745, eq. 4; RelP: Jafari et al. 2025, arXiv 2508.21258; integrated gradients: Sundararajan et al.
    2017, arXiv 1703.01365; along inputs: Hanna et al. 2024, arXiv 2403.17806; along activations: Marks et al.
    2024, arXiv 2403.19647.

    Example:
        >>> scores = attribution(model, task, ["resid_pre", "mlp_out"], True, rules="relp")   # doctest: +SKIP
    """
    kinds = [nodes] if isinstance(nodes, str) else list(nodes)
    check_kinds(kinds)
    chosen = rule_sets.rules(rules)
    _check_path(chosen, steps, along)
    began = time.perf_counter()
    plan = Plan(model, task, kinds, by_position, mode, metric, layers, indices, positions, max_memory, compute)
    found = estimates(plan, chosen, steps, along)
    attrs = {
        "method": "attribution" if chosen == rule_sets.GRADIENT else "relevance",
        "rules": str(chosen),
        "steps": steps,
        "along": along,
    }
    each = labelled_estimates(plan, found, per_example, time.perf_counter() - began, **attrs)
    _warn_of_zeros(plan, found, chosen)
    return each[0] if isinstance(nodes, str) else concatenated(kinds, each)


def check_kinds(kinds: Sequence[str]) -> None:
    """Refuses kinds of node that can't share an array.

    Raises:
        UsageError: They have different dimensions, or there is none.
    """
    if not kinds or len({INDEX_OF_SITE.get(site_of(kind)) for kind in kinds}) > 1:
        raise UsageError(f"kinds of node with different dimensions can't share an array: {kinds}")


def _check_path(chosen: Rules, steps: int, along: str) -> None:
    if along not in ALONG:
        raise unknown_name("path", str(along), ALONG)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise UsageError(f"steps must be 1 or more, got {steps!r}")
    if steps > 1 and chosen.two_runs:
        raise UsageError("these rules span the way from one run to the other already; take them with steps=1")


def _warn_of_zeros(plan: Plan, found: dict[str, Tensor], chosen: Rules) -> None:
    gaps = plan.experiment.baselines["clean"] - plan.experiment.baselines["corrupted"]
    for kind, values in found.items():
        if values.abs().max() > 1e-6 * gaps.abs().max() or not bool((gaps.abs() > 1e-6).any()):
            continue
        if chosen.attention == "constant" and site_of(kind) in ("q", "k"):
            why = "attention='constant' lets nothing flow back to queries and keys; take other rules"
        elif {m.name for m in plan.experiment.metrics} == {"kl"} and plan.experiment.mode == "noising":
            why = "kl has its minimum, so no slope, at the clean run; take steps > 1 or mode='denoising'"
        else:
            why = "the metric does not depend on these nodes, or they are the same in both prompts"
        warnings.warn(f"all estimates of {kind} are zero although the metric differs: {why}", stacklevel=4)
