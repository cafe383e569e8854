"""Dictionaries of several places on disk, for which SAELens has no layout: the same two files, with our own fields.

``cfg.json`` has the architecture and the arguments that make the dictionary again, ``sae_weights.safetensors`` the
weights as they are, scales not folded in.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from interp.errors import InterpError, UsageError
from interp.features.architectures.dictionary import Dictionary
from interp.features.architectures.registry import from_settings
from interp.results.files import replacing, write_text

__all__ = ["TEXT", "about_text", "made", "save_several"]

FORMAT = "interp.dictionary/1"
TEXT = "interp.training_text"
"""The entry of a weights file's header that has the sketch of the training text; other programs pass over it."""


def save_several(
    dictionary: Dictionary, directory: str | os.PathLike[str], cfg: str, weights: str, **about: Any
) -> None:
    """Writes the two files, see the module.

    Args:
        dictionary: What to save.
        directory: Where; files of these names are replaced.
        cfg: Name of the file with the settings.
        weights: Name of the file with the weights.
        **about: Entries of ``metadata``.

    Raises:
        InterpError: The files can't be written.
    """
    target = Path(directory)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in dictionary.state_dict().items()}
    with replacing(target / weights) as aside:
        try:
            save_file(tensors, aside, about_text(dictionary))
        except SafetensorError as error:
            raise InterpError(f"could not write {target / weights}: {error}") from error
    fields = {
        "format": FORMAT,
        "architecture": dictionary.architecture,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "settings": dictionary.settings(),
        "metadata": about,
    }
    write_text(target / cfg, json.dumps(fields, indent=2))


def about_text(dictionary: Dictionary) -> dict[str, str] | None:
    """The header of a weights file."""
    return None if dictionary.text is None else {TEXT: dictionary.text.dumped()}


def made(cfg: dict[str, Any], tensors: dict[str, Tensor], where: Path) -> Dictionary:
    """The dictionary of the two files' contents, in evaluation mode.

    Raises:
        UsageError: Another version.
        InterpError: The settings or the tensors are not those of the architecture.
    """
    if cfg.get("format") != FORMAT:
        raise UsageError(f"{where} is of the format {cfg.get('format')!r}, this version reads {FORMAT!r}")
    try:
        dictionary = from_settings(cfg["architecture"], cfg["settings"])
        dictionary.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (KeyError, TypeError, RuntimeError) as error:
        raise InterpError(f"{where} is damaged, its settings and weights do not fit: {error}") from error
    return dictionary.eval()
