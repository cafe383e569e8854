"""The architectures of dictionaries, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interp._lazy import Registry
from interp.errors import unknown_name
from interp.features.place import Place, Places

if TYPE_CHECKING:
    from interp.features.architectures.dictionary import Dictionary

__all__ = ["ARCHITECTURES", "OF_SEVERAL_PLACES", "from_settings"]

ARCHITECTURES: Registry[type[Dictionary]] = Registry(
    "interp.features.architectures",
    standard="standard:Standard",
    topk="topk:TopK",
    batch_topk="batch_topk:BatchTopK",
    matryoshka="matryoshka:Matryoshka",
    jumprelu="jumprelu:JumpReLU",
    gated="gated:Gated",
    gradient_topk="gradient_topk:GradientTopK",
)
"""Those that read one place and write one."""

OF_SEVERAL_PLACES: Registry[type[Dictionary]] = Registry(
    "interp.features.architectures",
    crosscoder="crosscoder:Crosscoder",
    topk_crosscoder="crosscoder:TopKCrosscoder",
    batch_topk_crosscoder="crosscoder:BatchTopKCrosscoder",
    cross_layer_transcoder="cross_layer:CrossLayerTranscoder",
)
"""Those that read and write several places at once."""


def from_settings(architecture: str, settings: dict[str, Any]) -> Dictionary:
    """A fresh dictionary with the arguments that `Dictionary.settings` gave.

    Raises:
        UsageError: An unknown architecture.
    """
    made = ARCHITECTURES.get(architecture) or OF_SEVERAL_PLACES.get(architecture)
    if made is None:
        raise unknown_name("architecture", architecture, [*ARCHITECTURES, *OF_SEVERAL_PLACES])
    return made(**{**settings, **{side: _places(settings[side]) for side in ("reads", "writes")}})


def _places(names: str | Sequence[str] | None) -> Places | None:
    if names is None or isinstance(names, str):
        return Place.parse(names) if names else None
    return tuple(Place.parse(name) for name in names)
