"""All pages, one after the other or two at a time."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from interp.demo.attention import attend
from interp.demo.behaviour import locate
from interp.demo.cheaper import cheapen
from interp.demo.tracing import trace_page
from interp.errors import InterpError

__all__ = ["demonstrate"]

Say = Callable[[str], None]
Load = Callable[[], TransformerBridge]


def demonstrate(load: Load, directory: Path, n: int = 8, seed: int = 0, say: Say = print, *, beside: bool = False) -> None:
    """Writes the four pages and says where each is as soon as it is there.

    Args:
        load: Loads the model; with `beside`, something that another process can be given.
        directory: Where the pages, findings and scores go.
        n: How many prompt pairs the behaviour is located with.
        seed: Of all random choices.
        say: Called with a line for each result.
        beside: Make two pages at a time, in two processes that share the processors.
    """
    if not beside:
        model = load()
        for lane in (_words, _heads):
            for page in lane(model, directory, n, seed, say):
                say(f"page: {page}")
        return
    context = multiprocessing.get_context("spawn")
    lines, threads = context.SimpleQueue(), _halved()
    other = context.Process(target=_lane, args=(load, directory, n, seed, threads, lines), daemon=True)
    other.start()
    failed: list[BaseException] = []

    def listen() -> None:
        while (line := lines.get()) is not None:
            if isinstance(line, BaseException):
                failed.append(line)
            else:
                say(line)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        for page in _words(load(), directory, n, seed, say):
            say(f"page: {page}")
        other.join()
        lines.put(None)
        listener.join()
    finally:
        other.terminate()
    if failed:
        raise failed[0]
    if other.exitcode:
        raise InterpError(f"the process that looked at the heads ended with code {other.exitcode}")


def _words(model: TransformerBridge, directory: Path, n: int, seed: int, say: Say) -> Iterator[Path]:
    yield trace_page(model, directory, seed=seed, say=say)
    yield locate(model, directory, n=n, seed=seed, say=say)


def _heads(model: TransformerBridge, directory: Path, n: int, seed: int, say: Say) -> Iterator[Path]:
    yield attend(model, directory, seed=seed, say=say)
    yield cheapen(model, directory, seed=seed, say=say)


def _halved() -> int:
    """Half of the threads, which this process keeps to from now on; the other half is for the other one."""
    import torch

    threads = max(1, torch.get_num_threads() // 2)
    torch.set_num_threads(threads)
    return threads


def _lane(load: Load, directory: Path, n: int, seed: int, threads: int, lines: Any) -> None:
    """What the other process does; it says everything through the first one."""
    import torch

    torch.set_num_threads(threads)
    warnings.showwarning = lambda message, *_: lines.put(f"note: {message}")
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stderr = nowhere  # where progress bars would be in those of the first process
        try:
            for page in _heads(load(), directory, n, seed, lines.put):
                lines.put(f"page: {page}")
        except (InterpError, KeyboardInterrupt) as error:
            lines.put(error)
        except Exception as error:
            lines.put(InterpError(f"{type(error).__name__}: {error}"))
