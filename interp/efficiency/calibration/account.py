"""What calibration knows of the tokens that a cache holds: an account that goes with the cache.

Which keys are sinks depends on queries that a decoding step no longer sees, so what they gave each key is written
down. The account hangs on the cache; a cache that was cut, or filled without the plan, is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from interp.efficiency.kv_cache.running import cache_plan
from interp.errors import UsageError
from interp.upstream import arguments, cached, take_cache, tokens_in, wants_cache

__all__ = ["Account", "Running"]

_NAME = "calibration_account"


class Account:
    """Of the tokens so far: which are none of padding, and what each layer wrote down.

    Args:
        made_for: The plan's identity.
    """

    def __init__(self, made_for: str) -> None:
        self.made_for, self.seen, self.new = made_for, 0, 0
        self.real: Bool[Tensor, "row token"] = torch.ones(0, 0, dtype=torch.bool)
        self.layers: dict[int, dict[str, Tensor]] = {}

    def begin(self, rows: int, new: int, mask: Any, device: torch.device) -> None:
        """Some further tokens are about to be processed.

        Args:
            rows: Prompts.
            new: New tokens of each.
            mask: "row token", as Hugging Face takes it; none where nothing is padding.
            device: Where the tokens are.

        Raises:
            UsageError: A mask of another shape, or rows that don't fit those so far.
        """
        if self.seen and len(self.real) not in (1, rows):
            raise UsageError(f"this cache has {len(self.real)} rows, and {rows} prompts go on; start a new cache")
        if mask is None:
            earlier = self.real.expand(rows, -1) if self.seen else torch.ones(rows, 0, dtype=torch.bool, device=device)
            self.real = torch.cat([earlier, torch.ones(rows, new, dtype=torch.bool, device=device)], 1)
        elif mask.ndim == 2 and mask.shape == (rows, self.seen + new):
            self.real = mask.bool()
        else:
            raise UsageError(
                f"calibration takes an attention mask of shape [{rows}, {self.seen + new}], one for each token so far; "
                f"got {list(mask.shape)}"
            )
        self.new, self.seen = new, self.seen + new

    @property
    def positions(self) -> Int[Tensor, "row token"]:
        """Each token's place in its text, padding not counted."""
        return self.real.long().cumsum(1) - 1

    def earlier(self, layer: int, name: str, keys: int) -> Tensor | None:
        """What a layer wrote of the last `keys` of the earlier tokens; none if nothing."""
        found = self.layers.get(layer, {}).get(name)
        return None if found is None or keys == 0 else found[..., found.shape[-1] - keys :]

    def write(self, layer: int, **values: Tensor) -> None:
        """Writes what holds for the tokens so far, tokens last."""
        self.layers.setdefault(layer, {}).update({name: value.detach() for name, value in values.items()})

    def reorder(self, index: Int[Tensor, " row"]) -> None:
        """Takes other rows, as beam search does."""
        self.real = self.real[index.to(self.real.device)]
        for values in self.layers.values():
            for name, value in values.items():
                values[name] = value[index.to(value.device)]


class Running:
    """What a model calls before and behind each forward pass: finds the account of the pass.

    Args:
        made_for: The plan's identity.
    """

    def __init__(self, made_for: str) -> None:
        self.made_for = made_for
        self.account: Account | None = None

    def before(self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the forward pass; makes the cache where the model would make one."""
        given = arguments(model.forward, args, kwargs)
        _, tokens = tokens_in(given)
        if cache_plan(model) is not None:
            raise UsageError("calibration needs every key, so no plan for the cache can be in force with it")
        cache = take_cache(given)
        if cache is None and wants_cache(model, given):
            cache = DynamicCache(config=model.config)
        self.account = self._account(cache)
        self.account.begin(tokens.shape[0], tokens.shape[1], given.get("attention_mask"), tokens.device)
        return (), cached(model, cache, **given)

    def behind(self, model: PreTrainedModel, args: tuple[Any, ...], output: Any) -> None:
        """Behind it."""
        self.account = None

    def now(self) -> Account:
        """The account of the pass that is under way."""
        if self.account is None:
            raise UsageError("a plan for calibration is in force: call the model itself, not a part of it")
        return self.account

    def _account(self, cache: Any) -> Account:
        if cache is None:
            return Account(self.made_for)
        if not isinstance(cache, DynamicCache):
            raise UsageError(
                f"calibration works with transformers' growing cache, got {type(cache).__name__}; leave "
                "cache_implementation and the cache out"
            )
        length, found = cache.get_seq_length(), vars(cache).get(_NAME)
        if found is None and length == 0:
            found = Account(self.made_for)
            vars(cache).update({_NAME: found, "reorder_cache": _Reorder(cache, found)})
        if found is None or found.made_for != self.made_for:
            raise UsageError("this cache was filled without the plan that is in force; start a new cache")
        if found.seen != length:
            raise UsageError(
                f"this cache holds {length} tokens and calibration knows of {found.seen}: it was cut or filled "
                "elsewhere; start a new cache"
            )
        return found


class _Reorder:
    """The cache's own `reorder_cache`, and the account's."""

    def __init__(self, cache: DynamicCache, account: Account) -> None:
        self.cache, self.account = cache, account

    def __call__(self, beam_idx: Any) -> None:
        type(self.cache).reorder_cache(self.cache, beam_idx)
        self.account.reorder(beam_idx)
