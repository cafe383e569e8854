"""Effects of dictionary features and of the error term: exact patching, attribution, integrated gradients.

A feature is patched by giving it the activation that it has in the other run; all other features and the error keep
theirs, so that the activation changes by the feature's decoder row only. The error is patched alike. Errors are nodes
as features are: what a dictionary does not explain must not be left out of the account.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine import rules as rule_sets
from interp.engine.rules import Rules
from interp.errors import UsageError, unknown_name
from interp.gradients import gradients
from interp.patching.estimates import Plan, along_activation, batches, placed
from interp.patching.experiment import Experiment
from interp.patching.features.dictionaries import Chosen, difference, standing
from interp.patching.features.exact import exact
from interp.patching.labels import labelled, positions_of
from interp.tasks import Task

__all__ = ["METHODS", "feature_effects"]

METHODS = ("exact", "attribution", "ig")
"""Exact patching, the gradient at the base run, and integrated gradients."""


@gradients()
def feature_effects(
    model: TransformerBridge,
    task: Task,
    dictionaries: Any,
    method: Literal["exact", "attribution", "ig"] = "attribution",
    by_position: bool | Literal["named"] = False,
    mode: Literal["denoising", "noising"] = "denoising",
    *,
    nodes: Sequence[str] | None = None,
    steps: int = 10,
    rules: str | Rules = "gradient",
    metric: str | None = None,
    positions: Sequence[int] | None = None,
    per_example: bool = False,
    max_memory: int | None = None,
    checkpoint: str | Path | None = None,
) -> xr.DataArray:
    """The effect of each feature, and of the error, of one or several dictionaries.

    With a the node's activation, base and other the two runs, m the metric and E the effect:

    - ``exact``: E = m(base | a = a_other) - m(base), a run of the rest of the model for each node;
    - ``attribution``: E = grad_a m(base) . (a_other - a_base), from one backward pass for all nodes;
    - ``ig``: the gradient's mean over `steps` midpoints of the straight way from a_base to a_other, on which a
      dictionary's features and error go together; a pass for each dictionary. (The paper takes the way's left
      points, alpha = 0, 1/N, ...; the midpoints' error falls with the square of the steps.)

    The estimates of a dictionary's features and error add up to the estimate for the activation itself. Integrated
    gradients thereby share out what the whole activation does; where most of that is the error's, they can be far
    from what each feature does by itself, which attribution and exact patching tell.

    Args:
        model: Any bridge. It is only read; its hooks are not used.
        task: Prompt pairs, answers and metric.
        dictionaries: A dictionary, several, or several by name: autoencoders and transcoders at any places. Without
            names they are called after where they write.
        method: One of `METHODS`.
        by_position: Each position by itself, ``"named"`` for the task's named ones. Otherwise a node is patched at
            all positions at once, and estimates are added up.
        mode: ``denoising`` patches clean into corrupted prompts, ``noising`` the other way (as the paper does).
        nodes: Only these nodes, such as ``["resid_post.15.f17", "resid_post.15.error"]``; all by default. Features
            that are the same in both runs are not run: their effect is 0.
        steps: Of integrated gradients.
        rules: What flows back in ``attribution`` and ``ig``, as in `interp.patching.attribution`.
        metric: Instead of the task's own.
        positions: Only these positions, with `by_position`.
        per_example: Keep the examples apart, along a dimension ``example``.
        max_memory: Bytes for the rows that are run together.
        checkpoint: With ``exact``, a file to go on from after an interruption.

    Returns:
        Effects, patched minus baseline, in the metric's units. Dims ``node`` and, if asked, ``position``; along
        ``node`` also the labels ``dictionary``, ``layer``, ``site`` and ``feature`` (-1 for what is no feature).

    Raises:
        UsageError: Unknown methods, nodes or positions, or a dictionary that does not fit the model.
        InterpError: Logits or gradients that are not finite, or memory that does not suffice.

    Reference: Marks et al. 2024, "Sparse Feature Circuits", arXiv:2403.19647, eq. 2 (the indirect effect), 3
    (attribution patching) and 4 (integrated gradients).

    Example:
        >>> effects = feature_effects(model, task, sae)                                    # doctest: +SKIP
        >>> effects[abs(effects).argsort()[::-1][:10]]                                     # doctest: +SKIP
    """
    if method not in METHODS:
        raise unknown_name("method", str(method), METHODS)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise UsageError(f"steps must be 1 or more, got {steps!r}")
    if checkpoint is not None and method != "exact":
        raise UsageError(f"a checkpoint is for method='exact', not {method!r}")
    began = time.perf_counter()
    if method == "exact":
        metrics = [metric] if metric else None
        experiment = Experiment(model, task, mode=mode, metrics=metrics, max_memory=max_memory)
        chosen = Chosen(standing(dictionaries, experiment.parts), nodes)
        places, labels = positions_of(task, by_position, positions)
        found = exact(experiment, chosen, places, checkpoint)
        settings: dict[str, Any] = {}
    else:
        flows_of = rule_sets.rules(rules)
        plan = Plan(model, task, [], by_position, mode, metric, positions=positions, max_memory=max_memory)
        experiment = plan.experiment
        chosen = Chosen(standing(dictionaries, plan.parts), nodes)
        places, labels = positions_of(task, by_position, positions)
        found = _estimated(plan, chosen, places, flows_of, steps if method == "ig" else 0)
        settings = {"rules": str(flows_of), "steps": steps if method == "ig" else 1}
    return labelled(
        experiment,
        found,
        ["node", "position"] if by_position else ["node"],
        {**chosen.labels, **labels},
        None,
        per_example,
        nodes="features",
        method=method,
        by_position=by_position,
        seconds=round(time.perf_counter() - began, 3),
        dictionaries={one.name: one.digest() for one in chosen.dictionaries},
        **settings,
    )


def _estimated(
    plan: Plan, chosen: Chosen, places: list[Any], rules: Rules, steps: int
) -> Float[Tensor, "node *place example 1"]:
    """Estimates from gradients: at the base run if `steps` is 0, else along the way."""
    one_for_each = [] if places == [None] else [len(places)]
    found = torch.zeros(len(chosen.nodes), *one_for_each, len(plan.task))
    sites = {at[0] for one in chosen.dictionaries for at in (one.read_at, one.at)}
    for batch in batches(plan, sites, rules, max(1, steps)):
        if steps:
            values, flows = batch.base_run(sites | {"resid_pre"}), {}
        else:
            flow = batch.backward(0, sites)
            values, flows = flow.values, flow.gradients
        for one in chosen.dictionaries:
            rows, numbers = chosen.of[one.name]
            if not rows:
                continue
            back = along_activation(batch, 0, values, one.at, steps) if steps else flows[one.at]
            with torch.no_grad():
                change = difference(one.state_of(batch.other), one.state_of(values))
                each = one.effects(change, back)[..., numbers].movedim(-1, 0).movedim(1, -1)
            found[rows, ..., batch.examples] = placed(each, places, plan.stop, batch.examples).float().cpu()
    return found[..., None]
