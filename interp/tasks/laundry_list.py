"""Laundry list: the one item of a list that is not mentioned again."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from interp.errors import UsageError
from interp.tasks.behaviour import Behaviour
from interp.tasks.pairs import Pair, template_pair
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder
from interp.tasks.words import single_words

__all__ = ["LAUNDRY_LIST"]

ITEMS = (
    "shirt", "hat", "coat", "jacket", "dress", "towel", "blanket", "book", "phone", "camera", "cup", "bottle",
    "pencil", "knife", "ring", "watch", "map", "key", "ball", "lamp",
)  # fmt: skip


def pairs(rng: Random, encoder: Encoder, half: Half, *, items: int = 3) -> Iterator[Pair]:
    """Endless pairs such as "... a shirt, a towel, and a hat. ... the hat and the shirt, but forgot the" -> " towel".

    The paper's task is to recall the item of a list that was not repeated; the wording here is our own. In the
    corrupted prompt the left-out item is named in place of another one, which is right there instead.

    Args:
        items: how many the list has (the paper has 3 to 10).
    """
    words = single_words(half(ITEMS), encoder)
    if not 3 <= items < len(words):
        raise UsageError(f"task 'laundry_list' takes 3 to {len(words) - 1} items, got {items}")
    while True:
        things = rng.sample(words, items)
        missing, exchanged = rng.sample(things, 2)
        again = [thing for thing in things if thing != missing]
        rng.shuffle(again)
        first = ["a {missing}" if t == missing else "a {other}" if t == exchanged else f"a {t}" for t in things]
        second = ["the {repeat}" if t == exchanged else f"the {t}" for t in again]
        yield template_pair(
            f"I need to pack {', '.join(first[:-1])}, and {first[-1]}. I packed {', '.join(second[:-1])} and "
            f"{second[-1]}, but I still need to pack the",
            {"missing": missing, "other": exchanged, "repeat": exchanged},
            {"repeat": missing},
            [f" {missing}"],
            [f" {exchanged}"],
            ("missing", "other", "repeat"),
        )


LAUNDRY_LIST = Behaviour(
    name="laundry_list",
    pairs=pairs,
    description="Laundry list: recalls the one item of a list that is not mentioned again.",
    source="Merullo et al. 2024, Talking Heads: Understanding Inter-layer Communication, arXiv:2406.09519",
    content="things",
)
