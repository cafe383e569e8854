"""SAELens's layout on disk: ``cfg.json`` and ``sae_weights.safetensors`` in one directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.checking import checked, read_json, read_tensors
from interp.errors import InterpError, UsageError, unknown_name
from interp.features.architectures.dictionary import Dictionary
from interp.features.architectures.normalisation import NORMALISATIONS
from interp.features.architectures.registry import ARCHITECTURES, OF_SEVERAL_PLACES
from interp.features.formats.fitting import fitted
from interp.features.formats.pair import CFG, WEIGHTS, check_pair, write_pair
from interp.features.formats.several import TEXT, about_text, made, save_several
from interp.features.overlap import TextSketch
from interp.features.place import Place
from interp.gradients import gradients
from interp.results.folders import settle

__all__ = ["folded", "load", "save"]

SCALER = "activation_scaler.json"

_LARGEST_FACTOR = 1e30
_BY_FACTOR = "expected_average_only_in"

_LAYOUT = "6.54.12"
"""The version of SAELens whose layout this is."""

_SAVED_AS = {"gradient_topk": "topk", "batch_topk": "jumprelu", "matryoshka": "jumprelu"}
_THEIR_NAMES = {"batch_topk": "batchtopk", "matryoshka": "matryoshka_batchtopk"}
_KNOWN = ("standard", "topk", "jumprelu", "gated")


def folded(dictionary: Dictionary) -> dict[str, Tensor]:
    """The weights with the scales folded in, under SAELens's names, on the processor.

    BatchTopK and Matryoshka become JumpReLU with one threshold for all latents.
    """
    scale, scale_out = dictionary.scale, dictionary.scale_out
    assert isinstance(scale, float)
    assert isinstance(scale_out, float)
    factors = {"W_enc": scale, "W_dec": 1 / scale_out, "b_dec": 1 / scale_out, "W_skip": scale / scale_out}
    tensors = dictionary.state_dict()
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].relu().expand(dictionary.d_sae)
    return {
        name: (tensor * factors[name] if factors.get(name, 1) != 1 else tensor).detach().cpu().contiguous().clone()
        for name, tensor in tensors.items()
    }


def save(dictionary: Dictionary, directory: str | os.PathLike[str], **metadata: Any) -> None:
    """Writes a dictionary so that SAELens, and `load`, can read it.

    Transcoders of architectures that SAELens knows as autoencoders only (TopK, gated) are named
    ``topk_transcoder``, ``gated_skip_transcoder`` and so on, which SAELens does not read. Crosscoders and cross-layer
    transcoders, which it does not have, are written in a layout of our own with the same file names, see
    `formats.several`.

    Args:
        dictionary: What to save.
        directory: Where; files of these names are replaced.
        **metadata: Further entries of the configuration's ``metadata``: ``model_name``, ``context_size``, ...

    Raises:
        InterpError: The files can't be written.
    """
    if dictionary.architecture in OF_SEVERAL_PLACES:
        save_several(dictionary, directory, **metadata)
        return
    base = _SAVED_AS.get(dictionary.architecture, dictionary.architecture)
    reads, writes = dictionary.reads, dictionary.writes
    cfg: dict[str, Any] = {
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": not dictionary.is_transcoder,
        "normalize_activations": dictionary.normalisation or "none",
        "reshape_activations": "hook_z" if isinstance(reads, Place) and reads.site == "z" else "none",
        "architecture": _name(base, dictionary),
    }
    if dictionary.is_transcoder:
        cfg["d_out"] = dictionary.d_out
    if base == "topk":
        cfg |= {"k": getattr(dictionary, "k"), "rescale_acts_by_decoder_norm": False}  # noqa: B009 (a subclass's)
    trained = _THEIR_NAMES.get(dictionary.architecture, dictionary.architecture)
    cfg["metadata"] = {
        "sae_lens_version": _LAYOUT,
        "training_architecture": trained,
        "hook_name": reads.hook if isinstance(reads, Place) else None,
        **({"hook_name_out": writes.hook} if dictionary.is_transcoder and isinstance(writes, Place) else {}),
        **metadata,
    }
    write_pair(directory, cfg, folded(dictionary), about_text(dictionary))


def _name(base: str, dictionary: Dictionary) -> str:
    if not dictionary.is_transcoder:
        return base
    kind = "transcoder" if dictionary.W_skip is None else "skip_transcoder"
    return kind if base == "standard" else f"{base}_{kind}"


@gradients()
def load(directory: str | os.PathLike[str], norm_scaling_factor: float | None = None) -> Dictionary:
    """Reads a dictionary that `save` or SAELens (6 and later) wrote, in float32 and in evaluation mode.

    Three settings of SAELens's are folded into the weights: ``rescale_acts_by_decoder_norm``, an autoencoder without
    ``apply_b_dec_to_input``, and ``normalize_activations`` = ``expected_average_only_in``. The other normalisations
    (see `NORMALISATIONS`) stay a part of encoding and decoding, and are saved as they were.

    Args:
        directory: Where.
        norm_scaling_factor: The factor of ``expected_average_only_in``, sqrt(d_in) / E[norm of an activation]. By
            default the one in ``cfg.json`` or ``activation_scaler.json``.

    Raises:
        UsageError: An architecture or a normalisation that this program does not have, or a factor that is not known.
        InterpError: A file is missing or damaged, or a tensor is missing or of another shape than the configuration
            says; the message names it.
    """
    where = Path(directory)
    settle(where)
    cfg, tensors, text = _read(where)
    name = checked(cfg, "architecture", str, where / CFG)
    if name in OF_SEVERAL_PLACES:
        several = made(cfg, tensors, where, (CFG, WEIGHTS))
        several.model, several.text = trained_on(cfg, where / CFG), text
        return several
    base, is_transcoder, skip = _parsed(name)
    normalisation, factor = _normalisation(cfg, where, norm_scaling_factor)
    about = checked(cfg, "metadata", dict | None, where / CFG, default=None) or {}
    reads, writes = (_place(about.get(key)) for key in ("hook_name", "hook_name_out"))
    d_in, d_sae = (checked(cfg, key, int, where / CFG, least=1) for key in ("d_in", "d_sae"))
    d_out = checked(cfg, "d_out", int | None, where / CFG, default=None) or d_in
    options = {"k": checked(cfg, "k", int, where / CFG, least=1)} if base == "topk" and "k" in cfg else {}
    rescaled, centred = (
        checked(cfg, key, bool | None, where / CFG, default=None)
        for key in ("rescale_acts_by_decoder_norm", "apply_b_dec_to_input")
    )
    if rescaled and base != "topk":
        raise UsageError(f"{where / CFG} has rescale_acts_by_decoder_norm, which only topk can have, not {name}")
    if "log_threshold" in tensors:  # SAELens's older name
        tensors["threshold"] = tensors.pop("log_threshold").float().exp()

    def make() -> Dictionary:
        return ARCHITECTURES[base](
            d_in,
            d_sae,
            d_out=d_out,
            reads=reads,
            writes=writes if is_transcoder else reads,
            skip=skip,
            transcoder=is_transcoder,
            **options,
        )

    dictionary = fitted(make, tensors, where / WEIGHTS, strict=False)
    with torch.no_grad():
        _fold_factor(dictionary, factor)
        if rescaled:
            _fold_norms(dictionary)
        if not is_transcoder and centred is False:
            _centre(dictionary)
    dictionary.normalisation = normalisation
    dictionary.model, dictionary.text = trained_on(cfg, where / CFG), text
    return dictionary


def trained_on(cfg: dict[str, Any], path: Path) -> tuple[str, str] | None:
    """Name and fingerprint of the model in a configuration's metadata."""
    about = checked(cfg, "metadata", dict | None, path, default=None) or {}
    if "model_fingerprint" not in about:
        return None
    return checked(about, "model_name", str, path, default="None"), checked(about, "model_fingerprint", str, path)


def _read(where: Path) -> tuple[dict[str, Any], dict[str, Tensor], TextSketch | None]:
    """The configuration, the weights, and the training text that the weights' header knows of."""
    for name in (CFG, WEIGHTS):
        if not (where / name).is_file():
            raise InterpError(f"{where} holds no dictionary: {name} is missing")
    tensors, about = read_tensors(where / WEIGHTS)
    text = TextSketch.loaded(about[TEXT], where / WEIGHTS) if TEXT in about else None
    cfg = read_json(where / CFG)
    check_pair(cfg, about, where)
    return cfg, tensors, text


def _parsed(name: str) -> tuple[str, bool, bool]:
    """Architecture, whether it is a transcoder, whether it has a skip."""
    base, is_transcoder = name.removesuffix("transcoder").rstrip("_"), name.endswith("transcoder")
    skip = is_transcoder and (base == "skip" or base.endswith("_skip"))
    base = base.removesuffix("skip").rstrip("_") if skip else base
    base = base or "standard"
    if base not in _KNOWN:
        raise unknown_name("architecture of a saved dictionary", name, [*_KNOWN, "transcoder", "skip_transcoder"])
    return base, is_transcoder, skip


def _normalisation(cfg: dict[str, Any], where: Path, given: float | None) -> tuple[str | None, float]:
    """What is done to each activation, and what all are multiplied by."""
    name = checked(cfg, "normalize_activations", str | bool | None, where / CFG, default=None) or "none"
    name = _BY_FACTOR if name is True else name  # SAELens's older spelling
    if name == "none":
        return None, 1.0
    if name in NORMALISATIONS:
        return name, 1.0
    if name != _BY_FACTOR:
        raise unknown_name("normalize_activations", name, ["none", _BY_FACTOR, *NORMALISATIONS])
    factor = given if given is not None else cfg.get("norm_scaling_factor", _scaler(where / SCALER))
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < _LARGEST_FACTOR:
        raise UsageError(
            f"{where} multiplies activations by a factor ({_BY_FACTOR}) that neither {CFG} (norm_scaling_factor) nor "
            f"{SCALER} has as a positive number; give load(..., norm_scaling_factor=...), which is sqrt(d_in) / "
            f"E[norm]: store.scale(place) of activations"
        )
    return None, float(factor)


def _scaler(path: Path) -> Any:
    """The factor in what SAELens writes beside a dictionary in training, if it is there."""
    return checked(read_json(path), "scaling_factor", float | None, path, default=None) if path.is_file() else None


def _fold_factor(dictionary: Dictionary, factor: float) -> None:
    """Inputs times the factor, outputs divided by it."""
    dictionary.W_enc.mul_(factor)
    dictionary.W_dec.div_(factor)
    dictionary.b_dec.div_(factor)


def _place(hook: Any) -> Place | None:
    """The place of a hook's name; None for one that this program does not know."""
    try:
        return Place.parse(hook) if isinstance(hook, str) else None
    except UsageError:
        return None


def _fold_norms(dictionary: Dictionary) -> None:
    norms = dictionary.W_dec.norm(dim=1).clamp_min(1e-12)
    dictionary.W_enc.mul_(norms)
    dictionary.b_enc.mul_(norms)
    dictionary.W_dec.div_(norms[:, None])


def _centre(dictionary: Dictionary) -> None:
    """Makes up in the biases for the subtraction of ``b_dec``, which the saved autoencoder did not do."""
    shift = dictionary.b_dec @ dictionary.W_enc
    own = dict(dictionary.named_parameters())
    for name in ("b_enc", "b_gate"):
        if name in own:
            own[name].add_(shift)
    if "b_mag" in own:
        own["b_mag"].add_(own["r_mag"].exp() * shift)
