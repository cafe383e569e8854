"""Parameters, bytes and FLOPs of a model as it is, and of one without weights that a plan has gone through."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from interp.efficiency.deployment import deployment
from interp.efficiency.ledger import Amount, Ledger
from interp.efficiency.plan import Undo
from interp.upstream import key_value_heads, layer_of

__all__ = ["Count", "count", "own_windows", "shape_ledger", "without_weights"]


@dataclass(frozen=True)
class Count:
    """What a model takes for one prompt; a multiplication and an addition count two.

    Args:
        parameters: Each counted once.
        weight_bytes: Of everything that the modules hold.
        cache_bytes: Of keys and values behind the prompt.
        prefill_flops: Of the prompt, logits for its last token alone.
        decode_flops: Of one further token.
    """

    parameters: int
    weight_bytes: int
    cache_bytes: int
    prefill_flops: float
    decode_flops: float


def count(model: PreTrainedModel, length: int = 1) -> Count:
    """Counts a deployed model as it is, removed parts left out.

    Args:
        model: The model, with or without weights.
        length: Tokens of the prompt.
    """
    config, record = model.config.get_text_config(), deployment(model)
    heads = config.num_attention_heads
    shared = heads // key_value_heads(config)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    cut = {layer_of(m): len(m.kept_heads) for m in model.modules() if "kept_heads" in vars(m)}  # type: ignore[arg-type]
    entries, pairs, reaches, empty = 0, 0.0, 0.0, 0
    for place, (groups, window) in enumerate(zip(record.groups, own_windows(model), strict=True)):
        reach, left = min(window or length, length), cut.get(place, len(groups) * shared) if groups else 0
        entries += reach * len(groups)
        empty += reach * (not groups)  # where attention was removed, the cache still counts tokens
        pairs += left * (reach * (reach + 1) / 2 + (length - reach) * reach)
        reaches += left * reach
    head: Any = model.get_output_embeddings()
    body = sum(_products(module) for module in model.modules() if module is not head)
    last = _products(head)
    held = [*model.parameters(), *model.buffers()]
    return Count(
        parameters=sum(p.numel() for p in model.parameters()),
        weight_bytes=sum(tensor.numel() * tensor.itemsize for tensor in held),
        cache_bytes=2 * (entries * width + empty) * model.dtype.itemsize,
        prefill_flops=2 * (body * length + last) + 4 * width * pairs,
        decode_flops=2 * (body + last) + 4 * width * reaches,
    )


def shape_ledger(
    model: PreTrainedModel, change: Callable[[PreTrainedModel, Undo], None], length: int, batch: int = 1
) -> Ledger:
    """What a change of a model's modules saves, counted on a copy without weights.

    Args:
        model: The model, which stays as it is.
        change: The change.
        length: Tokens of the prompt.
        batch: Prompts.
    """
    bare, undo = without_weights(model), Undo()
    change(bare, undo)
    undo.pop_all()
    before, after = count(model, length), count(bare, length)
    return Ledger(
        weight_bytes=Amount(before.weight_bytes, after.weight_bytes),
        cache_bytes=Amount(before.cache_bytes * batch, after.cache_bytes * batch),
        prefill_flops=Amount(before.prefill_flops * batch, after.prefill_flops * batch),
        decode_flops=Amount(before.decode_flops * batch, after.decode_flops * batch),
        length=length,
        batch=batch,
    )


def without_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model that has shapes and no weights."""
    memo: dict[int, Any] = {id(b): b for b in model.buffers()}
    memo |= {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    if (tokenizer := getattr(model, "tokenizer", None)) is not None:
        memo[id(tokenizer)] = tokenizer
    return copy.deepcopy(model, memo)


def own_windows(model: PreTrainedModel) -> list[int | None]:
    """How many keys back each block that is left sees by design; none for all."""
    config, blocks = model.config.get_text_config(), deployment(model).layers
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * len(blocks)
    if len(kinds) != len(blocks):
        kinds = [kinds[layer] for layer in blocks]
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _products(module: nn.Module) -> int:
    """Multiplications of a token's pass through a module itself, without those in it.

    Coded layers say what they take; of others it is the weights of their matrices (of experts, all of them).
    """
    if isinstance(module, nn.Embedding):
        return 0
    if (said := getattr(module, "products", None)) is not None:
        return int(said)
    return sum(p.numel() for p in module.parameters(recurse=False) if p.ndim > 1)
