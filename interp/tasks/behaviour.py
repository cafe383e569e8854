"""A shipped behaviour, and how examples of it are drawn for one model's tokenizer."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

from interp.errors import UsageError, unknown_name
from interp.tasks.dataset import Task
from interp.tasks.metrics import Metric
from interp.tasks.pairs import Example, Pair, assemble, encode_pair
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder

__all__ = ["Behaviour", "build"]

POOL = 128
PATIENCE = 2000


@dataclass(frozen=True)
class Behaviour:
    """A named source of prompt pairs.

    Args:
        name: how the task is asked for.
        pairs: `(rng, encoder, half, **options)` -> pairs, endless or all that there are in an order drawn by `rng`.
            Every pool that they are drawn from goes through `half`.
        description: the behaviour in one sentence.
        source: the paper that it comes from.
        content: what the pools have, of which two splits share nothing.
        metric: the default metric.
    """

    name: str
    pairs: Callable[..., Iterator[Pair | Example]]
    description: str
    source: str
    content: str
    metric: str = "logit_diff"

    @property
    def options(self) -> tuple[str, ...]:
        """The keyword options that `pairs` takes."""
        parameters = inspect.signature(self.pairs).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def build(
    behaviour: Behaviour,
    model: Any,
    n: int,
    seed: int,
    metric: str | Metric | Callable | None,
    mixed_lengths: bool,
    options: dict[str, Any],
    split: str | None = None,
    fewer: bool = False,
) -> Task:
    """`n` distinct examples of the behaviour, in a split with distinct clean prompts.

    Unless `mixed_lengths`, all have the token length that is most common among the first candidates, so that a
    position means the same in each. Candidates that the tokenizer splits badly (an answer of two tokens, a pair
    of unequal length) are passed over.

    Raises:
        UsageError: an unknown option or split, `n` below 1, or more examples asked for than there are (unless
            `fewer`).
    """
    for option in options:
        if option not in behaviour.options:
            known = (*behaviour.options, "mixed_lengths")
            raise unknown_name(f"option of task {behaviour.name!r}:", option, known)
    if n < 1:
        raise UsageError(f"task {behaviour.name!r} needs at least one example, got n={n}")
    encoder, half = Encoder(model), Half(split)
    inside = "" if split is None else f" in the split {split!r} of its {behaviour.content}"
    source = distinct(behaviour.pairs(Random(seed), encoder, half, **options), encoder, split is not None)
    try:
        pool = list(islice(source, max(POOL, 2 * n)))
    except UsageError as error:
        raise UsageError(f"{error}{inside and f';{inside}'}") from None
    if not pool:
        raise UsageError(f"task {behaviour.name!r}: no prompt{inside} fits this model's tokenizer")
    if mixed_lengths:
        chosen = pool[:n]
        length = None
    else:
        counts = Counter(len(example.clean) for example in pool)
        length = min(counts, key=lambda size: (-counts[size], size))
        chosen = [example for example in pool if len(example.clean) == length][:n]
    chosen += first(source, n - len(chosen), length)
    if len(chosen) < n and not fewer:
        where = f"with this model's tokenizer{inside}" + ("" if mixed_lengths else f" at {length} tokens")
        what = "examples" if split is None else "clean prompts"
        more = "" if mixed_lengths else ", or mixed_lengths=True to admit other lengths"
        raise UsageError(
            f"task {behaviour.name!r} has {len(chosen)} distinct {what} {where}, not {n}; ask for n={len(chosen)} "
            f"or fewer{more}"
        )
    return assemble(
        behaviour.name,
        chosen,
        encoder,
        metric or behaviour.metric,
        seed=seed,
        description=behaviour.description,
        source=behaviour.source,
        split=split,
    )


def distinct(pairs: Iterator[Pair | Example], encoder: Encoder, by_clean: bool) -> Iterator[Example]:
    """The pairs that the tokenizer splits well, each (or each clean prompt) once, until they end or nothing new comes
    for long."""
    seen: set[Any] = set()
    idle = 0
    for pair in pairs:
        idle += 1
        if idle > PATIENCE:
            return
        clean, both = pair.clean, (pair.clean, pair.corrupted)
        if both in seen or (by_clean and clean in seen):
            continue
        seen.add(both)
        if isinstance(pair, Pair):
            try:
                pair = encode_pair(pair, encoder)
            except UsageError:
                continue
        seen.add(clean)
        idle = 0
        yield pair


def first(source: Iterator[Example], count: int, length: int | None) -> list[Example]:
    """The next `count` examples of that length (any if None), fewer if they run out or become too rare."""
    found: list[Example] = []
    idle = 0
    while len(found) < count and idle <= PATIENCE and (example := next(source, None)) is not None:
        idle += 1
        if length is None or len(example.clean) == length:
            found.append(example)
            idle = 0
    return found
