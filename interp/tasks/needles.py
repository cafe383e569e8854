"""Needles in haystacks: made-up facts in plain text, questions about them, and whether an answer has the fact.

The answer is a stretch of the fact itself, so that a model that looks it up copies it word by word.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import UsageError
from interp.tasks.chat import around
from interp.tasks.corpora import documents
from interp.tasks.facts import NEEDLES, OTHER_NEEDLES, WORD, Needle
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder

__all__ = ["NEEDLES", "OTHER_NEEDLES", "Needle", "NeedleSample", "needle_samples", "rouge_recall"]

_ASK = "\n\nBased on the text above, answer the question.\nQuestion: {question}"
_PLAIN_END = "\nAnswer:"
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s)")


@dataclass(frozen=True, eq=False)
class NeedleSample:
    """A prompt with a needle in it.

    Args:
        tokens: the prompt.
        span: the first position of the answer within the needle, and the one behind its last.
        answer: the text that is looked for in what the model writes; empty: the tokens of the span themselves.
        question: what the prompt asks.
        depth: how deep in the haystack the needle stands, from 0 to 1.
        name: of the needle.
        control: the same prompt without haystack and needle, to see what the model knows by itself; may be empty.
        split: what needles and haystacks it was made from, see `needle_samples`.

    Raises:
        UsageError: a span outside of the prompt, or a depth outside of [0, 1].
    """

    tokens: tuple[int, ...]
    span: tuple[int, int]
    answer: str = ""
    question: str = ""
    depth: float = 0.5
    name: str = "needle"
    control: tuple[int, ...] = ()
    split: str | None = None

    def __post_init__(self) -> None:
        first, stop = self.span
        if not 0 <= first < stop <= len(self.tokens):
            raise UsageError(f"the needle's span {self.span} does not lie within the {len(self.tokens)} tokens")
        _check_depth(self.depth)

    @property
    def needle(self) -> tuple[int, ...]:
        """The tokens that are to be copied."""
        return self.tokens[self.span[0] : self.span[1]]

    @property
    def length(self) -> int:
        """Tokens of the whole prompt."""
        return len(self.tokens)


def needle_samples(
    model: Any,
    haystack: str | Path | Sequence[str] = "prose",
    lengths: Sequence[int] = (256, 512, 1024),
    depths: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
    needles: Sequence[Needle] | None = None,
    n: int = 2,
    *,
    chat: bool | None = None,
    seed: int = 0,
    split: str | None = None,
) -> list[NeedleSample]:
    """Prompts of every length and depth, each with a needle of its own and a stretch of the haystack of its own.

    The needle stands behind the last sentence that ends before its depth, as in the reference implementation.

    Args:
        model: the model whose tokenizer reads them.
        haystack: a corpus's name, a ``.txt`` or ``.jsonl`` file, or texts, see `interp.tasks.corpus`.
        lengths: tokens of a whole prompt, question included.
        depths: where in the haystack, 0 at its start and 1 at its end.
        needles: facts; `NEEDLES` unless given, for ``score`` `OTHER_NEEDLES`. All are used equally often, in random
            order.
        n: prompts of each length and depth.
        chat: put the prompt into the tokenizer's chat template, or have a plain text that ends in "Answer:". Unless
            given, the template is used if there is one: without it SmolLM2-135M-Instruct ends most answers before
            they begin (1 of 24 needles found in 256 and 512 tokens, 17 of 24 with it).
        seed: of the stretches and of the order of the needles.
        split: ``find`` or ``score``, which have no needle and no document in common; needles that are given are used as
            they are. None takes all documents.

    Returns:
        ``len(lengths) * len(depths) * n`` samples.

    Raises:
        UsageError: a depth outside of [0, 1], a length too short for needle and question or too long for the model,
            `n` below 1, too little text, a model without tokenizer, or without chat template where one is wanted.

    Reference: Wu et al. 2024 (arXiv 2404.15574), section 2.
    """
    needles = Half(split)((NEEDLES, OTHER_NEEDLES))[0] if needles is None else tuple(needles)
    for what, given in (("lengths", lengths), ("depths", depths), ("needles", needles)):
        if not len(given):
            raise UsageError(f"{what} must not be empty")
    if n < 1:
        raise UsageError(f"n, the prompts of each length and depth, must be at least 1, got {n}")
    for depth in depths:
        _check_depth(depth)
    writer = _Writer(model, chat)
    writer.check(needles, lengths)
    texts, rng = documents(haystack, split), random.Random(seed)
    cells = [(length, float(depth)) for length in lengths for depth in depths for _ in range(n)]
    order: list[Needle] = []
    while len(order) < len(cells):
        order += rng.sample(needles, len(needles))
    return [
        writer.write(needle, _stretch(texts, 12 * length, rng), length, depth, split)
        for (length, depth), needle in zip(cells, order, strict=False)
    ]


def rouge_recall(sample: NeedleSample, generated: Sequence[int], text: str) -> float:
    """ROUGE-1 recall: the share of the answer's words that stand in what was generated, counted with repetitions.

    Words are runs of letters and digits in lower case, without stemming; for a sample without answer text, token ids.

    Args:
        sample: what was asked.
        generated: token ids that the model wrote.
        text: the same as text.

    Reference: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    wanted: list[Any] = _words(sample.answer) if sample.answer else list(sample.needle)
    found: list[Any] = _words(text) if sample.answer else list(generated)
    return (Counter(wanted) & Counter(found)).total() / len(wanted)


def _stretch(texts: Sequence[str], size: int, rng: random.Random) -> str:
    """At least so many characters from a random line of a random text on; other texts follow where it ends.

    Raises:
        UsageError: there are fewer characters in all.
    """
    order = rng.sample(range(len(texts)), len(texts))
    first = texts[order[0]]
    starts = [0, *(at + 1 for at, letter in enumerate(first[:-1]) if letter == "\n" and first[at + 1].strip())]
    found = first[rng.choice(starts) :].rstrip()
    for index in (*order[1:], order[0]):
        if len(found) >= size:
            break
        found += "\n\n" + texts[index].strip()
    return found[:size]


class _Writer:
    """Puts prompts together from pieces that are read apart, so that every position is known."""

    def __init__(self, model: Any, chat: bool | None) -> None:
        self.encoder = Encoder(model)
        tokenizer = self.encoder.tokenizer
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if chat and not has_template:
            raise UsageError("chat=True needs a tokenizer with a chat template, this model has none; use chat=False")
        self.prefix, self.end = self.encoder.prefix, _PLAIN_END
        if has_template and chat is not False:
            before, self.end = around(tokenizer)
            self.prefix = self._ids(before)

    def check(self, needles: Sequence[Needle], lengths: Sequence[int]) -> None:
        """Are the lengths long enough for every needle, and short enough for the model?"""
        longest = max(len(self.prefix) + len(self._fact(needle)[0]) + len(self._ask(needle)) for needle in needles)
        for length in lengths:
            if length <= longest:
                raise UsageError(
                    f"a length of {length} tokens has no room for a haystack: needle and question alone take up to "
                    f"{longest} tokens; ask for {longest + 50} or more"
                )
            if (limit := self.encoder.context) is not None and length > limit:
                raise UsageError(f"a length of {length} tokens is more than the {limit} that the model reads")

    def write(self, needle: Needle, text: str, length: int, depth: float, split: str | None) -> NeedleSample:
        """One prompt of exactly so many tokens."""
        (fact, (first, stop)), ask = self._fact(needle), self._ask(needle)
        room = length - len(self.prefix) - len(fact) - len(ask)
        read = self.encoder.encode(text)
        skip = len(self.encoder.prefix)
        hay, spans = read.ids[skip:][:room], read.spans[skip:][:room]
        if len(hay) < room:
            raise UsageError(f"the haystack has too little text for a prompt of {length} tokens; give it more")
        ends = {found.end() for found in _SENTENCE_END.finditer(text)}
        at = max([0, *(i + 1 for i, span in enumerate(spans) if span[1] in ends and i + 1 <= depth * room)])
        start = len(self.prefix) + at
        return NeedleSample(
            tokens=(*self.prefix, *hay[:at], *fact, *hay[at:], *ask),
            span=(start + first, start + stop),
            answer=needle.answer,
            question=needle.question,
            depth=depth,
            name=needle.answer,
            control=(*self.prefix, *ask),
            split=split,
        )

    def _fact(self, needle: Needle) -> tuple[tuple[int, ...], tuple[int, int]]:
        """The fact's tokens, and which of them the answer has."""
        text = " " + needle.fact
        read, skip = self.encoder.encode(text), len(self.encoder.prefix)
        first = text.rindex(needle.answer)
        stop = first + len(needle.answer)
        inside = [at for at, (start, end) in enumerate(read.spans[skip:]) if start < stop and end > first]
        return read.ids[skip:], (inside[0], inside[-1] + 1)

    def _ask(self, needle: Needle) -> tuple[int, ...]:
        return self._ids(_ASK.format(question=needle.question) + self.end)

    def _ids(self, text: str) -> tuple[int, ...]:
        return self.encoder.encode(text).ids[len(self.encoder.prefix) :]


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _check_depth(depth: float) -> None:
    if not 0 <= depth <= 1:
        raise UsageError(f"a depth must be between 0 (the haystack's start) and 1 (its end), got {depth}")
