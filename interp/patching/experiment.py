"""What every patching experiment shares: the two runs, the metrics, the baselines, and progress on disk."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors.torch import save_file
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.checking import read_tensors
from interp.engine.compute import in_compute
from interp.engine.identity import exactly, identity, versions
from interp.engine.precision import HALF
from interp.engine.progress import track
from interp.engine.spread import part_count, spread
from interp.engine.sweep import Cell, Part, Reading, Sweep, Values, finer
from interp.engine.verify import verified
from interp.errors import InterpError, UsageError, unknown_name
from interp.patching.baselines import PERFORMS, end_logits, own_logits
from interp.patching.methods import MODES, SOURCES
from interp.patching.sources import Source
from interp.results.files import replacing
from interp.tasks import Task, metric
from interp.tasks.metrics import Metric

__all__ = ["Experiment"]

_SAVE_EVERY = 20.0


class Experiment:
    """A model and a task, ready for interventions.

    Args:
        model: Any bridge; it is only read.
        task: The prompt pairs.
        mode: ``denoising`` patches into the corrupted prompts, ``noising`` into the clean ones.
        source: See `interp.patching.sources.Source`.
        metrics: Metrics to read instead of the task's own.
        corpus: Token ids "text pos" for ``source="mean"``.
        seed: Of ``source="resampled"``.
        max_memory: Bytes for the rows of a walk.
        compute: See `interp.engine.compute.in_compute`.
        deferred: The caller runs the prompts itself and hands the logits to `measure`.

    Raises:
        UsageError: Unknown mode or source, or a combination that means nothing.
        InterpError: The model's logits are not finite.
    """

    def __init__(
        self,
        model: TransformerBridge,
        task: Task,
        *,
        mode: str = "denoising",
        source: str = "corrupted",
        metrics: Sequence[str | Metric] | None = None,
        corpus: Tensor | None = None,
        seed: int = 0,
        max_memory: int | None = None,
        compute: str | None = None,
        deferred: bool = False,
    ) -> None:
        if mode not in MODES:
            raise unknown_name("mode", mode, MODES)
        if source not in SOURCES:
            raise unknown_name("source", source, SOURCES)
        if mode == "denoising" and source != "corrupted":
            raise UsageError(
                f"mode='denoising' puts clean activations into the corrupted prompts, so source={source!r} has no "
                f"place in it; use mode='noising', which puts them into the clean prompts"
            )
        own = verified(model)
        self.parts, self.dtype, self.compute = in_compute(own, compute), own.dtype, compute
        self.model, self.mode, self.source = model, mode, source
        self.corpus, self.seed, self.max_memory = corpus, seed, max_memory
        self.task = task.to(self.parts.device)
        self.metrics = [task.measure] if metrics is None else [metric(name) for name in metrics]
        self.base, self.other = self.task.corrupted, self.task.clean
        if mode == "noising":
            self.base, self.other = self.task.clean, self.task.corrupted
        if not deferred:
            sides = {"clean": self.task.clean, "corrupted": self.task.corrupted}
            self.measure({name: end_logits(self.parts, self.task, tokens) for name, tokens in sides.items()})

    def measure(self, logits: dict[str, Float[Tensor, "batch vocab"]]) -> None:
        """Takes the logits of the ``clean`` and the ``corrupted`` prompts at their ends, for baselines and accuracy."""
        self.task = self.task.with_reference(logits["clean"])
        self.baselines = {
            name: torch.stack([self._values(kind, found) for kind in self.metrics], -1)
            for name, found in logits.items()
        }
        self.accuracy, self.top1 = self.task.accuracy(logits["clean"]), self.task.top1(logits["clean"])
        self.rounding = self._rounding() if self.parts.dtype in HALF else None
        if self.accuracy < PERFORMS:
            warnings.warn(
                f"the model does not perform task {self.task.name!r}: it prefers the right answer in "
                f"{self.accuracy:.0%} of the examples (below {PERFORMS:.0%})",
                stacklevel=4,
            )

    def _rounding(self) -> list[float]:
        """How far apart two orders of the same arithmetic put each metric: the walk's and the bridge's own pass.

        The root mean square over all prompts, in the metrics' units.
        """
        apart = []
        for name, tokens in (("clean", self.task.clean), ("corrupted", self.task.corrupted)):
            theirs = own_logits(self.model, self.task, tokens)
            found = torch.stack([self._values(kind, theirs) for kind in self.metrics], -1)
            apart.append((found - self.baselines[name]).double())
        return torch.cat(apart).square().mean(0).sqrt().tolist()

    def note_rounding(self, effects: Float[Tensor, "... metric"]) -> None:
        """Warns where no effect is larger than what rounding alone changes."""
        for kind, size, rounding in zip(
            self.metrics, effects.abs().flatten(0, -2).amax(0).tolist(), self.rounding or (), strict=False
        ):
            if size < rounding:
                warnings.warn(
                    f"the largest effect ({size:.2g} {kind.units}) is below what rounding in "
                    f"{str(self.parts.dtype).removeprefix('torch.')} changes ({rounding:.2g}): load the model with "
                    f"dtype=torch.float32 to measure it",
                    stacklevel=4,
                )

    def effects(
        self,
        cells: Sequence[Cell],
        checkpoint: str | Path | None = None,
        *,
        values: Values | None = None,
        wanted: Bool[Tensor, "cell example"] | None = None,
    ) -> Float[Tensor, "cell example metric"]:
        """The effect of every cell: its metrics minus those of the base run, in the metrics' units.

        Args:
            cells: The interventions.
            checkpoint: A file that keeps what is computed, so that an interrupted sweep goes on from there. It
                is removed when the sweep is complete.
            values: What patches put in, instead of what `source` says; the same before the prompts differ.
            wanted: Which cells are run for which examples, one example at a time; the others have no effect.
        """
        for cell in cells:
            for patch in cell:
                self.parts.graph.check(patch.node)
        sweep = self._sweep(cells, values, Sweep if wanted is None else _OneByOne)
        baseline = self.baselines["corrupted" if self.mode == "denoising" else "clean"].cpu()
        metrics = torch.full((len(cells), *baseline.shape), torch.nan, dtype=baseline.dtype)
        if wanted is not None:
            metrics = torch.where(wanted[..., None], metrics, baseline)
        store = None if checkpoint is None else _Checkpoint(Path(checkpoint), self._identity(cells))
        metrics = metrics if store is None else store.load(metrics)
        missing = metrics.isnan().any(-1)
        parts = list(sweep.split(None if store is None and wanted is None else missing))
        computed: Iterator[tuple[int, Tensor | None]]
        if values is not None or any(patch.function for cell in cells for patch in cell):
            computed = enumerate(map(sweep.compute, parts))  # functions of the caller's own stay in this process
        else:
            parts = finer(parts, part_count() or 0)
            computed = spread(parts, sweep.compute, _begin, self.model, self._given(cells))
        try:
            with track(int(missing.sum()), "patching") as advance:
                for number, found in computed:
                    at = parts[number].numbers, parts[number].examples
                    metrics[at] = baseline[at[1]] if found is None else found.to(baseline.dtype).cpu()
                    advance(len(at[0]) * (at[1].stop - at[1].start))
                    if store:
                        store.save_now_and_then(metrics)
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)):
                raise
            raise InterpError(f"out of memory; give a smaller max_memory or fewer examples ({error})") from error
        finally:
            if store and metrics.isnan().any():
                store.save(metrics)
        if store:
            store.path.unlink(missing_ok=True)
        return metrics - baseline

    def _sweep(self, cells: Sequence[Cell], values: Values | None = None, kind: type[Sweep] = Sweep) -> Sweep:
        tokens = self.answer_tokens()
        return kind(
            self.parts,
            self.base,
            Reading(self.task.positions["end"], self.reading(tokens), tokens),
            cells,
            self._source(cells) if values is None else values,
            same_before=int(self.task.first_difference.min()) if self.source == "corrupted" else 0,
            max_memory=self.max_memory,
        )

    def _given(self, cells: Sequence[Cell]) -> tuple:
        """What `_begin` makes the same sweep of, beside the model."""
        settings = {
            "mode": self.mode,
            "source": self.source,
            "metrics": self.metrics,
            "corpus": None if self.corpus is None else self.corpus.cpu(),
            "seed": self.seed,
            "compute": self.compute,
        }
        return self.task.to(torch.device("cpu")), settings, cells

    def _source(self, cells: Sequence[Cell]) -> Source:
        """What patches put in."""
        whole = self.source in ("mean", "resampled")
        tokens = self.task.corrupted if whole else self.other[:, : int(self.task.positions["end"].max()) + 1]
        sites = {patch.node.site for cell in cells for patch in cell}
        return Source(self.parts, self.source, tokens, sites, self.corpus, self.seed)

    @cached_property
    def fingerprint(self) -> str:
        """The model's fingerprint, read once an experiment."""
        return identity(self.model)

    def provenance(self) -> dict:
        """Where the numbers come from: attributes for scores."""
        names = [kind.name for kind in self.metrics]

        def one_or_each(values):
            return values[0] if len(names) == 1 else dict(zip(names, values, strict=True))

        return {
            "units": one_or_each([kind.units for kind in self.metrics]),
            "metric": one_or_each(names),
            "higher_is_clean": one_or_each([kind.higher_is_clean for kind in self.metrics]),
            "mode": self.mode,
            "source": self.source,
            "clean": one_or_each(self.baselines["clean"].double().mean(0).tolist()),
            "corrupted": one_or_each(self.baselines["corrupted"].double().mean(0).tolist()),
            "accuracy": self.accuracy,
            "top1": self.top1,
            "task": self.task.name,
            "n": len(self.task),
            "seed": self.task.seed,
            "split": self.task.split,
            "model": str(self.model.cfg.model_name),
            "dtype": str(self.dtype).removeprefix("torch."),
            **({} if self.compute is None else {"compute": self.compute}),
            **({} if self.rounding is None else {"rounding": one_or_each(self.rounding)}),
            "fingerprint": self.fingerprint,
            "versions": versions(),
        }

    def _values(self, kind, logits: Tensor) -> Tensor:
        return kind(logits, self.task.right, self.task.wrong, self.task.reference)

    def answer_tokens(self) -> Tensor | None:
        """The answers' token ids, if no metric reads the logits of others."""
        if any(kind.reads != "answers" for kind in self.metrics):
            return None
        answers = torch.cat([self.task.right.flatten(), self.task.wrong.flatten()])
        return answers[answers >= 0].unique()

    def reading(self, tokens: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
        """``read(logits, examples)``: the metrics "row metric" of logits "row vocab", or of the given tokens' only."""
        right, wrong, reference = self.task.right, self.task.wrong, self.task.reference
        if tokens is not None:
            right, wrong, reference = _compact(right, tokens), _compact(wrong, tokens), None

        def read(logits: Tensor, examples: Tensor) -> Tensor:
            given = None if reference is None else reference[examples]
            return torch.stack([kind(logits, right[examples], wrong[examples], given) for kind in self.metrics], -1)

        return read

    def _identity(self, cells: Sequence[Cell]) -> str:
        """Names this very sweep, so that a checkpoint of another is not taken for it."""
        digest = hashlib.sha256(exactly(self.model).encode())
        for tokens in (
            self.base,
            self.other,
            self.task.right,
            self.task.wrong,
            self.task.positions["end"],
            self.corpus,
        ):
            digest.update(b"" if tokens is None else tokens.cpu().numpy().tobytes())
        kinds = [kind.name for kind in self.metrics]
        plan = [[(str(patch.node), patch.node.site, str(patch.position)) for patch in cell] for cell in cells]
        digest.update(json.dumps([self.mode, self.source, self.seed, kinds, plan]).encode())
        return digest.hexdigest()


def _begin(
    model: TransformerBridge, task: Task, settings: dict[str, Any], cells: Sequence[Cell]
) -> Callable[[Part], Tensor | None]:
    """Computes the parts of a sweep on a worker's own model."""
    sweep = Experiment(model, task, deferred=True, **settings)._sweep(cells)

    def compute(part: Part) -> Tensor | None:
        found = sweep.compute(part)
        return None if found is None else found.cpu()

    return compute


class _OneByOne(Sweep):
    """A sweep whose cells are run for single examples: each example has cells of its own."""

    def examples_at_once(self) -> int:
        return 1


class _Checkpoint:
    """Metric values so far, NaN where there is none yet."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity, self.saved = path, identity, time.monotonic()

    def load(self, values: Tensor) -> Tensor:
        if not self.path.exists():
            return values
        found, about = read_tensors(self.path, only=("values",))
        if about.get("identity") == self.identity and "values" in found and found["values"].shape == values.shape:
            return found["values"].to(values)
        raise UsageError(f"{self.path} is the checkpoint of another sweep; name another file or delete it")

    def save_now_and_then(self, values: Tensor) -> None:
        if time.monotonic() - self.saved > _SAVE_EVERY:
            self.save(values)

    def save(self, values: Tensor) -> None:
        with replacing(self.path) as aside:
            save_file({"values": values.contiguous()}, aside, {"identity": self.identity})
        self.saved = time.monotonic()


def _compact(ids: Tensor, tokens: Tensor) -> Tensor:
    """Token ids as places in `tokens`, which is sorted; the padding -1 stays."""
    return torch.where(ids < 0, ids, torch.searchsorted(tokens, ids.clamp(min=0)))
