"""A user's own task from a JSONL file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from interp.errors import UsageError
from interp.tasks.corpora import documents
from interp.tasks.dataset import Task
from interp.tasks.metrics import Metric
from interp.tasks.pairs import Example, Pair, assemble, encode_pair
from interp.tasks.tokens import Encoder

__all__ = ["load_jsonl"]

FIELDS = {
    "clean",
    "corrupted",
    "answer",
    "answers",
    "wrong_answer",
    "wrong_answers",
    "positions",
}


def load_jsonl(
    path: str | Path,
    model: Any,
    *,
    n: int | None = None,
    metric: str | Metric | Callable = "logit_diff",
    seed: int = 0,
    split: str | None = None,
) -> Task:
    """The task in a file of one JSON object a line.

    Args:
        path: the file. Each line has `clean` and `corrupted` (texts of equal token length), `answer` or `answers`
            and `wrong_answer` or `wrong_answers` (single tokens, with their leading space), and may have
            `positions`: name -> substring of `clean` that occurs once, or token index. Empty lines are skipped.
        model: the model whose tokenizer reads the prompts.
        n: how many lines to take at most, None for all.
        metric: a name from `METRICS`, a `Metric` or a function of the end logits.
        seed: kept with the task; nothing is drawn.
        split: `find` or `score` takes one half of the clean prompts, each of them once, by their text alone as
            `interp.tasks.documents` does; None takes all lines.

    Returns:
        A task named after the file, whose lengths may differ.

    Raises:
        UsageError: no such file, or a line that is no pair; the message names the file and the line.
    """
    path = Path(path)
    if n is not None and n < 1:
        raise UsageError(f"task {str(path)!r} needs at least one example, got n={n}")
    encoder = Encoder(model)
    examples: list[Example] = []
    for number, pair in islice(own(pairs_of(path), split, path), n):
        try:
            examples.append(encode_pair(pair, encoder))
        except UsageError as error:
            raise UsageError(f"{path}, line {number}: {error}") from error
    if not examples:
        raise UsageError(f"the task file {str(path)!r} holds no examples")
    try:
        return assemble(
            path.stem,
            examples,
            encoder,
            metric,
            seed=seed,
            description=f"{len(examples)} pairs from {path.name}.",
            source=path.name,
            split=split,
        )
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def lines(path: Path) -> list[str]:
    """The lines of a task's file.

    Raises:
        UsageError: no such file, or not text.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"can't read the task file {str(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the task file {str(path)!r} is not UTF-8 text") from error


def pairs_of(path: Path) -> Iterator[tuple[int, Pair]]:
    """The pairs with their lines' numbers, each read when it is asked for."""
    for number, line in enumerate(lines(path), start=1):
        if line.strip():
            try:
                yield number, parse(line)
            except UsageError as error:
                raise UsageError(f"{path}, line {number}: {error}") from error


def own(pairs: Iterator[tuple[int, Pair]], split: str | None, path: Path) -> Iterator[tuple[int, Pair]]:
    """The pairs of a split, each clean prompt once."""
    if split is None:
        yield from pairs
        return
    once: dict[str, tuple[int, Pair]] = {}
    for number, pair in pairs:
        once.setdefault(pair.clean, (number, pair))
    if len(once) < 2:
        raise UsageError(f"the task file {str(path)!r} has {len(once)} clean prompts, and a split needs two")
    kept = documents(list(once), split)
    yield from (once[clean] for clean in kept)


def parse(line: str) -> Pair:
    """One line as a pair."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError):  # a number of thousands of digits, or endless nesting
        raise UsageError("not JSON that can be read: nested too deep, or a number too long") from None
    if not isinstance(entry, dict):
        raise UsageError(f"a line is a JSON object, not {type(entry).__name__}")
    if unknown := sorted(entry.keys() - FIELDS):
        raise UsageError(f"unknown field {unknown[0]!r}; the fields are {', '.join(sorted(FIELDS))}")
    positions = entry.get("positions", {})
    if not isinstance(positions, dict) or not all(
        isinstance(place, str | int) and not isinstance(place, bool) for place in positions.values()
    ):
        raise UsageError("'positions' is an object of name -> substring or token index")
    return Pair(
        clean=text(entry, "clean"),
        corrupted=text(entry, "corrupted"),
        right=answers(entry, "answer", "answers"),
        wrong=answers(entry, "wrong_answer", "wrong_answers"),
        positions=positions,
    )


def text(entry: dict[str, Any], name: str) -> str:
    if not isinstance(value := entry.get(name), str) or not value:
        raise UsageError(f"{name!r} must be a text, got {value!r}" if name in entry else f"{name!r} is missing")
    return value


def answers(entry: dict[str, Any], one: str, several: str) -> tuple[str, ...]:
    if (one in entry) == (several in entry):
        raise UsageError(f"give {one!r} or {several!r}" + (", not both" if one in entry else ""))
    values = [entry[one]] if one in entry else entry[several]
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v for v in values):
        raise UsageError(f"{several if several in entry else one!r} must be text, got {values!r}")
    return tuple(values)
