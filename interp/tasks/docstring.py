"""Docstring: a Python docstring names the next argument of the function."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from interp.errors import UsageError, unknown_name
from interp.tasks.behaviour import Behaviour
from interp.tasks.pairs import Pair, template_pair
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder
from interp.tasks.words import single_words

__all__ = ["DOCSTRING"]

ARGUMENTS = (
    "load", "size", "file", "last", "page", "name", "order", "state", "value", "key", "path", "line", "count",
    "level", "color", "image", "result", "user", "date", "title", "model", "table", "input", "output",
)  # fmt: skip
FUNCTIONS = ("port", "run", "set", "get", "make", "read", "send", "test", "open", "build")
WORDS = (
    "oil", "column", "piece", "crime", "population", "unit", "dark", "river", "sound", "paper", "garden", "music",
    "winter", "market", "stone", "cloud",
)  # fmt: skip
CORRUPTIONS = ("swap", "random_def")


def pairs(rng: Random, encoder: Encoder, half: Half, *, corruption: str = "swap") -> Iterator[Pair]:
    """Endless pairs: `def port(self, load, size, file, last):` and a docstring that ends at the third `:param`.

    Right is the argument that the definition names third (after `self`).

    Args:
        corruption: `"swap"` exchanges the third and fourth argument in the definition, so that the fourth becomes
            right; `"random_def"` (the paper's) puts other names in the definition for all of them.
    """
    if corruption not in CORRUPTIONS:
        raise unknown_name("corruption", corruption, CORRUPTIONS)
    arguments = single_words(half(ARGUMENTS), encoder)
    if len(arguments) < 8:
        raise UsageError("task 'docstring': this model's tokenizer has too few argument names that are one token")
    functions, fillers = half(FUNCTIONS), half(WORDS)
    while True:
        a, b, c, d, *fresh = rng.sample(arguments, 8)
        words = rng.sample(fillers, 7)
        text = (
            f"def {rng.choice(functions)}(self, {{a_def}}, {{b_def}}, {{c_def}}, {{d_def}}):\n"
            f'    """{words[0]} {words[1]} {words[2]}\n\n'
            f"    :param {{a_doc}}: {words[3]} {words[4]}\n    :param {{b_doc}}: {words[5]} {words[6]}\n    :param"
        )
        clean = {"a_def": a, "b_def": b, "c_def": c, "d_def": d, "a_doc": a, "b_doc": b}
        corrupted = (
            {"c_def": d, "d_def": c}
            if corruption == "swap"
            else dict(zip(("a_def", "b_def", "c_def", "d_def"), fresh, strict=True))
        )
        yield template_pair(text, clean, corrupted, [f" {c}"], [f" {d}"], tuple(clean))


DOCSTRING = Behaviour(
    name="docstring",
    pairs=pairs,
    description="Docstring: names the function's next argument in a Python docstring.",
    source="Heimersheim and Janiak 2023, A circuit for Python docstrings in a 4-layer attention-only transformer",
    content="arguments, functions and words",
)
