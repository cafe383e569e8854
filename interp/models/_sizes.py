"""The sizes that a configuration declares, compared with the weights that there are before anything of them is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_layers", "check_numbers", "empty"]

_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "num_decoder_layers", "block_count")
_DENSEST = 8
"""Numbers in a byte of a file of weights: none stores less than one bit for each."""
_BESIDE = 1 << 26
"""Numbers that a model may have beside its weights, such as masks."""


def check_layers(config: Mapping[str, Any], tensors: int, path: Path) -> None:
    """Refuse a configuration with more layers than there are tensors.

    Args:
        config: what the file says, at any depth.
        tensors: how many tensors of weights there are; a layer has at least one.
        path: the file that the message names.

    Raises:
        InterpError: it has.
    """
    for name, value in config.items():
        if isinstance(value, Mapping):
            check_layers(value, tensors, path)
        elif name.rpartition(".")[2] in _LAYERS and isinstance(value, int) and value > tensors:
            raise InterpError(
                f"{path} says {name} = {value:,}, and there are {tensors:,} tensors of weights; they do not belong "
                "together, obtain them again"
            )


def check_numbers(tensors: Iterable[Tensor], n_bytes: int, path: Path) -> None:
    """Refuse a model with more numbers than a file of weights can hold.

    Args:
        tensors: of the model, without memory: all, or those that are made whether they are in the file or not.
        n_bytes: of the weights' files.
        path: the file whose sizes the model has, for the message.

    Raises:
        InterpError: it has.
    """
    numbers = sum(tensor.numel() for tensor in tensors)
    if numbers > _DENSEST * n_bytes + _BESIDE:
        raise InterpError(
            f"{path} describes a model of {numbers:,} numbers, and the weights have {n_bytes:,} bytes; they do not "
            "belong together, obtain them again"
        )


def empty(config: Any) -> Any:
    """The causal language model of a configuration without memory for its weights, for their names and sizes."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model
