"""Indirect object identification: the name that is not repeated comes next."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from interp.errors import UsageError, unknown_name
from interp.tasks.behaviour import Behaviour
from interp.tasks.pairs import Pair, template_pair
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder
from interp.tasks.words import NAMES, single_words

__all__ = ["IOI"]

OPENINGS = (
    "When {first} and {second} went to the",
    "After {first} and {second} went to the",
    "While {first} and {second} were at the",
    "As {first} and {second} came to the",
)
PLACES = ("store", "market", "school", "park", "office", "beach", "station", "hospital", "library", "restaurant")
OBJECTS = ("drink", "book", "letter", "phone", "ring", "card", "flower", "key", "ball", "cup")
CORRUPTIONS = ("s2", "abc", "names")
ORDERS = ("abba", "baba", "both")


def pairs(rng: Random, encoder: Encoder, half: Half, *, corruption: str = "s2", order: str = "abba") -> Iterator[Pair]:
    """Endless pairs such as "When Mary and John went to the store, John gave a drink to" -> " Mary".

    Args:
        corruption: `"s2"` puts the indirect object's name in place of the repeated one, so that the other name
            becomes right; `"abc"` puts a third name there, so that neither is repeated; `"names"` exchanges the
            two names wherever they stand, so that the prompts differ from the first name on.
        order: `"abba"` names the indirect object first, `"baba"` second, `"both"` either. With one order each
            role stands at the same position in every example.
    """
    if corruption not in CORRUPTIONS:
        raise unknown_name("corruption", corruption, CORRUPTIONS)
    if order not in ORDERS:
        raise unknown_name("order", order, ORDERS)
    names = single_words(half(NAMES), encoder)
    places, objects = single_words(half(PLACES), encoder), single_words(half(OBJECTS), encoder)
    if len(names) < 3 or not (places and objects):
        raise UsageError("task 'ioi': this model's tokenizer has too few names or words that are one token")
    while True:
        io, s, third = rng.sample(names, 3)
        abba = rng.random() < 0.5 if order == "both" else order == "abba"
        opening = rng.choice(OPENINGS).format(first="{io}" if abba else "{s1}", second="{s1}" if abba else "{io}")
        template = f"{opening} {rng.choice(places)}, {{s2}} gave a {rng.choice(objects)} to"
        corrupted = {
            "s2": {"s2": io},
            "abc": {"s2": third},
            "names": {"io": s, "s1": io, "s2": io},
        }[corruption]
        yield template_pair(
            template,
            {"io": io, "s1": s, "s2": s},
            corrupted,
            right=[f" {io}"],
            wrong=[f" {s}"],
            named=("io", "s1", "s2"),
        )


IOI = Behaviour(
    name="ioi",
    pairs=pairs,
    description="Indirect object identification: of two people, the one who is not named again receives the thing.",
    source="Wang et al. 2022, Interpretability in the Wild, arXiv:2211.00593",
    content="names, places and things",
)
