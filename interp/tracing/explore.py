"""Which of very many active units become nodes: those that the targets' influence reaches most.

Targets are pulled back in batches, each batch chosen by the influence that is known by then. Of a pulled row only the
shares above a threshold are kept, for ranking alone, and what is counted over all units is counted part by part, so
that memory stays bounded whatever the number of units (4,096 tokens of SmolLM2 have 189 million); the graph's weights
are computed afterwards, for the chosen ones.

Reference: Ameisen et al. 2025, "Circuit Tracing"; circuit-tracer 0.5, ``compute_partial_influences`` (which re-ranks
every four batches; here it is done after each batch, and later whenever a quarter more has been chosen).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from torch import Tensor

from interp.tracing.bases.basis import Place
from interp.tracing.influence import influence
from interp.tracing.linear import LocalModel, Reads

__all__ = ["Chosen", "choose"]

_LEAST = 1e-5
"""Shares of a target's inputs below this are not looked at in ranking."""
_BYTES = 1 << 28
"""Of one part's effects that are held at once."""

Chosen = list[Int[Tensor, " some"]]
"""The chosen units of each part of a basis, in increasing order."""


def choose(
    model: LocalModel,
    logits: Reads,
    weight: Float[np.ndarray, " target"],
    max_nodes: int,
    batch: int,
    done: Callable[[float], None] = lambda count: None,
) -> Chosen:
    """The units that become nodes.

    Args:
        model: The locally linear model.
        logits: The targets that the graph explains.
        weight: Their weights in the influence.
        max_nodes: How many units at most.
        batch: How many of them are pulled back together at most.
        done: Called with the number of units that have been pulled back.

    Returns:
        The chosen units of each of the model's parts; none has no influence at all.
    """
    columns = _Columns(model)
    at_once = model.at_once(batch)
    ranking = _Ranking(columns, weight)
    for some in torch.arange(len(logits), device=logits.order.device).split(at_once):
        ranking.add(columns.shares(logits.some(some)), len(some))
    while len(ranking.chosen) < max_nodes:
        best = ranking.best(min(max(batch, len(ranking.chosen) // 4), max_nodes - len(ranking.chosen)))
        if not len(best):
            break
        for some in np.split(best, range(at_once, len(best), at_once)):
            ranking.add(columns.shares(columns.reads(some)), len(some), some)
            done(len(some))
    return columns.of_parts(np.sort(ranking.chosen))


class _Columns:
    """All sources side by side: the units of all parts, then errors that are left with all units, then tokens."""

    def __init__(self, model: LocalModel) -> None:
        self.model = model
        self.begins = [0, *accumulate(len(part.activations) for part in model.replaced)]
        self.folded = [int((part.positions < model.folded).sum()) for part in model.replaced]
        self.errors, self.at_folded = {}, {}
        for place in model.error_places:
            left = model.rest(place)
            self.at_folded[place] = left[: model.folded].clone()
            self.errors[place] = self._error(place, left)

    def _error(self, place: Place, rest: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_model"]:
        left = rest.clone()
        for part in self.model.replaced:
            if place in part.writes:
                left -= part.written(place)
        left[: self.model.folded] = 0
        return left

    def shares(self, reads: Reads) -> Shares:
        """The large shares of targets' inputs that units have, by part."""
        latest = torch.argsort(reads.order, descending=True, stable=True)
        effects = _Effects(self, len(reads))
        self.model.pull(reads.some(latest), effects.see)
        back, found = latest.cpu().numpy(), effects.large()
        return {part: _Entries(back[some.row], some.unit, some.value) for part, some in found.items()}

    def reads(self, units: np.ndarray) -> Reads:
        """Units, in increasing order, as targets."""
        parts = zip(self.model.replaced, self.of_parts(units), strict=True)
        return Reads.joined([self.model.feature_reads(part, which) for part, which in parts if len(which)])

    def spans(self) -> list[tuple[int, int, int]]:
        """The parts that have units: their number, the first unit's, and how many there are."""
        sizes = enumerate(zip(self.begins, np.diff(self.begins), strict=False))
        return [(part, begin, int(size)) for part, (begin, size) in sizes if size]

    def of_parts(self, units: np.ndarray) -> Chosen:
        """Units, in increasing order, as numbers within each part."""
        cuts = np.searchsorted(units, self.begins)
        spans = zip(cuts, cuts[1:], self.begins, strict=False)
        device = self.model.run.final.device
        return [torch.from_numpy(units[a:b] - begin).to(device) for a, b, begin in spans]


class _Effects:
    """The effects of all sources on a batch of targets, piece by piece as the targets are pulled back.

    Of a piece only what may be a large share in the end is kept: what is large beside all that has been seen so far.
    """

    def __init__(self, columns: _Columns, n_targets: int) -> None:
        self.columns, self.model = columns, columns.model
        self.of_tokens = self.model.run.final.new_zeros(n_targets, self.model.length)
        self.total = self.of_tokens.new_zeros(n_targets)
        self.unfinished: dict[int, Tensor] = {}
        self.kept: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self.first_writes = [min(part.writes, key=lambda place: place[1]) for part in self.model.replaced]

    def see(self, place: Place, some: slice, gradient: Float[Tensor, "row pos d_model"]) -> None:
        n, folded, columns = gradient.shape[1], min(self.model.folded, gradient.shape[1]), self.columns
        for i, part in enumerate(self.model.replaced):
            if place in part.writes and len(part.activations):
                self._see(i, place, some.start, gradient)
        if place == ("embed", 0):
            self.of_tokens[some, :n] += torch.einsum("tpd,pd->tp", gradient, self.model.embedded[:n])
        elif place in columns.errors:
            found = torch.einsum("tpd,pd->tp", gradient, columns.errors[place][:n])
            self.total[some] += torch.linalg.vector_norm(found, 1, dim=1)
            self.of_tokens[some, :folded] += torch.einsum(
                "tpd,pd->tp", gradient[:, :folded], columns.at_folded[place][:folded]
            )

    def _see(self, i: int, place: Place, first: int, gradient: Float[Tensor, "row pos d_model"]) -> None:
        """A part's units; those that write at several places are done at the earliest of them, which comes last."""
        part = self.model.replaced[i]
        at_once = max(1, _BYTES // (4 * len(part.activations)))
        for piece in gradient.split(at_once) if len(part.writes) == 1 else [gradient]:
            found = part.effects(place, piece)
            found[:, : self.columns.folded[i]] = 0
            if i in self.unfinished:  # later targets have joined since
                before = self.unfinished.pop(i)
                found[: len(before)] += before
            if place == self.first_writes[i]:
                self._keep(i, first, found)
            else:
                self.unfinished[i] = found
            first += len(piece)

    def _keep(self, i: int, first: int, found: Float[Tensor, "row unit"]) -> None:
        total = self.total[first : first + len(found)]
        total += torch.linalg.vector_norm(found, 1, dim=1)
        found.abs_()
        row, unit = (found > _LEAST * total[:, None]).nonzero(as_tuple=True)
        self.kept.setdefault(i, []).append((row + first, unit, found[row, unit]))

    def large(self) -> dict[int, _Entries]:
        """The units whose shares count, by part."""
        total = (self.total + torch.linalg.vector_norm(self.of_tokens, 1, dim=1)).clamp_min(1e-30)
        found = {}
        for i, pieces in self.kept.items():
            row, unit, value = (torch.cat(column) for column in zip(*pieces, strict=True))
            size = total[row]
            large = value > _LEAST * size
            columns = row[large].int(), unit[large].int(), (value[large] / size[large]).float()
            found[i] = _Entries(*(column.cpu().numpy() for column in columns))
        return found


class _Entries(NamedTuple):
    """A sparse matrix "row unit" of one part."""

    row: Int[np.ndarray, " entry"]
    unit: Int[np.ndarray, " entry"]
    value: Float[np.ndarray, " entry"]


Shares = dict[int, _Entries]


class _Ranking:
    """The rows that are known so far, and the influence of all units by them."""

    def __init__(self, columns: _Columns, weight: Float[np.ndarray, " target"]) -> None:
        self.columns, self.weight = columns, np.abs(weight)
        nothing = _Entries(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))
        self.parts: dict[int, list[_Entries]] = {part: [nothing] for part, _, _ in columns.spans()}
        self.chosen = np.empty(0, np.int64)
        self.n_rows = 0

    def add(self, shares: Shares, n: int, units: Int[np.ndarray, " unit"] | None = None) -> None:
        """Takes in the n next rows, of the targets or of units."""
        for part, some in shares.items():
            self.parts[part].append(some._replace(row=some.row + self.n_rows))
        self.n_rows += n
        if units is not None:
            self.chosen = np.concatenate([self.chosen, units])

    def best(self, count: int) -> Int[np.ndarray, " unit"]:
        """The most influential units that have not been chosen, in increasing order; none without influence."""
        start = np.concatenate([self.weight, np.zeros(len(self.chosen))])
        reached = influence(self._among_rows(), start) + start
        units: list[np.ndarray] = [np.empty(0, np.int64)]
        values: list[np.ndarray] = [np.empty(0)]
        found: np.ndarray
        for part, begin, size in self.columns.spans():  # part by part: all units at once are too many
            some = self._entries(part)
            found = np.bincount(some.unit, some.value * reached[some.row], size)
            found[self.chosen[self._in(begin, size)] - begin] = 0
            best = np.argpartition(-found, count)[:count] if count < size else np.arange(size)
            best = best[found[best] > 0]
            units.append(best + begin)
            values.append(found[best])
        unit, value = np.concatenate(units), np.concatenate(values)
        return np.sort(unit[np.argpartition(-value, count)[:count]] if count < len(unit) else unit)

    def _among_rows(self) -> sparse.csr_array:
        """The shares of the known rows in each other."""
        rows, columns, values = [np.empty(0, np.int32)], [np.empty(0, np.int32)], [np.empty(0)]
        for part, begin, size in self.columns.spans():
            some, row_of, here = self._entries(part), np.full(size, -1, np.int32), self._in(begin, size)
            row_of[self.chosen[here] - begin] = len(self.weight) + np.flatnonzero(here)
            known = np.flatnonzero(row_of[some.unit] >= 0)
            rows.append(some.row[known])
            columns.append(row_of[some.unit[known]])
            values.append(some.value[known].astype(np.float64))
        entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
        return sparse.coo_array(entries, shape=(self.n_rows, self.n_rows)).tocsr()

    def _entries(self, part: int) -> _Entries:
        found = self.parts[part]
        if len(found) > 1:
            self.parts[part] = [_Entries(*map(np.concatenate, zip(*found, strict=True)))]
        return self.parts[part][0]

    def _in(self, begin: int, size: int) -> Bool[np.ndarray, " chosen"]:
        return (self.chosen >= begin) & (self.chosen < begin + size)
