"""All pages, one after the other or two at a time.

What makes them is imported where it is used: the second process begins before the first has imported anything slow.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["demonstrate"]

Say = Callable[[str], None]


def demonstrate(
    load: Callable[[], TransformerBridge],
    directory: Path,
    n: int = 8,
    seed: int = 0,
    say: Say = print,
    *,
    beside: bool = False,
) -> None:
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
    import torch

    context, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    lines, half = context.SimpleQueue(), max(1, threads // 2)
    other = context.Process(target=_lane, args=(load, directory, n, seed, half, lines), daemon=True)
    other.start()
    torch.set_num_threads(half)
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
        other.join()
        torch.set_num_threads(threads)
    if failed:
        raise failed[0]
    if other.exitcode:
        raise InterpError(f"the process that looked at the heads ended with code {other.exitcode}")


def _words(model: TransformerBridge, directory: Path, n: int, seed: int, say: Say) -> Iterator[Path]:
    from interp.demo import locate, trace_page

    yield trace_page(model, directory, seed=seed, say=say)
    yield locate(model, directory, n=n, seed=seed, say=say)


def _heads(model: TransformerBridge, directory: Path, n: int, seed: int, say: Say) -> Iterator[Path]:
    from interp.demo import attend, cheapen

    yield attend(model, directory, seed=seed, say=say)
    yield cheapen(model, directory, seed=seed, say=say)


def _lane(load: Callable[[], TransformerBridge], directory: Path, n: int, seed: int, threads: int, lines: Any) -> None:
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
