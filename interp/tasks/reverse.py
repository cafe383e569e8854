"""Reversal: words that stood before a separator are said again after it, the last one first."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from interp.errors import UsageError
from interp.tasks.behaviour import Behaviour
from interp.tasks.pairs import Example
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder

__all__ = ["REVERSE"]

SEPARATOR = " |"


def examples(rng: Random, encoder: Encoder, half: Half, *, length: int = 6, said: int = 3) -> Iterator[Example]:
    """Endless sequences of different random tokens, a separator, and the last `said` of them backwards.

    Right is the token before the one said last. The corrupted prompt has the same tokens in another order, such that
    its answer, the token said last and the one said before that all differ: whatever a component of the clean run is
    told by the corrupted one about any of them, the answer suffers.

    Args:
        length: tokens before the separator.
        said: how many of them have been said again, 2 to `length - 1`.
    """
    separator = encoder.single(SEPARATOR)
    if separator is None or separator not in encoder.vocabulary:
        raise UsageError(f"task 'reverse' needs {SEPARATOR!r} as a single token; this model's tokenizer has none")
    vocabulary = half([token for token in encoder.vocabulary if token != separator])
    before = len(encoder.prefix)
    room = encoder.context or 10**9
    if not 2 <= said < length or length > len(vocabulary) or before + length + 1 + said > room:
        raise UsageError(
            f"task 'reverse' with length={length} and said={said} does not fit: said is 2 to length - 1, and the "
            f"prompt has {before + length + 1 + said} tokens ({len(vocabulary)} ordinary tokens, a context of "
            f"{encoder.context})"
        )
    here = length - said
    while True:
        tokens = rng.sample(vocabulary, length)
        other = list(tokens)
        while any(tokens[i] == other[i] for i in (here - 1, here, here + 1)):
            rng.shuffle(other)

        def prompt(words: list[int]) -> tuple[int, ...]:
            return (*encoder.prefix, *words, separator, *words[: here - 1 : -1])

        clean, corrupted = prompt(tokens), prompt(other)
        yield Example(
            clean,
            corrupted,
            (tokens[here - 1],),
            (other[here - 1],),
            {
                "answer": before + here - 1,
                "occurrence": before + here,
                "separator": before + length,
                "end": len(clean) - 1,
            },
            encoder.text(clean),
            encoder.text(corrupted),
        )


REVERSE = Behaviour(
    name="reverse",
    pairs=examples,
    description="Reversal: after a separator, random tokens are said again in the opposite order.",
    source="the reversal program of Weiss et al. 2021, Thinking Like Transformers, arXiv:2106.06981",
    content="tokens",
)
