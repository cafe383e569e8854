"""A behaviour as aligned prompt pairs with answers, named positions and a metric."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int

from interp.errors import UsageError
from interp.tasks.metrics import Metric, at_least_float32, metric, pick

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Task"]

SHOWN = 5
TENSORS = ("clean", "corrupted", "right", "wrong", "lengths")
TEXTS = ("clean_text", "corrupted_text", "str_tokens", "right_text", "wrong_text")


@dataclass(frozen=True, eq=False)
class Task:
    """Prompt pairs of equal token length, their answers, named positions and a metric.

    Attributes:
        name: the behaviour.
        clean: token ids of the prompts that show the behaviour, right-padded where lengths differ.
        corrupted: token ids of their counterparts, with the same lengths.
        right: token ids of the answers right for the clean prompt, padded with -1.
        wrong: token ids of the answers wrong for it, padded with -1.
        positions: name -> token index in each example; `"end"` is where the logits are read.
        lengths: tokens of each example without padding.
        clean_text: the clean prompts as text.
        corrupted_text: the corrupted prompts as text.
        str_tokens: the clean tokens as text, for each example without padding.
        seed: what the examples were drawn with.
        split: the half of the task's content that they were drawn from, `find` or `score`; None for all of it.
        description: the behaviour in one sentence.
        source: the paper, or the file that the examples came from.
        measure: the metric that `metric` and `per_example` compute.
        reference: logits at the end of the clean prompts, which `kl` compares with.
        right_text: the right answers of each example as text.
        wrong_text: the wrong answers of each example as text.
    """

    name: str
    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    right: Int[Tensor, "batch k"]
    wrong: Int[Tensor, "batch m"]
    positions: dict[str, Int[Tensor, " batch"]]
    lengths: Int[Tensor, " batch"]
    clean_text: tuple[str, ...]
    corrupted_text: tuple[str, ...]
    str_tokens: tuple[tuple[str, ...], ...]
    seed: int
    description: str
    source: str
    measure: Metric
    reference: Float[Tensor, "batch vocab"] | None = None
    right_text: tuple[tuple[str, ...], ...] = ()
    wrong_text: tuple[tuple[str, ...], ...] = ()
    split: str | None = None

    def __post_init__(self) -> None:
        """Tensors made inside `torch.inference_mode()` are copied: a metric's gradient goes through them."""
        from interp.gradients import plain

        for name in (*TENSORS, "reference"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, plain(getattr(self, name)))
        object.__setattr__(self, "positions", {name: plain(index) for name, index in self.positions.items()})

    def __len__(self) -> int:
        return self.clean.shape[0]

    @property
    def answers(self) -> Int[Tensor, " batch"]:
        """The first right answer of each example."""
        return self.right[:, 0]

    @property
    def wrong_answers(self) -> Int[Tensor, " batch"]:
        """The first wrong answer of each example."""
        return self.wrong[:, 0]

    def metric(self, logits: Float[Tensor, "batch *pos vocab"]) -> Float[Tensor, ""]:
        """The metric's mean over the examples, in its units.

        Args:
            logits: all logits ("batch pos vocab"), of which those at `end` are read, or those at `end`
                ("batch vocab").

        Raises:
            UsageError: the shape is neither of the two.
        """
        return self.per_example(logits).mean()

    def per_example(self, logits: Float[Tensor, "batch *pos vocab"]) -> Float[Tensor, " batch"]:
        """The metric of each example, in its units; see `metric`."""
        return self.measure(self.end_logits(logits), self.right, self.wrong, self.reference)

    def end_logits(self, logits: Float[Tensor, "batch *pos vocab"]) -> Float[Tensor, "batch vocab"]:
        """The logits at each example's end position."""
        if logits.ndim not in (2, 3) or logits.shape[0] != len(self):
            raise UsageError(
                f"task {self.name!r} has {len(self)} examples of {self.clean.shape[1]} tokens: it takes logits of "
                f"shape [batch, pos, vocab] or [batch, vocab], got {list(logits.shape)}"
            )
        if logits.ndim == 2:
            return logits
        if logits.shape[1] != self.clean.shape[1]:
            raise UsageError(
                f"task {self.name!r} has {self.clean.shape[1]} positions, the logits have {logits.shape[1]}"
            )
        end = self.positions["end"].to(logits.device)
        return logits.take_along_dim(end[:, None, None], 1)[:, 0]

    def accuracy(self, logits: Float[Tensor, "batch *pos vocab"]) -> float:
        """The share of examples whose best right answer has a higher logit than their best wrong one.

        Args:
            logits: of the clean prompts, all or at `end`.
        """
        logits = at_least_float32(self.end_logits(logits))
        right = pick(logits, self.right.to(logits.device), -math.inf).amax(1)
        wrong = pick(logits, self.wrong.to(logits.device), -math.inf).amax(1)
        return (right > wrong).float().mean().item()

    def top1(self, logits: Float[Tensor, "batch *pos vocab"]) -> float:
        """The share of examples for which the likeliest token of the vocabulary is a right answer.

        Args:
            logits: of the clean prompts, all or at `end`.
        """
        likeliest = self.end_logits(logits).argmax(-1, keepdim=True)
        return (likeliest == self.right.to(likeliest.device)).any(1).float().mean().item()

    def with_metric(self, name: str | Metric | Callable[[Tensor], Tensor]) -> Task:
        """The same examples measured by another metric."""
        return replace(self, measure=metric(name))

    def with_reference(self, logits: Float[Tensor, "batch *pos vocab"]) -> Task:
        """The same task with the clean prompts' logits (all or at `end`), which `kl` compares with."""
        return replace(self, reference=self.end_logits(logits).detach())

    def to(self, device: torch.device | str) -> Task:
        """The same task with its tensors on `device`."""
        return self._each(lambda tensor: tensor.to(device))

    def batches(self, size: int) -> Iterator[Task]:
        """The task in pieces of `size` examples, the last one shorter if need be.

        Raises:
            UsageError: `size` is less than 1.
        """
        if size < 1:
            raise UsageError(f"a batch needs at least one example, got size={size}")
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def __getitem__(self, index: int | slice | Sequence[int]) -> Task:
        """The task with the chosen examples only.

        Raises:
            UsageError: an example that the task does not have, or none at all.
        """
        chosen = range(len(self))[index] if isinstance(index, slice) else index
        wanted = [chosen] if isinstance(chosen, int) else [int(i) for i in chosen]
        if not wanted:
            raise UsageError(f"no example chosen from task {self.name!r}, which has {len(self)}")
        for i in wanted:
            if not -len(self) <= i < len(self):
                raise UsageError(f"task {self.name!r} has {len(self)} examples, there is no example {i}")
        texts: dict[str, Any] = {
            name: tuple(rows[i] for i in wanted) for name in TEXTS if (rows := getattr(self, name))
        }
        return replace(self._each(lambda tensor: tensor[wanted]), **texts)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Task:
        tensors: dict[str, Any] = {name: change(getattr(self, name)) for name in TENSORS}
        return replace(
            self,
            **tensors,
            positions={name: change(index) for name, index in self.positions.items()},
            reference=None if self.reference is None else change(self.reference),
        )

    @property
    def first_difference(self) -> Int[Tensor, " batch"]:
        """The first position where clean and corrupted differ; the example's length if they never do."""
        differs = self.clean != self.corrupted
        return differs.int().argmax(1).where(differs.any(1), self.lengths)

    @property
    def aligned(self) -> bool:
        """Whether all examples have the same length, so that a position means the same in each."""
        return bool((self.lengths == self.lengths[0]).all())

    def position_labels(self) -> list[str]:
        """A label for each position: its index, and the token or named position that all examples share there.

        Returns:
            Unique labels such as `"2 io"`, `"3 and"` and `"5 ·"`, the last where the examples differ.
        """
        return [f"{index} {self._shared_at(index)}" for index in range(self.clean.shape[1])]

    def _shared_at(self, index: int) -> str:
        tokens = {row[index] if index < len(row) else None for row in self.str_tokens}
        names = [name for name, where in self.positions.items() if bool((where == index).all())]
        names = [name for name in names if name != "end"] or names
        if len(tokens) == 1 and (token := tokens.pop()) is not None:
            return token.strip() or token.replace("\n", "\\n").replace(" ", "␣")
        return names[0] if names else "·"

    def __repr__(self) -> str:
        length = f"{int(self.lengths[0])}" if self.aligned else f"{int(self.lengths.min())}-{int(self.lengths.max())}"
        return (
            f"Task({self.name!r}, {len(self)} examples of {length} tokens, metric {self.measure.name}, "
            f"positions {', '.join(self.positions)}, seed {self.seed}"
            + (")" if self.split is None else f", split {self.split})")
        )

    def _repr_html_(self) -> str:
        columns = (self.clean_text, self.corrupted_text, self.right_text, self.wrong_text)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(shown(cell))}</td>" for cell in row) + "</tr>"
            for row in list(zip(*columns, strict=False))[:SHOWN]
        )
        return (
            f"<p><b>{html.escape(self.name)}</b>: {html.escape(self.description)} "
            f"({len(self)} examples, metric {html.escape(self.measure.name)})</p>"
            f"<table><tr><th>clean</th><th>corrupted</th><th>right</th><th>wrong</th></tr>{rows}</table>"
        )


def shown(cell: str | tuple[str, ...]) -> str:
    return cell if isinstance(cell, str) else ", ".join(map(repr, cell[:SHOWN])) + (" ..." if cell[SHOWN:] else "")
