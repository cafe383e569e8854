"""The model's own `forward` and `generate` with a compressed cache in place of transformers' growing one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from interp.efficiency.kv_cache.attention import NAME
from interp.efficiency.kv_cache.cache import KVCache
from interp.efficiency.kv_cache.rope import is_rotary
from interp.errors import UsageError
from interp.upstream import arguments, attending, cached, take_cache, tokens_in, wants_cache

if TYPE_CHECKING:
    from interp.efficiency.kv_cache.plan import KVPlan

__all__ = ["CachedForward", "PreparedCache", "beneath", "cache_plan", "uncached", "with_cache"]


class CachedForward:
    """A model's `forward` that makes a compressed cache where none is passed, and feeds long prompts in chunks.

    Without a cache (``use_cache=False``), or with one of transformers', nothing would be compressed: refused.
    An object, not a function, so that a copy of the model gets one of its own.

    Args:
        model: The model.
        plan: What it keeps.
        before: The model's `forward` without the plan.
    """

    def __init__(self, model: PreTrainedModel, plan: KVPlan, before: Any) -> None:
        self.model, self.plan, self.before = model, plan, before
        self.__signature__ = inspect.signature(before)
        context = model.config.get_text_config().max_position_embeddings
        self.limit = None if is_rotary(model) else context

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = arguments(self, args, kwargs)
        cache = take_cache(given)
        if cache is None and wants_cache(self.model, given):
            cache = self.plan.new_cache(self.model)
        _check(cache)
        given = cached(self, cache, **given)
        if cache.made_for != self.plan.identity:
            raise UsageError("this cache was made by another plan; start a new cache for the plan that is in force")
        with attending(self.model, NAME):
            return self._run(cache, given)

    def _run(self, cache: KVCache, given: dict[str, Any]) -> Any:
        name, tokens = tokens_in(given)
        labels = given.pop("labels", None)
        rows, new = tokens.shape[:2]
        if self.limit is not None and cache.seen + new > self.limit:
            raise UsageError(f"{cache.seen + new} tokens are more than the {self.limit} positions that the model has")
        size = self.plan.prefill_chunk or new
        mask, before = given.pop("attention_mask", None), cache.seen
        if new > size and (given.get("output_hidden_states") or given.get("output_attentions")):
            raise UsageError(
                f"hidden states and attentions of {new} tokens can't be returned with prefill_chunk={size}"
            )
        positions, logits, out = given.pop("position_ids", None), [], None
        if mask is None and positions is not None and (first := int(positions[..., 0].min())) != before:
            raise UsageError(
                f"this cache has seen {before} tokens, and the text goes on at position {first}: pass the whole "
                "conversation, or start a new cache for another text"
            )
        keep = given.get("logits_to_keep", 0)
        # the first chunk is the short one: then the rows of a padded batch are cut where single prompts are
        stops = [*range(new, 0, -size)][::-1]
        for start, stop in zip([0, *stops], stops, strict=False):
            seen = None if mask is None else mask[:, : before + stop] if mask.ndim == 2 else mask
            cache.begin(rows, stop - start, seen)
            part = {**given, name: tokens[:, start:stop], "attention_mask": seen}
            if positions is not None:
                part["position_ids"] = positions[..., start:stop]
            out = self.before(**part)
            if self.plan.instruction and new > 1:
                self._probe(cache, seen, rows)
            logits.append(out.logits)
        if out is None:
            raise UsageError("there are no tokens to run; give at least one")
        if len(logits) > 1 and not isinstance(keep, Tensor):
            out.logits = torch.cat(logits, 1)[:, -keep:]
        if labels is not None:
            out.loss = self.model.loss_function(
                logits=out.logits, labels=labels, vocab_size=self.model.config.get_text_config().vocab_size
            )
        return out

    def _probe(self, cache: KVCache, mask: Tensor | None, rows: int) -> None:
        """Sends the plan's instruction through the model for its queries alone."""
        tokens = torch.tensor([self.plan.instruction] * rows, device=self.model.device)
        at = _next_positions(cache.seen, mask, rows).to(tokens.device)
        cache.state.real = None
        with cache.probe():
            self.before(
                **cached(
                    self,
                    cache,
                    input_ids=tokens,
                    position_ids=at[:, None] + torch.arange(tokens.shape[1], device=tokens.device),
                    use_cache=True,
                    logits_to_keep=1,
                )
            )


class PreparedCache:
    """What `generate` calls to make its cache: a compressed one where it would have made a growing one.

    Args:
        model: The model.
        plan: What the cache keeps.
        before: The model's own method.
    """

    def __init__(self, model: PreTrainedModel, plan: KVPlan, before: Any) -> None:
        self.model, self.plan, self.before = model, plan, before
        self.__signature__ = inspect.signature(before)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = self.__signature__.bind(*args, **kwargs).arguments
        config, model_kwargs = given["generation_config"], given["model_kwargs"]
        if config.cache_implementation not in (None, self.model.generation_config.cache_implementation):
            raise UsageError(
                f"a plan for the cache is in force, and cache_implementation={config.cache_implementation!r} asks for "
                f"another cache: {_INSTEAD}"
            )
        cache = take_cache(dict(model_kwargs))
        if cache is not None or config.use_cache is False:
            _check(cache)
            return self.before(*args, **kwargs)
        cache = self.plan.new_cache(self.model)
        cache.expect(given["max_cache_length"])
        model_kwargs.update(cached(self.model, cache))
        return None


def cache_plan(model: PreTrainedModel) -> KVPlan | None:
    """The plan for the cache that is in force on a model; none if there is none."""
    forward = vars(model).get("forward")
    return forward.plan if isinstance(forward, CachedForward) else None


def beneath(model: PreTrainedModel) -> Callable[..., Any]:
    """A model's `forward` beneath the plan for the cache that may be in force."""
    forward = vars(model).get("forward")
    return forward.before if isinstance(forward, CachedForward) else model.forward


def uncached(model: PreTrainedModel) -> Callable[..., Any]:
    """A model's call that keeps nothing, under a plan for the cache as well: for what is measured on whole texts."""
    return partial(model if cache_plan(model) is None else beneath(model), use_cache=False)


_INSTEAD = (
    "leave it out, and the plan makes its cache, or pass one of plan.new_cache(model); to run without the plan, leave "
    "`plan.applied`"
)


def _check(cache: Any) -> None:
    """Refuses what a plan for the cache would be without effect on."""
    if cache is None:
        raise UsageError(f"a plan for the cache is in force, and use_cache=False keeps no cache: {_INSTEAD}")
    if not isinstance(cache, KVCache):
        raise UsageError(
            f"a plan for the cache is in force, and {type(cache).__name__} is a cache of another kind, which would "
            f"keep what it keeps: {_INSTEAD}"
        )


@contextmanager
def with_cache(model: PreTrainedModel, cache: KVCache, rows: int, new: int) -> Iterator[None]:
    """Within it, a model without a plan for the cache takes this cache, for one forward pass without padding."""
    cache.begin(rows, new, None)
    with attending(model, NAME):
        yield


def _next_positions(seen: int, mask: Tensor | None, rows: int) -> Int[Tensor, " row"]:
    return torch.full((rows,), seen) if mask is None else mask.long().sum(1)
