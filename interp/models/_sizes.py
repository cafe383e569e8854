"""The sizes that a configuration declares, compared with the weights that there are before anything of them is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["at_most", "check_layers", "check_numbers", "empty"]

_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "num_decoder_layers", "block_count")
_DENSEST = 8
"""Numbers in a byte of a file of weights: none stores less than one bit for each."""
_BESIDE = 1 << 26
"""Numbers that a model may have beside its weights, such as masks."""
_PARTS, _PARTS_BESIDE = 64, 4096
"""Modules that a model may have for each tensor of weights, and beside those."""


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


def check_numbers(tensors: Iterable[Tensor], n_bytes: int, path: Path, densest: int = _DENSEST) -> None:
    """Refuse a model with more numbers than a file of weights can hold.

    Args:
        tensors: of the model, without memory: all, or those that are made whether they are in the file or not.
        n_bytes: of the weights' files.
        path: the file whose sizes the model has, for the message.
        densest: numbers in a byte, more where a file has what is left of a model that was pruned.

    Raises:
        InterpError: it has.
    """
    numbers = sum(tensor.numel() for tensor in tensors)
    if numbers > densest * n_bytes + _BESIDE:
        raise InterpError(
            f"{path} describes a model of {numbers:,} numbers, and the weights have {n_bytes:,} bytes; they do not "
            "belong together, obtain them again"
        )


@contextmanager
def at_most(tensors: int, path: Path) -> Iterator[None]:
    """Refuse to make a model of many more modules than there are tensors, whatever a configuration calls their number.

    Args:
        tensors: how many tensors of weights there are.
        path: the configuration, for the message.

    Raises:
        InterpError: as soon as there are too many.
    """
    from torch.nn.modules.module import register_module_module_registration_hook

    most, made, thread = _PARTS * tensors + _PARTS_BESIDE, 0, get_ident()

    def count(*_: Any) -> None:
        nonlocal made
        made += get_ident() == thread
        if made > most:
            raise InterpError(
                f"{path} describes a model of more than {most:,} modules, and there are {tensors:,} tensors of "
                "weights; they do not belong together, obtain them again"
            )

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def empty(config: Any, tensors: int, path: Path) -> Any:
    """The causal language model of a configuration without memory for its weights, for their names and sizes.

    Args:
        config: transformers' configuration.
        tensors: how many tensors of weights there are.
        path: where the configuration stands, for the message.

    Raises:
        InterpError: more modules than those tensors can be of.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), at_most(tensors, path):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model
