"""Keys in noise: sentences that say the number of a thing, hidden among sentences that say nothing, and one asked for.

Like the synthetic needles of RULER (Hsieh et al. 2024, arXiv:2404.06654, section 3.1: one key, and several keys of
which all but one distract), in words of our own. The prompt comes in two parts, so that a cache can be compressed
before the question is known.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import UsageError
from interp.tasks.chat import around
from interp.tasks.corpora import documents
from interp.tasks.needles import NeedleSample
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder

__all__ = ["KeySample", "key_samples"]

_NAMES = (
    "amber kettle, brass lantern, cedar chest, copper bell, crimson scarf, dusty globe, emerald ring, felt hat, "
    "glass prism, golden flute, ivory comb, jade frog, leather satchel, linen sail, marble owl, oak barrel, "
    "paper kite, pewter mug, purple umbrella, quartz clock, rusty anchor, silver thimble, stone lion, "
    "tin soldier, velvet curtain, walnut desk, wicker basket, woollen glove, yellow canoe, zinc bucket"
)
_THINGS = tuple(_NAMES.split(", "))
_NOISE = (
    "The river is wide. The bread is warm. The road goes north. We walk along. It is quiet and then it rains. ",
    "A bird sings outside. Some houses are old. They sit by that fire. My coat was torn. Snow fell before you came. ",
)
_INTRO = "Some numbers are hidden in the following text. Remember them, you will be asked for one.\n"
_FACT = "The number of the {thing} is {number}."
_QUESTION = "\nWhat is the number of the {thing} in the text? "
_ANSWER = "The number of the {thing} in the text is"


@dataclass(frozen=True)
class KeySample:
    """A context, a question about it, and the answer.

    Args:
        context: Token ids up to the question.
        question: Token ids of the question and of how the answer begins.
        answer: Token ids that follow.
        control: Token ids of the same prompt with nothing but the question, to see what is guessed.
        thing: What is asked for.
        number: Its number.
        keys: How many things have numbers.
        spans: Where each sentence with a number stands in the context, the one that is asked for first.
        split: What things, numbers and haystacks it was made from, see `key_samples`.
    """

    context: tuple[int, ...]
    question: tuple[int, ...]
    answer: tuple[int, ...]
    control: tuple[int, ...]
    thing: str
    number: str
    keys: int
    spans: tuple[tuple[int, int], ...]
    split: str | None = None

    @property
    def prompt(self) -> tuple[int, ...]:
        """Context and question."""
        return self.context + self.question

    def needle(self) -> NeedleSample:
        """The same for `interp.attention.retrieval_heads`: the number as the needle, all else as its haystack."""
        first, stop = self.spans[0]
        size = len(self.answer)
        starts = [at for at in range(first, stop - size + 1) if self.context[at : at + size] == self.answer]
        if not starts:
            raise UsageError(f"the tokens of {self.number} are others in the text than in the answer")
        return NeedleSample(
            tokens=self.prompt,
            span=(starts[-1], starts[-1] + size),
            answer=self.number,
            depth=first / len(self.context),
            name=self.thing,
            control=self.control,
            split=self.split,
        )


def key_samples(
    model: Any,
    length: int = 1024,
    keys: int = 1,
    n: int = 8,
    *,
    haystack: str | Path | Sequence[str] = "noise",
    digits: int = 5,
    seed: int = 0,
    split: str | None = None,
) -> list[KeySample]:
    """Prompts of one length with so many keys, at random depths; the same call gives the same ones.

    Args:
        model: The model whose tokenizer reads them; a bridge or a deployed model.
        length: Tokens of context and question.
        keys: Sentences with a number, one of which is asked for.
        n: Prompts.
        haystack: ``noise`` (the same five sentences over and over), or text as `interp.tasks.corpus` takes it.
        digits: Of a number.
        seed: Of things, numbers, depths and the haystack's beginning.
        split: ``find`` or ``score``: one half of the things, numbers and haystacks (documents, or five sentences of
            noise for each), so that the contexts of the two have nothing in common but how they begin; None for all.

    Raises:
        UsageError: Sizes below 1, more keys than there are things, or a length without room for them.
    """
    half = Half(split)
    things = half(_THINGS)
    if not 1 <= keys <= len(things) or n < 1 or digits < 1:
        where = "" if split is None else f" in the split {split!r}"
        raise UsageError(
            f"ask for 1 to {len(things)} keys{where} and at least 1 prompt and digit, got {keys}, {n}, {digits}"
        )
    encoder, rng = Encoder(model), random.Random(seed)
    numbers = half(range(10 ** (digits - 1), 10**digits))
    texts = half(_NOISE)[0] if haystack == "noise" else documents(haystack, split)
    return [_sample(encoder, length, rng.sample(things, keys), numbers, texts, rng, split) for _ in range(n)]


def _sample(
    encoder: Encoder,
    length: int,
    things: Sequence[str],
    pool: Sequence[int],
    texts: str | list[str],
    rng: random.Random,
    split: str | None,
) -> KeySample:
    skip = len(encoder.prefix)

    def ids(text: str) -> tuple[int, ...]:
        return encoder.encode(text).ids[skip:]

    keys, numbers = len(things), [str(rng.choice(pool)) for _ in things]
    before, after = _turn(encoder)
    opening = (*before, *ids(_INTRO))
    question = (*ids(_QUESTION.format(thing=things[0])), *after, *ids(_ANSWER.format(thing=things[0])))
    facts = [ids(" " + _FACT.format(thing=thing, number=number)) for thing, number in zip(things, numbers, strict=True)]
    room = length - len(opening) - len(question) - sum(map(len, facts))
    if room < 1:
        raise UsageError(f"{length} tokens have no room for {keys} keys and a question, {length - room + 1} would do")
    hay = ids(_haystack(texts, room, rng))[:room]
    if len(hay) < room:
        raise UsageError(f"the haystack has too little text for a prompt of {length} tokens; give it more")
    depths = sorted(rng.sample(range(room), keys) if room >= keys else [rng.randrange(room) for _ in facts])
    order = rng.sample(range(keys), keys)
    context, spans, done = [*opening], {}, 0
    for depth, which in zip(depths, order, strict=True):
        context += hay[done:depth]
        spans[which] = (len(context), len(context) + len(facts[which]))
        context += facts[which]
        done = depth
    context += hay[done:]
    return KeySample(
        context=tuple(context),
        question=question,
        answer=ids(" " + numbers[0]),
        control=(*before, *question),
        thing=things[0],
        number=numbers[0],
        keys=keys,
        spans=tuple(spans[which] for which in range(keys)),
        split=split,
    )


def _turn(encoder: Encoder) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens around what a user says: of the chat template if there is one, else what the model wants in front."""
    tokenizer = encoder.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        return encoder.prefix, ()
    before, after = around(tokenizer)
    skip = len(encoder.prefix)
    return encoder.encode(before).ids[skip:], encoder.encode(after).ids[skip:]


def _haystack(texts: str | list[str], room: int, rng: random.Random) -> str:
    """So much of the noise, or of a text."""
    if isinstance(texts, str):
        return texts * (room // 8 + 1)
    text = rng.choice([text for text in texts if len(text) > 12 * room] or texts)
    return text[rng.randrange(max(1, len(text) - 12 * room)) :]
