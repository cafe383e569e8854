"""Counting: how often the most frequent animal, or food, occurs in a list of words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from random import Random

from interp.errors import UsageError, unknown_name
from interp.models._count import CATEGORIES, FUNCTION_WORDS, NUMBERS
from interp.tasks.behaviour import Behaviour
from interp.tasks.pairs import Example
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder

__all__ = ["COUNT"]

PLACES = 14


def examples(rng: Random, encoder: Encoder, half: Half, *, corruption: str = "all") -> Iterator[Example]:
    """Endless lists of fourteen words and a question; right is how often the category's most frequent word occurs.

    It occurs three to five times, the runner-up of its category twice, the most frequent word of the other category
    once less, and another one of that category once. The remaining places have function words.

    Args:
        corruption: "all" gives almost every place a word of the other category and asks for that category, whose
            most frequent word occurs once less, and last where the clean runner-up did: whatever a component of the
            clean run is told by the corrupted one, the answer becomes too low. "question" asks for the other
            category and changes nothing else.
    """
    if corruption not in ("all", "question"):
        raise unknown_name("corruption of task 'count'", corruption, ("all", "question"))
    ids = {question: _known(encoder, half(words)) for question, words in CATEGORIES.items()}
    question = dict(zip(CATEGORIES, _known(encoder, CATEGORIES), strict=False))
    numbers, function_words = _known(encoder, NUMBERS), _known(encoder, half(FUNCTION_WORDS))
    if len(question) < 2 or min(map(len, ids.values())) < 6 or len(numbers) < len(NUMBERS) or not function_words:
        raise UsageError(
            "task 'count' needs ' animal', ' food', six words of each, the numbers to six and a function word as "
            "single tokens; this model's tokenizer lacks some: use interp.load('toy-count')"
        )
    while True:
        times = rng.randint(3, 5)
        asked, other = rng.sample(list(CATEGORIES), 2)
        roles = ["first"] * times + ["second"] * 2 + ["third"] * (times - 1) + ["fourth"]
        roles += ["function"] * (PLACES - len(roles))
        rng.shuffle(roles)
        _runner_up_last(roles)
        mine, theirs = rng.sample(ids[asked], 4), rng.sample(ids[other], 6)
        words = {"first": mine[0], "second": mine[1], "third": theirs[0], "fourth": theirs[1]}
        listed = [words[role] if role in words else rng.choice(function_words) for role in roles]
        turned = listed
        if corruption == "all":
            turned = _turned(roles, listed, mine[2:], theirs[2:], rng.choice(function_words))
        clean = (*encoder.prefix, *listed, question[asked])
        corrupted = (*encoder.prefix, *turned, question[other])
        yield Example(
            clean,
            corrupted,
            (numbers[times - 1],),
            (numbers[times - 2],),
            {
                "winner": len(encoder.prefix) + _last(roles, "first"),
                "runner-up": len(encoder.prefix) + _last(roles, "second"),
                "end": len(clean) - 1,
            },
            encoder.text(clean),
            encoder.text(corrupted),
        )


def _turned(roles: list[str], listed: list[int], mine: list[int], theirs: list[int], function_word: int) -> list[int]:
    """The corrupted words: `theirs[0]` stands at the winner's places but its first and last, and ends on the
    runner-up's last place; a function word and other words stand where those are missing."""
    words = {"first": theirs[0], "second": theirs[1], "third": mine[0], "fourth": mine[1]}
    turned = [words.get(role, word) for role, word in zip(roles, listed, strict=True)]
    turned[roles.index("first")] = function_word
    turned[_last(roles, "first")] = theirs[2]
    turned[_last(roles, "second")] = theirs[0]
    return turned


def _runner_up_last(roles: list[str]) -> None:
    """Let the runner-up's last place come after the winner's."""
    first, second = _last(roles, "first"), _last(roles, "second")
    if first > second:
        roles[first], roles[second] = roles[second], roles[first]


def _last(roles: list[str], role: str) -> int:
    return max(place for place, name in enumerate(roles) if name == role)


def _known(encoder: Encoder, words: Iterable[str]) -> list[int]:
    """The ids of those words that are one ordinary token each."""
    ordinary = set(encoder.vocabulary)
    ids = [encoder.single(f" {word}") for word in words]
    return [index for index in ids if index is not None and index in ordinary]


COUNT = Behaviour(
    name="count",
    pairs=examples,
    description="Counting: how often the most frequent word of the category asked for at the end occurs.",
    source="the histogram program of Weiss et al. 2021, Thinking Like Transformers, arXiv:2106.06981, continued",
    content="words",
)
