"""A dictionary is made only if the tensors of its file have the shapes that its settings declare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from interp.checking import damaged
from interp.errors import InterpError
from interp.features.architectures.dictionary import Dictionary

__all__ = ["fitted"]


def fitted(
    make: Callable[[], Dictionary], tensors: Mapping[str, Tensor], path: Path, *, strict: bool = True
) -> Dictionary:
    """The dictionary that `make` makes, with these weights in float32, in evaluation mode.

    It is made without memory first, to compare shapes, so that what settings declare is never believed.

    Args:
        make: Makes it with any weights.
        tensors: By their names in its `state_dict`.
        path: The file or folder that messages name.
        strict: Refuse further tensors instead of passing over them.

    Raises:
        UsageError: Settings that make no sense.
        InterpError: A tensor is missing, of another shape or no floating-point numbers, or has values that are none.
    """
    try:
        with torch.device("meta"):
            wanted = {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}
    except InterpError as error:
        raise type(error)(f"{path}: {error}") from None
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # sizes beyond what a tensor can have
        raise damaged(path, f"no dictionary has its settings: {error}") from None
    state = {}
    for name, shape in wanted.items():
        if name not in tensors:
            raise InterpError(f"{path} lacks the tensor {name}")
        found = tensors[name]
        if tuple(found.shape) != shape:
            raise InterpError(f"{name} in {path} has shape {tuple(found.shape)}, expected {shape}")
        if not found.is_floating_point():
            raise damaged(path, f"{name} is of {found.dtype}, floating-point numbers are needed")
        state[name] = found.float()
        if bool(state[name].isnan().any()):
            raise damaged(path, f"{name} has values that are no numbers (NaN)")
    if strict and (others := sorted(set(tensors) - set(wanted))):
        raise InterpError(f"{path} has the tensor {others[0]}, which a dictionary of its kind does not have")
    dictionary = make()
    dictionary.load_state_dict(state)
    return dictionary.eval()
