"""Country capitals: a fact about one named subject."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from interp.tasks.behaviour import Behaviour
from interp.tasks.pairs import Pair, template_pair
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder
from interp.tasks.words import ordered_pairs

__all__ = ["CAPITALS", "CAPITAL_OF"]

CAPITAL_OF = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo",
    "China": "Beijing", "Russia": "Moscow", "England": "London", "Greece": "Athens", "Egypt": "Cairo",
    "Poland": "Warsaw", "Austria": "Vienna", "Sweden": "Stockholm", "Norway": "Oslo", "Ireland": "Dublin",
    "Cuba": "Havana", "Peru": "Lima", "Iran": "Tehran", "Iraq": "Baghdad", "Turkey": "Ankara",
    "Portugal": "Lisbon", "Hungary": "Budapest", "Kenya": "Nairobi", "Canada": "Ottawa", "Finland": "Helsinki",
    "Denmark": "Copenhagen", "Belgium": "Brussels", "Syria": "Damascus", "Thailand": "Bangkok", "Chile": "Santiago",
}  # fmt: skip


def pairs(rng: Random, encoder: Encoder, half: Half) -> Iterator[Pair]:
    """All pairs of countries, such as "The capital of France is the city of" -> " Paris"; corrupted: another one's."""
    for country, other in ordered_pairs(half(list(CAPITAL_OF)), rng):
        yield template_pair(
            "The capital of {country} is the city of",
            {"country": country},
            {"country": other},
            right=[f" {CAPITAL_OF[country]}"],
            wrong=[f" {CAPITAL_OF[other]}"],
            named=("country",),
        )


CAPITALS = Behaviour(
    name="capitals",
    pairs=pairs,
    description="Country capitals: recalls the capital of a country.",
    source="Meng et al. 2022, Locating and Editing Factual Associations in GPT, arXiv:2202.05262",
    content="countries",
)
