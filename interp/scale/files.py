"""A model's folder or file on a node that does not have it: sent through Ray's object store, once a node."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.models.cache import is_complete, model_directory, obtain

__all__ = ["Files", "Missing", "pieces", "stored"]

_PIECE = 64 << 20
"""Bytes that are sent at once."""
_WEIGHTS = (".safetensors", ".gguf")
"""Files whose contents the model's fingerprint tells."""


class Missing(Exception):
    """A node has not the files of a model."""


@dataclass(frozen=True)
class Files:
    """The files that a model was loaded from.

    Args:
        path: The folder or file.
        sizes: Bytes of each file of the folder.
        digest: Of names, sizes, and of all but the weights the contents.
    """

    path: str
    sizes: Mapping[str, int]
    digest: str

    @staticmethod
    def of(path: str) -> Files:
        """The files as they are here."""
        whole, sizes = hashlib.sha256(), {}
        for file in _files(Path(path)):
            sizes[file.name] = file.stat().st_size
            whole.update(f"{file.name} {sizes[file.name]}".encode())
            if file.suffix not in _WEIGHTS:
                whole.update(file.read_bytes())
        return Files(path, sizes, whole.hexdigest()[:16])

    def here(self) -> bool:
        """Whether this machine has the same files in the same place."""
        return Path(self.path).exists() and Files.of(self.path) == self

    def found(self, sent: Mapping[str, Sequence[Any]] | None, get: Callable[[Any], bytes]) -> str:
        """Where the files are on this machine, to which they are written if they were sent and are not there.

        Args:
            sent: References to the pieces of each file, or None if none were sent.
            get: Gives the piece of a reference.

        Raises:
            Missing: They are not there and were not sent.
        """
        if self.here():
            return self.path
        if sent is None and not is_complete(model_directory(self._key)):
            raise Missing(self.path)

        def build(into: Path) -> dict[str, Any]:
            for name, references in (sent or {}).items():
                with (into / name).open("wb") as file:
                    for reference in references:
                        file.write(get(reference))
            return {"file": Path(self.path).name, "sent": self.digest}

        folder = obtain(self._key, build)
        return str(folder / Path(self.path).name) if Path(self.path).suffix == ".gguf" else str(folder)

    @property
    def _key(self) -> str:
        return f"sent-{self.digest}"


def pieces(path: Path) -> Iterator[bytes]:
    """A file's contents, piece by piece."""
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def stored(files: Files, put: Callable[[bytes], Any]) -> dict[str, list[Any]]:
    """Puts every file's pieces where workers can get them, and gives the references."""
    return {file.name: [put(piece) for piece in pieces(file)] for file in _files(Path(files.path))}


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
