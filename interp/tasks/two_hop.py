"""Two-hop facts: a fact about a country that is only hinted at by one of its cities."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from interp.errors import unknown_name
from interp.tasks.behaviour import Behaviour
from interp.tasks.capitals import CAPITAL_OF
from interp.tasks.pairs import Pair, template_pair
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder
from interp.tasks.words import ordered_pairs

__all__ = ["CITIES_IN", "TWO_HOP"]

CITIES_IN = {
    "France": ("Lyon", "Marseille", "Nice", "Bordeaux"),
    "Germany": ("Munich", "Hamburg", "Frankfurt", "Cologne"),
    "Italy": ("Milan", "Venice", "Florence", "Naples", "Turin"),
    "Spain": ("Barcelona", "Valencia", "Seville"),
    "Japan": ("Osaka", "Kyoto", "Hiroshima"),
    "China": ("Shanghai", "Wuhan", "Nanjing"),
    "England": ("Manchester", "Liverpool", "Birmingham", "Leeds", "Bristol"),
    "Russia": ("Petersburg", "Leningrad"),
    "Egypt": ("Alexandria",),
    "Poland": ("Krakow",),
    "Turkey": ("Istanbul",),
    "Portugal": ("Porto",),
}
LANGUAGE_OF = {
    "France": "French", "Germany": "German", "Italy": "Italian", "Spain": "Spanish", "Japan": "Japanese",
    "China": "Chinese", "England": "English", "Russia": "Russian", "Egypt": "Arabic", "Poland": "Polish",
    "Turkey": "Turkish", "Portugal": "Portuguese",
}  # fmt: skip
RELATIONS = {
    "capital": ("The capital of the country where {subject} is located is the city of", CAPITAL_OF),
    "language": ("The language of the country where {subject} is located is", LANGUAGE_OF),
}


def pairs(rng: Random, encoder: Encoder, half: Half, *, relation: str = "language") -> Iterator[Pair]:
    """All pairs of cities in different countries, the corrupted prompt naming the other city.

    Args:
        relation: `"language"` ("The language of the country where Munich is located is" -> " German") or
            `"capital"`.
    """
    if relation not in RELATIONS:
        raise unknown_name("relation", relation, RELATIONS)
    template, answer_of = RELATIONS[relation]
    cities = [(city, country) for country in half(list(CITIES_IN)) for city in CITIES_IN[country]]
    for (city, country), (other, elsewhere) in ordered_pairs(cities, rng):
        if country != elsewhere:
            yield template_pair(
                template,
                {"subject": city},
                {"subject": other},
                right=[f" {answer_of[country]}"],
                wrong=[f" {answer_of[elsewhere]}"],
                named=("subject",),
            )


TWO_HOP = Behaviour(
    name="two_hop",
    pairs=pairs,
    description="Two-hop facts: recalls the country of a city, then a fact about that country.",
    source="Yang et al. 2024, Do LLMs Latently Perform Multi-Hop Reasoning?, arXiv:2402.16837",
    content="countries and their cities",
)
