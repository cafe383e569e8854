"""Dictionaries of several places on disk, for which SAELens has no layout: the same two files, with our own fields.

``cfg.json`` has the architecture and the arguments that make the dictionary again, ``sae_weights.safetensors`` the
weights as they are, scales not folded in.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from interp.checking import arguments, checked, damaged
from interp.errors import UsageError
from interp.features.architectures.cross_layer import LAYERS, CrossLayerTranscoder
from interp.features.architectures.dictionary import Dictionary
from interp.features.architectures.registry import OF_SEVERAL_PLACES, from_settings
from interp.features.formats.fitting import fitted
from interp.features.formats.pair import write_pair

__all__ = ["TEXT", "about_text", "made", "save_several"]

FORMAT = "interp.dictionary/1"
TEXT = "interp.training_text"
"""The entry of a weights file's header that has the sketch of the training text; other programs pass over it."""


def save_several(dictionary: Dictionary, directory: str | os.PathLike[str], **about: Any) -> None:
    """Writes the two files, see the module.

    Args:
        dictionary: What to save.
        directory: Where; files of these names are replaced.
        **about: Entries of ``metadata``.

    Raises:
        InterpError: The files can't be written.
    """
    cfg = {
        "format": FORMAT,
        "architecture": dictionary.architecture,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "settings": dictionary.settings(),
        "metadata": about,
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in dictionary.state_dict().items()}
    write_pair(directory, cfg, tensors, about_text(dictionary))


def about_text(dictionary: Dictionary) -> dict[str, str]:
    """The header of a weights file."""
    return {} if dictionary.text is None else {TEXT: dictionary.text.dumped()}


def made(cfg: dict[str, Any], tensors: dict[str, Tensor], where: Path, names: tuple[str, str]) -> Dictionary:
    """The dictionary of the two files' contents, in evaluation mode.

    Raises:
        UsageError: Another version.
        InterpError: The settings or the tensors are not those of the architecture.
    """
    path, kind = where / names[0], OF_SEVERAL_PLACES[cfg["architecture"]]
    if cfg.get("format") != FORMAT:
        raise UsageError(f"{where} is of the format {cfg.get('format')!r}, this version reads {FORMAT!r}")
    settings = checked(cfg, "settings", dict, path)
    places = {side: checked(settings, side, str | list[str] | None, path) for side in ("reads", "writes")}
    own = arguments({name: value for name, value in settings.items() if name not in places}, kind, path)
    if kind is CrossLayerTranscoder:
        layers = checked(own, "d_in", list[int], path)
        if len(layers) > len(tensors):
            raise damaged(path, f"it has {len(layers):,} layers, and there are {len(tensors):,} tensors")
        layer = LAYERS[checked(own, "kind", str, path, among=LAYERS)]
        arguments({**checked(own, "of_layer", dict, path), "d_in": 1, "d_sae": 1}, layer, path)
    return fitted(lambda: from_settings(cfg["architecture"], settings), tensors, where / names[1])
