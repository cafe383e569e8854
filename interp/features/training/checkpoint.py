"""Checkpoints of a training run: one safetensors file, complete or absent, from which the run goes on exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from interp.checking import arguments, checked, parsed, read_tensors, typed
from interp.errors import InterpError, UsageError
from interp.features.architectures.dictionary import Dictionary
from interp.features.training.settings import TrainSettings
from interp.results.files import replacing

__all__ = ["VERSION", "Checkpoint", "check_length", "read_checkpoint", "write_checkpoint"]

VERSION = 1
"""Of the layout of the file."""

_FIX = "delete it to start anew"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands, beside the weights: what the next step needs to know."""

    step: int
    tokens: int
    total_steps: int
    settings: dict[str, Any]
    batches: Any
    batch: int = 0
    """Activations of a batch; 0 in files that don't say."""

    @property
    def per_step(self) -> int:
        """Activations of a batch."""
        return self.batch or max(1, round(self.tokens / max(1, self.step)))

    def check_length(self, path: Path, steps: int, settings: TrainSettings) -> None:
        """Refuses to go on to another length, unless the steps that are made are the same in a run of that length.

        Raises:
            UsageError: They are not, or more than that many are made.
        """
        if steps == self.total_steps or (steps > self.step and settings.agree(self.step, self.total_steps, steps)):
            return
        there, here = (f"{n:,} steps ({n * self.per_step:,} tokens)" for n in (self.total_steps, steps))
        made = "is finished" if self.step == self.total_steps else f"has made {self.step:,}"
        raise UsageError(
            f"{path} belongs to a run of {there} that {made}, asked for are {here}, which changes the learning rate of "
            f"steps that it has made; ask for the same, train into another directory, or pass resume=False to start "
            f"anew (a run without warmup, sparsity_warmup and decay can be made longer)"
        )


def write_checkpoint(
    path: Path, dictionary: Dictionary, optimizer: torch.optim.Optimizer, idle: Tensor, where: Checkpoint
) -> None:
    """Writes weights, the optimiser's moments, tokens since each latent fired and where the run stands.

    All randomness of a run is a function of its seed and the step, so that there is no generator to store.

    Raises:
        InterpError: The file can't be written; what stood there stays.
    """
    tensors = {f"weights.{name}": tensor for name, tensor in dictionary.state_dict().items()}
    for name, parameter in dictionary.named_parameters():
        for moment in _MOMENTS:
            if moment in optimizer.state.get(parameter, {}):
                tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    tensors["idle"] = idle
    about = {
        "version": VERSION,
        "architecture": dictionary.architecture,
        "dictionary": dictionary.settings(),
        **vars(where),
    }
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as aside:
        try:
            save_file(contiguous, aside, metadata={"checkpoint": json.dumps(about)})
        except SafetensorError as error:
            raise InterpError(f"could not write {path}: {error}") from error


def read_checkpoint(
    path: Path,
    dictionary: Dictionary,
    optimizer: torch.optim.Optimizer,
    idle: Tensor,
    settings: dict[str, Any],
    check: Callable[[Checkpoint], None],
) -> Checkpoint:
    """Puts weights, moments and `idle` in place and says where the run stands, unless `check` refuses that.

    Raises:
        UsageError: The checkpoint is of another version, architecture, size or with other settings.
        InterpError: The file is damaged.
    """
    about, tensors = _read(path)
    _check(path, about, dictionary, settings)
    where = _where(about, path)
    check(where)
    needed = {f"weights.{name}": tensor for name, tensor in dictionary.state_dict().items()} | {"idle": idle}
    for name, parameter in dictionary.named_parameters():
        if any(f"{moment}.{name}" in tensors for moment in _MOMENTS):
            needed |= {f"{moment}.{name}": parameter for moment in _MOMENTS}
    for name, tensor in needed.items():
        if name not in tensors or tensors[name].shape != tensor.shape:
            raise InterpError(f"the checkpoint {path} is damaged (its {name} does not fit); {_FIX}")
    dictionary.load_state_dict({name: tensors[f"weights.{name}"] for name in dictionary.state_dict()})
    for name, parameter in dictionary.named_parameters():
        if f"exp_avg.{name}" in tensors:
            state = {"step": torch.tensor(float(about["step"]), device=_of_step(optimizer, parameter))}
            state |= {m: torch.empty_like(parameter).copy_(tensors[f"{m}.{name}"]) for m in _MOMENTS}
            optimizer.state[parameter] = state
    idle.copy_(tensors["idle"])
    return where


def check_length(path: Path, tokens: int, batch: int, settings: TrainSettings) -> None:
    """Refuses a run of another length than that of a checkpoint, before anything is made for it.

    Raises:
        UsageError: As of `Checkpoint.check_length`.
        InterpError: The file is damaged.
    """
    if not path.exists():
        return
    about = _read(path, only=())[0]
    if about.get("version") == VERSION:
        _where(about, path).check_length(path, -(-tokens // batch), settings)


def _read(path: Path, only: tuple[str, ...] | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a checkpoint says of itself, and its tensors, or some of them."""
    try:
        tensors, header = read_tensors(path, only=only)
        return typed(parsed(header.get("checkpoint", "{}"), path), dict, path), tensors
    except InterpError as error:
        raise InterpError(f"the checkpoint {path} is damaged ({error}); {_FIX}") from error


def _where(about: dict[str, Any], path: Path) -> Checkpoint:
    known = {name: about[name] for name in Checkpoint.__dataclass_fields__ if name in about}
    for name in ("step", "tokens", "total_steps"):
        checked(known, name, int, path, least=0)
    return Checkpoint(**arguments(known, Checkpoint, path))


def _of_step(optimizer: torch.optim.Optimizer, parameter: Tensor) -> torch.device:
    """Fused Adam counts steps on the parameter's device, the plain one on the processor."""
    return parameter.device if optimizer.defaults.get("fused") else torch.device("cpu")


def _check(path: Path, about: dict[str, Any], dictionary: Dictionary, settings: dict[str, Any]) -> None:
    if about.get("version") != VERSION:
        raise UsageError(
            f"{path} is a checkpoint of version {about.get('version')}, this program reads {VERSION}; "
            f"delete it or train into another directory"
        )
    pairs = {
        "architecture": (about.get("architecture"), dictionary.architecture),
        **_pairs(checked(about, "dictionary", dict, path), dictionary.settings()),
        **_pairs(checked(about, "settings", dict, path), settings),
    }
    for name, (there, here) in pairs.items():
        if there != here:
            raise UsageError(
                f"{path} was made with {name} = {there!r}, this run has {here!r}; "
                f"use the same, or train into another directory, or pass resume=False to start anew"
            )


def _pairs(there: dict[str, Any], here: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    here = json.loads(json.dumps(here))  # tuples are lists in the file
    return {name: (there.get(name), here.get(name)) for name in {**there, **here}}
