"""Recall of keys under many plans for the cache: each prompt is read once, whatever the number of plans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import torch
from transformers import PreTrainedModel

from interp.efficiency.decoding import Decoder
from interp.efficiency.kv_cache.full import FullCache
from interp.efficiency.kv_cache.plan import KVPlan
from interp.efficiency.kv_cache.prefilled import Prefilled
from interp.engine.progress import track
from interp.tasks.keys import KeySample

__all__ = ["recall"]


def recall(
    model: PreTrainedModel, plans: Mapping[str, KVPlan], samples: Sequence[KeySample], *, at_once: int = 4
) -> pd.DataFrame:
    """What `Keys` measures, for plans that read a prompt in one go: its context is computed once for all of them.

    Args:
        model: A deployed model without a plan for the cache in force.
        plans: By name.
        samples: Prompts, see `interp.tasks.key_samples`.
        at_once: Prompts of equal lengths that are run together.

    Returns:
        One row a plan and prompt: ``plan`` (first the dense model, called ``dense``), ``prompt`` (its number),
        ``recall`` (whether its number is written, greedily and in full) and ``answer_loss`` (nats a token).

    Raises:
        UsageError: A plan for another model, or one that reads prompts in chunks.
    """
    rows = {"dense": FullCache().plan(model), **plans}
    found: list[tuple[str, int, float, float]] = []
    with track(len(samples) * len(rows), "recall") as advance:
        for numbers in _batches(samples, at_once):
            context, question, answer = (
                torch.tensor([getattr(samples[number], part) for number in numbers], device=model.device)
                for part in ("context", "question", "answer")
            )
            prefilled = Prefilled(model, context)
            for name, plan in rows.items():
                with plan.applied(model):
                    decoder = Decoder(model, prefilled.cache(plan, model))
                    logits = [decoder.feed(question), *(decoder.feed(token) for token in answer[:, :-1].split(1, 1))]
                said = torch.cat(logits, 1).float()
                hit = (said.argmax(-1) == answer).all(1).float().tolist()
                loss = torch.nn.functional.cross_entropy(said.transpose(1, 2), answer, reduction="none").mean(1)
                found += [(name, *one) for one in zip(numbers, hit, loss.tolist(), strict=True)]
                advance(len(numbers))
    order = {name: at for at, name in enumerate(rows)}
    found.sort(key=lambda row: (order[row[0]], row[1]))
    return pd.DataFrame(found, columns=["plan", "prompt", "recall", "answer_loss"])


def _batches(samples: Sequence[KeySample], at_once: int) -> Iterator[list[int]]:
    """Numbers of samples whose parts have the same lengths."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, one in enumerate(samples):
        alike.setdefault((len(one.context), len(one.question), len(one.answer)), []).append(number)
    for numbers in alike.values():
        yield from (numbers[at : at + at_once] for at in range(0, len(numbers), at_once))
