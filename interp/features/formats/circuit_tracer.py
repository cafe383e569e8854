"""circuit-tracer's files: a transcoder in one safetensors file, a cross-layer transcoder in two for each layer."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.checking import damaged, read_tensors
from interp.errors import InterpError, UsageError
from interp.features.architectures.cross_layer import CrossLayerTranscoder, cross_layer_transcoder
from interp.features.architectures.dictionary import Dictionary
from interp.features.architectures.jumprelu import JumpReLU
from interp.features.architectures.standard import Standard
from interp.features.architectures.topk import TopK
from interp.features.formats.fitting import fitted
from interp.features.formats.saelens import folded
from interp.features.place import Place, listed
from interp.gradients import gradients
from interp.results.files import replacing, write_text
from interp.results.folders import settle, together

__all__ = ["load_circuit_tracer", "load_cross_layer", "save_circuit_tracer", "save_cross_layer"]

_THRESHOLD = "activation_function.threshold"
_MARK, _SAMPLE = "interp.saved", 4096


def save_circuit_tracer(dictionary: Dictionary, path: str | os.PathLike[str]) -> None:
    """Writes a transcoder as circuit-tracer's ``SingleLayerTranscoder`` reads it (``layer_{i}.safetensors``).

    Its encoder is stored latents first; of TopK, circuit-tracer does not set negative values among the k to zero.

    Args:
        dictionary: A transcoder of ReLU, TopK or JumpReLU kind.
        path: The file.

    Raises:
        UsageError: An autoencoder or a gated one, which the format has no place for.
        InterpError: The file can't be written.
    """
    if isinstance(dictionary, CrossLayerTranscoder):
        raise UsageError("a cross-layer transcoder has files of its own; use save_cross_layer")
    if not dictionary.is_transcoder or dictionary.b_enc is None:
        kind = "gated dictionary" if dictionary.is_transcoder else "sparse autoencoder"
        raise UsageError(f"circuit-tracer's files hold transcoders with ReLU, TopK or JumpReLU, not a {kind}")
    if dictionary.normalisation is not None:
        raise UsageError(f"circuit-tracer's files have no place for a normalisation ({dictionary.normalisation})")
    tensors = folded(dictionary)
    tensors["W_enc"] = tensors["W_enc"].t().contiguous()
    if "threshold" in tensors:
        tensors[_THRESHOLD] = tensors.pop("threshold")
    elif isinstance(dictionary, TopK):
        tensors["k"] = torch.tensor(dictionary.k)
    sides = {"reads": dictionary.reads, "writes": dictionary.writes}
    _write(Path(path), tensors, {f"interp.{side}": str(at) for side, at in sides.items() if isinstance(at, Place)})


@gradients()
def load_circuit_tracer(
    path: str | os.PathLike[str], reads: Place | str | None = None, writes: Place | str | None = None
) -> Dictionary:
    """Reads one of circuit-tracer's transcoders, in float32.

    Args:
        path: The file.
        reads: Where it reads, say ``"resid_mid.3"``; files that circuit-tracer wrote do not say.
        writes: Where it writes, say ``"mlp_out.3"``.

    Raises:
        UsageError: Neither the call nor the file says where it reads and writes.
        InterpError: The file is missing or damaged or lacks a tensor.
    """
    file = Path(path)
    tensors = _read(file, ("W_enc", "W_dec", "b_enc", "b_dec"))
    said = _texts(file)
    sides = (reads or said.get("interp.reads"), writes or said.get("interp.writes"))
    if None in sides:
        raise UsageError(f"{file} does not say where it stands; give load_circuit_tracer(path, reads, writes)")
    places = [Place.parse(place) if isinstance(place, str) else place for place in sides]
    d_sae, d_in = _matrix(tensors["W_enc"], file, "W_enc")
    tensors["W_enc"] = tensors["W_enc"].t()
    if _THRESHOLD in tensors:
        tensors["threshold"] = tensors.pop(_THRESHOLD).flatten()
    options: dict[str, Any] = {
        "d_out": _matrix(tensors["W_dec"], file, "W_dec")[1],
        "reads": places[0],
        "writes": places[1],
        "skip": "W_skip" in tensors,
        "transcoder": True,
    }
    made: type[Dictionary] = JumpReLU if "threshold" in tensors else Standard
    if "k" in tensors:
        made, options = TopK, {**options, "k": _count(tensors.pop("k"), file)}
    return fitted(lambda: made(d_in, d_sae, **options), tensors, file)


def save_cross_layer(dictionary: CrossLayerTranscoder, directory: str | os.PathLike[str], model_name: str = "") -> None:
    """Writes a cross-layer transcoder as circuit-tracer 0.5's ``load_clt`` reads it.

    ``W_enc_{i}.safetensors`` holds W_enc_{i} "latent d_model", b_enc_{i}, b_dec_{i} and, of JumpReLU and BatchTopK,
    threshold_{i}; ``W_dec_{i}.safetensors`` holds W_dec_{i} "latent layer d_model", for layers i and later.
    ``config.yaml`` names the hooks. Scales are folded in.

    Args:
        dictionary: Of a kind with ReLU or a threshold.
        directory: Where; files of these names are replaced.
        model_name: For ``config.yaml``.

    Raises:
        UsageError: TopK, which the format has no place for, or layers of different widths.
        InterpError: The files can't be written.
    """
    widths = {*dictionary.widths_in, *dictionary.widths_out}
    if dictionary.kind == "topk" or len(widths) > 1:
        what = "TopK" if dictionary.kind == "topk" else f"layers of different widths ({sorted(widths)})"
        raise UsageError(
            f"circuit-tracer's files hold cross-layer transcoders of one width with ReLU or a threshold, not {what}"
        )
    folder, n = Path(directory), len(dictionary.widths_in)
    units_in, units_out = (
        dictionary.units(dictionary.b_dec.detach(), out) * torch.ones_like(dictionary.b_dec) for out in (False, True)
    )
    constants = (dictionary.b_dec.detach() / units_out).unflatten(0, (n, -1))
    lines = [f"model_name: {json.dumps(model_name)}", "model_kind: cross_layer_transcoder"]
    for side, places in (("input", dictionary.reads), ("output", dictionary.writes)):
        if places is not None:
            lines.append(f"feature_{side}_hook: {json.dumps(listed(places)[0].hook.split('.', 2)[2])}")
    texts = {_MARK: _digest(dictionary)}
    for side, places in (("reads", dictionary.reads), ("writes", dictionary.writes)):
        if places is not None:
            texts[f"interp.{side}"] = " ".join(map(str, listed(places)))
    before = [path.name for path in folder.glob("W_*.safetensors") if re.fullmatch(r"W_(enc|dec)_\d+", path.stem)]
    with together(folder, instead_of=before) as aside:
        for at in range(n):
            layer = dictionary.of(at)
            encoder = {
                f"W_enc_{at}": layer.W_enc.detach().t() * units_in.unflatten(0, (n, -1))[at],
                f"b_enc_{at}": layer.b_enc.detach(),
                f"b_dec_{at}": constants[at],
            }
            if isinstance(threshold := getattr(layer, "threshold", None), Tensor):
                encoder[f"threshold_{at}"] = threshold.detach().relu().expand(layer.d_sae)
            decoder = layer.W_dec.detach() / units_out[dictionary.begins[at] :]
            _write(aside / f"W_enc_{at}.safetensors", encoder, texts)
            _write(aside / f"W_dec_{at}.safetensors", {f"W_dec_{at}": decoder.unflatten(1, (n - at, -1))}, texts)
        write_text(aside / "config.yaml", "\n".join(lines) + "\n")


@gradients()
def load_cross_layer(
    directory: str | os.PathLike[str], reads: str | None = None, writes: str | None = None
) -> CrossLayerTranscoder:
    """Reads one of circuit-tracer's cross-layer transcoders, in float32.

    Args:
        directory: The folder with ``W_enc_{i}.safetensors`` and ``W_dec_{i}.safetensors``, from layer 0 on.
        reads: The site read; by default what the files say, or ``resid_mid``.
        writes: The site written; by default what the files say, or ``mlp_out``.

    Raises:
        InterpError: A file is missing or damaged, lacks a tensor, has one of another shape, or is of another
            transcoder than the rest.
    """
    folder = Path(directory)
    settle(folder)
    n = max(1, len(list(folder.glob("W_enc_*.safetensors"))))
    _of_one([folder / f"W_{kind}_{at}.safetensors" for at in range(n) for kind in ("enc", "dec")])
    encoders = [
        _read(folder / f"W_enc_{at}.safetensors", [f"{name}_{at}" for name in ("W_enc", "b_enc", "b_dec")])
        for at in range(n)
    ]
    width, d_model = _matrix(encoders[0]["W_enc_0"], folder, "W_enc_0")
    kind = "tanh" if "threshold_0" in encoders[0] else "standard"
    said = _texts(folder / "W_enc_0.safetensors")
    layers, sites = list(range(n)), []
    for side, given, default in (("reads", reads, "resid_mid"), ("writes", writes, "mlp_out")):
        places = [Place.parse(place) for place in said.get(f"interp.{side}", "").split()]
        layers = [place.layer for place in places] if len(places) == n else layers
        sites.append(given or (places[0].site if places else default))
    state = {"b_dec": torch.cat([encoders[at][f"b_dec_{at}"].flatten() for at in range(n)]).float()}
    for at, encoder in enumerate(encoders):
        decoder = _read(folder / f"W_dec_{at}.safetensors", [f"W_dec_{at}"])[f"W_dec_{at}"]
        _matrix(encoder[f"W_enc_{at}"], folder, f"W_enc_{at}")
        found = {"W_enc": encoder[f"W_enc_{at}"].t(), "b_enc": encoder[f"b_enc_{at}"], "W_dec": decoder.flatten(1)}
        if kind == "tanh" and f"threshold_{at}" in encoder:
            found["threshold"] = encoder[f"threshold_{at}"].flatten()
        state |= {f"layers.{at}.{name}": tensor.float() for name, tensor in found.items()}

    def make() -> CrossLayerTranscoder:
        return cross_layer_transcoder(layers, d_model, width, kind=kind, reads=sites[0], writes=sites[1])

    dictionary = fitted(make, state, folder)
    assert isinstance(dictionary, CrossLayerTranscoder)
    return dictionary


def _write(file: Path, tensors: dict[str, Tensor], texts: dict[str, str] | None = None) -> None:
    with replacing(file) as aside:
        save_file({name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}, aside, texts)


def _digest(dictionary: Dictionary) -> str:
    """Tells the files of one dictionary from those of another."""
    digest = hashlib.sha256()
    for name, tensor in dictionary.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().flatten()[:_SAMPLE].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _texts(file: Path) -> dict[str, str]:
    """What the header of a file says besides its tensors; nothing if it can't be read."""
    with suppress(OSError, SafetensorError), safe_open(file, framework="pt") as opened:
        return opened.metadata() or {}
    return {}


def _of_one(files: Sequence[Path]) -> None:
    """Refuses files that were written for several dictionaries, as far as they say so."""
    marks = {file: mark for file in files if (mark := _texts(file).get(_MARK)) is not None}
    first = next(iter(marks), None)
    for file, mark in marks.items():
        if first is not None and mark != marks[first]:
            raise InterpError(
                f"{first} and {file} are of two dictionaries: one of them was replaced without the other; save the "
                "dictionary again, or copy all its files anew"
            )


def _read(file: Path, names: Sequence[str]) -> dict[str, Tensor]:
    tensors = read_tensors(file)[0]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise InterpError(f"{file} lacks the tensor {missing[0]}")
    return tensors


def _matrix(tensor: Tensor, path: Path, name: str) -> tuple[int, int]:
    if tensor.ndim != 2:
        raise damaged(path, f"{name} has the shape {tuple(tensor.shape)}, a matrix is needed")
    return tensor.shape[0], tensor.shape[1]


def _count(tensor: Tensor, path: Path) -> int:
    if tensor.numel() != 1 or tensor.is_floating_point() or tensor.is_complex():
        raise damaged(path, f"k has the shape {tuple(tensor.shape)} of {tensor.dtype}, one whole number is needed")
    return int(tensor)
