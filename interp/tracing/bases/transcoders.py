"""Transcoders' features as nodes: dictionaries that read the MLP's input and write its output, also of later layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.engine.parts import Parts
from interp.errors import UsageError, unknown_name
from interp.features.judging.splice import placed, scale_out
from interp.features.place import MLP_IN
from interp.features.place import Place as Where
from interp.tracing.bases.basis import Basis, Carried, Place, Replaced, Stated
from interp.tracing.bases.features import Coder, LayerOfFeatures, check_models, digest
from interp.tracing.bases.neurons import (
    LayerOfNeurons,
    LinearMLP,
    neuron_constant,
    neuron_readers,
    neuron_writers,
)
from interp.tracing.frozen import FrozenRun, wide

__all__ = ["Skip", "Transcoders"]

_OTHERS = ("refused", "neurons", "errors", "linear")


class Skip(Carried):
    """A transcoder's skip connection."""

    def __init__(self, weight: Float[Tensor, "d_model d_model"]) -> None:
        self.weight = weight

    def forward(self, x: Float[Tensor, "*batch pos d_model"]) -> Float[Tensor, "*batch pos d_model"]:
        return x @ self.weight.T

    def backward(self, gradient: Float[Tensor, "*batch pos d_model"]) -> Float[Tensor, "*batch pos d_model"]:
        return gradient @ self.weight


class Transcoders(Basis):
    """Per-layer transcoders, or one cross-layer transcoder.

    Args:
        dictionaries: By layer, each reading ``mlp_in`` (or ``resid_mid``) and writing ``mlp_out`` of that layer; or a
            single `CrossLayerTranscoder`.
        others: What becomes of layers without one: ``"refused"``, an error that names them; ``"neurons"``, they are
            seen in their neurons; ``"errors"``, what they write is an error; ``"linear"``, they are carried on
            linearly under the neurons' rules, without nodes.
        labels: Features in words, by layer and number.

    Raises:
        UsageError: No dictionary, one at another place than its layer's MLP, or an unknown kind of rest.
    """

    name = "transcoders"

    def __init__(
        self,
        dictionaries: Mapping[int, Any] | Any,
        others: str = "refused",
        labels: Mapping[tuple[int, int], str] | None = None,
    ) -> None:
        if others not in _OTHERS:
            raise unknown_name("way with layers without a transcoder", others, _OTHERS)
        self.others, self.labels = others, dict(labels or {})
        self.dictionaries = dict(dictionaries) if isinstance(dictionaries, Mapping) else None
        self.trained = [dictionaries] if self.dictionaries is None else list(self.dictionaries.values())
        if self.dictionaries is None:
            self.coders, self.constants, self.skips = _cross_layer(dictionaries)
            self._digest = digest(dictionaries)
            return
        if not self.dictionaries:
            raise UsageError("give one transcoder at least, by its layer")
        self.coders = [_coder(layer, self.dictionaries[layer]) for layer in sorted(self.dictionaries)]
        self.constants = {layer: wide(d.b_dec) / scale_out(d) for layer, d in self.dictionaries.items()}
        self.skips = {layer: Skip(_skip(d)) for layer, d in self.dictionaries.items() if d.W_skip is not None}
        self._digest = digest(*(self.dictionaries[layer] for layer in sorted(self.dictionaries)))

    @property
    def layers(self) -> set[int]:
        """The layers whose MLPs are replaced."""
        return set(self.constants)

    def to(self, device: torch.device) -> Transcoders:
        moved = [placed(dictionary, device) for dictionary in self.trained]
        if all(one is other for one, other in zip(moved, self.trained, strict=True)):
            return self
        by_layer = None if self.dictionaries is None else dict(zip(self.dictionaries, moved, strict=True))
        return Transcoders(moved[0] if by_layer is None else by_layer, self.others, self.labels)

    def check(self, parts: Parts, fingerprint: str) -> None:
        check_models(self.trained, fingerprint)
        n_layers, wide_model = parts.graph.n_layers, parts.graph.d_model
        beyond = sorted(layer for layer in self.layers if layer >= n_layers)
        if beyond:
            raise UsageError(
                f"there is a transcoder for layer {beyond[0]}, and this model has layers 0 to {n_layers - 1}"
            )
        for coder in self.coders:
            width = coder.encoder.shape[1]
            if width != wide_model:
                raise UsageError(
                    f"the transcoder of layer {coder.layer} reads {width} numbers, this model has {wide_model}; "
                    f"it was trained on another model"
                )
        missing = sorted(set(range(n_layers)) - self.layers)
        if missing and self.others == "refused":
            raise UsageError(
                f"there is no transcoder for the layers {', '.join(map(str, missing))}; train them, or say what "
                f"becomes of these layers with Transcoders(..., others='neurons'), 'errors' or 'linear'"
            )

    def stated(self, run: FrozenRun) -> dict[Place, Stated]:
        found: dict[Place, Stated] = {}
        for layer in range(run.parts.graph.n_layers):
            if layer in self.layers:
                constant = self.constants[layer].expand(run.length, -1)
                found["mlp_out", layer] = Stated(constant, self.skips.get(layer))
            elif self.others == "neurons":
                found["mlp_out", layer] = Stated(neuron_constant(run, layer))
            elif self.others == "linear":
                mlp = LinearMLP(run, layer)
                found["mlp_out", layer] = Stated(mlp.constant, mlp, exact=True)
        return found

    def replaced(self, run: FrozenRun) -> list[Replaced]:
        found: list[Replaced] = [LayerOfFeatures(run, coder) for coder in self.coders]
        if self.others == "neurons":
            found += [LayerOfNeurons(run, n) for n in range(run.parts.graph.n_layers) if n not in self.layers]
        return sorted(found, key=lambda part: part.layer)

    def about(self) -> dict[str, Any]:
        layers = sorted(self.layers)
        return {"kind": self.name, "layers": layers, "others": self.others, "digest": self._digest}

    def readers(self, parts: Parts, layer: int) -> dict[str, Float[Tensor, "feature d_model"]]:
        for coder in self.coders:
            if coder.layer == layer:
                norm, rows = parts.blocks[layer].ln2, coder.encoder
                if coder.reads != MLP_IN:
                    return {"in": rows}
                return {"in": norm.centre(rows if norm.weight is None else rows * wide(norm.weight))}
        return neuron_readers(parts, layer)

    def writers(self, parts: Parts, layer: int) -> dict[Place, Float[Tensor, "feature d_model"]]:
        for coder in self.coders:
            if coder.layer == layer:
                return coder.decoders
        return neuron_writers(parts, layer)

    def label(self, layer: int, feature: int) -> str:
        return self.labels.get((layer, feature), super().label(layer, feature))


def _coder(layer: int, dictionary: Any) -> Coder:
    reads, writes = getattr(dictionary, "reads", None), getattr(dictionary, "writes", None)
    if not isinstance(reads, Where) or reads not in _inputs(layer) or writes != Where("mlp_out", layer):
        raise UsageError(
            f"the dictionary given for layer {layer} reads {reads} and writes {writes}; a transcoder of that layer "
            f"reads {MLP_IN}.{layer} or resid_mid.{layer} and writes mlp_out.{layer}"
        )
    if getattr(dictionary, "normalisation", None) is not None:
        raise UsageError(
            f"the transcoder of layer {layer} normalises what it reads ({dictionary.normalisation}), which is no "
            f"linear function of the residual stream; trace with transcoders that do not"
        )
    decoder = wide(dictionary.W_dec) / scale_out(dictionary)
    return Coder(layer, reads.site, dictionary.encode, {("mlp_out", layer): decoder}, wide(dictionary.W_enc).T)


def _inputs(layer: int) -> tuple[Where, ...]:
    return Where(MLP_IN, layer), Where("resid_mid", layer)


def _cross_layer(dictionary: Any) -> tuple[list[Coder], dict[int, Tensor], dict[int, Skip]]:
    """A `CrossLayerTranscoder` as coders that write to several layers."""
    reads, writes = getattr(dictionary, "reads", None), getattr(dictionary, "writes", None)
    if not hasattr(dictionary, "of") or not isinstance(reads, tuple) or not isinstance(writes, tuple):
        raise UsageError(f"give transcoders by layer or a cross-layer transcoder, not {type(dictionary).__name__}")
    if any(at.site != "mlp_out" for at in writes) or any(at.site not in (MLP_IN, "resid_mid") for at in reads):
        raise UsageError("a cross-layer transcoder reads mlp_in or resid_mid and writes mlp_out of its layers")
    units, coders = _scales(dictionary), []
    for number, (read, (scale, _)) in enumerate(zip(reads, units, strict=True)):
        layer = dictionary.of(number)
        decoders: dict[Place, Tensor] = {
            ("mlp_out", writes[m].layer): wide(dictionary.decoder(number, m)) / units[m][1]
            for m in range(number, len(writes))
        }
        encode = _Scaled(layer, scale)
        coders.append(Coder(read.layer, read.site, encode, decoders, wide(layer.W_enc).T))
    pieces = wide(dictionary.b_dec).split([dictionary.d_out // len(writes)] * len(writes))
    constants = {at.layer: piece / unit[1] for at, piece, unit in zip(writes, pieces, units, strict=True)}
    return coders, constants, {}


@dataclass(frozen=True, eq=False)
class _Scaled:
    """An encoder behind a factor."""

    dictionary: Any
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.dictionary.encode(x * self.scale)


def _scales(dictionary: Any) -> list[tuple[float, float]]:
    """Of each layer what inputs are multiplied and outputs divided by."""
    n, found = len(dictionary.reads), []
    for scales in (dictionary.scale, dictionary.scale_out):
        found.append([float(s) for s in scales] if isinstance(scales, tuple | list) else [float(scales)] * n)
    return list(zip(*found, strict=True))


def _skip(dictionary: Any) -> Tensor:
    return wide(dictionary.W_skip) * (dictionary.scale / scale_out(dictionary))
