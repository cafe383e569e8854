"""Induction: random tokens that come again continue as they did the first time."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from interp.errors import UsageError, unknown_name
from interp.tasks.behaviour import Behaviour
from interp.tasks.pairs import Example
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder

__all__ = ["INDUCTION"]

LENGTH = 16
CORRUPTIONS = ("successor", "previous", "query", "order")


def examples(
    rng: Random, encoder: Encoder, half: Half, *, length: int | None = None, corruption: str = "successor"
) -> Iterator[Example]:
    """Endless sequences of different random tokens, the first half of which comes again.

    The clean prompt is BOS (where the model wants one), `length` different tokens, then the first half of them
    again; right is the token that followed the last one's earlier occurrence. Nothing but the corruption tells the
    corrupted prompt apart, so what is located is where that is read from.

    Args:
        length: tokens before the repetition; by default 16, fewer where the vocabulary or the context is small.
        corruption: what differs, wrong being the answer to the corrupted prompt.
            "successor": the token after the earlier occurrence, replaced by one that occurs nowhere else; it shows
            what is copied. "previous": the earlier occurrence changes places with a later token, whose successor
            is then wrong; it shows the previous-token head and the keys that it makes. "query": the last token is
            replaced by another earlier one; it shows the query. "order": the same tokens in another order, which
            changes all of these at once.
    """
    vocabulary, before = half(encoder.vocabulary), len(encoder.prefix)
    room = encoder.context - before if encoder.context else 10**9
    most = min(len(vocabulary) - 1, room * 2 // 3)
    length = min(LENGTH, most) if length is None else length
    if not 2 <= length <= most:
        raise UsageError(
            f"task 'induction' with length={length} does not fit: this model allows 2 to {most} tokens before the "
            f"repetition ({len(vocabulary)} ordinary tokens, a context of {encoder.context})"
        )
    if corruption not in CORRUPTIONS:
        raise unknown_name("corruption of task 'induction'", corruption, CORRUPTIONS)
    repeated = length // 2
    if corruption != "successor" and length - repeated < 3:
        raise UsageError(f"corruption={corruption!r} of task 'induction' needs length 5 or more, got {length}")
    while True:
        *tokens, unused = rng.sample(vocabulary, length + 1)
        right = tokens[repeated]
        other, again, wrong = _corrupt(tokens, unused, repeated, corruption, rng)
        clean = (*encoder.prefix, *tokens, *tokens[:repeated])
        corrupted = (*encoder.prefix, *other, *again)
        yield Example(
            clean,
            corrupted,
            (right,),
            (wrong,),
            {
                "previous": before + repeated - 1,
                "successor": before + repeated,
                "end": len(clean) - 1,
            },
            encoder.text(clean),
            encoder.text(corrupted),
        )


def _corrupt(
    tokens: list[int], unused: int, repeated: int, corruption: str, rng: Random
) -> tuple[list[int], list[int], int]:
    """The corrupted tokens, the repetition that follows them, and the answer to them."""
    other, again, here = list(tokens), tokens[:repeated], repeated - 1
    if corruption == "successor":
        other[repeated] = unused
        return other, again, unused
    if corruption == "order":
        while tokens[here] == other[here] or tokens[repeated] == other[repeated]:
            rng.shuffle(other)
        return other, other[:repeated], other[repeated]
    elsewhere = rng.randrange(repeated + 1, len(tokens) - 1)
    if corruption == "previous":
        other[here], other[elsewhere] = other[elsewhere], other[here]
    else:
        again[here] = tokens[elsewhere]
    return other, again, tokens[elsewhere + 1]


INDUCTION = Behaviour(
    name="induction",
    pairs=examples,
    description="Induction: in random tokens that repeat, the last one is followed by what followed it before.",
    source="Olsson et al. 2022, In-context Learning and Induction Heads, arXiv:2209.11895",
    content="tokens",
)
