"""Where a model was loaded from, so that another process can load it by itself."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

__all__ = ["Origin", "origin", "remember"]


@dataclass(frozen=True)
class Origin:
    """How a model was loaded.

    Args:
        name: A known name, an id of the hub, or the whole path of a directory or file.
        device: The kind of device, such as ``cpu``.
        dtype: The precision's name, such as ``float32``.
        accept_license: Whether the licence was accepted in the call.
    """

    name: str
    device: str
    dtype: str
    accept_license: bool = False


_known: weakref.WeakKeyDictionary[Any, Origin] = weakref.WeakKeyDictionary()


def remember(model: Any, where: Origin) -> None:
    """Notes where a bridge, or a model deployed from one, came from, as long as it lives."""
    _known[model] = where


def origin(model: Any) -> Origin | None:
    """Where `interp.load` had a model from; None for one that it did not load."""
    return _known.get(model)
