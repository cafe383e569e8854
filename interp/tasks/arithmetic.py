"""Arithmetic: sums and differences whose result is one token."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from random import Random

from interp.errors import UsageError, unknown_name
from interp.tasks.behaviour import Behaviour
from interp.tasks.pairs import Pair, template_pair
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder

__all__ = ["ARITHMETIC"]

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def pairs(
    rng: Random, encoder: Encoder, half: Half, *, operation: str = "+", largest: int = 9, shots: int = 2
) -> Iterator[Pair]:
    """Endless pairs such as "4+4=8\\n1+2=3\\n2+5=" -> "7"; the corrupted prompt has another first operand.

    Results are single tokens, so under a tokenizer that reads digit by digit they are at most 9.

    Args:
        operation: `"+"`, `"-"` or `"*"`; no result is negative.
        largest: the largest operand.
        shots: solved examples before the question, with other results than the two answers.
    """
    if operation not in OPERATIONS:
        raise unknown_name("operation", operation, OPERATIONS)
    if largest < 3 or not 0 <= shots <= 8:
        raise UsageError(f"task 'arithmetic' takes largest >= 3 and 0 to 8 shots, got {largest} and {shots}")
    compute = OPERATIONS[operation]
    facts = half(
        [
            (a, b, result)
            for a in range(1, largest + 1)
            for b in range(1, largest + 1)
            if (result := compute(a, b)) >= 0 and len(encoder.continuation("1=", str(result)) or ()) == 1
        ]
    )
    if not any(b == d and right != wrong for _, b, right in facts for _, d, wrong in facts):
        raise UsageError(f"task 'arithmetic' has too few facts with operands up to {largest} to make a pair")
    while True:
        a, b, right = rng.choice(facts)
        others = [(c, result) for c, d, result in facts if d == b and c != a and result != right]
        if not others:
            continue
        c, wrong = rng.choice(others)
        apart = [fact for fact in facts if fact[2] not in (right, wrong)]
        if len(apart) < shots:
            raise UsageError(f"task 'arithmetic' has too few facts with operands up to {largest} for {shots} shots")
        shown = rng.sample(apart, shots)
        solved = "".join(f"{x}{operation}{y}={z}\n" for x, y, z in shown)
        yield template_pair(
            f"{solved}{{a}}{operation}{{b}}=",
            {"a": str(a), "b": str(b)},
            {"a": str(c)},
            [str(right)],
            [str(wrong)],
            ("a", "b"),
        )


ARITHMETIC = Behaviour(
    name="arithmetic",
    pairs=pairs,
    description="Arithmetic: adds (or subtracts, or multiplies) two small numbers.",
    source="Stolfo et al. 2023, A Mechanistic Interpretation of Arithmetic Reasoning, arXiv:2305.15054; "
    "Nikankin et al. 2024, Arithmetic Without Algorithms, arXiv:2410.21272",
    content="facts (a number may stand in both)",
)
