"""One training run in several processes: each takes its share of every batch, and torch's DDP averages gradients.

What is averaged are means over rows, so that losses and steps are those of one process with the whole batch, but for
the order in which sums are taken. Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel
Training", arXiv:2006.15704.
"""

from __future__ import annotations

import copy
import platform
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from interp.engine.shared import marked, sees
from interp.engine.spread import Died, Elsewhere, Together
from interp.errors import InterpError, UsageError
from interp.features.architectures.batch_topk import BatchTopK
from interp.features.architectures.dictionary import Batch, Dictionary, Step
from interp.features.training.run import Objective, Run, unfold
from interp.features.training.settings import TrainSettings

__all__ = ["Ended", "SharedRun", "train_together"]

_TRIES = 3
_TIMEOUT = timedelta(minutes=10)
"""After which a process gives up on the others."""
_SECONDS = 0.5
"""Of steps that are made before the caller hears of them, about."""


@dataclass(frozen=True)
class Ended:
    """How far a run got, and its reports."""

    steps: int
    tokens: int
    metrics: list[dict[str, Any]]


def train_together(
    workers: Elsewhere,
    dictionary: Dictionary,
    batches: Iterable[Any],
    length: tuple[int | None, int | None],
    settings: TrainSettings,
    directory: Path | None,
    resume: bool,
    report: Callable[[dict[str, Any]], None] | None,
) -> Ended:
    """Trains a dictionary, in place, in all workers; see `interp.features.train`.

    When a worker dies, all begin again, from the last checkpoint if there is a directory.

    Args:
        workers: Where.
        dictionary: What to train.
        batches: Sent to every worker: what a file system that all see holds, or what can be pickled.
        length: Steps, or tokens.
        settings: How.
        directory: Written to by the first worker.
        resume: Go on from the checkpoint in it.
        report: Called with each report.

    Raises:
        UsageError: Batches that can't be sent, or a kind of dictionary or settings that look at a whole batch.
        InterpError: Workers died again and again, or don't see the directory; and whatever training raises.
    """
    if isinstance(dictionary, BatchTopK):
        raise UsageError(
            f"a {dictionary.architecture} dictionary chooses latents of the whole batch, which workers that share it "
            "don't see: train it without a cluster, or take topk or jumprelu"
        )
    if settings.resample_every:
        raise UsageError("resampling looks at the whole batch, which workers that share it don't see; leave it out")
    if iter(batches) is batches and not hasattr(batches, "state"):
        raise UsageError(
            "workers that share batches each go through them: give a list, or store.batches(...), not an iterator that "
            "can be gone through once"
        )
    device, seen = dictionary.b_dec.device.type, 0
    first = copy.deepcopy(dictionary).cpu()
    with nullcontext("") if directory is None else marked(directory) as mark:
        folder = None if directory is None else directory.resolve()
        for _ in range(_TRIES):
            given = (first, batches, length, settings, folder, mark, resume, device)
            progress = _Progress(report, seen)
            try:
                with workers.together(_begin, given) as call:
                    ended, weights = _all_steps(call, progress)
            except Died as error:
                died, seen = error, progress.seen
                resume = resume or progress.saved > 0
                continue
            unfold(dictionary)
            dictionary.load_state_dict(weights)
            dictionary.eval()
            if (sign := getattr(batches, "sign", None)) is not None:
                sign(dictionary)
            return ended
    raise InterpError(f"workers died {_TRIES} times in this training ({died}), which looks like too little memory")


class _Progress:
    """A bar and reports of what workers have made."""

    def __init__(self, report: Callable[[dict[str, Any]], None] | None, seen: int) -> None:
        self.report, self.seen, self.saved = report, seen, 0
        self.shown = sys.stderr.isatty() or "ipykernel" in sys.modules

    def of(self, step: int, total: int) -> tqdm:
        return tqdm(total=total, initial=step, desc="training", delay=2.0, leave=False, disable=not self.shown)

    def heard(self, lines: list[dict[str, Any]], saved: int) -> None:
        self.saved = saved
        for line in lines:
            if line["step"] > self.seen:
                self.seen = line["step"]
                if self.report:
                    self.report(line)


def _all_steps(call: Together, progress: _Progress) -> tuple[Ended, dict[str, Tensor]]:
    step, total, *_ = call(("advance", 0))[0]
    at_once = 1
    with progress.of(step, total) as bar:
        while step < total:
            began = time.perf_counter()
            now, _, lines, saved, summary = call(("advance", at_once))[0]
            bar.update(now - step)
            bar.set_postfix_str(summary, refresh=False)
            step = now
            progress.heard(lines, saved)
            at_once = at_once * 2 if time.perf_counter() - began < _SECONDS else max(1, at_once // 2)
    return call(("finish", 0))[0]


class SharedRun(Run):
    """A run in one of several processes, which are joined before it begins."""

    def __init__(
        self,
        dictionary: Dictionary,
        batches: Iterable[Any],
        settings: TrainSettings,
        directory: Path | None,
        objective: Objective | None = None,
    ) -> None:
        super().__init__(dictionary, batches, settings, directory, None, objective)
        self.rank, self.processes = dist.get_rank(), dist.get_world_size()
        self.copies: nn.Module | None = None

    def begin(self, steps: int | None, tokens: int | None, resume: bool) -> None:
        if self.rank and not (resume and self.path and self.path.exists()):
            self.directory = None
        super().begin(steps, tokens, resume)
        if self.rank:
            self.directory = None  # the first process writes
        if self.batch < self.processes:
            raise UsageError(f"a batch of {self.batch} has no share for each of {self.processes} workers")
        self.copies = DistributedDataParallel(_Loss(self.dictionary, self.objective), broadcast_buffers=False)

    def _share(self, batch: Batch) -> Batch:
        n = len(batch.x)
        part = slice(n * self.rank // self.processes, n * (self.rank + 1) // self.processes)
        return Batch(*(None if one is None else one[part] for one in batch))  # type: ignore[arg-type]

    def _step(self, batch: Batch, sparsity: float, dead: Tensor) -> Step:
        assert self.copies is not None
        return self.copies(batch, sparsity, dead)

    def _weight(self, share: Batch, batch: Batch) -> float:
        return self.processes * len(share.x) / len(batch.x)

    def _mean(self, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x / self.processes

    def _fired(self, step: Step) -> Tensor:
        fired = super()._fired(step).to(torch.int32)
        dist.all_reduce(fired, dist.ReduceOp.MAX)
        return fired.bool()

    def _report(self, lr: float) -> None:
        self.window.pooled(self._mean, self.processes)
        super()._report(lr)


class _Loss(nn.Module):
    """A dictionary's step as a module's forward pass, which is what DDP wraps."""

    def __init__(self, dictionary: Dictionary, objective: Objective) -> None:
        super().__init__()
        self.dictionary, self.objective = dictionary, objective

    def forward(self, batch: Batch, sparsity: float, dead: Tensor) -> Step:
        return self.objective.step(batch, sparsity, dead)


def _begin(
    model: None,
    dictionary: Dictionary,
    batches: Iterable[Any],
    length: tuple[int | None, int | None],
    settings: TrainSettings,
    directory: Path | None,
    mark: str,
    resume: bool,
    device: str,
    rank: int,
    processes: int,
    address: str,
) -> Callable[[tuple[str, int]], Any]:
    """Joins the other workers and makes steps with them as they are asked for."""
    if directory is not None and not sees(directory, mark):
        raise InterpError(
            f"the worker on {platform.node()} does not see {directory}: a cluster trains into a directory on a file "
            "system that all its nodes share"
        )
    if dist.is_initialized():
        dist.destroy_process_group()
    backend = "gloo" if device == "cpu" else "nccl"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=processes, timeout=_TIMEOUT)
    run = SharedRun(dictionary.to(device), batches, settings, directory)
    run.begin(*length, resume)
    told = 0

    def work(part: tuple[str, int]) -> Any:
        nonlocal told
        what, steps = part
        if what == "advance":
            for _ in range(min(steps, run.total - run.step)):
                run.advance()
            lines, told = run.metrics[told:], len(run.metrics)
            return None if rank else (run.step, run.total, lines, run.saved, run.summary)
        run.finish()
        dist.destroy_process_group()
        weights = {name: tensor.cpu() for name, tensor in run.dictionary.state_dict().items()}
        return None if rank else (Ended(run.step, run.tokens, run.metrics), weights)

    return work
