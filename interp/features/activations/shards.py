"""Files of a store of activations: shards in safetensors, each complete or absent, and the manifest that lists them.

A shard is written first and entered in the manifest afterwards. A harvest that is killed in between finds a file that
the manifest does not know, and writes the same bytes over it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from interp.checking import arguments, checked, damaged, inside, read_json, tensor_shapes
from interp.errors import InterpError
from interp.features.place import Place
from interp.results.files import replacing

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Shard",
    "damage",
    "exclusive",
    "load",
    "read_manifest",
    "write",
    "write_manifest",
]

FORMAT = "interp.activations/1"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """What the manifest says about one file.

    Args:
        file: its name in the store's folder.
        sha256: of the whole file.
        bytes: its size.
        tokens: how many activations it holds of each place.
        norms: the sum of the activations' norms, by place.
    """

    file: str
    sha256: str
    bytes: int
    tokens: int
    norms: Mapping[str, float]


def write(folder: Path, number: int, tensors: dict[str, Tensor], norms: Mapping[str, float]) -> Shard:
    """Writes one shard, complete or not at all, and says what the manifest is to say about it.

    Raises:
        InterpError: the file can't be written; on a full disk the message has the bytes that it needs.
    """
    path = folder / f"shard-{number:05d}.safetensors"
    data = safetensors.torch.save(tensors, {"format": FORMAT})
    _put(path, data)
    return Shard(path.name, hashlib.sha256(data).hexdigest(), len(data), len(tensors["row"]), dict(norms))


def write_manifest(folder: Path, manifest: Mapping[str, Any], shards: Iterable[Shard]) -> None:
    """Puts a manifest with these shards in place of the one that is there."""
    whole = {**manifest, "shards": [asdict(shard) for shard in shards]}
    _put(folder / MANIFEST, (json.dumps(whole, indent=1) + "\n").encode())


def read_manifest(folder: Path) -> tuple[dict[str, Any], list[Shard]]:
    """The manifest of a folder, and its shards.

    Raises:
        InterpError: there is none, or it is damaged or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise InterpError(f"{folder} holds no store of activations: there is no {MANIFEST} in it")
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise InterpError(f"{path} is of the format {manifest.get('format')!r}, this version reads {FORMAT!r}")
    for name in ("model", "fingerprint"):
        checked(manifest, name, str, path)
    for name in ("n_tokens", "n_shards", "batch_tokens"):
        checked(manifest, name, int, path, least=1)
    corpus = checked(manifest, "corpus", dict, path)
    for name in ("source", "sha256"):
        checked(corpus, name, str, path)
    places = checked(manifest, "places", dict[str, dict], path)
    for name, place in places.items():
        Place.parse(name)
        checked(place, "width", int, path, least=1)
    checked(manifest, "settings", dict, path)
    shards = []
    for entry in checked(manifest, "shards", list[dict], path):
        shard = Shard(**arguments(entry, Shard, path))
        checked(entry, "tokens", int, path, least=1)
        inside(folder, shard.file, path)
        if set(shard.norms) != set(places):
            raise damaged(path, f"{shard.file} has norms of other places than {', '.join(places)}")
        shards.append(shard)
    counted = {"n_shards": len(shards), "n_tokens": sum(shard.tokens for shard in shards)}
    for name, there in counted.items():
        if manifest[name] < there or (len(shards) == manifest["n_shards"] and manifest[name] != there):
            raise damaged(path, f"{name} is {manifest[name]:,}, and its shards have {there:,}")
    del manifest["shards"]
    return manifest, shards


def damage(folder: Path, shard: Shard, places: Mapping[str, Any], whole: bool) -> str | None:
    """What is wrong with a shard's file, or None; only with `whole` is it read through.

    Args:
        folder: the store's.
        shard: what its manifest says of the file.
        places: what its manifest says of the places.
        whole: compare the digest, not only the size and the header.
    """
    path = folder / shard.file
    try:
        size = path.stat().st_size
        if size != shard.bytes:
            return f"{path} is cut short: it has {size:,} bytes, the manifest says {shard.bytes:,}"
        if whole and _digest(path) != shard.sha256:
            return f"{path} is corrupted: its SHA-256 is not the manifest's"
        found = tensor_shapes(path)
    except OSError as error:
        return f"{path} can't be read: {error.strerror or error}"
    except InterpError as error:
        return str(error)
    needed = {name: (shard.tokens, place["width"]) for name, place in places.items()}
    for name, shape in {**needed, "row": (shard.tokens,), "position": (shard.tokens,)}.items():
        if found.get(name) != shape:
            return f"{path} is damaged: {name} has the shape {found.get(name)}, the manifest says {shape}"
    return None


def load(folder: Path, shard: Shard, names: Iterable[str]) -> dict[str, Tensor]:
    """Some tensors of a shard.

    Raises:
        InterpError: the file is damaged.
    """
    path = folder / shard.file
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except Exception as error:  # the library's own error, or whichever one torch has for a shape
        raise damaged(path, str(error)) from error


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keeps a second harvest out of a folder; the lock goes with its process, also when that is killed.

    Raises:
        InterpError: another process is writing there, or the folder can't be made.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InterpError(f"another process is harvesting into {folder}; wait for it or name another folder") from error
    except OSError as error:
        raise InterpError(f"could not write into {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def _put(path: Path, data: bytes) -> None:
    with replacing(path) as aside:
        try:
            aside.write_bytes(data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            free = shutil.disk_usage(path.parent).free
            raise InterpError(
                f"the disk is full: {path} needs {len(data):,} bytes, {free:,} are free; "
                "what was harvested before is kept, so make room and make the same call again"
            ) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
