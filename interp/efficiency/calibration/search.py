"""Which heads do better calibrated: one at a time on held-out examples, or all at once to first order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from interp.efficiency.calibration.attention import Spot
from interp.efficiency.calibration.plan import CalibrationPlan
from interp.efficiency.calibration.rules import ByAttention
from interp.efficiency.deployment import deployment
from interp.efficiency.kv_cache.geometry import deployed
from interp.efficiency.pruning.anatomy import anatomy
from interp.engine.identity import versions
from interp.engine.progress import track
from interp.errors import UsageError
from interp.gradients import gradients
from interp.results import scores
from interp.results.finding import Head
from interp.results.findings import CalibrationHeads
from interp.tasks import Task

__all__ = ["search_heads"]


@gradients()
def search_heads(
    model: Any,
    task: Task,
    *,
    budget: float = 0.4,
    alpha: float = 5.0,
    initial: int = 1,
    exact: Sequence[Head] | bool = False,
    batch: int = 8,
) -> CalibrationHeads:
    """Finds the heads whose calibration does good on some examples, which should not be those that it is judged on.

    Args:
        model: A bridge or a deployed model.
        task: The examples, with the metric that is to rise.
        budget: See `ACT`.
        alpha: See `ACT`.
        initial: Tokens at the start that are left alone.
        exact: Run the task once for each head (or each of some heads), as the paper does; else the effect of all
            heads is taken to first order, the derivative of the metric by how far each head's change is made, in one
            backward pass.
        batch: Examples at a time.

    Returns:
        The scores of all heads.

    Raises:
        UsageError: Examples of different lengths.

    Reference: Yu et al. 2024, arXiv:2406.15765, section 4, "head filtering": heads on which calibration raises the
    accuracy of a small held-out set. The first-order version is ours.
    """
    if not task.aligned:
        raise UsageError(f"the search needs examples of one length; make task {task.name!r} without mixed_lengths")
    hf = deployed(model)
    body, found = anatomy(hf), deployment(hf)
    shape = (max(found.layers) + 1, body.heads)
    rule = ByAttention(alpha, initial)

    def plan(heads: Sequence[Head]) -> CalibrationPlan:
        return CalibrationPlan(
            model=found.name,
            fingerprint=found.fingerprint,
            method="search",
            budget=budget,
            heads=tuple(heads),
            strength=1 - budget,
            sinks=rule.settings(),
        )

    every = [(layer, head) for layer in found.layers for head in range(body.heads)]
    evidence = {}
    if exact is False:
        effect = _first_order(hf, task, plan(every), shape, batch)
    else:
        effect, accuracy = _one_by_one(hf, task, plan, every if exact is True else list(exact), shape, batch)
        evidence["accuracy"] = scores(accuracy, ("layer", "head"), name="change of accuracy")
    units = task.measure.units
    return CalibrationHeads(
        model=found.name,
        fingerprint=found.fingerprint,
        evidence={"scores": scores(effect, ("layer", "head"), name="change of metric", units=units), **evidence},
        settings={
            "task": task.name,
            "n": len(task),
            "seed": task.seed,
            "split": task.split,
            "metric": task.measure.name,
            "budget": budget,
            "alpha": alpha,
            "initial": initial,
            "versions": versions(),
        },
        n_kv_heads=body.kv_heads,
        target=task.name,
        method="gradient" if exact is False else "exact",
    )


def _first_order(
    model: PreTrainedModel, task: Task, plan: CalibrationPlan, shape: tuple[int, int], batch: int
) -> Float[Tensor, "layer head"]:
    effect, body = torch.zeros(shape), anatomy(model)
    run: Any = model
    with plan.applied(model):
        spots: list[Spot] = [s for at in body.layers if (s := vars(body.attention(at).module).get("calibration"))]
        gates = [torch.zeros(len(spot.heads), device=model.device, requires_grad=True) for spot in spots]
        for spot, gate in zip(spots, gates, strict=True):
            spot.gate = gate
        for part in task.batches(batch):
            metric = part.metric(run(input_ids=part.clean.to(model.device), use_cache=False).logits)
            sign = 1 if task.measure.higher_is_clean else -1
            slopes = torch.autograd.grad(sign * metric, gates)
            for spot, slope in zip(spots, slopes, strict=True):
                left = body.attention(spot.layer).heads
                at = [left[place] for place in spot.heads]
                effect[spot.layer, at] += slope.float().cpu() * len(part) / len(task)
    return effect


@torch.no_grad()
def _one_by_one(
    model: PreTrainedModel, task: Task, plan: Any, heads: list[Head], shape: tuple[int, int], batch: int
) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
    effect, accuracy = torch.zeros(shape), torch.zeros(shape)
    sign = 1 if task.measure.higher_is_clean else -1
    with track(len(heads) + 1, "heads") as advance:
        metric, right = _judged(model, task, batch)
        advance(1)
        for head in heads:
            with plan([head]).applied(model):
                mine, share = _judged(model, task, batch)
            effect[head], accuracy[head] = sign * (mine - metric), share - right
            advance(1)
    return effect, accuracy


def _judged(model: Any, task: Task, batch: int) -> tuple[float, float]:
    metric = right = 0.0
    for part in task.batches(batch):
        logits = model(input_ids=part.clean.to(model.device), use_cache=False).logits
        metric += float(part.metric(logits)) * len(part) / len(task)
        right += part.accuracy(logits) * len(part) / len(task)
    return metric, right
