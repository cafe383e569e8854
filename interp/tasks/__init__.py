"""Behaviours as aligned prompt pairs with answers, named positions and a metric."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from interp.errors import UsageError, unknown_name
from interp.tasks.arithmetic import ARITHMETIC
from interp.tasks.behaviour import Behaviour, build
from interp.tasks.capitals import CAPITALS
from interp.tasks.colored_objects import COLORED_OBJECTS
from interp.tasks.corpora import CORPORA, SPLITS, corpus, documents, sized
from interp.tasks.count import COUNT
from interp.tasks.dataset import Task
from interp.tasks.docstring import DOCSTRING
from interp.tasks.entity_tracking import ENTITY_TRACKING
from interp.tasks.gendered_pronoun import GENDERED_PRONOUN
from interp.tasks.greater_than import GREATER_THAN
from interp.tasks.induction import INDUCTION
from interp.tasks.ioi import IOI
from interp.tasks.jsonl import load_jsonl
from interp.tasks.keys import KeySample, key_samples
from interp.tasks.laundry_list import LAUNDRY_LIST
from interp.tasks.metrics import METRICS, Metric, metric
from interp.tasks.multiple_choice import MULTIPLE_CHOICE
from interp.tasks.one_to_many import ONE_TO_MANY
from interp.tasks.pairs import Pair, from_pairs
from interp.tasks.reverse import REVERSE
from interp.tasks.subject_verb_agreement import SUBJECT_VERB_AGREEMENT
from interp.tasks.successor import SUCCESSOR
from interp.tasks.two_hop import TWO_HOP

__all__ = [
    "CORPORA",
    "METRICS",
    "SPLITS",
    "TASKS",
    "Behaviour",
    "KeySample",
    "Metric",
    "Pair",
    "Task",
    "corpus",
    "documents",
    "from_pairs",
    "key_samples",
    "load_jsonl",
    "metric",
    "names",
    "sized",
    "task",
]

SHIPPED = (
    IOI,
    GREATER_THAN,
    INDUCTION,
    CAPITALS,
    TWO_HOP,
    ONE_TO_MANY,
    SUBJECT_VERB_AGREEMENT,
    GENDERED_PRONOUN,
    COLORED_OBJECTS,
    ENTITY_TRACKING,
    ARITHMETIC,
    SUCCESSOR,
    MULTIPLE_CHOICE,
    LAUNDRY_LIST,
    DOCSTRING,
    REVERSE,
    COUNT,
)
TASKS: dict[str, Behaviour] = {behaviour.name: behaviour for behaviour in SHIPPED}


def names() -> list[str]:
    """The names of the shipped tasks."""
    return list(TASKS)


def task(
    name_or_path: str | Path | Task,
    model: Any,
    n: int = 32,
    seed: int = 0,
    metric: str | Metric | Callable | None = None,
    *,
    split: str | None = None,
    mixed_lengths: bool = False,
    fewer: bool = False,
    **options: Any,
) -> Task:
    """A behaviour as prompt pairs for one model; the same call gives the same task.

    Args:
        name_or_path: a shipped task (see `names`), a `.jsonl` file of one's own (see `load_jsonl`), or a `Task`,
            which is returned as it is (with `metric` if given).
        model: the model whose tokenizer reads the prompts.
        n: how many distinct examples. Of a file, the first `n` lines, fewer if it has fewer.
        seed: what the examples are drawn with.
        metric: a name from `METRICS`, a `Metric` or a function of the end logits; None for the task's own.
        split: `find` or `score` takes one half of the task's content, see `Behaviour.content`: what a finding is made
            on, or what it is tried on. The two share neither a clean prompt nor an item of the content, whatever the
            seeds, and in a split no clean prompt comes twice. Of a file, one half of the clean prompts.
        mixed_lengths: admit examples of different token lengths; else all have the most common one.
        fewer: take as many as there are where they are fewer than `n`.
        options: of the task, such as `corruption="abc"` for `ioi`.

    Raises:
        UsageError: unknown task, split, option or metric, `n` below 1 or above what the task has, a pair that does
            not align.
    """
    if isinstance(name_or_path, Task):
        if split not in (None, name_or_path.split):
            raise UsageError(f"this task is made with split={name_or_path.split!r} and can't be split again")
        return name_or_path if metric is None else name_or_path.with_metric(metric)
    name = str(name_or_path)
    if name.endswith(".jsonl"):
        if options:
            raise UsageError(f"a task from a file takes no option {next(iter(options))!r}")
        return load_jsonl(name, model, n=n, metric=metric or "logit_diff", seed=seed, split=split)
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return build(TASKS[name], model, n, seed, metric, mixed_lengths, options, split, fewer)
