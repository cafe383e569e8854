"""A half-precision model's own computation in float32, each block's weights cast for the moment.

What an architecture computes can be told from how its numbers are rounded only where rounding is small: in bfloat16,
queries and keys with large biases give scores of a thousand, of which a tenth is rounding. Memory: the weights of one
block in float32 at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

__all__ = ["HALF", "in_float32", "widened"]

HALF = (torch.bfloat16, torch.float16)


@contextmanager
def widened(module: nn.Module) -> Iterator[None]:
    """Within it, the module's half-precision weights are float32; afterwards they are the very tensors of before."""
    tensors = chain(module.parameters(), module.buffers())
    narrow = [(weight, weight.data) for weight in tensors if weight.dtype in HALF]
    try:
        for weight, data in narrow:
            weight.data = data.float()
        yield
    finally:
        for weight, data in narrow:
            weight.data = data


@contextmanager
def in_float32(model: TransformerBridge | nn.Module) -> Iterator[None]:
    """Within it, the forward pass of a bridge or of a Hugging Face model computes in float32; its weights stay as they
    are, and few of them at a time are float32: a block's, or of a Hugging Face model one module's."""
    given: Any = model
    if isinstance(model, TransformerBridge):
        embeddings = [getattr(given, name) for name in ("embed", "pos_embed") if hasattr(given, name)]
        others = [*given.blocks, *(getattr(given, name) for name in ("ln_final", "unembed") if hasattr(given, name))]
    else:
        embeddings = [module for module in given.modules() if isinstance(module, nn.Embedding)]
        holders = [module for module in given.modules() if next(module.parameters(recurse=False), None) is not None]
        others = [module for module in holders if not isinstance(module, nn.Embedding)]
    with ExitStack() as stack:
        for embedding in embeddings:
            stack.callback(embedding.register_forward_hook(_widen_output).remove)
        for module in others:
            _widen_in_calls(module, stack)
        yield


def _widen_output(module: nn.Module, args: Any, out: Tensor) -> Tensor:
    return out.float() if out.dtype in HALF else out


def _widen_in_calls(module: nn.Module, stack: ExitStack) -> None:
    """Widens a module before each of its calls and narrows it after, also when the call raises."""
    calls: list[ExitStack] = []

    def before(*_: Any) -> None:
        calls.append(ExitStack())
        calls[-1].enter_context(widened(module))

    def after(*_: Any) -> None:
        if calls:
            calls.pop().close()

    def all_after() -> None:
        while calls:
            after()

    stack.callback(all_after)
    stack.callback(module.register_forward_pre_hook(before).remove)
    stack.callback(module.register_forward_hook(after, always_call=True).remove)
