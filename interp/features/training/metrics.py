"""What is reported of a training run: losses, L0, explained variance, dead share, speed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.features.architectures.dictionary import Batch, Step
from interp.results.files import write_text

__all__ = ["Moments", "Window", "append_line", "lines_until"]


class Moments:
    """Sums from which the explained variance R² = 1 - E|y - ŷ|² / E|y - E y|² follows, over any number of batches."""

    def __init__(self) -> None:
        self.n = 0
        self._shift: Tensor | None = None

    def add(self, target: Tensor, error: Tensor) -> None:
        """Adds a batch ("rows d") and the errors of its reconstruction."""
        if self._shift is None:
            # Sums are taken around the first mean: around zero they would cancel where the mean is large.
            self._shift = target.mean(0)
            self._sum = torch.zeros_like(self._shift, dtype=torch.float64)
            self._squares = torch.zeros((), dtype=torch.float64, device=target.device)
            self._errors = torch.zeros_like(self._squares)
        centred = target - self._shift
        self.n += len(target)
        self._sum += centred.sum(0)
        self._squares += torch.linalg.vecdot(centred, centred).sum()
        self._errors += torch.linalg.vecdot(error, error).sum()

    def pooled(self, mean: Callable[[Tensor], Tensor], processes: int) -> None:
        """Puts the moments of all processes in place of this one's; `mean` is the mean over them."""
        assert self._shift is not None
        centre = mean(self._shift.double())
        off = self._shift.double() - centre
        squares = self._squares + 2 * off @ self._sum + self.n * off @ off
        total = self._sum + self.n * off
        n = torch.tensor(self.n, dtype=torch.float64, device=total.device)
        self._shift, self._sum, self._squares = centre, processes * mean(total), processes * mean(squares)
        self._errors, self.n = processes * mean(self._errors.double()), round(float(processes * mean(n)))

    def r2(self) -> float:
        """R², over all that was added; NaN if the activations do not vary."""
        mean = self._sum / self.n
        variance = self._squares / self.n - mean @ mean
        return float(1 - self._errors / self.n / variance) if variance > 0 else float("nan")


class Window:
    """Averages since the last report."""

    def __init__(self) -> None:
        self._moments, self._steps, self._began = Moments(), 0, time.perf_counter()
        self.sums: dict[str, Tensor] = {}

    def add(self, batch: Batch, step: Step, weight: float = 1.0) -> None:
        """Adds a step; `weight` is what its means count among those of other processes."""
        self._steps += 1
        self._moments.add(batch.target, step.error)
        active = step.codes.values.detach().count_nonzero() / step.codes.n_rows  # no code is negative
        for name, value in {"loss": step.loss.detach(), **step.terms, **step.seen, "l0": active}.items():
            self.sums[name] = self.sums.get(name, 0.0) + weight * value.detach().double()

    def pooled(self, mean: Callable[[Tensor], Tensor], processes: int) -> None:
        """Puts the averages over all processes in place of this one's; `mean` is the mean over them."""
        self.sums = {name: mean(value) for name, value in self.sums.items()}
        self._moments.pooled(mean, processes)

    def line(self, step: int, tokens: int, dead: float, lr: float) -> dict[str, Any]:
        """The report of this window."""
        means = {name: float(value) / self._steps for name, value in self.sums.items()}
        seconds = time.perf_counter() - self._began
        return {
            "step": step,
            "tokens": tokens,
            **means,
            "r2": self._moments.r2(),
            "dead_share": dead,
            "lr": lr,
            "tokens_per_second": self._moments.n / max(seconds, 1e-9),
        }


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Adds one line to a JSONL file.

    Raises:
        InterpError: The file can't be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise InterpError(f"could not write {path}: {error.strerror or error}") from error


def lines_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The lines of a JSONL file up to a step; those after it, written before a kill, are removed from the file."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:  # the line that a kill cut off
            break
        if not isinstance(line, dict) or not isinstance(line.get("step"), int) or line["step"] > step:
            break
        lines.append(line)
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    return lines
