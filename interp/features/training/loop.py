"""One training loop for all dictionaries."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.engine.spread import elsewhere
from interp.errors import UsageError
from interp.features.architectures.dictionary import Dictionary
from interp.features.training.run import Objective, Run
from interp.features.training.settings import TrainSettings
from interp.gradients import gradients

__all__ = ["TrainSettings", "Training", "train"]


@dataclass(frozen=True)
class Training:
    """A finished run: the dictionary, how far it got, and its reports."""

    dictionary: Dictionary
    steps: int
    tokens: int
    metrics: list[dict[str, Any]]
    directory: Path | None


@gradients()
def train(
    dictionary: Dictionary,
    batches: Iterable[Any],
    steps: int | None = None,
    *,
    tokens: int | None = None,
    settings: TrainSettings | None = None,
    directory: str | os.PathLike[str] | None = None,
    resume: bool = True,
    report: Callable[[dict[str, Any]], None] | None = None,
    objective: Objective | None = None,
) -> Training:
    """Trains a dictionary, in place.

    Over a cluster (`interp.scale.over`) each worker takes its share of every batch, and gradients are averaged: the
    losses are those of one process with the whole batch, but for rounding.

    Args:
        dictionary: What to train. It is moved to the batches' ``device``, where they have one: that of the model.
        batches: Activations, batch by batch: tensors "batch d", pairs (read, to be written), triples with the loss's
            gradient, or mappings from places to tensors (of dictionaries of several places the tensors have the
            activations side by side). If it has ``state()`` and ``restore(state)``, a resumed run
            restores it; otherwise the batches of the steps already made are skipped. If it has ``sign(dictionary)``,
            that is called at the end, to write into the dictionary what it was trained on.
        steps: How many batches; or
        tokens: how many activations, rounded up to whole batches.
        settings: How.
        directory: Where checkpoints (``checkpoint.safetensors``), reports (``metrics.jsonl``) and finally the
            dictionary are written; nowhere if None.
        resume: Go on from the checkpoint in the directory, if there is one. The weights are then those of a run
            that was never interrupted, bit by bit on one machine with the same number of threads. So a finished run
            can be made longer where its schedule does not depend on its length (no warmup and no decay).
        report: Called with each report.
        objective: What is minimised, and what the batches are then; by default the dictionary's own loss.

    Returns:
        The run. The dictionary is in evaluation mode.

    Raises:
        UsageError: Neither or both of `steps` and `tokens`; too few activations; a checkpoint of something else, or of
            a run of another length whose steps would have been others.
        InterpError: The loss became NaN or infinite; the last good checkpoint stays.
    """
    if (steps is None) == (tokens is None):
        raise UsageError("say how long to train: either steps or tokens")
    if (steps if steps is not None else tokens or 0) < 1:
        raise UsageError(f"the length of training must be positive, got {steps if tokens is None else tokens}")
    settings = TrainSettings() if settings is None else settings
    if (workers := elsewhere()) is not None and objective is None:
        from interp.features.training.together import train_together

        where = None if directory is None else Path(directory)
        ended = train_together(workers, dictionary, batches, (steps, tokens), settings, where, resume, report)
        return Training(dictionary, ended.steps, ended.tokens, ended.metrics, where)
    run = Run(dictionary, batches, settings, None if directory is None else Path(directory), report, objective)
    run.begin(steps, tokens, resume)
    with run.progress() as bar:
        while run.step < run.total:
            run.advance()
            bar.update()
            bar.set_postfix_str(run.summary, refresh=False)
    run.finish()
    return Training(dictionary, run.step, run.tokens, run.metrics, run.directory)
