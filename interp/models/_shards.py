"""Weights written to a Hugging Face directory as they come, a shard at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SHARD_BYTES", "Shards"]

SHARD_BYTES = 1 << 30
"""A shard is written once it holds this much; one tensor is never cut."""


class Shards:
    """Takes tensors one by one and never holds more than a shard of them.

    `close` gives the files their names: ``model.safetensors`` for one, numbered files and their index for several.

    Args:
        into: an existing directory.
    """

    def __init__(self, into: Path) -> None:
        self.into = into
        self.names: list[list[str]] = []
        self.total = 0
        self._held: dict[str, Tensor] = {}
        self._bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor, and write what is held when that is a shard."""
        size = tensor.numel() * tensor.element_size()
        if self._held and self._bytes + size > SHARD_BYTES:
            self._write()
        self._held[name] = tensor
        self._bytes += size

    def close(self) -> None:
        """Write what is left and the index."""
        if self._held:
            self._write()
        n = len(self.names)
        weight_map: dict[str, str] = {}
        for i, names in enumerate(self.names):
            file = "model.safetensors" if n == 1 else f"model-{i + 1:05}-of-{n:05}.safetensors"
            self._part(i).rename(self.into / file)
            weight_map |= dict.fromkeys(names, file)
        if n > 1:
            index = {"metadata": {"total_size": self.total}, "weight_map": weight_map}
            (self.into / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")

    def _write(self) -> None:
        from safetensors.torch import save_file

        save_file(self._held, self._part(len(self.names)), metadata={"format": "pt"})
        self.names.append(list(self._held))
        self.total += self._bytes
        self._held, self._bytes = {}, 0

    def _part(self, i: int) -> Path:
        return self.into / f"part-{i:05}.safetensors"
