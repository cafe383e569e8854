"""The model's own `forward` with sparse attention for prompts: what runs while a plan is in force."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from interp.efficiency.deployment import deployment
from interp.efficiency.kv_cache.attention import Deferred, cached_attention
from interp.efficiency.kv_cache.cache import KVCache
from interp.efficiency.kv_cache.geometry import geometry
from interp.efficiency.kv_cache.running import cache_plan
from interp.efficiency.sparse_attention.flexible import flexible
from interp.efficiency.sparse_attention.gathered import dense, gathered, windowed
from interp.efficiency.sparse_attention.patterns import DENSE, View, pattern
from interp.errors import UsageError
from interp.upstream import Scoring, arguments, attending, cached, real_tokens, register, scoring, take_cache, tokens_in

if TYPE_CHECKING:
    from interp.efficiency.sparse_attention.plan import PrefillPlan

__all__ = ["NAME", "See", "SparseForward", "in_one_go"]

NAME = "interp_sparse_attention"
"""The name of the attention function in transformers' registry."""

See = Callable[[View, Tensor], None]
"""Is shown one prompt's queries and keys in a layer, all heads, and its values "kv_head key d"."""


class SparseForward:
    """A model's `forward` that reads prompts as a plan says.

    An object, not a function, so that a copy of the model gets one of its own.

    Args:
        model: The model.
        plan: Which keys are attended.
        before: The model's `forward` without the plan.
        see: Is shown what each layer computes attention of, which then stays dense.
    """

    def __init__(self, model: PreTrainedModel, plan: PrefillPlan, before: Any, see: See | None = None) -> None:
        self.model, self.plan, self.before, self.see = model, plan, before, see
        self.__signature__ = inspect.signature(before)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = arguments(self, args, kwargs)
        cache, mask = take_cache(given), given.get("attention_mask")
        past = 0 if cache is None else int(cache.get_seq_length())
        new = tokens_in(given)[1].shape[1]
        given = cached(self, cache, **given)
        if isinstance(cache, KVCache):
            in_one_go(self.model)
        if not self._acts(new, past, cache):
            return self.before(**given)
        token = _RUNNING.set(_Running(self, real_tokens(mask, past, new), past + new, new))
        try:
            with attending(self.model, NAME):
                return self.before(**given)
        finally:
            _RUNNING.reset(token)

    def _acts(self, new: int, past: int, cache: Any) -> bool:
        """Whether these tokens are read sparsely: a prompt, or a chunk of one that is worth a block."""
        if self.see is not None:
            return True
        if self.plan.dense or past + new <= self.plan.block:
            return False
        return new > 1 if past == 0 else new >= self.plan.block and not isinstance(cache, KVCache)


def in_one_go(model: PreTrainedModel) -> None:
    """Refuses a plan for the cache that reads prompts in chunks.

    Raises:
        UsageError: Such a plan is in force.
    """
    plan = cache_plan(model)
    if plan is not None and plan.prefill_chunk is not None:
        raise UsageError(
            f"the plan for the cache reads prompts in chunks (prefill_chunk={plan.prefill_chunk}) and drops "
            "entries between them, where blocks have no place; make it with prefill_chunk=None beside sparse prefill"
        )


class _Running:
    """One forward pass.

    Args:
        forward: What runs it.
        real: Which of all tokens so far are none of padding; none where all are.
        total: How many tokens there are so far.
        new: How many of them are new.
    """

    def __init__(self, forward: SparseForward, real: Bool[Tensor, "row pos"] | None, total: int, new: int) -> None:
        self.plan, self.see, self.real, self.total, self.new = forward.plan, forward.see, real, total, new
        self.layers = deployment(forward.model).layers
        shape = geometry(forward.model)
        self.heads = [
            [group * shape.query_heads + n for group in groups for n in range(shape.query_heads)]
            for groups in shape.groups
        ]
        self.per = shape.query_heads
        self.rules = {(layer, head): index for layer, head, index in self.plan.heads}

    def attention(
        self,
        place: int,
        query: Float[Tensor, "row head new d"],
        keys: Float[Tensor, "row kv_head key d"],
        values: Float[Tensor, "row kv_head key d_value"],
        options: dict[str, Any],
    ) -> Float[Tensor, "row head new d_value"]:
        """Attention of one layer, row by row; rows without their padding, so that they are as they would be alone."""
        made = scoring(query, options, "sparse prefill")
        keys, values = keys[:, :, : self.total], values[:, :, : self.total]  # a static cache has room behind
        found = query.new_zeros(*query.shape[:3], values.shape[3])
        for row in range(len(query)):
            if self.real is None:
                found[row] = self._row(place, query[row], keys[row], values[row], made)
                continue
            old = self.real[row, -keys.shape[2] :].nonzero()[:, 0].to(query.device)
            new = self.real[row, -self.new :].nonzero()[:, 0].to(query.device)
            if len(new):
                part = query[row].index_select(1, new), keys[row].index_select(1, old), values[row].index_select(1, old)
                found[row].index_copy_(1, new, self._row(place, *part, made))
        return found

    def _row(self, place: int, query: Tensor, keys: Tensor, values: Tensor, made: Scoring) -> Tensor:
        scaling, softcap = made.scaling, made.softcap
        layer, numbers, block = self.layers[place], self.heads[place], self.plan.block
        kv = tuple(n // self.per for n in range(len(numbers)))
        if made.window:
            return windowed(query, keys, values, kv, block, scaling, made.window, softcap)
        if self.see is not None:
            self.see(View(query, keys, kv, block, scaling, softcap, layer, tuple(numbers)), values)
            return dense(query, keys, values, kv, block, scaling, softcap)
        by_rule: dict[int | None, list[int]] = {}
        for at, number in enumerate(numbers):
            by_rule.setdefault(self.rules.get((layer, number)), []).append(at)
        found = query.new_empty(*query.shape[:2], values.shape[2])
        for index, heads in by_rule.items():
            mine, theirs = query[heads] if len(by_rule) > 1 else query, tuple(kv[at] for at in heads)
            rule = DENSE if index is None else self.plan.rules[index]
            if rule == DENSE:
                found[heads] = dense(mine, keys, values, theirs, block, scaling, softcap)
                continue
            seen = View(mine, keys, theirs, block, scaling, softcap, layer, tuple(numbers[at] for at in heads))
            chosen = pattern(rule).select(seen)
            if self.plan.backend == "flex" and softcap is None and chosen.first == 0:
                found[heads] = flexible(mine, keys, values, theirs, chosen, scaling)
            else:
                found[heads] = gathered(mine, keys, values, theirs, chosen, scaling, softcap)
        return found


_RUNNING: ContextVar[_Running] = ContextVar("running")


def sparse_attention(
    module: Any, query: Float[Tensor, "row head new d"], key: Any, value: Any, attention_mask: Any, **options: Any
) -> tuple[Float[Tensor, "row new head d"], None]:
    """What the model's attention layers call, see transformers' `AttentionInterface`."""
    running = _RUNNING.get()
    if isinstance(key, Deferred):
        found = running.attention(module.layer_idx, query, key.new_keys, key.new_values, options)
        return cached_attention(module, query, key, value, attention_mask, **options, computed=found)
    found = running.attention(module.layer_idx, query, key, value, options)
    return found.transpose(1, 2).contiguous(), None


register(NAME, sparse_attention)
