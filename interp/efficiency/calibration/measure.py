"""How sure a model is of its answers, and how often it is right: accuracy, metric and calibration error on tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from transformers import DynamicCache, PreTrainedModel

from interp.efficiency.kv_cache.running import cache_plan
from interp.efficiency.quality import Quality
from interp.errors import UsageError
from interp.tasks import Task
from interp.tasks.metrics import pick
from interp.upstream import cached

__all__ = ["Answers", "Choices", "answers", "calibration_error", "temperature"]


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answered, example by example.

    Args:
        margin: Logit of the best right answer over that of the best wrong one.
        metric: The task's metric.
    """

    margin: Float[np.ndarray, " example"]
    metric: Float[np.ndarray, " example"]

    @property
    def right(self) -> Bool[np.ndarray, " example"]:
        """Whether the right answer is likelier than the wrong one."""
        return self.margin > 0

    def confidence(self, heat: float = 1.0) -> Float[np.ndarray, " example"]:
        """The probability of the likelier of the two, between the two alone, at a temperature."""
        return 1 / (1 + np.exp(-np.abs(self.margin) / heat))

    def error(self, heat: float = 1.0) -> float:
        """The calibration error."""
        return calibration_error(self.confidence(heat), self.right)


def calibration_error(
    confidence: Float[np.ndarray, " example"] | Sequence[float],
    right: Bool[np.ndarray, " example"] | Sequence[bool],
    bins: int = 10,
) -> float:
    """The expected calibration error: the mean gap between confidence and accuracy over bins of equal width.

    ECE = sum over bins b of n_b / n |accuracy(b) - mean confidence(b)|, bins ((b - 1) / bins, b / bins].

    Args:
        confidence: In [0, 1].
        right: Whether each answer was right.
        bins: How many.

    Raises:
        UsageError: No examples, different numbers of them, or a confidence outside of [0, 1].

    Reference: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599, eq. 3.
    """
    sure, hit = np.asarray(confidence, float), np.asarray(right, float)
    if sure.ndim != 1 or sure.shape != hit.shape or not sure.size:
        raise UsageError(f"confidence and right must be lists of one length, got shapes {sure.shape} and {hit.shape}")
    if not ((sure >= 0) & (sure <= 1)).all() or bins < 1:
        raise UsageError(f"confidences must be in [0, 1] and bins at least 1; got {sure.min()} to {sure.max()}, {bins}")
    which = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(which, sure - hit, bins)
    return float(np.abs(gaps).sum() / len(sure))


@torch.no_grad()
def answers(model: PreTrainedModel, task: Task, batch: int = 16) -> Answers:
    """What a model answers to a task, with whatever plans are in force.

    The tokens with which all prompts begin are computed once.

    Args:
        model: A deployed model.
        task: Examples of one length.
        batch: Examples at a time.

    Raises:
        UsageError: Examples of different lengths.
    """
    if not task.aligned:
        raise UsageError(f"task {task.name!r} has examples of different lengths; make it without mixed_lengths")
    run: Any = model
    tokens, length = task.clean.to(model.device), int(task.lengths[0])
    same = (tokens == tokens[:1]).all(0)
    # what a plan for the cache drops is dropped behind whole prompts
    shared = min(int(same.int().cumprod(0).sum()), length - 1) if cache_plan(model) is None else 0
    margins, metrics = [], []
    for part in task.batches(batch):
        cache = None
        if shared:
            cache = DynamicCache(config=model.config)
            run(**cached(model, cache, input_ids=tokens[:1, :shared], logits_to_keep=1))
            cache.batch_repeat_interleave(len(part))
        rest = part.clean[:, shared:length].to(model.device)
        logits = run(**cached(model, cache, input_ids=rest, logits_to_keep=1)).logits[:, -1].float()
        metrics.append(part.per_example(logits).cpu())
        best = [pick(logits, ids.to(logits.device), -torch.inf).amax(1) for ids in (part.right, part.wrong)]
        margins.append((best[0] - best[1]).cpu())
    return Answers(torch.cat(margins).numpy(), torch.cat(metrics).numpy())


def temperature(found: Answers) -> float:
    """The temperature at which the right answers of some held-out examples are likeliest: what calibration has to beat.

    Reference: Guo et al. 2017, arXiv:1706.04599, section 4.2, temperature scaling.
    """
    heats = np.exp(np.linspace(-3, 3, 601))
    loss = [np.logaddexp(0, -found.margin.astype(float) / heat).mean() for heat in heats]
    return float(heats[int(np.argmin(loss))])


class Choices(Quality):
    """Behaviours with their calibration error, beside `Tasks`.

    Args:
        tasks: Tasks as `interp.task` makes them, of one length each.
        batch: Examples at a time.

    Numbers: for each task ``name.accuracy``, ``name.metric`` and ``name.ece``, see `calibration_error`.
    """

    better: ClassVar = {}

    def __init__(self, *tasks: Task, batch: int = 16) -> None:
        self.name, self.tasks, self.batch = "choices", tasks, batch

    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        numbers = {}
        for task in self.tasks:
            found = answers(model, task, self.batch)
            numbers[f"{task.name}.accuracy"] = float(found.right.mean())
            numbers[f"{task.name}.metric"] = float(found.metric.mean())
            numbers[f"{task.name}.ece"] = found.error()
        return numbers
