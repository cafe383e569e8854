"""Multiple choice: gives the letter of the right option."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from interp.tasks.behaviour import Behaviour
from interp.tasks.pairs import Pair, template_pair
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder

__all__ = ["MULTIPLE_CHOICE"]

KINDS = {
    "an animal": ("dog", "cat", "horse", "cow", "lion", "bear", "sheep", "pig"),
    "a color": ("red", "blue", "green", "yellow", "black", "white", "brown"),
    "a fruit": ("apple", "banana", "orange", "peach", "pear", "grape"),
    "a country": ("France", "Japan", "Egypt", "Spain", "China", "India", "Italy"),
    "a number": ("seven", "three", "four", "eight", "nine", "five"),
    "a month": ("January", "March", "June", "August", "October", "April"),
}
SHOTS = (
    "Question: Which of these is a metal?\n (A) paper\n (B) iron\nAnswer: (B) iron\n\n"
    "Question: Which of these is a drink?\n (A) tea\n (B) chair\nAnswer: (A) tea\n\n"
)
LETTERS = ("A", "B")


def pairs(rng: Random, encoder: Encoder, half: Half) -> Iterator[Pair]:
    """Endless pairs: two solved questions, then one of two options; corrupted: the options change places.

    "Question: Which of these is a fruit?\\n (A) horse\\n (B) peach\\nAnswer: (" -> "B".
    """
    kinds = {kind: half(words) for kind, words in KINDS.items()}
    while True:
        kind, unlike = rng.sample(list(kinds), 2)
        options = [rng.choice(kinds[kind]), rng.choice(kinds[unlike])]
        right, wrong = LETTERS if rng.random() < 0.5 else LETTERS[::-1]
        if right == "B":
            options.reverse()
        yield template_pair(
            f"{SHOTS}Question: Which of these is {{kind}}?\n (A) {{option_a}}\n (B) {{option_b}}\nAnswer: (",
            {"kind": kind, "option_a": options[0], "option_b": options[1]},
            {"option_a": options[1], "option_b": options[0]},
            [right],
            [wrong],
            ("kind", "option_a", "option_b"),
        )


MULTIPLE_CHOICE = Behaviour(
    name="multiple_choice",
    pairs=pairs,
    description="Multiple choice: gives the letter of the option that answers the question.",
    source="Lieberum et al. 2023, Does Circuit Analysis Interpretability Scale?, arXiv:2307.09458",
    content="options",
)
