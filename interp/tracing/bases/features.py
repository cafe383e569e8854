"""A dictionary's active features on a prompt, whatever the dictionary's architecture."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.engine.forward import Visitor
from interp.errors import UsageError
from interp.features.place import MLP_IN
from interp.gradients import gradients
from interp.tracing.bases.basis import Held, Place, Replaced, Watching, units_by_position
from interp.tracing.frozen import FrozenRun, wide

__all__ = ["Coder", "LayerOfFeatures", "check_models", "digest"]


@dataclass(frozen=True, eq=False)
class Coder:
    """One encoder and what its features write: a transcoder, a layer of a cross-layer one, or an autoencoder.

    Args:
        layer: Where it reads.
        reads: The site, ``mlp_in``, ``resid_mid`` or ``resid_post``.
        encode: From activations "... d_model" to features "... d_sae", differentiable.
        decoders: By place, what one unit of each feature writes.
        encoder: The encoder's columns as rows, for connections read off the weights.
    """

    layer: int
    reads: str
    encode: Any
    decoders: dict[Place, Float[Tensor, "feature d_model"]]
    encoder: Float[Tensor, "feature d_model"]


class LayerOfFeatures(Replaced):
    """One coder's active features on a prompt."""

    def __init__(self, run: FrozenRun, coder: Coder) -> None:
        self.run, self.coder, self.layer = run, coder, coder.layer
        self.reads = "resid_post" if coder.reads == "resid_post" else "mlp"
        self.normed, self.writes = coder.reads == MLP_IN, tuple(coder.decoders)
        self.input = {
            MLP_IN: run.mlp_in[coder.layer],
            "resid_mid": run.kept["mlp_port", coder.layer],
            "resid_post": run.kept["resid_post", coder.layer],
        }[coder.reads]
        codes = wide(coder.encode(self.input))
        self.positions, self.features = codes.nonzero(as_tuple=True)
        self.activations = codes[self.positions, self.features]
        self.groups = units_by_position(self.positions, run.length)

    def reading(self, which: Int[Tensor, " some"]) -> tuple[Float[Tensor, "some d_model"], Float[Tensor, " some"]]:
        """The encoder's own gradient on the prompt; any architecture will do that is linear where it is active."""
        with gradients():
            at, feature = self.positions[which], self.features[which]
            x = self.input[at].clone().requires_grad_()
            codes = self.coder.encode(x)
            chosen = codes[torch.arange(len(which), device=x.device), feature]
            (vector,) = torch.autograd.grad(chosen.sum(), x)
        return vector, self.activations[which] - torch.linalg.vecdot(vector, self.input[at])

    def writing(self, place: Place, which: Int[Tensor, " some"]) -> Float[Tensor, "some d_model"]:
        return self.activations[which][:, None] * self.coder.decoders[place][self.features[which]]

    def effects(self, place: Place, gradient: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row unit"]:
        found = gradient.new_zeros(len(gradient), len(self.activations))
        for position, units in enumerate(self.groups[: gradient.shape[1]]):
            if len(units):
                found[:, units[0] : units[-1] + 1] = gradient[:, position] @ self.writing(place, units).T
        return found

    def written(self, place: Place) -> Float[Tensor, "pos d_model"]:
        out = self.run.final.new_zeros(self.run.length, self.run.parts.graph.d_model)
        for position, units in enumerate(self.groups):
            if len(units):
                out[position] = self.writing(place, units).sum(0)
        return out

    def unit(self, position: int, feature: int) -> int:
        found = ((self.positions == position) & (self.features == feature)).nonzero()
        if not len(found):
            raise UsageError(f"feature {feature} of layer {self.layer} is not active at position {position}")
        return int(found[0, 0])

    def held(self, held: Held) -> Visitor:
        return _Holding(self, held)

    def watched(self, which: Int[Tensor, " some"]) -> Watching:
        return _Watching(self, which)

    def read_in(self, layer: int, site: str, x: Tensor) -> Tensor | None:
        """What the coder reads, where a walk shows it."""
        if (site, layer) != ("resid_post" if self.reads == "resid_post" else "mlp_port", self.layer):
            return None
        return wide(self.run.parts.blocks[layer].ln2(x)) if self.normed else wide(x)


class _Holding(Visitor):
    """Adds, where units write, their new activations less those that they have in the walk itself."""

    def __init__(self, part: LayerOfFeatures, held: Held) -> None:
        self.part, self.held = part, held
        self.position, self.feature = part.positions[held.units], part.features[held.units]
        self.step = held.values

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        read = self.part.read_in(layer, site, x)
        if read is not None:
            codes = wide(self.part.coder.encode(read[self.held.rows, self.position]))
            self.step = self.held.values - codes[torch.arange(len(codes), device=codes.device), self.feature]
        if (site, layer) in self.part.coder.decoders:
            written = self.step[:, None] * self.part.coder.decoders[site, layer][self.feature]
            x = x.index_put((self.held.rows, self.position), written.to(x.dtype), accumulate=True)
        return x


class _Watching(Watching):
    def __init__(self, part: LayerOfFeatures, which: Tensor) -> None:
        self.part, self.position, self.feature = part, part.positions[which], part.features[which]

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        read = self.part.read_in(layer, site, x)
        if read is not None:
            found = read.new_zeros(len(read), len(self.position))
            for position in self.position.unique().tolist():
                here = self.position == position
                found[:, here] = wide(self.part.coder.encode(read[:, position]))[:, self.feature[here]]
            self.found = found
        return x


def check_models(dictionaries: Iterable[Any], fingerprint: str) -> None:
    """Refuses dictionaries that say that they were trained on other weights.

    Raises:
        UsageError: One of them does.
    """
    for dictionary in dictionaries:
        if hasattr(dictionary, "check_model"):
            dictionary.check_model(fingerprint)


def digest(*dictionaries: Any) -> str:
    """A fingerprint of dictionaries' weights."""
    found = hashlib.blake2b(digest_size=8)
    for dictionary in dictionaries:
        for name, weight in sorted(dictionary.state_dict().items()):
            found.update(name.encode())
            found.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
