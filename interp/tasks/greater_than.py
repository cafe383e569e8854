"""Greater-than: a war ends in a later year of the century than it began."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from interp.tasks.behaviour import Behaviour
from interp.tasks.pairs import Pair, template_pair
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder

__all__ = ["GREATER_THAN"]

NOUNS = (
    "war", "siege", "famine", "strike", "campaign", "conflict", "revolution", "expedition", "project", "reign",
    "voyage", "dispute", "journey", "mission", "trial", "occupation", "rebellion", "plague", "study", "program",
)  # fmt: skip
CENTURIES = ("11", "12", "13", "14", "15", "16", "17", "18")


def pairs(rng: Random, encoder: Encoder, half: Half) -> Iterator[Pair]:
    """Endless pairs such as "The war lasted from the year 1743 to the year 17" -> a later year's next token.

    The corrupted prompt begins in the year 01, after which every year is later. Under a tokenizer that has the
    two-digit numbers as tokens, right are the years after the start and wrong those up to it, as in the paper.
    Under one that reads digit by digit the next token is the decade: right are later decades, wrong are earlier
    ones, and the start's own decade, which is both, is neither.
    """
    added = [encoder.continuation("to the year 17", year) for year in ("02", "43", "98")]
    two_digits = all(tokens is not None and len(tokens) == 1 for tokens in added)
    nouns, centuries = half(NOUNS), half(CENTURIES)
    starts, decades, years = half(range(2, 99)), half(range(1, 9)), half(range(2, 10))
    while True:
        noun, century = rng.choice(nouns), rng.choice(centuries)
        text = f"The {noun} lasted from the year {century}{{start}} to the year {century}"
        if two_digits:
            start = rng.choice(starts)
            right = [f"{year:02d}" for year in range(start + 1, 100)]
            wrong = [f"{year:02d}" for year in range(2, start + 1)]
            yield template_pair(text, {"start": f"{start:02d}"}, {"start": "01"}, right, wrong, ("start",))
        else:
            decade, year = rng.choice(decades), rng.choice(years)
            text = text.replace("{start}", "{decade}{year}")
            right, wrong = [str(d) for d in range(decade + 1, 10)], [str(d) for d in range(decade)]
            words = {"decade": str(decade), "year": str(year)}
            yield template_pair(text, words, {"decade": "0", "year": "1"}, right, wrong, ("decade", "year"))


GREATER_THAN = Behaviour(
    name="greater_than",
    pairs=pairs,
    description="Greater-than: something that began in a year of a century ends in a later year of it.",
    source="Hanna et al. 2023, How does GPT-2 compute greater-than?, arXiv:2305.00586",
    content="nouns, centuries and years",
    metric="prob_diff",
)
