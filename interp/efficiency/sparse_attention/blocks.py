"""Which keys each block of queries attends: a list of key blocks for each head, and single key columns beside them.

Nothing here is as large as queries times keys: blocks are marked by block, columns by query block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["BlockList", "causal_blocks", "window_blocks"]


@dataclass(frozen=True, eq=False)
class BlockList:
    """The keys that blocks of queries attend, for some heads.

    Queries stand at the end of the keys: the first one at position `first`. Blocks lie on one grid for queries and
    keys, so a query block's own key block has its number, and the first query block may be cut by `first`.

    Args:
        block: Tokens of a block.
        first: The first query's position among the keys.
        keys: How many keys there are.
        kept: Which key blocks; later ones than the query's own are left out whatever this says.
        columns: Single keys attended beside those blocks; none where there are none.
    """

    block: int
    first: int
    keys: int
    kept: Bool[Tensor, "head query_block key_block"]
    columns: Bool[Tensor, "head query_block key"] | None = None

    @property
    def query_blocks(self) -> int:
        """How many blocks of queries there are."""
        return self.kept.shape[1]

    def queries(self, at: int) -> tuple[int, int]:
        """Positions of the first query of a block and of the one behind its last."""
        number = self.first // self.block + at
        return max(number * self.block, self.first), min((number + 1) * self.block, self.keys)

    def rows(self, at: int) -> Iterator[tuple[list[int], np.ndarray]]:
        """For one query block: heads that attend the same keys, and the keys' positions in order."""
        stop = self.queries(at)[1]
        kept, columns = self._arrays
        alike: dict[bytes, list[int]] = {}
        for head in range(len(kept)):
            mine = kept[head, at].tobytes() + (b"" if columns is None else columns[head, at].tobytes())
            alike.setdefault(mine, []).append(head)
        for heads in alike.values():
            seen = kept[heads[0], at].repeat(self.block)[:stop]
            if columns is not None:
                seen = seen | columns[heads[0], at, :stop]
            yield heads, np.flatnonzero(seen)

    def density(self) -> Float[Tensor, " head"]:
        """The share of the causal blocks that is computed; columns count as what they are of a block."""
        causal = causal_blocks(self.first, self.keys, self.block).to(self.kept.device)
        kept = self.kept & causal
        found = kept.sum((1, 2)).float()
        if self.columns is not None:
            wide = kept.repeat_interleave(self.block, 2)[..., : self.keys]
            before = causal.repeat_interleave(self.block, 1)[:, : self.keys]
            found = found + (self.columns & before & ~wide).sum((1, 2)) / self.block
        return found / causal.sum()

    def to_mask(self) -> Bool[Tensor, "head query key"]:
        """Which keys each query sees, written out; for checks, since it is as large as what is to be avoided."""
        heads = self.kept.shape[0]
        found = torch.zeros(heads, self.keys - self.first, self.keys, dtype=torch.bool)
        for at in range(self.query_blocks):
            start, stop = self.queries(at)
            for alike, keys in self.rows(at):
                causal = torch.from_numpy(keys) <= torch.arange(start, stop)[:, None]
                for head in alike:
                    found[head, start - self.first : stop - self.first, torch.from_numpy(keys)] = causal
        return found

    @property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        found = vars(self).get("_found")
        if found is None:
            found = self.kept.cpu().numpy(), None if self.columns is None else self.columns.cpu().numpy()
            object.__setattr__(self, "_found", found)
        return found


def causal_blocks(first: int, keys: int, block: int) -> Bool[Tensor, "query_block key_block"]:
    """Which key blocks are the query block's own or stand before it.

    Args:
        first: The first query's position among the keys.
        keys: How many keys there are.
        block: Tokens of a block.
    """
    of_keys = torch.arange(-(-keys // block))
    return of_keys <= of_keys[first // block :, None]


def window_blocks(first: int, keys: int, block: int, back: int) -> Bool[Tensor, "query_block key_block"]:
    """Each query block's own key block and some directly before it.

    Args:
        first: The first query's position among the keys.
        keys: How many keys there are.
        block: Tokens of a block.
        back: Key blocks before the query block's own.
    """
    of_keys = torch.arange(-(-keys // block))
    own = of_keys[first // block :, None]
    return (of_keys >= own - back) & (of_keys <= own)
