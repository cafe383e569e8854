"""Plans for the cache: for each layer and key-value head, what is kept of keys and values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go
from transformers import PreTrainedModel

from interp.efficiency.counting import count
from interp.efficiency.deployment import deployment
from interp.efficiency.kv_cache.cache import KVCache, Part
from interp.efficiency.kv_cache.geometry import geometry
from interp.efficiency.kv_cache.policies import described, entries, entry_bytes, store
from interp.efficiency.kv_cache.rope import rotation
from interp.efficiency.kv_cache.running import CachedForward, PreparedCache, cache_plan
from interp.efficiency.ledger import Amount, Ledger
from interp.efficiency.plan import Plan, Undo, fit
from interp.errors import UsageError
from interp.upstream import PREPARE_CACHE

__all__ = ["KVPlan"]


@dataclass(frozen=True, kw_only=True)
class KVPlan(Plan):
    """What a cache keeps. The model's `forward` and `generate` use such a cache when none is passed.

    Args:
        policies: The different ways, see `interp.efficiency.kv_cache.policies`; each a table of settings.
        heads: For each layer and key-value head, by their original numbers, the policy's place in `policies`. Layers
            that see a window by design and have no rows keep that window.
        length: The prompt's length that the budget is stated for; 0 where it does not depend on it.
        prefill_chunk: Tokens of a prompt that are processed at once, so that it never stands in the cache as a
            whole; none: in one go, and compressed behind it.
        instruction: Tokens that are sent through the model behind every chunk to ask what is worth keeping.
        scores: For each of `heads`, what it was chosen by; may be empty.
    """

    policies: tuple[dict[str, Any], ...]
    heads: tuple[tuple[int, int, int], ...]
    length: int = 0
    prefill_chunk: int | None = None
    instruction: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()

    kind: ClassVar[str] = "kv_cache"

    def __post_init__(self) -> None:
        super().__post_init__()
        for policy in self.policies:
            store(policy)
        fit(self.heads, self.policies, scores=self.scores)
        if self.length < 0 or (self.prefill_chunk is not None and self.prefill_chunk < 1):
            raise UsageError(f"length and prefill_chunk make no sense: {self.length} and {self.prefill_chunk}")

    @property
    def identity(self) -> str:
        """What tells this plan's caches from others."""
        return hashlib.sha256(json.dumps(self.decided(), sort_keys=True).encode()).hexdigest()[:16]

    def policy(self, layer: int, head: int) -> dict[str, Any] | None:
        """The policy of a key-value head, by its original numbers; none where the plan has no row for it."""
        found = {(at, number): index for at, number, index in self.heads}.get((layer, head))
        return None if found is None else self.policies[found]

    def new_cache(self, model: PreTrainedModel) -> KVCache:
        """An empty cache for a model with the plan in force; pass it as the cache over several turns."""
        return KVCache(self.identity, [make for make, _ in self._layers(model)], [n for _, n in self._layers(model)])

    def change(self, model: PreTrainedModel, undo: Undo) -> None:
        if cache_plan(model) is not None:
            raise UsageError("a plan for the cache is in force already; a model takes one at a time")
        self._layers(model)
        undo.set(model, PREPARE_CACHE, PreparedCache(model, self, getattr(model, PREPARE_CACHE)))
        undo.set(model, "forward", CachedForward(model, self, model.forward))

    def ledger(self, model: PreTrainedModel, length: int, batch: int = 1) -> Ledger:
        """What scoring entries takes is not counted, of an instruction only its pass through the weights is.

        A prompt that is read in chunks attends to what is left between them.
        """
        shape, dense = geometry(model), count(model, length)
        saved_bytes, saved, saved_pairs = 0.0, 0, 0.0
        for layer, groups, window in zip(shape.layers, shape.groups, shape.own_windows, strict=True):
            whole = min(length, window or length)
            for head in groups:
                if (policy := self.policy(layer, head)) is not None:
                    saved += whole - entries(policy, length)
                    saved_bytes += whole * shape.entry_bytes - entry_bytes(policy, length, shape)
                    saved_pairs += self._pairs_saved(policy, length)
        each = 4 * shape.head_dim * shape.query_heads
        chunks = -(-length // self.prefill_chunk) if self.prefill_chunk else 1
        extra = chunks * len(self.instruction) * count(model, 0).decode_flops
        return Ledger(
            weight_bytes=Amount(dense.weight_bytes, dense.weight_bytes),
            cache_bytes=Amount(dense.cache_bytes * batch, (dense.cache_bytes - saved_bytes) * batch),
            prefill_flops=Amount(
                dense.prefill_flops * batch, (dense.prefill_flops - each * saved_pairs + extra) * batch
            ),
            decode_flops=Amount(dense.decode_flops * batch, (dense.decode_flops - each * saved) * batch),
            length=length,
            batch=batch,
        )

    def _pairs_saved(self, policy: dict[str, Any], length: int) -> float:
        """Pairs of a query and an earlier entry that a head no longer has while it reads a prompt in chunks."""
        starts = range(0, length, self.prefill_chunk) if self.prefill_chunk else ()
        return float(sum(min(self.prefill_chunk or 0, length - at) * (at - entries(policy, at)) for at in starts))

    def to_frame(self) -> pd.DataFrame:
        """One row a head: ``layer``, ``kv_head``, ``keeps``, ``entries`` at the plan's length, and its ``score``."""
        rows = [
            {
                "layer": layer,
                "kv_head": head,
                "keeps": described(self.policies[index]),
                "entries": entries(self.policies[index], self.length) if self.length else None,
                "score": self.scores[number] if self.scores else None,
            }
            for number, (layer, head, index) in enumerate(self.heads)
        ]
        return pd.DataFrame(rows, columns=["layer", "kv_head", "keeps", "entries", "score"])

    def figure(self) -> go.Figure:
        """Entries by layer and key-value head, at the plan's length."""
        from interp.efficiency.kv_cache.picture import kept_entries

        return kept_entries(self)

    def _layers(self, model: PreTrainedModel) -> list[tuple[Callable[[], list[Part]], int]]:
        """For each block that is left, what makes its stores, and how many key-value heads it has."""
        shape = geometry(model)
        found: list[tuple[Callable[[], list[Part]], int]] = []
        for at, (layer, groups, window) in enumerate(zip(shape.layers, shape.groups, shape.own_windows, strict=True)):
            chosen: dict[str, list[int]] = {}
            for place, head in enumerate(groups):
                policy = self.policy(layer, head)
                if policy is None and window is None:
                    raise UsageError(
                        f"the plan says nothing of layer {layer}, key-value head {head} of {deployment(model).name}; "
                        "make a plan for the model as it is"
                    )
                own = {"keep": "window", "sinks": 0, "window": window}
                chosen.setdefault(json.dumps(own if policy is None else policy, sort_keys=True), []).append(place)
            rotate = rotation(model, at) if any('"reindexed"' in policy for policy in chosen) else None
            makers = [(heads, partial(store, json.loads(policy), rotate)) for policy, heads in chosen.items()]
            found.append((partial(_parts, makers), len(groups)))
        return found


def _parts(makers: Sequence[tuple[list[int], Callable[[], Any]]]) -> list[Part]:
    return [(heads, make()) for heads, make in makers]
