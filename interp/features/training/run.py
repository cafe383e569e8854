"""One training run, step by step."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from interp.errors import InterpError, UsageError
from interp.features.architectures.dictionary import Batch, Dictionary, Step
from interp.features.place import Places, listed
from interp.features.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from interp.features.training.metrics import Window, append_line, lines_until
from interp.features.training.resampling import resample
from interp.features.training.settings import TrainSettings

__all__ = ["Objective", "Reconstruction", "Run", "as_batch", "unfold"]


class Objective(Protocol):
    """What a run minimises."""

    settings: dict[str, Any]
    """What a checkpoint has to agree with, of JSON's types."""

    def batch(self, item: Any) -> Any:
        """An item of the batches, made ready: it has ``x`` and ``target`` as a `Batch` has."""

    def step(self, batch: Any, sparsity: float, dead: Tensor) -> Step:
        """The loss of a batch, see `Dictionary.step`."""


class Reconstruction:
    """The dictionary's own loss, on activations."""

    def __init__(self, dictionary: Dictionary) -> None:
        self.dictionary = dictionary
        self.settings: dict[str, Any] = {}

    def batch(self, item: Any) -> Batch:
        return as_batch(item, self.dictionary)

    def step(self, batch: Batch, sparsity: float, dead: Tensor) -> Step:
        return self.dictionary.step(batch, sparsity, dead)


class Run:
    """A training run between two steps; `begin` it, `advance` it `total` times, then `finish` it."""

    def __init__(
        self,
        dictionary: Dictionary,
        batches: Iterable[Any],
        settings: TrainSettings,
        directory: Path | None,
        report: Callable[[dict[str, Any]], None] | None,
        objective: Objective | None = None,
    ) -> None:
        place = getattr(batches, "device", None)
        self.dictionary = dictionary if place is None else dictionary.to(place)
        self.batches, self.settings = batches, settings
        self.objective = Reconstruction(dictionary) if objective is None else objective
        self.directory, self.report = directory, report
        self.optimizer = _adam(dictionary, settings)
        self.idle = torch.zeros(dictionary.d_sae, dtype=torch.int64, device=dictionary.b_dec.device)
        self.step = self.tokens = self.total = self.saved = self.batch = 0
        self.metrics: list[dict[str, Any]] = []
        self.summary = ""
        self.window = Window()
        self.iterator: Iterator[Any] = iter(())
        self.first: Any = None

    def begin(self, steps: int | None, tokens: int | None, resume: bool) -> None:
        """Resumes, or looks at the first batch to know the number of steps and the mean.

        Raises:
            UsageError: Resampling of a dictionary that can't be resampled, or a checkpoint of something else.
        """
        if self.dictionary.normalisation is not None:
            raise UsageError(
                f"a dictionary that normalises each activation ({self.dictionary.normalisation}) is read, not trained: "
                f"train one without, with scale=store.scale(place)"
            )
        if self.settings.resample_every and not hasattr(self.dictionary, "W_dec"):
            raise UsageError(
                f"a {self.dictionary.architecture} can't be resampled; leave resample_every out (TopK kinds have an "
                f"auxiliary loss for dead latents, the tanh kind has `revive`)"
            )
        unfold(self.dictionary)
        self.dictionary.train()
        if resume and self.path and self.path.exists():
            self._resume(steps, tokens)
            return
        self.iterator = iter(self.batches)
        self.total = 1 if steps is None else steps
        self.first = self._next()
        self.batch = len(self.first.x)
        if tokens is not None:
            self.total = math.ceil(tokens / self.batch)
        if self.settings.centre and not self.dictionary.b_dec.detach().any():
            self.dictionary.b_dec.data.copy_(self.first.target.mean(0))
        if self.directory:
            self.directory.mkdir(parents=True, exist_ok=True)
            lines_until(self.directory / "metrics.jsonl", -1)

    def _resume(self, steps: int | None, tokens: int | None) -> None:
        assert self.path is not None
        assert self.directory is not None
        settings = asdict(self.settings) | self.objective.settings
        path = self.path

        def check(where: Checkpoint) -> None:
            self.batch = where.per_step
            self.total = math.ceil((tokens or 0) / self.batch) if steps is None else steps
            where.check_length(path, self.total, self.settings)

        where = read_checkpoint(path, self.dictionary, self.optimizer, self.idle, settings, check)
        self.step, self.tokens, self.saved = where.step, where.tokens, where.step
        restore = getattr(self.batches, "restore", None)
        if restore is not None:
            restore(where.batches)
        self.iterator = iter(self.batches)
        for _ in range(0 if restore is not None else self.step):
            next(self.iterator, None)
        self.metrics = lines_until(self.directory / "metrics.jsonl", self.step)

    @property
    def path(self) -> Path | None:
        return self.directory / "checkpoint.safetensors" if self.directory else None

    def _next(self) -> Any:
        if self.first is not None:
            batch, self.first = self.first, None
            return batch
        try:
            return self.objective.batch(next(self.iterator))
        except StopIteration:
            raise UsageError(
                f"the activations end after {self.step} batches ({self.tokens:,} tokens), "
                f"but training needs {self.total} batches; give more text or train for fewer steps"
            ) from None

    def advance(self) -> None:
        """One batch."""
        settings, dictionary = self.settings, self.dictionary
        whole = self._next()
        batch = self._share(whole)
        dead = self.idle > settings.dead_after
        device = dictionary.b_dec.device.type
        with torch.autocast(device, torch.bfloat16, enabled=settings.bf16):
            step = self._step(batch, settings.sparsity_at(self.step, self.total), dead)
        weight = self._weight(batch, whole)
        loss = step.loss * weight
        if not math.isfinite(mean := float(self._mean(loss.detach()))):
            raise self._not_finite(mean)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        dictionary.project_gradient()
        if settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(dictionary.parameters(), settings.clip)
        lr = settings.lr_at(self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        dictionary.after_update()
        self.step, self.tokens = self.step + 1, self.tokens + len(whole.x)
        self.idle += len(whole.x)
        self.idle[self._fired(step)] = 0
        self._maybe_resample(batch, step)
        self.window.add(batch, step, weight)
        if self.step % settings.log_every == 0 or self.step == self.total:
            self._report(lr)
        if self.path and (self.step % settings.checkpoint_every == 0 or self.step == self.total):
            self._checkpoint()

    # What differs where several processes share every batch, see `interp.features.training.together`

    def _share(self, batch: Any) -> Any:
        """This process's share of a batch."""
        return batch

    def _step(self, batch: Any, sparsity: float, dead: Tensor) -> Step:
        return self.objective.step(batch, sparsity, dead)

    def _weight(self, share: Any, batch: Any) -> float:
        """What makes the mean over processes of the means over shares the mean over the batch."""
        return 1.0

    def _mean(self, x: Tensor) -> Tensor:
        """The mean over all processes."""
        return x

    def _fired(self, step: Step) -> Tensor:
        """The latents that fired, in any process."""
        return step.codes.fired()

    def _maybe_resample(self, batch: Batch, step: Step) -> None:
        if self.settings.resamples_at(self.step, self.total):
            dead = self.idle > self.settings.dead_after
            resample(self.dictionary, self.optimizer, batch, step.error, dead, self.settings.seed + self.step)
            self.idle[dead] = 0

    def _not_finite(self, loss: float) -> InterpError:
        kept = f"the checkpoint of step {self.saved} in {self.path} is good" if self.saved else "no checkpoint was kept"
        return InterpError(
            f"the loss became {loss} at step {self.step + 1}; {kept}. "
            f"Lower the learning rate ({self.settings.lr:g}), clip gradients, or look for NaN in the activations"
        )

    def _report(self, lr: float) -> None:
        dead = (self.idle > self.settings.dead_after).double().mean()
        line = self.window.line(self.step, self.tokens, float(dead), lr)
        self.window = Window()
        self.metrics.append(line)
        self.summary = (
            f"loss {line['loss']:.3g} L0 {line['l0']:.3g} R² {line['r2']:.3f} dead {line['dead_share']:.1%} "
            f"{line['tokens_per_second']:,.0f} tok/s"
        )
        if self.directory:
            append_line(self.directory / "metrics.jsonl", line)
        if self.report:
            self.report(line)

    def _checkpoint(self) -> None:
        assert self.path
        if not all(bool(p.isfinite().all()) for p in self.dictionary.parameters()):
            raise self._not_finite(float("nan"))
        state = getattr(self.batches, "state", None)
        settings = asdict(self.settings) | self.objective.settings
        where = Checkpoint(self.step, self.tokens, self.total, settings, state() if state else None, self.batch)
        write_checkpoint(self.path, self.dictionary, self.optimizer, self.idle, where)
        self.saved = self.step

    def progress(self) -> tqdm:
        """A bar with the latest report, on a terminal or in a notebook."""
        shown = sys.stderr.isatty() or "ipykernel" in sys.modules
        return tqdm(total=self.total, initial=self.step, desc="training", delay=2.0, leave=False, disable=not shown)

    def finish(self) -> None:
        """Frees the gradients and writes the dictionary, with what it was trained on where the batches know it."""
        self.dictionary.eval()
        self.optimizer.zero_grad(set_to_none=True)
        if (sign := getattr(self.batches, "sign", None)) is not None:
            sign(self.dictionary)
        if self.directory:
            self.dictionary.save(self.directory)


def _adam(dictionary: Dictionary, settings: TrainSettings) -> torch.optim.Adam:
    try:
        return torch.optim.Adam(dictionary.parameters(), lr=settings.lr, betas=settings.betas, fused=True)
    except RuntimeError:  # a device without the fused kernel
        return torch.optim.Adam(dictionary.parameters(), lr=settings.lr, betas=settings.betas)


@torch.no_grad()
def unfold(dictionary: Dictionary) -> None:
    """Takes a scale that saving has folded into the weights out of them again; what the dictionary computes stays.

    It shows in decoder rows whose norms are all the same but not 1, in an architecture that keeps them at 1: the first
    step of training would shrink them. Of a transcoder this finds the scale of what is written only.
    """
    several = len(dictionary.widths_out) > 1 or not hasattr(dictionary, "W_dec")
    if several or not dictionary.unit_norm or dictionary.scale != 1 or dictionary.scale_out != 1:
        return
    norms = dictionary.W_dec.norm(dim=1)
    size = float(norms.mean())
    if abs(size - 1) < 1e-3 or float((norms - size).abs().max()) > 1e-3 * size:
        return
    dictionary.scale_out = 1 / size
    dictionary.W_dec.div_(size)
    dictionary.b_dec.div_(size)
    if dictionary.W_skip is not None:
        dictionary.W_skip.div_(size)
    if not dictionary.is_transcoder:
        dictionary.scale = dictionary.scale_out
        dictionary.W_enc.mul_(size)


def as_batch(item: Any, dictionary: Dictionary) -> Batch:
    """A batch on the dictionary's device, in its dtype and scaled.

    Raises:
        UsageError: The item has not what the dictionary reads or writes, or not its width.
    """
    if isinstance(item, Mapping):
        named = {str(place): tensor for place, tensor in item.items()}
        item = (_of(dictionary.reads, named), _of(dictionary.writes, named), named.get("gradient"))
    if isinstance(item, Tensor):
        if dictionary.is_transcoder:
            raise UsageError("a transcoder learns from pairs (what it reads, what it shall write), got single tensors")
        item = (item, item)
    x, target, gradient = (*item, None)[:3]
    for what, tensor, width in (("read", x, dictionary.d_in), ("written", target, dictionary.d_out)):
        if tensor.ndim != 2 or tensor.shape[1] != width or not len(tensor):
            raise UsageError(f"activations {what} have shape {tuple(tensor.shape)}, expected (batch, {width})")

    def ready(tensor: Tensor, scale: float | Tensor) -> Tensor:
        moved = tensor.to(dictionary.b_dec)
        return moved if isinstance(scale, float) and scale == 1 else moved * scale

    units, units_out = (
        dictionary.units(dictionary.b_dec.detach()),
        dictionary.units(dictionary.b_dec.detach(), out=True),
    )
    read = ready(x, units)
    written = read if target is x and dictionary.scale == dictionary.scale_out else ready(target, units_out)
    return Batch(read, written, None if gradient is None else ready(gradient, 1 / units))


def _of(places: Places | None, named: Mapping[str, Tensor]) -> Tensor:
    """The activations at a dictionary's places, side by side.

    Raises:
        UsageError: Some are missing.
    """
    names = ["None"] if places is None else [str(place) for place in listed(places)]
    missing = [name for name in names if name not in named]
    if missing:
        raise UsageError(f"the batches hold {', '.join(named)}, but not {', '.join(missing)}")
    return named[names[0]] if len(names) == 1 else torch.cat([named[name] for name in names], 1)
