"""Which tokens' inputs stay as they are where all others become integers: the sinks.

A sink carries a massive activation. With one scale for a whole sequence, it sets the scale, and nothing is left of the
other tokens: SmolLM2's reaches 22,000 where the median is about 100.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.upstream import take_cache

__all__ = ["Kept"]


class Kept:
    """Looks at what enters a model, before each of its passes; its linear layers then ask which rows are meant.

    Args:
        positions: Counted from each sequence's first real token.
        tokens: Ids of tokens that are kept wherever they stand.
    """

    def __init__(self, positions: Sequence[int] = (), tokens: Sequence[int] = ()) -> None:
        self.positions, self.tokens = tuple(positions), tuple(tokens)
        self.mask: Tensor | None = None
        self.padding: Tensor | None = None

    def __call__(self, module: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        """A hook before the forward pass of the model without its output layer."""
        found = options.get("input_ids")
        tokens = found if found is not None or not args else args[0]
        like = tokens if tokens is not None else options.get("inputs_embeds")
        if like is None:
            self.mask = self.padding = None
            return
        rows, count = like.shape[:2]
        places, real = _places(options, rows, count, like.device)
        mask = torch.isin(places, torch.tensor(self.positions, device=like.device)) if self.positions else None
        if self.tokens and tokens is not None:
            named = torch.isin(tokens, torch.tensor(self.tokens, device=like.device))
            mask = named if mask is None else mask | named
        self.padding = None if real is None or bool(real.all()) else ~real
        if mask is not None and self.padding is not None:
            mask = mask & ~self.padding
        self.mask = mask if mask is not None and bool(mask.any()) else None

    def rows(self, x: Tensor) -> tuple[Bool[Tensor, " token"] | None, Bool[Tensor, " token"] | None]:
        """Of a layer's inputs "row pos input": which stay as they are, and which count for no scale; none for none."""
        kept = _last(self.mask, x)
        padding = _last(self.padding, x)
        if kept is None or padding is None:
            return kept, padding if kept is None else kept
        return kept, kept | padding


def _places(
    options: Mapping[str, Any], rows: int, count: int, device: torch.device
) -> tuple[Tensor, Bool[Tensor, "row pos"] | None]:
    """Each token's position behind the padding, and which tokens are real, if that is known."""
    mask = options.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= count:
        return (mask.long().cumsum(1) - 1)[:, -count:], mask[:, -count:].bool()
    given = options.get("position_ids")
    if isinstance(given, Tensor):
        return given.expand(rows, count), None
    cache = take_cache(dict(options))
    before = 0 if cache is None else int(cache.get_seq_length())
    return (before + torch.arange(count, device=device)).expand(rows, count), None


def _last(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """The mask of the positions that a layer sees: all, or the last ones, as the output layer does."""
    if mask is None or x.ndim != 3 or x.shape[0] != mask.shape[0] or x.shape[1] > mask.shape[1]:
        return None
    found = mask[:, mask.shape[1] - x.shape[1] :].reshape(-1)
    return found if bool(found.any()) else None
