"""Colored objects: of several things on a table, tells the color of the one asked for."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from interp.tasks.behaviour import Behaviour
from interp.tasks.pairs import Pair, template_pair
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder
from interp.tasks.words import single_words

__all__ = ["COLORED_OBJECTS"]

COLORS = ("red", "blue", "green", "yellow", "black", "white", "purple", "pink", "brown", "gray", "silver", "gold")
OBJECTS = ("pencil", "book", "cup", "ball", "key", "plate", "phone", "ring", "bag", "lamp", "box", "hat", "bottle")
SHOT = "Q: On the table, I see a blue spoon, a red puzzle, and a purple coin. What color is the spoon?\nA: Blue\n"


def pairs(rng: Random, encoder: Encoder, half: Half) -> Iterator[Pair]:
    """Endless pairs: one solved question as in the paper, then one of three things; corrupted: asks for another.

    "Q: On the table, I see a blue pencil, a black cup, and a yellow book. What color is the cup?\\nA:" -> " Black".
    """
    objects = single_words(half(OBJECTS), encoder)
    colors = [c for c in single_words(half(COLORS), encoder) if encoder.single(f" {c.title()}") is not None]
    while len(objects) >= 3 and len(colors) >= 3:
        things, shades = rng.sample(objects, 3), rng.sample(colors, 3)
        asked, other = rng.sample(range(3), 2)
        listing = [f"a {shade} {thing}" for shade, thing in zip(shades, things, strict=True)]
        listing[asked] = "a {color} {object}"
        listing[other] = "a {other_color} {other_object}"
        yield template_pair(
            f"{SHOT}Q: On the table, I see {listing[0]}, {listing[1]}, and {listing[2]}. What color is the "
            "{query}?\nA:",
            {
                "color": shades[asked],
                "object": things[asked],
                "other_color": shades[other],
                "other_object": things[other],
                "query": things[asked],
            },
            {"query": things[other]},
            [f" {shades[asked].title()}"],
            [f" {shades[other].title()}"],
            ("color", "object", "other_color", "other_object", "query"),
        )


COLORED_OBJECTS = Behaviour(
    name="colored_objects",
    pairs=pairs,
    description="Colored objects: answers what color one of three listed things has.",
    source="Merullo et al. 2024, Circuit Component Reuse Across Tasks, arXiv:2310.08744",
    content="things and colors",
)
