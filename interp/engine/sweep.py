"""Many interventions on one batch of prompts, without the work that provably changes nothing.

A *cell* is one intervention: some patches that are made at once. Its effect is read in the task's metric for
every example. What is not computed, and why that is exact:

- blocks before the first patched site: a row joins the walk there, from the recorded activations;
- positions before the first patched one: attention is causal, so their keys and values stay as recorded;
- in the last block, positions before the first that is read; logits at other positions or, if the metric reads
  only the answers, of other tokens;
- cells that can't change what is read: patches with values equal by causality (both prompts begin alike), after
  the last position read, or in the last block at a position that is not read.

Rows that share their first position walk together and join layer by layer, so that each weight is read once for
all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.engine.forward import LIVE_AT_STAGE, STAGE_OF_SITE, Visitor, Walk, run
from interp.engine.memory import budget_bytes, bytes_per_row
from interp.engine.parts import Parts
from interp.errors import InterpError
from interp.graph import ORDER, Node

__all__ = ["Cell", "Part", "Patch", "Reading", "Sweep", "finer"]

Values = Callable[[Node, slice], Tensor]
"""``values(node, examples)``: what to put in at all positions up to the last that is read: "batch pos ..." without
the axis of heads or neurons if the node has an index; of a pattern "batch [head] query key"."""


@dataclass(frozen=True, eq=False)
class Patch:
    """One activation replaced, at one position (the same in all examples, or one each) or at all of them.

    With `function` the new value is ``function(value)`` of the walk's own "batch pos ..." activation.
    """

    node: Node
    position: int | Int[Tensor, " batch"] | None = None
    function: Callable[[Tensor], Tensor] | None = None

    @cached_property
    def first_position(self) -> int:
        """The first position that the patch touches."""
        return 0 if self.position is None else int(torch.as_tensor(self.position).min())

    @cached_property
    def last_position(self) -> int | None:
        """The last position that the patch touches; None for the last there is."""
        return None if self.position is None else int(torch.as_tensor(self.position).max())


Cell = Sequence[Patch]


@dataclass(frozen=True, eq=False)
class Reading:
    """What is read of a run, for every example.

    Args:
        ends: The position whose logits are read.
        metric: ``metric(logits, examples)``: the metrics "row metric" of every row from its logits "row vocab";
            `examples` says which example each row is.
        tokens: The tokens whose logits the metric reads, in the order in which it gets them; None for all.
    """

    ends: Int[Tensor, " batch"]
    metric: Callable[[Tensor, Tensor], Tensor]
    tokens: Int[Tensor, " answers"] | None = None


@dataclass(frozen=True)
class Part:
    """Cells that walk together.

    Args:
        examples: Of which examples.
        start: From which position on; None for cells that provably change nothing.
        numbers: The cells.
    """

    examples: slice
    start: int | None
    numbers: list[int]

    @property
    def rows(self) -> int:
        """Rows of the walk."""
        return 0 if self.start is None else len(self.numbers) * (self.examples.stop - self.examples.start)

    def halves(self) -> list[Part]:
        """The first and the second half of the cells or, of a single one, of the examples."""
        if len(self.numbers) > 1:
            half = len(self.numbers) // 2
            return [Part(self.examples, self.start, some) for some in (self.numbers[:half], self.numbers[half:])]
        half = (self.examples.start + self.examples.stop) // 2
        cut = slice(self.examples.start, half), slice(half, self.examples.stop)
        return [Part(examples, self.start, self.numbers) for examples in cut]


def finer(parts: list[Part], least: int) -> list[Part]:
    """The same cells and examples in `least` parts or more, where there are so many; the largest are halved.

    Batches that are halved can give numbers whose last digits differ.
    """
    parts = list(parts)
    while len(parts) < least:
        largest = max(range(len(parts)), key=lambda at: parts[at].rows, default=None)
        if largest is None or parts[largest].rows < 2:
            break
        parts[largest : largest + 1] = parts[largest].halves()
    return parts


class Sweep:
    """Runs cells against a base run.

    Args:
        parts: The model.
        tokens: The prompts of the base run.
        reading: What is read.
        cells: The interventions.
        values: Where patched values come from.
        same_before: Positions before this one have the same values as in the base run, by causality.
        max_memory: Bytes for the rows of a walk, in addition to what is recorded.
    """

    def __init__(
        self,
        parts: Parts,
        tokens: Int[Tensor, "batch pos"],
        reading: Reading,
        cells: Sequence[Cell],
        values: Values,
        *,
        same_before: int = 0,
        max_memory: int | None = None,
    ) -> None:
        self.parts, self.reading, self.cells, self.values = parts, reading, cells, values
        self.lo, self.stop = int(reading.ends.min()), int(reading.ends.max()) + 1
        self.tokens = tokens[:, : self.stop]
        self.same_before = same_before
        self.budget = budget_bytes(parts.device, max_memory)
        self.walk = Walk(parts, self.stop)
        self._base: tuple[slice, dict[tuple[str, int], Tensor]] | None = None
        self.sites = {"k_rotated", "v"}.union(*(LIVE_AT_STAGE[STAGE_OF_SITE[_first(cell).node.site]] for cell in cells))

    def start(self, cell: Cell) -> int | None:
        """The first position that a cell can change; None if it provably changes nothing that is read."""
        begin = self.stop
        for patch in cell:
            if patch.last_position is not None and patch.last_position < self.same_before:
                continue
            first = max(patch.first_position, self.same_before)
            if self._unread(patch, first):
                continue
            begin = min(begin, 0 if patch.function is not None else first)
        return None if begin >= self.stop else begin

    def _unread(self, patch: Patch, first: int) -> bool:
        if first >= self.stop:
            return True
        local = patch.node.site not in ("resid_pre", "k", "v")
        last_layer = patch.node.layer == self.parts.graph.n_layers - 1
        return local and last_layer and patch.last_position is not None and patch.last_position < self.lo

    def examples_at_once(self) -> int:
        """How many examples are recorded together: so many that records and rows stay within the budget."""
        graph, element = self.parts.graph, self.parts.dtype.itemsize
        width = {"q": graph.n_heads * graph.d_head, "k": 0, "v": 0, "post": graph.d_mlp, "k_rotated": 0}
        width["z"] = width["q"]
        kv = 4 * graph.n_kv_heads * graph.d_head
        sites = sum(width.get(site, graph.d_model) for site in self.sites) + kv
        record = 2 * element * graph.n_layers * self.stop * sites
        return max(1, min(len(self.tokens), self.budget // max(record, self._row_bytes(0))))

    def _row_bytes(self, start: int) -> int:
        graph, element = self.parts.graph, self.parts.dtype.itemsize
        vocabulary = graph.d_vocab if self.reading.tokens is None else len(self.reading.tokens)
        apart = any(patch.node.site == "expert" for cell in self.cells for patch in cell)
        experts = 2 * element * (self.stop - start) * graph.n_experts * graph.d_model if apart else 0
        return experts + bytes_per_row(graph, self.stop - start, self.stop, vocabulary, element)

    def split(self, wanted: Bool[Tensor, "cell batch"] | None = None) -> Iterator[Part]:
        """The parts of a run, in its order; each can be computed by itself.

        Args:
            wanted: What to compute; a cell that is wanted for one example of a batch is computed for the batch.
        """
        at_once = self.examples_at_once()
        for begin in range(0, len(self.tokens), at_once):
            examples = slice(begin, min(begin + at_once, len(self.tokens)))
            numbers = [number for number in range(len(self.cells)) if wanted is None or wanted[number, examples].any()]
            yield from self._split_examples(examples, numbers)

    def _split_examples(self, examples: slice, wanted: list[int]) -> Iterator[Part]:
        count = examples.stop - examples.start
        by_start: dict[int | None, list[int]] = {}
        for number in wanted:
            by_start.setdefault(self.start(self.cells[number]), []).append(number)
        if idle := by_start.pop(None, None):
            yield Part(examples, None, idle)
        for start, numbers in sorted((start, numbers) for start, numbers in by_start.items() if start is not None):
            numbers.sort(key=lambda number: _order(_first(self.cells[number])))
            at_once = max(1, self.budget // (self._row_bytes(start) * count))
            for begin in range(0, len(numbers), at_once):
                yield Part(examples, start, numbers[begin : begin + at_once])

    @torch.no_grad()
    def compute(self, part: Part) -> Float[Tensor, "cell batch metric"] | None:
        """The metric values of one part; None where they are the base run's. Successive parts share their base run."""
        if part.start is None:
            return None
        if self._base is None or self._base[0] != part.examples:
            self._base = None
            self._base = part.examples, run(self.parts, self.tokens[part.examples], self.sites)[0]
        return self._run_chunk(part.examples, self._base[1], part.start, part.numbers)

    def _run_chunk(self, examples, base, start, numbers):
        cells = [self.cells[number] for number in numbers]
        count = examples.stop - examples.start
        patcher = _Patcher(cells, base, self.values, examples, self.stop)

        def earlier(layer: int, rows: int) -> tuple[Tensor, Tensor]:
            keys, values = base["k_rotated", layer][:, :start], base["v", layer][:, :start]
            return _repeat(keys, rows // count), _repeat(values, rows // count)

        own = any(patch.function is not None for cell in cells for patch in cell)
        read_from = start if own else max(start, self.lo)
        empty = self.parts.graph.d_model
        final = self.walk(
            torch.empty(0, self.stop - start, empty, device=self.parts.device, dtype=self.parts.dtype),
            patcher,
            start=start,
            first_layer=min(_first(cell).node.layer for cell in cells),
            earlier=earlier,
            read_from=read_from,
        )
        return self._read(final, examples, read_from).unflatten(0, (len(cells), count))

    def _read(self, final, examples, first):
        """The metric of every row, from final residuals whose first position is `first`."""
        count = examples.stop - examples.start
        example = torch.arange(examples.start, examples.stop, device=final.device).repeat(len(final) // count)
        ends = self.reading.ends.to(final.device)[example]
        resid = final[torch.arange(len(final), device=final.device), (ends - first).clamp(min=0)]
        return self.reading.metric(self.parts.logits(resid, self.reading.tokens), example)


class _Patcher(Visitor):
    """Lets the rows of each cell join where its first patch is, and makes the patches."""

    def __init__(self, cells, base, values, examples, stop):
        self.base, self.values, self.examples, self.stop = base, values, examples, stop
        self.count = examples.stop - examples.start
        self.joining: dict[tuple[int, str], int] = {}
        self.patches: dict[tuple[int, str], list[tuple[int, Patch]]] = {}
        for row, cell in enumerate(cells):
            first = _first(cell).node
            entry = (first.layer, STAGE_OF_SITE[first.site])
            self.joining[entry] = self.joining.get(entry, 0) + 1
            for patch in cell:
                self.patches.setdefault((patch.node.layer, patch.node.site), []).append((row, patch))

    def enter(self, layer, stage, first, live):
        cells = self.joining.get((layer, stage), 0)
        if not cells:
            return live
        recorded = (self.base[site, layer][:, first : self.stop] for site in LIVE_AT_STAGE[stage])
        return tuple(torch.cat([x, _repeat(base, cells)]) for x, base in zip(live, recorded, strict=True))

    def wants(self, layer, site):
        return (layer, site) in self.patches

    def visit(self, layer, site, first, x):
        for row, patch in self.patches.get((layer, site), ()):
            rows, axis = x[row * self.count : (row + 1) * self.count], 1
            if site == "pattern":
                rows, axis = (rows, 2) if patch.node.index is None else (rows[:, patch.node.index], 1)
            elif patch.node.index is not None:
                rows = rows.select(2, patch.node.index)
            if patch.function is not None:
                new = patch.function(rows.clone())
                if getattr(new, "shape", None) != rows.shape:
                    got = list(new.shape) if isinstance(new, Tensor) else type(new).__name__
                    raise InterpError(
                        f"the function for {patch.node} must keep the shape {list(rows.shape)}, it gave {got}"
                    )
                rows.copy_(new)
            else:
                new = self.values(patch.node, self.examples)
                self._assign(rows.movedim(axis, 1), new.movedim(axis, 1), patch.position, first)
        return x

    def _assign(self, rows: Tensor, new: Tensor, position: int | Tensor | None, first: int) -> None:
        """Writes `new` (positions from 0) into `rows` (positions from `first`) at some position or at all."""
        if position is None:
            rows.copy_(new[:, first : self.stop])
        elif isinstance(position, int):
            if first <= position < self.stop:
                rows[:, position - first] = new[:, position]
        else:
            at = position[self.examples].to(rows.device)
            inside = (at >= first) & (at < self.stop)
            example = torch.arange(len(at), device=rows.device)[inside]
            rows[example, at[inside] - first] = new[example, at[inside]]


def _repeat(x: Tensor, times: int) -> Tensor:
    """The examples over again for every cell: "batch ..." to "(cell batch) ..."."""
    return x.unsqueeze(0).expand(times, *x.shape).flatten(0, 1)


def _first(cell: Cell) -> Patch:
    return min(cell, key=_order)


def _order(patch: Patch) -> tuple[int, int]:
    return patch.node.layer, ORDER.index(patch.node.site)
