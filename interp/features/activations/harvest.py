"""Harvest: run a model over text and keep its activations at some places."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.identity import identity
from interp.engine.parts import Parts
from interp.engine.progress import track
from interp.engine.shared import marked, sees
from interp.engine.spread import in_order, spread
from interp.engine.verify import verified
from interp.errors import InterpError, UsageError, unknown_name
from interp.features.activations import shards as files
from interp.features.activations.base import Activations, totals
from interp.features.activations.passes import Pass, error_of, tokens_at_once
from interp.features.activations.rows import Rows, Source, described, rows_of
from interp.features.activations.store import ActivationStore, ActivationStream
from interp.features.place import Place

__all__ = ["harvest"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_ON_DISK, _IN_MEMORY = 1 << 15, 1 << 13


def harvest(
    model: TransformerBridge,
    places: Place | str | Sequence[Place | str],
    source: Source,
    tokens: int | None = None,
    length: int = 256,
    directory: str | os.PathLike[str] | None = None,
    *,
    packed: bool = True,
    exclude_special: bool = False,
    dtype: str = "float32",
    autocast: str | None = None,
    seed: int | None = 0,
    split: str | None = None,
    shard_tokens: int | None = None,
    max_memory: int | None = None,
) -> Activations:
    """Activations of a model at some places, from one pass over the text that ends behind the last place.

    A harvest to disk that is killed goes on when the same call is made again, and then has the same bytes as one that
    was not; a damaged shard is made anew.

    Args:
        model: any bridge.
        places: sites of layers, such as ``Place("resid_post", 15)``, ``"resid_post.15"``, ``"mlp_in.15"`` or
            ``"blocks.15.hook_resid_post"``. Heads are concatenated.
        source: a corpus (``sotu``, ``prose``, ``code``, ``dialogue``), a ``.txt`` or ``.jsonl`` file, texts, a data set
            of dicts with a ``text``, or token ids "text pos", which are taken as they are.
        tokens: how many activations of each place; exactly so many are given. None takes all that the source has, and
            needs one that ends. Which tokens they are is settled first, at 8 bytes a token.
        length: tokens of a row, with the prefix (BOS) that the model wants before a text.
        directory: where to keep them; None makes a stream that writes nothing and computes when it is read.
        packed: fill the rows: documents one after another, the model's prefix between them (the end-of-text token if it
            has none), cut into rows that each begin with the prefix. Attention crosses documents within a row.
            Otherwise a row is the beginning of one document, and the rest of it is left out.
        exclude_special: keep no activations of special tokens (BOS, end of text, ...).
        dtype: ``float32`` or ``bfloat16``, of what is kept.
        autocast: ``bfloat16`` multiplies matrices in it. How far that, and a `dtype` of bfloat16, takes the first
            batch's activations from float32 stands in the manifest under ``error``.
        seed: of the order of documents; None keeps the source's. One that can only be gone through keeps its own.
        split: ``find`` takes one half of the source's documents, so that `interp.features.judge` can judge on the same
            source: it does on the other half (``score``). None takes all. See `interp.tasks.documents`.
        shard_tokens: activations of a shard, about; 32,768 on disk, 8,192 in a stream. A kill costs one at most.
        max_memory: bytes for a batch.

    Returns:
        An `ActivationStore`, or without a directory an `ActivationStream`, which is read the same way.

    Raises:
        UsageError: an unknown place, dtype or source, too little text, or a directory with another harvest in it.
        InterpError: no room on the disk, a directory in use, or activations that are not finite.

    Example:
        >>> store = interp.features.harvest(model, "resid_post.15", "sotu", tokens=2_000_000, directory="acts")
        >>> for x in store.batches(4096, epochs=2): ...
    """
    for name, value in (("dtype", dtype), ("autocast", autocast)):
        if value not in _DTYPES and not (name == "autocast" and value is None):
            raise unknown_name(name, str(value), _DTYPES)
    if shard_tokens is not None and shard_tokens < 1:
        raise UsageError(f"a shard needs 1 token at least, got shard_tokens={shard_tokens}")
    parts = verified(model)
    wanted = _places(places)
    widths = {str(place): {"hook": place.hook, "width": place.width(parts.graph)} for place in wanted}
    rows = rows_of(
        source, model, tokens, length, packed=packed, exclude_special=exclude_special, seed=seed, split=split
    )
    size = shard_tokens or (_IN_MEMORY if directory is None else _ON_DISK)
    shards = rows.shards(size)
    settings = {
        "length": length,
        "packed": packed,
        "exclude_special": exclude_special,
        "dtype": dtype,
        "autocast": autocast,
        "seed": seed,
        "shard_tokens": size,
    }
    manifest = {
        "format": files.FORMAT,
        "model": str(model.cfg.model_name),
        "fingerprint": identity(model),
        "computed_in": str(parts.dtype).removeprefix("torch."),
        "places": widths,
        "corpus": {"source": described(source), "split": split, "sha256": rows.digest},
        "settings": settings,
        "n_tokens": int(rows.kept.sum()),
        "n_shards": len(shards),
        "batch_tokens": tokens_at_once(parts, wanted, length, max_memory),
    }
    if directory is not None:
        return _to_disk(model, parts, wanted, rows, shards, manifest, Path(directory))
    one_pass = _pass(parts, wanted, rows, manifest)
    manifest["error"] = _error(one_pass, shards)
    sizes = [int(rows.kept[part.start : part.stop].sum()) for part in shards]
    return ActivationStream(
        manifest,
        sizes,
        lambda number: one_pass.shard(shards[number], parts.device),
        lambda number: rows.layout(shards[number]),
        parts.device,
    )


def _to_disk(
    model: TransformerBridge,
    parts: Parts,
    places: list[Place],
    rows: Rows,
    parts_of_rows: list[range],
    manifest: dict[str, Any],
    folder: Path,
) -> ActivationStore:
    with files.exclusive(folder), marked(folder) as mark:
        done: list[files.Shard] = []
        if (folder / files.MANIFEST).exists():
            before, done = files.read_manifest(folder)
            _same(before, manifest, folder)
            manifest = before  # its batches too, as a product of another shape can differ in the last digit
        todo = [
            n
            for n in range(len(parts_of_rows))
            if n >= len(done) or files.damage(folder, done[n], manifest["places"], whole=True)
        ]
        one_pass = _pass(parts, places, rows, manifest)
        if todo:
            _enough_room(rows, [parts_of_rows[n] for n in todo], manifest, folder)
        if "error" not in manifest:
            manifest["error"] = _error(one_pass, parts_of_rows)
        with track(sum(int(rows.kept[parts_of_rows[n]].sum()) for n in todo), "harvest") as advance:
            pieces = [(number, rows.part(parts_of_rows[number])) for number in todo]
            given = (places, manifest, folder.resolve(), mark)
            made = spread(pieces, lambda piece: _made(one_pass, parts_of_rows[piece[0]]), _begin, model, given)
            written = ((at, _written(found, folder, todo[at])) for at, found in made)
            for number, shard in zip(todo, in_order(written), strict=True):
                done[number : number + 1] = [shard]
                manifest["scale"] = _scales(manifest, done)
                files.write_manifest(folder, manifest, done)
                advance(done[number].tokens)
    store = ActivationStore.open(folder)
    store.device = parts.device
    return store


Made = tuple[dict[str, Tensor], dict[str, float]]
"""What a shard's file holds, and the sum of its activations' norms, by place."""


def _made(one_pass: Pass, rows: range) -> Made:
    tensors, norms = one_pass.shard(rows), {}
    for name, x in list(tensors.items()):
        tensors[f"sum.{name}"], norms[name] = totals(x)
    return tensors | one_pass.rows.layout(rows), norms


def _written(made: Made | files.Shard, folder: Path, number: int) -> files.Shard:
    return made if isinstance(made, files.Shard) else files.write(folder, number, *made)


def _begin(
    model: TransformerBridge, places: list[Place], manifest: Mapping[str, Any], folder: Path, mark: str
) -> Callable[[tuple[int, Rows]], Made | files.Shard]:
    """Makes shards with a worker's own model, and writes them where it sees the folder."""
    parts, shared = verified(model), sees(folder, mark)

    def make(piece: tuple[int, Rows]) -> Made | files.Shard:
        number, rows = piece
        made = _made(_pass(parts, places, rows, manifest), range(len(rows)))
        return _written(made, folder, number) if shared else made

    return make


def _pass(parts: Parts, places: list[Place], rows: Rows, manifest: Mapping[str, Any]) -> Pass:
    settings = manifest["settings"]
    autocast = _DTYPES[settings["autocast"]] if settings["autocast"] else None
    return Pass(parts, places, rows, manifest["batch_tokens"], _DTYPES[settings["dtype"]], autocast)


def _error(one_pass: Pass, shards: Sequence[range]) -> dict[str, dict[str, float]] | None:
    """Of the first batch, against float32; None where nothing is rounded."""
    if one_pass.autocast is None and one_pass.dtype == torch.float32:
        return None
    return error_of(one_pass, one_pass.batches(shards[0])[0])


def _scales(manifest: Mapping[str, Any], shards: Sequence[files.Shard]) -> dict[str, float]:
    n = sum(shard.tokens for shard in shards)
    return {
        name: place["width"] ** 0.5 * n / sum(shard.norms[name] for shard in shards)
        for name, place in manifest["places"].items()
    }


def _places(places: Place | str | Sequence[Place | str]) -> list[Place]:
    listed = [places] if isinstance(places, Place | str) else list(places)
    if not listed:
        raise UsageError("name a place at least, such as resid_post.15")
    return list(dict.fromkeys(Place.parse(place) if isinstance(place, str) else place for place in listed))


def _same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuses to go on with a harvest that was begun with something else."""
    flat = [{**manifest, **manifest["settings"], **manifest["corpus"]} for manifest in (before, now)]
    for name in ("fingerprint", "computed_in", "places", *now["settings"], "n_tokens", "sha256"):
        theirs, ours = (manifest.get(name) for manifest in flat)
        if theirs != ours:
            what = "text" if name == "sha256" else name
            raise UsageError(
                f"{folder} holds another harvest: its {what} is {theirs!r}, asked for is {ours!r}; make the same call "
                "as before to go on with it, or name another directory"
            )


def _enough_room(rows: Rows, todo: Sequence[range], manifest: Mapping[str, Any], folder: Path) -> None:
    """Refuses at once what the disk can't hold."""
    width = sum(place["width"] for place in manifest["places"].values())
    element = _DTYPES[manifest["settings"]["dtype"]].itemsize
    kept = sum(int(rows.kept[part.start : part.stop].sum()) for part in todo)
    run = sum(int(rows.lengths[part.start : part.stop].sum()) for part in todo)
    needed, free = kept * (width * element + 8) + 8 * run, shutil.disk_usage(folder).free
    if needed > free:
        raise InterpError(
            f"not enough room: the harvest into {folder} needs {needed:,} bytes and {free:,} are free; ask for fewer "
            "tokens or places, or keep bfloat16"
        )
