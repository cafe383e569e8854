"""Independent parts of one call: computed here, one after another, or by the workers of a cluster that is in force.

An analysis says what its parts are and how one of them is computed, here and in a process that has only the model.
It neither knows nor imports what runs there; `interp.scale` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

__all__ = ["Died", "Elsewhere", "Together", "elsewhere", "in_order", "part_count", "spread", "used"]

P = TypeVar("P")
R = TypeVar("R")

_PARTS_A_WORKER = 4
"""Parts that a worker gets about, so that none waits long for the slowest."""


class Elsewhere(Protocol):
    """Workers that compute parts of a call."""

    n_workers: int

    def compute(
        self, begin: Callable[..., Callable[[Any], Any]], model: Any, given: tuple, parts: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        """The number of each part, and what came out of it, as it comes out."""

    def together(self, begin: Callable[..., Callable[[Any], Any]], given: tuple) -> AbstractContextManager[Together]:
        """All workers at the same work, each with ``begin(None, *given, rank, processes, address)``.

        The address is one at which the first of them can be met. Within the block a call gives what comes out of a part
        in every worker, in the order of ranks; it raises `Died` when a worker dies.
        """


Together = Callable[[Any], list[Any]]


class Died(Exception):
    """One of the workers that work together died."""


_in_force: ContextVar[Elsewhere | None] = ContextVar("elsewhere", default=None)


def elsewhere() -> Elsewhere | None:
    """The workers in force, or None."""
    return _in_force.get()


@contextmanager
def used(workers: Elsewhere) -> Iterator[None]:
    """Calls inside have their parts computed by these workers."""
    token = _in_force.set(workers)
    try:
        yield
    finally:
        _in_force.reset(token)


def part_count() -> int | None:
    """Into how many parts a call is split at least, where that can be chosen; None without workers."""
    workers = elsewhere()
    return None if workers is None else _PARTS_A_WORKER * workers.n_workers


def spread(
    parts: Sequence[P],
    here: Callable[[P], R],
    begin: Callable[..., Callable[[P], R]],
    model: Any,
    given: tuple,
) -> Iterator[tuple[int, R]]:
    """What comes out of each part with its number: in order here, as it comes from workers.

    Args:
        parts: The parts, each small enough to be sent.
        here: Computes a part in this process.
        begin: A module's function; ``begin(model, *given)`` makes the same of `here` in a worker.
        model: The bridge that the parts are computed on, which a worker loads by itself; None if none is.
        given: What else `begin` takes. It is sent once to each worker.
    """
    workers = elsewhere()
    if workers is None or not parts:
        for number, part in enumerate(parts):
            yield number, here(part)
    else:
        yield from workers.compute(begin, model, given, parts)


def in_order(results: Iterator[tuple[int, R]]) -> Iterator[R]:
    """What came out, in the order of the parts; what comes early is kept until its turn."""
    early: dict[int, R] = {}
    turn = 0
    for number, result in results:
        early[number] = result
        while turn in early:
            yield early.pop(turn)
            turn += 1
