"""Gradients wherever they are asked for, inside `torch.inference_mode()` too, which torch itself does not allow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from interp.errors import InterpError

__all__ = ["gradients", "plain"]


@contextmanager
def gradients() -> Iterator[None]:
    """Gradients are recorded inside, whatever mode the caller is in; also a decorator of what takes them.

    Raises:
        InterpError: A tensor that takes part was made in inference mode outside.

    Example:
        >>> with torch.inference_mode(), gradients():
        ...     torch.autograd.grad((x := torch.ones(1, requires_grad=True)) ** 2, x)
        (tensor([2.]),)
    """
    with torch.inference_mode(False), torch.enable_grad():
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, InterpError) or "nference tensor" not in str(error):
                raise
            raise InterpError(
                "no gradient goes through weights or activations made inside torch.inference_mode(): make the model or "
                "dictionary outside of it, or read it with interp.load or Dictionary.load, which leave it"
            ) from error


def plain(x: Tensor) -> Tensor:
    """The tensor; a copy that gradients go through, if it was made in inference mode."""
    with torch.inference_mode(False):
        return x.clone() if x.is_inference() else x
