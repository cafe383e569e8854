"""The two files of a dictionary: written together, and known to belong together when they are read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from interp.errors import InterpError
from interp.results.files import write_text
from interp.results.folders import together

__all__ = ["CFG", "WEIGHTS", "check_pair", "write_pair"]

CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_MARK = "interp.saved"
"""In the metadata of both files. Programs that write weights anew leave it out of theirs; then nothing is compared."""


def write_pair(
    directory: str | os.PathLike[str], cfg: Mapping[str, Any], tensors: dict[str, Tensor], texts: Mapping[str, str]
) -> None:
    """Writes both files, or neither.

    Args:
        directory: Where; files of these names are replaced.
        cfg: The settings, with ``metadata``.
        tensors: The weights.
        texts: For the header of the weights.

    Raises:
        InterpError: The files can't be written.
    """
    mark = hashlib.sha256(json.dumps(cfg, sort_keys=True).encode()).hexdigest()[:16]
    with together(directory) as aside:
        save_file(tensors, aside / WEIGHTS, {**texts, _MARK: mark})
        write_text(aside / CFG, json.dumps({**cfg, "metadata": {**cfg["metadata"], _MARK: mark}}, indent=2))


def check_pair(cfg: Mapping[str, Any], texts: Mapping[str, str], where: Path) -> None:
    """Refuses settings and weights that were written for two dictionaries.

    Args:
        cfg: The settings.
        texts: In the header of the weights.
        where: The folder of both files.

    Raises:
        InterpError: They say so.
    """
    about = cfg.get("metadata")
    of_cfg, of_weights = about.get(_MARK) if isinstance(about, Mapping) else None, texts.get(_MARK)
    if None not in (of_cfg, of_weights) and of_cfg != of_weights:
        raise InterpError(
            f"{where / CFG} and {where / WEIGHTS} are of two dictionaries: one of them was replaced without the other; "
            "save the dictionary again, or copy both files anew"
        )
