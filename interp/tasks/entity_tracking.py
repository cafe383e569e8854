"""Entity tracking: says what is in the box that is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from interp.errors import UsageError, unknown_name
from interp.tasks.behaviour import Behaviour
from interp.tasks.pairs import Pair, template_pair
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder
from interp.tasks.words import single_words

__all__ = ["ENTITY_TRACKING"]

OBJECTS = (
    "apple", "computer", "document", "watch", "ball", "book", "key", "letter", "hat", "phone", "ring", "cup",
    "map", "coat", "camera", "bell", "card", "clock", "knife", "bottle",
)  # fmt: skip
WORDINGS = {"contains": "Box {box} contains the {object}", "in": "the {object} is in Box {box}"}
LABELS = "BCDEFGHJKLMNPQRSTVWXZ"


def pairs(rng: Random, encoder: Encoder, half: Half, *, boxes: int = 7, wording: str = "contains") -> Iterator[Pair]:
    """Endless pairs such as "Box F contains the apple, Box Q contains the watch. Box F contains the" -> " apple".

    The corrupted prompt asks for another box; no prompt moves a thing.

    Args:
        boxes: how many there are (both papers have 7).
        wording: `"contains"` as above (Kim and Schuster), in which the question repeats a part of the text, or
            `"in"` ("The apple is in Box F, ...", Prakash et al.), in which it does not.
    """
    if wording not in WORDINGS:
        raise unknown_name("wording", wording, WORDINGS)
    objects, labels = single_words(half(OBJECTS), encoder), single_words(half(LABELS), encoder)
    if not 2 <= boxes <= min(len(objects), len(labels)):
        raise UsageError(f"task 'entity_tracking' takes 2 to {min(len(objects), len(labels))} boxes, got {boxes}")
    while True:
        things, names = rng.sample(objects, boxes), rng.sample(labels, boxes)
        asked, other = rng.sample(range(boxes), 2)
        form = WORDINGS[wording]
        parts = [form.format(object=thing, box=name) for thing, name in zip(things, names, strict=True)]
        parts[asked] = form
        parts[other] = form.format(object="{other_object}", box="{other_box}")
        listing = ", ".join(parts)
        yield template_pair(
            f"{capital(listing)}. Box {{query}} contains the",
            {
                "object": things[asked],
                "box": names[asked],
                "other_object": things[other],
                "other_box": names[other],
                "query": names[asked],
            },
            {"query": names[other]},
            [f" {things[asked]}"],
            [f" {things[other]}"],
            ("object", "box", "other_object", "other_box", "query"),
        )


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


ENTITY_TRACKING = Behaviour(
    name="entity_tracking",
    pairs=pairs,
    description="Entity tracking: recalls which thing was said to be in the box that is asked for.",
    source="Kim and Schuster 2023, arXiv:2305.02363; Prakash et al. 2024, Fine-Tuning Enhances Existing Mechanisms, "
    "arXiv:2402.14811",
    content="things and boxes",
)
