"""Prefill and decoding by hand, with whatever cache the model in force makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from interp.upstream import cache_of, cached

__all__ = ["Decoder", "storage_bytes"]


class Decoder:
    """A model with its cache, fed piece by piece.

    Args:
        model: A deployed model, perhaps with plans in force.
        cache: A cache to use; by default the one that the model makes, which is its plan's.
    """

    def __init__(self, model: PreTrainedModel, cache: Any = None) -> None:
        self.model, self.cache = model, cache

    @torch.no_grad()
    def feed(self, tokens: Int[Tensor, "batch pos"], keep: int = 1) -> Float[Tensor, "batch keep vocab"]:
        """The logits of the last `keep` positions of some further tokens."""
        model: Any = self.model
        tokens = tokens.to(model.device)
        out = model(**cached(model, self.cache, input_ids=tokens, use_cache=True, logits_to_keep=keep))
        self.cache = cache_of(out)
        return out.logits

    def logits(self, tokens: Int[Tensor, "batch pos"], piece: int) -> Float[Tensor, "batch pos vocab"]:
        """The logits of some further tokens, fed `piece` at a time."""
        return torch.cat([self.feed(part, part.shape[1]) for part in tokens.split(piece, 1)], 1)

    def greedy(self, logits: Float[Tensor, "batch one vocab"], steps: int) -> Int[Tensor, "batch steps"]:
        """The `steps` likeliest tokens, one after another, from the logits of the last token fed."""
        found = [logits[:, -1:].argmax(-1)]
        for _ in range(steps - 1):
            found.append(self.feed(found[-1]).argmax(-1))
        return torch.cat(found, 1)


def storage_bytes(*owners: Any) -> int:
    """Bytes of the storages of all tensors that some modules or caches hold, each storage counted once."""
    found: dict[int, int] = {}
    seen: set[int] = set()
    stack: list[Any] = list(owners)
    while stack:
        one = stack.pop()
        if id(one) in seen or isinstance(one, str | bytes | int | float | bool | type | type(None)):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            storage = one.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(one, torch.nn.Module):
            stack += [*one.parameters(), *one.buffers()]
        elif isinstance(one, dict):
            stack += one.values()
        elif isinstance(one, Sequence | set):
            stack += one
        elif type(one).__module__.startswith(("interp.", "transformers.cache_utils")) and hasattr(one, "__dict__"):
            stack += vars(one).values()
    return sum(found.values())
