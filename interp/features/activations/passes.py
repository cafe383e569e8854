"""One pass of a model over some rows, for activations at several places at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.engine.forward import Visitor, Walk
from interp.engine.memory import budget_bytes, bytes_per_row
from interp.engine.parts import Norm, Parts
from interp.errors import InterpError
from interp.features.activations.rows import Rows
from interp.features.place import MLP_IN, Place

__all__ = ["Pass", "error_of", "tokens_at_once"]

_ON_CPU = 2048
"""Tokens of a batch on a processor, where larger ones leave its caches."""
_QUERIES = 64
"""Queries that attend together, so that a batch's pattern stays small."""


def tokens_at_once(parts: Parts, places: Sequence[Place], length: int, max_memory: int | None = None) -> int:
    """How many tokens fit into a batch: a full row of `length` at least.

    Raises:
        UsageError: `max_memory` (bytes) is more than there is.
    """
    width = sum(place.width(parts.graph) for place in places)
    row = bytes_per_row(parts.graph, length, min(length, _QUERIES), 0) + 4 * length * width
    fit = max(1, budget_bytes(parts.device, max_memory) // row) * length
    return max(length, min(fit, _ON_CPU)) if parts.device.type == "cpu" else fit


class Pass:
    """Runs a model over rows and gives what it holds at some places.

    Args:
        parts: the model.
        places: where to read.
        rows: the tokens.
        at_once: tokens of a batch.
        dtype: of the activations given.
        autocast: multiply matrices in this dtype; the residual stream and the norms keep the model's.
    """

    def __init__(
        self,
        parts: Parts,
        places: Sequence[Place],
        rows: Rows,
        at_once: int,
        dtype: torch.dtype = torch.float32,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.parts, self.places, self.rows, self.at_once = parts, tuple(places), rows, at_once
        self.dtype, self.autocast = dtype, autocast
        self._walks: dict[int, Walk] = {}

    def batches(self, rows: range) -> list[list[int]]:
        """The rows of a shard in batches, those of similar length together, so that little is padded."""
        longest_first = sorted(rows, key=lambda row: -int(self.rows.lengths[row]))
        batches: list[list[int]] = []
        for row in longest_first:
            full = not batches or (len(batches[-1]) + 1) * self.rows.lengths[batches[-1][0]] > self.at_once
            if full:
                batches.append([])
            batches[-1].append(row)
        return batches

    def shard(self, rows: range, device: torch.device | str = "cpu") -> dict[str, Float[Tensor, "n width"]]:
        """The kept activations of many rows, in the order of the rows, by place, on a device."""
        kept = self.rows.kept[rows.start : rows.stop]
        begins = np.cumsum(kept) - kept
        out = {
            str(place): torch.empty(int(kept.sum()), place.width(self.parts.graph), dtype=self.dtype, device=device)
            for place in self.places
        }
        with self._precision():  # around all batches, so that the weights are rounded once
            for batch in self.batches(rows):
                places = [np.arange(kept[row - rows.start]) + begins[row - rows.start] for row in batch]
                where = torch.from_numpy(np.concatenate(places)).to(device)
                for place, x in self.run(batch).items():
                    out[place].index_copy_(0, where, x.to(device))
        return out

    @torch.no_grad()
    def run(self, batch: Sequence[int]) -> dict[str, Float[Tensor, "n width"]]:
        """The kept activations of some rows, row after row, by place, on the model's device.

        Raises:
            InterpError: an activation that is not finite.
        """
        width = int(self.rows.lengths[list(batch)].max())
        tokens, mask = (
            torch.zeros(len(batch), width, dtype=torch.long),
            torch.zeros(len(batch), width, dtype=torch.bool),
        )
        for at, row in enumerate(batch):
            ids = self.rows.tokens(row)
            tokens[at, : len(ids)] = torch.from_numpy(ids)
            mask[at, : len(ids)] = torch.from_numpy(self.rows.mask(row))
        device = self.parts.device
        reader = _Reader(self.parts, self.places, mask.to(device), self.dtype)
        walk = self._walk(width)
        with self._precision(), suppress(_AllRead):
            walk(walk.embed(tokens.to(device)), reader, last_layer=max(place.layer for place in self.places))
        for place, x in reader.read.items():
            if not bool(torch.isfinite(x.sum(dtype=torch.float64))):
                raise InterpError(
                    f"activations at {place} are not finite in the rows {min(batch)} to {max(batch)}; look for "
                    "overflow in the model's activations, or harvest in float32"
                )
        return reader.read

    def _walk(self, length: int) -> Walk:
        if length not in self._walks:
            self._walks = {length: _Walk(self.parts, length, queries_at_once=_QUERIES)}
        return self._walks[length]

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.parts.device.type, dtype=self.autocast, enabled=self.autocast is not None)


def error_of(harvest: Pass, batch: Sequence[int]) -> dict[str, dict[str, float]]:
    """How far what a pass gives is from the same activations in float32, by place.

    Returns:
        ``relative`` and ``worst``: mean and largest ratio of the difference's norm to the activation's;
        ``unexplained``: the squared difference as a share of the activations' variance; ``n``, of so many activations.
    """
    exact = Pass(harvest.parts, harvest.places, harvest.rows, harvest.at_once).run(batch)
    errors = {}
    for place, x in harvest.run(batch).items():
        true = exact[place].double()
        off = x.double() - true
        ratio = off.norm(dim=1) / true.norm(dim=1)
        variance = (true - true.mean(0)).square().sum()
        errors[place] = {
            "relative": float(ratio.mean()),
            "worst": float(ratio.max()),
            "unexplained": float(off.square().sum() / variance),
            "n": len(true),
        }
    return errors


class _Walk(Walk):
    """Keeps autocast out of the norms, whose scale is a matrix product to it and would lose its digits."""

    def _norm(self, norm: Norm, x: Tensor, site: str = "", layer: int = 0) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super()._norm(norm, x, site, layer)


class _AllRead(Exception):
    """Nothing that comes later in the walk is wanted."""


class _Reader(Visitor):
    """Keeps the wanted activations and ends the walk behind the last of them."""

    needs_pattern = False

    def __init__(self, parts: Parts, places: Iterable[Place], mask: Tensor, dtype: torch.dtype) -> None:
        self.parts, self.mask, self.dtype = parts, mask, dtype
        self.wanted = {("mlp_port" if p.site == MLP_IN else p.site, p.layer): p for p in places}
        self.read: dict[str, Tensor] = {}

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        place = self.wanted.get((site, layer))
        if place is None:
            return x
        with torch.autocast(x.device.type, enabled=False):
            seen = self.parts.blocks[layer].ln2(x) if place.site == MLP_IN else x
        self.read[str(place)] = seen.flatten(2)[self.mask].to(self.dtype)
        if len(self.read) == len(self.wanted):
            raise _AllRead
        return x
