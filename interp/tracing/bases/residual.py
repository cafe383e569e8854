"""Residual autoencoders' features as nodes: the stream is cut behind some layers into features and what they miss.

Between two dictionaries attention is frozen as everywhere, and MLPs are carried on linearly under the neurons' rules,
without nodes of their own.

Reference: the cut of the stream into features and errors as in Marks et al. 2024, "Sparse Feature Circuits",
arXiv:2403.19647, section 3.1; their gradients through MLPs are here the rules of RelP, so that the graph is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.engine.parts import Parts
from interp.errors import UsageError
from interp.features.judging.splice import placed, scale_out
from interp.features.place import Place as Where
from interp.tracing.bases.basis import Basis, Place, Replaced, Stated
from interp.tracing.bases.features import Coder, LayerOfFeatures, check_models, digest
from interp.tracing.bases.neurons import LinearMLP
from interp.tracing.frozen import FrozenRun, wide

__all__ = ["Residual"]


class Residual(Basis):
    """Sparse autoencoders of ``resid_post`` at some layers.

    Args:
        dictionaries: By layer.
        labels: Features in words, by layer and number.

    Raises:
        UsageError: No dictionary, or one that reads or writes elsewhere.
    """

    name = "residual"

    def __init__(self, dictionaries: Mapping[int, Any], labels: Mapping[tuple[int, int], str] | None = None) -> None:
        if not dictionaries:
            raise UsageError("give one autoencoder at least, by its layer")
        self.dictionaries = {layer: dictionaries[layer] for layer in sorted(dictionaries)}
        self.labels = dict(labels or {})
        for layer, dictionary in self.dictionaries.items():
            found = getattr(dictionary, "reads", None), getattr(dictionary, "writes", None)
            if found != (Where("resid_post", layer), Where("resid_post", layer)):
                raise UsageError(
                    f"the dictionary given for layer {layer} reads {found[0]} and writes {found[1]}; an autoencoder of "
                    f"the stream behind that layer reads and writes resid_post.{layer}"
                )
        self._digest = digest(*self.dictionaries.values())

    def to(self, device: torch.device) -> Residual:
        moved = {layer: placed(dictionary, device) for layer, dictionary in self.dictionaries.items()}
        there = all(moved[layer] is dictionary for layer, dictionary in self.dictionaries.items())
        return self if there else Residual(moved, self.labels)

    def check(self, parts: Parts, fingerprint: str) -> None:
        check_models(self.dictionaries.values(), fingerprint)
        for layer, dictionary in self.dictionaries.items():
            if layer >= parts.graph.n_layers:
                raise UsageError(
                    f"there is an autoencoder for layer {layer}, the model has {parts.graph.n_layers} layers"
                )
            if dictionary.d_in != parts.graph.d_model:
                raise UsageError(
                    f"the autoencoder of layer {layer} reads {dictionary.d_in} numbers, this model has "
                    f"{parts.graph.d_model}; it was trained on another model"
                )

    def stated(self, run: FrozenRun) -> dict[Place, Stated]:
        found: dict[Place, Stated] = {}
        for layer in range(run.parts.graph.n_layers):
            mlp = LinearMLP(run, layer)
            found["mlp_out", layer] = Stated(mlp.constant, mlp, exact=True)
            if layer in self.dictionaries:
                dictionary = self.dictionaries[layer]
                constant = wide(dictionary.b_dec) / scale_out(dictionary)
                found["resid_post", layer] = Stated(constant.expand(run.length, -1))
        return found

    def replaced(self, run: FrozenRun) -> list[Replaced]:
        return [LayerOfFeatures(run, self._coder(layer)) for layer in self.dictionaries]

    def about(self) -> dict[str, Any]:
        return {"kind": self.name, "layers": list(self.dictionaries), "digest": self._digest}

    def readers(self, parts: Parts, layer: int) -> dict[str, Float[Tensor, "feature d_model"]]:
        return {"in": self._coder(layer).encoder}

    def writers(self, parts: Parts, layer: int) -> dict[Place, Float[Tensor, "feature d_model"]]:
        return self._coder(layer).decoders

    def label(self, layer: int, feature: int) -> str:
        return self.labels.get((layer, feature), super().label(layer, feature))

    def _coder(self, layer: int) -> Coder:
        if layer not in self.dictionaries:
            raise UsageError(
                f"there is no autoencoder for layer {layer}, only for {', '.join(map(str, self.dictionaries))}"
            )
        dictionary = self.dictionaries[layer]
        decoders: dict[Place, Tensor] = {("resid_post", layer): wide(dictionary.W_dec) / scale_out(dictionary)}
        return Coder(layer, "resid_post", dictionary.encode, decoders, wide(dictionary.W_enc).T)
