"""Successor: days, months and numbers are followed by the next one."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from interp.errors import UsageError, unknown_name
from interp.tasks.behaviour import Behaviour
from interp.tasks.pairs import Pair, template_pair
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder

__all__ = ["SUCCESSOR"]

SERIES = {
    "days": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "months": (
        "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
        "November", "December",
    ),
    "numbers": (
        "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    ),
}  # fmt: skip
SHOWN = 3


def pairs(rng: Random, encoder: Encoder, half: Half, *, kind: str | None = None) -> Iterator[Pair]:
    """Endless pairs such as "Monday, Tuesday, Wednesday," -> " Thursday"; corrupted: another stretch of the series.

    Days and months go round, numbers don't.

    Args:
        kind: `"days"`, `"months"` or `"numbers"`; None for all.
    """
    if kind is not None and kind not in SERIES:
        raise unknown_name("kind", kind, SERIES)
    kinds = half(list(SERIES))
    if kind is not None and kind not in kinds:
        raise UsageError(f"task 'successor' of kind {kind!r} is in the other split; this one has {', '.join(kinds)}")
    while True:
        name = rng.choice(kinds) if kind is None else kind
        series = SERIES[name]
        starts = len(series) - (SHOWN if name == "numbers" else 0)
        here, there = (stretch(series, start) for start in rng.sample(range(starts), 2))
        fields = [f"item_{i + 1}" for i in range(SHOWN)]
        yield template_pair(
            "Here is the list in order: {item_1}, {item_2}, {item_3},",
            dict(zip(fields, here, strict=False)),
            dict(zip(fields, there, strict=False)),
            [f" {here[-1]}"],
            [f" {there[-1]}"],
            fields,
        )


def stretch(series: tuple[str, ...], start: int) -> list[str]:
    return [series[(start + i) % len(series)] for i in range(SHOWN + 1)]


SUCCESSOR = Behaviour(
    name="successor",
    pairs=pairs,
    description="Successor: continues a stretch of days, months or number words.",
    source="Gould et al. 2023, Successor Heads, arXiv:2312.09230",
    content="series",
)
