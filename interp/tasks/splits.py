"""Splits: what findings are made on and what they are tried on have no content in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from interp.errors import unknown_name
from interp.tasks.corpora import CORPORA, SPLITS

__all__ = ["Half", "half_of_corpus", "one_split"]

T = TypeVar("T")


@dataclass(frozen=True)
class Half:
    """What a split leaves of a pool of words, numbers, templates or texts: every second item in the pool's order.

    Args:
        split: ``find`` takes the first, third, ...; ``score`` the others; None takes all.

    Raises:
        UsageError: an unknown split.

    Example:
        >>> Half("find")(("red", "blue", "green")), Half("score")(("red", "blue", "green"))
        (('red', 'green'), ('blue',))
    """

    split: str | None = None

    def __post_init__(self) -> None:
        if self.split is not None and self.split not in SPLITS:
            raise unknown_name("split", str(self.split), SPLITS)

    def __call__(self, pool: Sequence[T]) -> Sequence[T]:
        """What is left of the pool."""
        return pool if self.split is None else pool[SPLITS.index(self.split) :: len(SPLITS)]


def one_split(samples: Sequence[Any]) -> str | None:
    """The split that all samples are of; None if there is none, or more than one."""
    found = {sample.split for sample in samples}
    return found.pop() if len(found) == 1 else None


def half_of_corpus(source: Any, split: str | None) -> str | None:
    """The split of a shipped corpus; text of one's own is taken as it is given."""
    return split if isinstance(source, str) and source in CORPORA else None
