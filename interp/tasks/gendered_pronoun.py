"""Gendered pronoun: a tag question takes the pronoun that goes with the name."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from interp.tasks.behaviour import Behaviour
from interp.tasks.pairs import Pair, template_pair
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder
from interp.tasks.words import MEN, WOMEN, single_words

__all__ = ["GENDERED_PRONOUN"]

PRAISE = (
    "good cook", "good friend", "great singer", "kind person", "good teacher", "great dancer", "fast runner",
    "good student", "nice neighbor", "great writer",
)  # fmt: skip


def pairs(rng: Random, encoder: Encoder, half: Half) -> Iterator[Pair]:
    """Endless pairs such as "So Mary is such a good cook, isn't" -> " she"; corrupted: a name of the other gender."""
    women, men = single_words(half(WOMEN), encoder), single_words(half(MEN), encoder)
    praise = half(PRAISE)
    while women and men:
        people = [(rng.choice(women), " she"), (rng.choice(men), " he")]
        rng.shuffle(people)
        (name, right), (other, wrong) = people
        yield template_pair(
            f"So {{name}} is such a {rng.choice(praise)}, isn't",
            {"name": name},
            {"name": other},
            [right],
            [wrong],
            ("name",),
        )


GENDERED_PRONOUN = Behaviour(
    name="gendered_pronoun",
    pairs=pairs,
    description="Gendered pronoun: continues a tag question with the pronoun that goes with the name.",
    source="Mathwin et al. 2023, Identifying a Preliminary Circuit for Predicting Gendered Pronouns in GPT-2 Small",
    content="names and praise",
)
