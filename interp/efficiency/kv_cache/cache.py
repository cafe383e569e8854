"""A cache whose layers keep, for each key-value head, what a plan says; transformers' models and `generate` use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from interp.efficiency.kv_cache.attention import Deferred, Step
from interp.efficiency.kv_cache.stores import Store
from interp.errors import UsageError
from interp.upstream import scoring

__all__ = ["KVCache", "KVLayer", "Part"]

Part = tuple[list[int], Store]
"""The key-value heads of a layer that share a store, and the store."""


class KVLayer(CacheLayerMixin):
    """One layer of a `KVCache`: heads under the same policy share a store.

    Args:
        make: Makes the parts anew; each head belongs to exactly one.
        state: What all layers know of the forward pass that runs: padding, and whether it only probes.
    """

    is_compileable = False
    is_croppable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self, make: Callable[[], list[Part]], state: _State) -> None:
        super().__init__()
        self.make, self.state = make, state
        self.parts = make()
        self.seen = 0
        self.is_initialized = True

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Stores are filled when entries come."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Hands keys and values on to `step`, which the attention function calls with the queries."""
        found = Deferred(self, key_states, value_states)
        return found, found

    def step(
        self,
        query: Float[Tensor, "row head new d"],
        keys: Float[Tensor, "row kv_head new d"],
        values: Float[Tensor, "row kv_head new d"],
        options: dict[str, Any],
    ) -> Float[Tensor, "row head new d"]:
        """Attention of the new tokens; afterwards the stores hold what their policies keep."""
        made = scoring(query, options, "a plan for the cache")
        step = Step(
            scaling=made.scaling,
            softcap=made.softcap,
            real=self.state.real,
            own_window=made.window,
            probing=self.state.probing,
            computed=options.get("computed"),
        )
        if not step.probing:
            self.seen += keys.shape[2]
        if len(self.parts) == 1:
            return self.parts[0][1].step(query, keys, values, step)
        by_group = query.unflatten(1, (keys.shape[1], -1))
        found = query.new_empty(*by_group.shape[:4], values.shape[-1])
        for heads, store in self.parts:
            at = _slice(heads)
            mine = step
            if step.computed is not None:
                mine = replace(step, computed=step.computed.unflatten(1, (keys.shape[1], -1))[:, at].flatten(1, 2))
            part = store.step(by_group[:, at].flatten(1, 2), keys[:, at], values[:, at], mine)
            found[:, at] = part.unflatten(1, (len(heads), -1))
        return found.flatten(1, 2)

    def tensors(self) -> list[Tensor]:
        """All tensors that the layer holds on to."""
        return [tensor for _, store in self.parts for tensor in store.tensors()]

    def entries(self, heads: int) -> list[int]:
        """How many entries each of the layer's `heads` key-value heads holds."""
        found = [0] * heads
        for mine, store in self.parts:
            for head in mine or range(heads):
                found[head] = store.entries
        return found

    def get_seq_length(self) -> int:
        """How many tokens the layer has seen, whatever is left of them: the next one's position."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The most entries that a head holds, with those to come; the attention function makes its masks itself."""
        return max((store.entries for _, store in self.parts), default=0) + query_length, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    get_max_cache_shape = get_max_length

    def reset(self) -> None:
        """Forgets everything."""
        self.parts, self.seen = self.make(), 0

    def reorder_cache(self, beam_idx: Int[Tensor, " row"]) -> None:
        """Takes these rows of the batch, as beam search asks for."""
        for _, store in self.parts:
            if store.entries:
                store.rows(beam_idx.to(store.tensors()[0].device))

    batch_select_indices = reorder_cache

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row of the batch."""
        if held := self.tensors():
            self.reorder_cache(torch.arange(held[0].shape[0]).repeat_interleave(repeats))

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Refused: what was dropped can't be brought back.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            "a compressed cache can't be cropped: entries from before are gone; start from a new cache, and generate "
            "without an assistant or prompt lookup"
        )

    def offload(self) -> None:
        """Refused.

        Raises:
            UsageError: Always.
        """
        raise UsageError("a compressed cache can't be offloaded; leave cache_implementation='offloaded' out")

    prefetch = offload


class KVCache(Cache):
    """Keys and values of a prompt and what follows, compressed as a plan says; made by the plan's `new_cache`.

    Pass it from turn to turn as any cache of transformers.

    Args:
        made_for: What tells plans apart; a model whose plan has another one refuses the cache.
        parts: Of each layer, what makes its parts.
        heads: Of each layer, how many key-value heads it has.
    """

    def __init__(self, made_for: str, parts: Sequence[Callable[[], list[Part]]], heads: Sequence[int]) -> None:
        self.made_for, self.heads, self.state = made_for, list(heads), _State()
        self.layers: list[Any]
        super().__init__(layers=[KVLayer(make, self.state) for make in parts])

    def bytes(self) -> int:
        """Bytes of everything that it holds on to, from the tensors' storages."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.tensors()}
        return sum(storages.values())

    def entries(self) -> list[list[int]]:
        """How many entries each key-value head of each layer holds."""
        return [layer.entries(heads) for layer, heads in zip(self.layers, self.heads, strict=True)]

    def tensors(self) -> list[Tensor]:
        """All tensors that it holds on to."""
        return [tensor for layer in self.layers for tensor in layer.tensors() if tensor.numel()]

    def expect(self, total: int) -> None:
        """Told how many tokens there will be at most, so that no more room is allocated ahead."""
        for layer in self.layers:
            for _, store in layer.parts:
                store.expect(total)

    @property
    def seen(self) -> int:
        """How many tokens went through, padding included."""
        return self.get_seq_length()

    def begin(self, rows: int, new: int, mask: Tensor | None) -> None:
        """Told before each forward pass how many tokens come, and the attention mask of all so far.

        Raises:
            UsageError: A mask that does not fit what the cache has seen, or another number of rows.
        """
        if self.state.rows is not None and (held := self.tensors()) and held[0].shape[0] != rows:
            raise UsageError(f"this cache holds {held[0].shape[0]} rows, the tokens have {rows}; start a new cache")
        self.state.rows = rows
        if mask is None:
            self.state.real = None
            return
        if mask.ndim != 2:
            raise UsageError(f"a plan for the cache needs an attention mask 'row pos', got {mask.ndim} dimensions")
        if mask.shape[1] != self.seen + new:
            raise UsageError(
                f"this cache has seen {self.seen} tokens and {new} are new, but the attention mask is for "
                f"{mask.shape[1]}: pass the whole conversation, or start a new cache for another text"
            )
        real = mask[:, mask.shape[1] - new :].bool()
        self.state.real = None if bool(real.all()) else real

    @contextmanager
    def probe(self) -> Any:
        """Within it, tokens that go through the model only ask: they attend, and are not kept."""
        self.state.probing = True
        try:
            yield
        finally:
            self.state.probing = False


def _slice(heads: list[int]) -> Any:
    """Heads as a slice where they are evenly spaced, which copies nothing, otherwise as they are."""
    step = heads[1] - heads[0] if len(heads) > 1 else 1
    even = heads == list(range(heads[0], heads[-1] + 1, step))
    return slice(heads[0], heads[-1] + 1, step) if even else heads


class _State:
    """What the layers know of the forward pass that runs."""

    def __init__(self) -> None:
        self.rows: int | None = None
        self.real: Bool[Tensor, "row new"] | None = None
        self.probing = False
