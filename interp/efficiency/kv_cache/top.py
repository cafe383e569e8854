"""A store that keeps the entries with the highest scores; what scores them is a `Scorer`, one in each method's file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from interp.efficiency.kv_cache.attention import Step, attend, probabilities, visible
from interp.efficiency.kv_cache.geometry import Geometry
from interp.efficiency.kv_cache.stores import Store, compacted
from interp.errors import UsageError

__all__ = ["Scorer", "Top", "View"]

_BLOCK = 128
"""Queries whose attention is looked at at once."""


@dataclass(frozen=True)
class View:
    """What a scorer sees: queries of the new tokens, and all entries, those held before first.

    Args:
        query: Of the new tokens.
        keys: Of all entries.
        values: Of all entries.
        held: How many of the entries were there before.
        step: The forward pass.
        valid: Which of the entries held are no padding; none where all are.
        earlier: The scores that the entries held had, for scorers that carry them.
        seen: Tokens that had gone through before.
    """

    query: Float[Tensor, "row head new d"]
    keys: Float[Tensor, "row kv_head entry d"]
    values: Float[Tensor, "row kv_head entry d"]
    held: int
    step: Step
    valid: Bool[Tensor, "row held"] | None
    earlier: Float[Tensor, "row kv_head held"] | None
    seen: int

    @property
    def new(self) -> int:
        """How many tokens are new."""
        return self.query.shape[2]

    def padded(self, scores: Float[Tensor, "row kv_head held"], with_: float = 0.0) -> Tensor:
        """Scores of the entries held, with a value for the new ones behind: "row kv_head entry"."""
        return F.pad(scores, (0, self.new), value=with_)

    def attention(self, last: int | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Attention of the last so many new tokens (all unless given), block by block.

        Yields:
            "row kv_head group new entry" in float32, zero in rows of padding; and which rows are none, "row new".
        """
        first = 0 if last is None else max(self.new - last, 0)
        mask = visible(self.held, self.new, self.step, self.valid, self.keys.device, first)
        if mask is None and self.new > 1:
            mask = (torch.arange(self.new) <= torch.arange(first, self.new)[:, None]).to(self.keys.device)[None, None]
        for start in range(first, self.new, _BLOCK):
            stop = min(start + _BLOCK, self.new)
            part = None if mask is None else mask[:, :, start - first : stop - first]
            found = probabilities(self.query[:, :, start:stop], self.keys, self.step, part)
            real = None if self.step.real is None else self.step.real[:, start:stop]
            yield (found if real is None else found * real[:, None, None, :, None]), real


class Scorer(ABC):
    """Says what entries are worth."""

    numbers: int = 0
    """Numbers of four bytes that are kept with each entry: 1 where scores are carried on."""
    evicts: bool = False
    """Whether an entry goes with each decoded token; otherwise those are all kept."""
    probed: bool = False
    """Whether scores come from the queries of a probe behind each chunk, see `KVCache.probe`."""

    def bytes_beside(self, length: int, shape: Geometry) -> int:
        """Bytes that it holds for each key-value head besides `numbers`, behind a prompt of so many tokens."""
        return 0

    @abstractmethod
    def score(self, view: View) -> Float[Tensor, "row kv_head entry"]:
        """The worth of each entry, larger is better."""

    def decoded(
        self, scores: Tensor, found: Tensor, query: Tensor, keys: Tensor, step: Step, mask: Tensor | None
    ) -> Tensor:
        """The scores behind a decoded token, for scorers that evict.

        Args:
            scores: "row kv_head entry", the new token's among them.
            found: The new token's attention "row kv_head group entry".
            query: The new token's "row head one d".
            keys: Of all entries "row kv_head entry d".
            step: The forward pass.
            mask: Which entries are no padding "row one one entry"; none where all are.
        """
        return scores

    def tensors(self) -> list[Tensor]:
        """What it keeps besides a number for each entry."""
        return []

    def rows(self, index: Tensor) -> None:  # noqa: B027
        """Takes these rows of the batch, in this order."""


class Top(Store):
    """Keeps `n` entries for each head: the first tokens, the most recent ones, and between them those worth most.

    Args:
        scorer: Says what entries are worth.
        n: Entries to keep, sinks and window among them.
        window: The most recent tokens, kept in any case.
        sinks: The first tokens, kept in any case.
    """

    def __init__(self, scorer: Scorer, n: int, window: int = 0, sinks: int = 0) -> None:
        super().__init__()
        self.scorer, self.n, self.window, self.sinks = scorer, n, window, sinks
        if scorer.evicts:
            self.buffer.limit = n
            if window < 1:
                raise UsageError("a cache that evicts while it decodes needs a window of at least 1 recent token")
        self.scores: Tensor | None = None
        self.oldest = 0  # where the ring of recent ones starts
        self.seen = 0

    def step(self, query: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
        if step.probing:
            return self._asked(query, keys, values, step)
        one = keys.shape[2] == 1 and step.real is None and self.entries > 0 and self._has_sinks()
        found = self._one(query, keys, values, step) if one else self._several(query, keys, values, step)
        self.seen += keys.shape[2]
        return found

    def kept(self, length: int) -> int:
        """Entries behind a prompt of so many tokens."""
        return min(length, self.n)

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), *([] if self.scores is None else [self.scores]), *self.scorer.tensors()]

    def rows(self, index: Tensor) -> None:
        super().rows(index)
        self.scores = None if self.scores is None else self.scores.index_select(0, index)
        self.scorer.rows(index)

    def _has_sinks(self) -> bool:
        """Are all sinks there, in every row that has padding?"""
        return self.valid is None or bool(self.valid[:, : self.sinks].all())

    def _several(self, query: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
        self._in_order()
        held, new = self.entries, keys.shape[2]
        real = self._real(keys.shape[0], new, step, keys.device)
        found, keys, values = self._attend_all(query, keys, values, step)
        if self.scorer.probed or (held + new <= self.n and not self.scorer.numbers):
            self.buffer.set(keys, values)
            self.valid = real
            return found
        view = View(query, keys, values, held, step, self.valid, self.scores, self.seen)
        self._keep(keys, values, self.scorer.score(view), real)
        return found

    def _asked(self, query: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
        """A probe: tokens that only ask; a scorer that wants them evicts afterwards."""
        self._in_order()
        held = self.entries
        found, all_keys, all_values = self._attend_all(query, keys, values, step)
        if self.scorer.probed and held > self.n:
            view = View(query, all_keys, all_values, held, step, self.valid, self.scores, self.seen)
            scores = self.scorer.score(view)[..., :held]
            self._keep(all_keys[:, :, :held], all_values[:, :, :held], scores, self.valid)
        return found

    def _keep(self, keys: Tensor, values: Tensor, scores: Tensor, real: Tensor | None) -> None:
        """Keeps the best of entries in the text's order, padding last of all."""
        if real is not None:
            order = compacted(real)
            real = real.gather(1, order)
            wide = order[:, None].expand(-1, keys.shape[1], -1)
            keys, values, scores = (_taken(x, wide) for x in (keys, values, scores))
        total = keys.shape[2]
        carried = scores
        if total > self.n:
            window = min(self.window, self.n)
            worth = scores[..., : total - window].float()
            if real is not None:
                worth = worth.masked_fill(~real[:, None, : total - window], float("-inf"))
            worth = self._with_sinks(worth, real)
            best = _best(worth, self.n - window).sort(-1).values
            recent = torch.arange(total - window, total, device=keys.device).expand(*best.shape[:2], -1)
            index = torch.cat([best, recent], -1)
            keys, values, carried = (_taken(x, index) for x in (keys, values, scores))
            real = None if real is None else real.gather(1, index[:, 0])
        if real is not None and not bool(real.all()):
            order = _room_before_the_window(real, self.sinks, self.window)
            real, wide = real.gather(1, order), order[:, None].expand(-1, keys.shape[1], -1)
            keys, values, carried = (_taken(x, wide) for x in (keys, values, carried))
        self.buffer.set(keys, values)
        self.valid = None if real is None or bool(real.all()) else real
        self.scores = carried.clone() if self.scorer.numbers else None
        self.oldest = 0

    def _with_sinks(self, worth: Tensor, real: Tensor | None) -> Tensor:
        """Sinks are worth more than anything. Entries stand in the text's order, and sinks were always kept."""
        if not self.sinks:
            return worth
        if real is None:
            return worth.masked_fill(torch.arange(worth.shape[2], device=worth.device) < self.sinks, float("inf"))
        rank = real.cumsum(1)[:, None, : worth.shape[2]] - 1
        first = (rank < self.sinks) & real[:, None, : worth.shape[2]]
        return worth.masked_fill(first, float("inf"))

    def _one(self, query: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
        if self.scorer.evicts:
            return self._exchanged(query, keys, values, step)
        self.buffer.append(keys, values)
        if self.valid is not None:
            self.valid = torch.cat([self.valid, self.valid.new_ones(len(self.valid), 1)], 1)
        mask = None if self.valid is None else self.valid[:, None, None]
        return attend(query, self.buffer.keys, self.buffer.values, step, mask)

    def _exchanged(self, query: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
        """One token comes, and once there are `n`, one goes: the worst that is neither a sink nor recent."""
        assert self.scores is not None
        if self.entries < self.n:
            at = self.entries
            self.buffer.append(keys, values)
            self.scores = F.pad(self.scores, (0, 1))
            self.valid = None if self.valid is None else F.pad(self.valid, (0, 1), value=True)
        else:
            at = self.n - self.window + self.oldest
            self._leave(at)
            self.oldest = (self.oldest + 1) % self.window
            self.buffer.put(at, keys, values)
            self.scores[:, :, at] = 0.0
        held, width = self.buffer.keys, query.shape[-1]
        mask = None if self.valid is None else self.valid[:, None, None]
        found = probabilities(query, held, step, mask)
        self.scores = self.scorer.decoded(self.scores, found.squeeze(3), query, held, step, mask)
        out = found.squeeze(3).to(values.dtype) @ self.buffer.values
        return out.reshape(query.shape[0], -1, 1, width if values.shape[-1] == width else values.shape[-1])

    def _leave(self, at: int) -> None:
        """The oldest of the recent ones takes the place of the worst other one, if it is worth more; then its own
        place is free."""
        assert self.scores is not None
        worth = self.scores
        if self.valid is not None:
            worth = worth.masked_fill(~self.valid[:, None], float("-inf"))
        others = worth[..., self.sinks : self.n - self.window]
        if others.shape[-1]:
            least, place = others.min(-1)
            to = torch.where(worth[..., at] > least, place + self.sinks, at)[..., None]
            for tensor in (*self.buffer.tensors(), self.scores):
                leaving = tensor[:, :, at : at + 1].clone()
                wide = to if tensor.ndim == 3 else to[..., None].expand_as(leaving)
                tensor.scatter_(2, wide, leaving)
            if self.valid is not None:
                self.valid.scatter_(1, to[:, 0], True)
        if self.valid is not None:
            self.valid[:, at] = True
            self.valid = None if bool(self.valid.all()) else self.valid

    def _in_order(self) -> None:
        """Turns the ring of recent entries so that the oldest comes first, and puts padding before everything."""
        if self.oldest == 0 and self.valid is None:
            return
        keys = self.buffer.keys
        at = torch.arange(self.entries, device=keys.device)
        at[self.n - self.window :] = at[self.n - self.window :].roll(-self.oldest)
        at = at.expand(keys.shape[0], -1)
        if self.valid is not None:
            at = at.gather(1, compacted(self.valid.gather(1, at)))
            self.valid = self.valid.gather(1, at)
        wide = at[:, None].expand(-1, keys.shape[1], -1)
        self.buffer.set(_taken(keys, wide), _taken(self.buffer.values, wide))
        self.scores = None if self.scores is None else _taken(self.scores, wide)
        self.oldest = 0


def _room_before_the_window(real: Bool[Tensor, "row entry"], sinks: int, window: int) -> Tensor:
    """The order "row entry" in which padding stands behind all but the most recent tokens.

    Those that leave the window take its place, first to last, and so come to stand in the text's order, as they do
    where there is no padding: which of equal ones goes next depends on it.
    """
    first, last = real.cumsum(1) <= sinks, real.flip(1).cumsum(1).flip(1) <= window
    kind = torch.where(first, 0, torch.where(last, 3, 1)).masked_fill(~real, 2)
    return torch.argsort(kind, dim=1, stable=True)


def _best(worth: Tensor, n: int) -> Tensor:
    """The places of the largest; of equal ones the later."""
    order = worth.flip(-1).sort(dim=-1, descending=True, stable=True).indices[..., :n]
    return worth.shape[-1] - 1 - order


def _taken(x: Tensor, index: Tensor) -> Tensor:
    """Entries of "row kv_head entry ..." by "row kv_head kept"."""
    return x.gather(2, index if x.ndim == 3 else index[..., None].expand(*index.shape, x.shape[-1]))
