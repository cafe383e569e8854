"""One dense pass over prompts, from which the caches of any number of plans are filled.

Where a prompt is read in one go it is computed as it is without a plan, and a plan decides afterwards what is kept. So
its queries, keys and values are the same for all plans, and need computing once.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from interp.efficiency.decoding import Decoder
from interp.efficiency.kv_cache.attention import Step, attend, visible
from interp.efficiency.kv_cache.cache import KVCache
from interp.efficiency.kv_cache.geometry import geometry
from interp.efficiency.kv_cache.plan import KVPlan
from interp.efficiency.kv_cache.running import with_cache
from interp.efficiency.kv_cache.stores import Store
from interp.errors import UsageError

__all__ = ["Prefilled"]


class Prefilled:
    """Prompts of one length, read once.

    Args:
        model: A deployed model without a plan for the cache in force.
        tokens: The prompts.
    """

    def __init__(self, model: PreTrainedModel, tokens: Int[Tensor, "row pos"]) -> None:
        self.rows, self.length = tokens.shape
        shape = geometry(model)
        self._stores = [_Seen() for _ in shape.layers]
        parts: list[Any] = [lambda store=store: [([], store)] for store in self._stores]
        cache = KVCache("", parts, [len(groups) for groups in shape.groups])
        with with_cache(model, cache, self.rows, self.length):
            Decoder(model, cache).feed(tokens)

    def cache(self, plan: KVPlan, model: PreTrainedModel) -> KVCache:
        """The plan's cache behind the prompts, as if the model had read them with the plan in force.

        Raises:
            UsageError: A plan that reads prompts in chunks, or asks an instruction behind them.
        """
        if plan.instruction or (plan.prefill_chunk or self.length) < self.length:
            raise UsageError(f"{plan.method} reads prompts in chunks of its own; feed them with the plan in force")
        cache = plan.new_cache(model)
        cache.begin(self.rows, self.length, None)
        for seen, layer in zip(self._stores, cache.layers, strict=True):
            layer.step(*seen.given, seen.options)
        return cache


class _Seen(Store):
    """Takes down what a layer is given and what its attention is, and keeps nothing else."""

    given: tuple[Tensor, Tensor, Tensor]
    options: dict[str, Any]

    def step(self, query: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
        found = attend(query, keys, values, step, visible(0, keys.shape[2], step, None, keys.device))
        self.given = query, keys, values
        self.options = {
            "scaling": step.scaling,
            "softcap": step.softcap,
            "sliding_window": step.own_window,
            "computed": found,
        }
        return found
