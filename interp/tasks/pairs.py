"""Prompt pairs as text, and what makes a `Task` of them: tokens, answers, positions, and the checks."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from interp.errors import UsageError
from interp.tasks.dataset import Task
from interp.tasks.metrics import Metric, metric
from interp.tasks.tokens import Encoded, Encoder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Example", "Pair", "assemble", "encode_pair", "fill", "from_pairs", "template_pair"]

Place = str | int | tuple[int, int]


@dataclass(frozen=True)
class Pair:
    """One clean prompt and its corrupted counterpart, as text.

    Args:
        clean: the prompt that shows the behaviour.
        corrupted: its counterpart, of equal token length.
        right: the answers right for the clean prompt, each exactly as it continues the text (`" Mary"`).
        wrong: the answers wrong for it.
        positions: name -> where in the clean prompt: a character span `(start, end)`, a substring that occurs
            once, or a token index (BOS included, negative from the end). A word stands for its last token.
        corrupted_spans: name -> character span in the corrupted prompt, checked to be at the same token.
    """

    clean: str
    corrupted: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    positions: Mapping[str, Place] = field(default_factory=dict)
    corrupted_spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """One pair as token ids: what `Pair` becomes under a tokenizer, or what a task on tokens makes directly."""

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    right: tuple[int, ...]
    wrong: tuple[int, ...]
    positions: Mapping[str, int]
    clean_text: str
    corrupted_text: str


def fill(template: str, words: Mapping[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
    """The template with its fields filled, and the character span of each field's word.

    Args:
        template: text with fields such as `{io}`; a field may occur once.
        words: field -> word.

    Example:
        >>> fill("{s1} saw {io}", {"s1": "Ann", "io": "Bob"})
        ('Ann saw Bob', {'s1': (0, 3), 'io': (8, 11)})
    """
    text, spans = "", {}
    for literal, name, _, _ in string.Formatter().parse(template):
        text += literal
        if name is not None:
            spans[name] = (len(text), len(text) + len(words[name]))
            text += words[name]
    return text, spans


def template_pair(
    template: str,
    clean: Mapping[str, str],
    corrupted: Mapping[str, str],
    right: Sequence[str],
    wrong: Sequence[str],
    named: Sequence[str],
) -> Pair:
    """A pair from one template: `corrupted` names the fields whose words change, `named` those that are positions."""
    text, spans = fill(template, clean)
    other, other_spans = fill(template, {**clean, **corrupted})
    return Pair(
        text,
        other,
        tuple(right),
        tuple(wrong),
        {name: spans[name] for name in named},
        {name: other_spans[name] for name in named},
    )


def from_pairs(
    name: str,
    pairs: Iterable[Pair],
    model: Any,
    *,
    metric: str | Metric | Any = "logit_diff",
    mixed_lengths: bool = True,
    seed: int = 0,
    description: str = "",
    source: str = "given by the user",
) -> Task:
    """A `Task` from pairs of texts, checked.

    Args:
        name: what to call the task.
        pairs: the prompt pairs; within each, clean and corrupted must have equally many tokens.
        model: the model whose tokenizer reads them.
        metric: a name from `METRICS`, a `Metric` or a function of the end logits.
        mixed_lengths: whether pairs may differ in length from each other.

    Raises:
        UsageError: a pair does not align (with both token lists and the first place where they differ), an
            answer is not one token (with its tokens), right and wrong overlap, or a position can't be found.
    """
    encoder = Encoder(model)
    examples = []
    for index, pair in enumerate(pairs):
        try:
            examples.append(encode_pair(pair, encoder))
        except UsageError as error:
            raise UsageError(f"task {name!r}, pair {index}: {error}") from error
    lengths = {len(example.clean) for example in examples}
    if not mixed_lengths and len(lengths) > 1:
        raise UsageError(
            f"task {name!r} has pairs of {', '.join(map(str, sorted(lengths)))} tokens; give pairs of one length "
            "or mixed_lengths=True"
        )
    return assemble(name, examples, encoder, metric, seed=seed, description=description, source=source)


def encode_pair(pair: Pair, encoder: Encoder) -> Example:
    """The pair as token ids.

    Raises:
        UsageError: as `from_pairs`, without the task's name.
    """
    clean, corrupted = encoder.encode(pair.clean), encoder.encode(pair.corrupted)
    check_alignment(clean, corrupted, encoder)
    right = answer_ids(pair.right, "right", pair.clean, encoder)
    wrong = answer_ids(pair.wrong, "wrong", pair.clean, encoder)
    if both := [answer for answer, id_ in zip(pair.right, right, strict=True) if id_ in wrong]:
        raise UsageError(f"{both[0]!r} is given both as a right and as a wrong answer")
    positions = {name: locate(place, pair.clean, clean, name) for name, place in pair.positions.items()}
    for name, span in pair.corrupted_spans.items():
        if (there := corrupted.token_at(span)) != positions[name]:
            raise UsageError(
                f"position {name!r} is token {positions[name]} of the clean prompt but {there} of the corrupted one"
            )
    positions.setdefault("end", len(clean.ids) - 1)
    return Example(clean.ids, corrupted.ids, right, wrong, positions, pair.clean, pair.corrupted)


def check_alignment(clean: Encoded, corrupted: Encoded, encoder: Encoder) -> None:
    if len(clean.ids) == len(corrupted.ids):
        return
    shorter = min(len(clean.ids), len(corrupted.ids))
    first = next((i for i in range(shorter) if clean.ids[i] != corrupted.ids[i]), shorter)
    ours, theirs = list(encoder.decode(clean.ids)), list(encoder.decode(corrupted.ids))
    here, there = (repr(t[first]) if first < len(t) else "nothing" for t in (ours, theirs))
    raise UsageError(
        f"clean has {len(ours)} tokens and corrupted {len(theirs)}; they first differ at token {first} "
        f"({here} against {there}).\n  clean:     {ours}\n  corrupted: {theirs}\n"
        "Choose words that are equally many tokens in both prompts."
    )


def answer_ids(answers: Sequence[str], kind: str, text: str, encoder: Encoder) -> tuple[int, ...]:
    if not answers:
        raise UsageError(f"there is no {kind} answer")
    ids = []
    for answer in answers:
        added = encoder.continuation(text, answer)
        if added is None:
            raise UsageError(
                f"the {kind} answer {answer!r} merges with the end of the prompt {text[-20:]!r}; end the prompt "
                "without a space and begin the answer with it"
            )
        if len(added) != 1:
            raise UsageError(
                f"the {kind} answer {answer!r} is {len(added)} tokens, {list(encoder.decode(added))}; it must be "
                "one token, so give another answer (usually with a leading space)"
            )
        if added[0] == getattr(encoder.tokenizer, "unk_token_id", None):
            raise UsageError(f"the {kind} answer {answer!r} is unknown to this model's tokenizer")
        ids.append(added[0])
    return tuple(dict.fromkeys(ids))


def locate(place: Place, text: str, encoded: Encoded, name: str) -> int:
    """The token index of a named position in the clean prompt."""
    length = len(encoded.ids)
    if isinstance(place, int):
        if not -length <= place < length:
            raise UsageError(f"position {name!r} is token {place}, but the prompt has {length} tokens")
        return place % length
    if isinstance(place, str):
        if (count := text.count(place)) != 1 or not place:
            raise UsageError(
                f"position {name!r} is {place!r}, which occurs {count} times in {text!r}; give a longer substring "
                "that occurs once, or a token index"
            )
        start = text.index(place)
        place = (start, start + len(place))
    return encoded.token_at(place)


def assemble(
    name: str,
    examples: Sequence[Example],
    encoder: Encoder,
    measure: str | Metric | Any,
    *,
    seed: int,
    description: str,
    source: str,
    split: str | None = None,
) -> Task:
    """The examples as one `Task`, right-padded to the longest.

    Raises:
        UsageError: there are none, or they don't all name the same positions.
    """
    if not examples:
        raise UsageError(f"task {name!r} has no examples")
    names = examples[0].positions.keys()
    for index, example in enumerate(examples):
        if example.positions.keys() != names:
            raise UsageError(
                f"task {name!r}: example {index} names the positions {', '.join(example.positions)}, example 0 "
                f"{', '.join(names)}; all must name the same"
            )
    tensor = RowsTo(encoder.device)
    return Task(
        name=name,
        clean=tensor.padded([e.clean for e in examples], encoder.padding),
        corrupted=tensor.padded([e.corrupted for e in examples], encoder.padding),
        right=tensor.padded([e.right for e in examples], -1),
        wrong=tensor.padded([e.wrong for e in examples], -1),
        positions={key: tensor.column([e.positions[key] for e in examples]) for key in names},
        lengths=tensor.column([len(e.clean) for e in examples]),
        clean_text=tuple(e.clean_text for e in examples),
        corrupted_text=tuple(e.corrupted_text for e in examples),
        str_tokens=tuple(encoder.decode(e.clean) for e in examples),
        seed=seed,
        description=description,
        source=source,
        measure=metric(measure),
        right_text=tuple(encoder.decode(e.right) for e in examples),
        wrong_text=tuple(encoder.decode(e.wrong) for e in examples),
        split=split,
    )


@dataclass(frozen=True)
class RowsTo:
    """Lists of ids to tensors on a device."""

    device: torch.device

    def padded(self, rows: Sequence[Sequence[int]], value: int) -> Tensor:
        width = max(map(len, rows))
        return self._tensor([[*row, *[value] * (width - len(row))] for row in rows])

    def column(self, values: Sequence[int]) -> Tensor:
        return self._tensor(values)

    def _tensor(self, values: Sequence) -> Tensor:
        import torch

        return torch.tensor(values, device=self.device)
