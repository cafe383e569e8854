"""What is spelt by hand of transformers, TransformerLens and torch.compile: read it beside a new release's notes.

Whatever stands in or around a call of theirs (a plan's `forward`, a hook, an attention function, what stands where a
block was removed) gets its names from here, and reads the signature that it meets where a name has changed.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import AttentionInterface

from interp.errors import UsageError

__all__ = [
    "PREPARE_CACHE",
    "WRAPPER",
    "Scoring",
    "arguments",
    "attend_with",
    "attending",
    "attention_of",
    "cache_of",
    "cached",
    "implementation",
    "is_compiled",
    "key_value_heads",
    "layer_of",
    "own_attention",
    "prefer_fused",
    "real_tokens",
    "register",
    "scoring",
    "sines",
    "take_cache",
    "takes_function",
    "tokens_in",
    "turning",
    "wants_cache",
]

# Arguments of a call

CACHE = ("cache", "past_key_values", "layer_past", "cache_params")
"""What the cache is called: from 5.24, before, in the attention of GPT-NeoX and GPTBigCode, in state-space models."""
TOKENS = ("input_ids", "inputs_embeds")

_DEFAULT = next(name for name in CACHE if name in {field.name for field in fields(CausalLMOutputWithPast)})


def arguments(callee: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, those of ``**kwargs`` among them."""
    signature = inspect.signature(callee)
    given = dict(signature.bind_partial(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            given.update(given.pop(parameter.name, {}))
    return given


def take_cache(given: dict[str, Any]) -> Any:
    """Takes the cache out of a call's arguments, under whichever name it was given; none where there is none.

    Raises:
        UsageError: Two of them.
    """
    found = {name: given.pop(name) for name in CACHE if name in given}
    caches = {name: cache for name, cache in found.items() if cache is not None}
    if len(caches) > 1:
        raise UsageError(f"a call takes one cache, got {' and '.join(caches)}")
    return next(iter(caches.values()), None)


def cached(callee: Callable[..., Any], cache: Any, /, **given: Any) -> dict[str, Any]:
    """Arguments with a cache among them, under the name that the callee, or a model's `forward`, has for it."""
    if cache is None:
        return given
    names = inspect.signature(callee.forward if isinstance(callee, nn.Module) else callee).parameters
    return {**given, next((name for name in CACHE if name in names), _DEFAULT): cache}


def cache_of(output: Any) -> Any:
    """The cache in what a model returned; none where there is none."""
    return next((getattr(output, name) for name in CACHE if hasattr(output, name)), None)


def tokens_in(given: Mapping[str, Any]) -> tuple[str, Tensor]:
    """The tokens of a call's arguments, or their embeddings: under which name, and "row pos" or "row pos d_model".

    Raises:
        UsageError: Neither was given.
    """
    for name in TOKENS:
        if given.get(name) is not None:
            return name, given[name]
    raise UsageError(f"there are no tokens to run; give {' or '.join(TOKENS)}")


def real_tokens(mask: Any, past: int, new: int) -> Bool[Tensor, "row pos"] | None:
    """Which of all tokens so far are none of padding; none where all are.

    Args:
        mask: Of all tokens "row pos", or what `generate` makes of it for a static cache: "row 1 new key", of booleans
            or of what is added to scores, with room behind; in a table by kinds of layers if there are several.
        past: Tokens before.
        new: Tokens that are new.

    Raises:
        UsageError: A mask of another shape, or one that hides more than padding and what comes later.
    """
    if isinstance(mask, Mapping):
        mask = mask.get("full_attention")
    if mask is None:
        return None
    total, real = past + new, mask.bool()
    if mask.ndim == 4 and mask.shape[2] == new and mask.shape[3] >= total:
        seen = (real if mask.dtype == torch.bool else mask == 0)[:, 0]
        real = seen[:, -1, :total]
        at = torch.arange(seen.shape[2], device=seen.device)
        causal = F.pad(real, (0, len(at) - total))[:, None] & (at <= at[past:total, None])
        real = real if torch.equal(seen, causal) and bool(real.any(1).all()) else mask
    if real.ndim != 2 or real.shape[1] != total:
        raise UsageError(
            f"an attention mask 'row pos' of all {total} tokens so far is needed, got one of shape {tuple(mask.shape)}"
        )
    return None if bool(real.all()) else real


def wants_cache(model: PreTrainedModel, given: Mapping[str, Any]) -> bool:
    """Whether a model that is called like this makes a cache where none is given."""
    asked = given.get("use_cache")
    return bool(model.config.use_cache if asked is None else asked)


PREPARE_CACHE = "_prepare_cache_for_generation"
"""The method that `generate` calls to make its cache: it puts one into its argument ``model_kwargs``."""


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile was used on a model, on a module of it, or on the `forward` of one."""
    return any(
        "_orig_mod" in module._modules
        or vars(module).get("_compiled_call_impl") is not None
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        for module in model.modules()
    )


# Names of weights

WRAPPER = "_original_component."
"""What TransformerLens's bridge puts into the names of the weights of a model that it wraps."""

# Positions


def turning(attention: nn.Module) -> str | None:
    """Which channels of queries and keys a layer's rotary embedding turns together, as its own module's code does it.

    Returns:
        ``halves``, those half of them apart, or ``adjacent``, neighbours; none where the layer turns nothing.
    """
    if not getattr(attention, "use_rope", 1):  # SmolLM3
        return None
    if type(attention).__name__ == "Cohere2Attention" and getattr(attention, "sliding_window", None) is None:
        return None
    code = vars(sys.modules[type(attention).__module__])
    turn = code.get("rotate_half") or code.get("rotate_every_two")
    if turn is None:
        return "halves"
    return "adjacent" if turn(torch.arange(4.0).reshape(1, 1, 1, 4)).flatten()[0] == -1 else "halves"


def layer_of(attention: nn.Module) -> int | None:
    """The number that an attention module has in the cache, which GPT-Neo calls otherwise."""
    return vars(attention).get("layer_idx", vars(attention).get("layer_id"))


def attention_of(model: nn.Module, at: int) -> nn.Module | None:
    """The attention of a model's layer, by its number among those that are left."""
    found = (module for module in model.modules() if layer_of(module) == at)
    return next((module for module in found if "Attention" in type(module).__name__), None)


def sines(model: Any, attention: Any) -> Float[Tensor, "pos twice"] | None:
    """GPT-J's table of sines and, behind them, cosines: of the whole model from 5.10 on, of each layer before."""
    owner = getattr(getattr(model, "transformer", None), "rotary_emb", attention)
    return getattr(owner, "embed_positions", None)


# Attention

_REFUSED = ("s_aux", "sinks", "position_bias", "indices", "block_indices")
_BASES: dict[str, tuple[Any, Any]] = {"sdpa": (sdpa_attention_forward, sdpa_mask), "eager": (None, eager_mask)}


@dataclass(frozen=True)
class Scoring:
    """How a layer makes its scores.

    Args:
        scaling: What they are multiplied by before the softmax.
        softcap: Where they are bent to by tanh, as Gemma 2 does; none otherwise.
        window: How many keys back a query of this layer sees by the model's own design; none for all.
    """

    scaling: float
    softcap: float | None
    window: int | None


def scoring(query: Tensor, options: Mapping[str, Any], what: str) -> Scoring:
    """How scores are made, from the options that an attention function gets.

    Args:
        query: "row head new d".
        options: The keywords of the attention function.
        what: What asks, for the message.

    Raises:
        UsageError: Scores that are more than scaled products of queries and keys.
    """
    if found := [name for name in _REFUSED if options.get(name) is not None]:
        raise UsageError(
            f"attention with learned sinks, a position bias or an index of its own is not supported by {what}; this "
            f"model's has {found[0]}"
        )
    scaling = options.get("scaling")
    return Scoring(
        query.shape[-1] ** -0.5 if scaling is None else scaling, options.get("softcap"), options.get("sliding_window")
    )


def key_value_heads(config: Any) -> int:
    """How many key-value heads a layer has, as its configuration says; Falcon and GPTBigCode say it in other ways."""
    heads = int(config.num_attention_heads)
    if getattr(config, "new_decoder_architecture", False):
        return int(config.num_kv_heads)
    if getattr(config, "multi_query", False):
        return 1
    return int(getattr(config, "num_key_value_heads", None) or heads)


def takes_function(model: PreTrainedModel, what: str) -> None:
    """Refuses a model whose attention can't be given a registered function.

    Raises:
        UsageError: It computes attention by itself; the message names the part, and what doesn't work.
    """
    found = [module for module in model.modules() if "Attention" in type(module).__name__]
    # StableLM's attention looks its function up as others do, but its class does not say so
    if not getattr(type(model), "_supports_attention_backend", False) and not (found and all(map(_looks_up, found))):
        part = next((type(module).__name__ for module in found), "attention")
        raise UsageError(
            f"{part} of {type(model).__name__} computes attention by itself and can't be given a function, so {what} "
            "does not work with it"
        )


def _looks_up(attention: nn.Module) -> bool:
    """Whether attention calls whatever function the configuration names."""
    forward = inspect.unwrap(type(attention).forward)
    return "ALL_ATTENTION_FUNCTIONS" in getattr(getattr(forward, "__code__", None), "co_names", ())


def register(name: str, function: Callable[..., Any], like: str | None = None) -> None:
    """Makes an attention function known by a name; `like` tells whose masks it gets, by default none."""
    AttentionInterface.register(name, function)
    if like is not None:
        AttentionMaskInterface.register(name, _BASES[like][1])


def own_attention(module: nn.Module, base: str) -> Callable[..., Any]:
    """The function that transformers has for the attention of a module under ``sdpa`` or ``eager``."""
    return _BASES[base][0] or vars(sys.modules[type(module).__module__])["eager_attention_forward"]


def prefer_fused(config: Any, kind: type[PreTrainedModel]) -> None:
    """A model of that class made from the configuration computes attention by torch's fused function where it can."""
    config._attn_implementation = "sdpa" if getattr(kind, "_supports_sdpa", False) else "eager"


def attend_with(model: PreTrainedModel, name: str) -> str:
    """From now on, the model's attention layers call the registered function of that name; returns the name before."""
    config: Any = model.config.get_text_config()
    before = implementation(model)
    config._attn_implementation = name
    return before


def implementation(model: PreTrainedModel) -> str:
    """The name of the attention function that a model's layers call."""
    return str(model.config.get_text_config()._attn_implementation)


@contextmanager
def attending(model: PreTrainedModel, name: str) -> Iterator[None]:
    """The model's attention layers call the registered function of that name within it."""
    before = attend_with(model, name)
    try:
        yield
    finally:
        attend_with(model, before)
