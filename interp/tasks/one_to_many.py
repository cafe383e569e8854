"""One-to-many facts: a question with several right answers."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from interp.tasks.behaviour import Behaviour
from interp.tasks.capitals import CAPITAL_OF
from interp.tasks.pairs import Pair, template_pair
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder
from interp.tasks.two_hop import CITIES_IN
from interp.tasks.words import ordered_pairs, single_words

__all__ = ["ONE_TO_MANY"]

TEMPLATES = (
    "One of the biggest cities in {country} is",
    "A famous city in the country of {country} is",
    "A large city that lies in {country} is",
)


def pairs(rng: Random, encoder: Encoder, half: Half) -> Iterator[Pair]:
    """Pairs such as "One of the biggest cities in France is" -> " Paris", " Lyon", ...; corrupted: another country.

    Right are the listed cities of the clean prompt's country that are one token, wrong those of the other.
    """
    cities = {country: single_words((CAPITAL_OF[country], *others), encoder) for country, others in CITIES_IN.items()}
    several = [country for country in half(list(cities)) if len(cities[country]) > 1]
    for country, other in ordered_pairs(several, rng):
        yield template_pair(
            rng.choice(TEMPLATES),
            {"country": country},
            {"country": other},
            right=[f" {city}" for city in cities[country]],
            wrong=[f" {city}" for city in cities[other]],
            named=("country",),
        )


ONE_TO_MANY = Behaviour(
    name="one_to_many",
    pairs=pairs,
    description="One-to-many facts: names one of the several cities of a country.",
    source="Yan and Jia 2025, Promote, Suppress, Iterate: How LMs Answer One-to-Many Factual Queries, arXiv:2502.20475",
    content="countries",
    metric="prob_diff",
)
