"""The MLPs' own neurons as nodes, under the rules of relevance propagation; needs no trained dictionary.

A neuron's activation is written as a linear function of the MLP's input whose factors are constants. Without a gate,
act(h) = (act(h) / h) h; with one, half of the product act(g) u goes to each factor:
act(g) u = 1/2 (u act(g) / g) g + 1/2 act(g) u. Both are exact on the prompt itself.

Reference: the identity and half rules of RelP (Jafari et al. 2025, arXiv:2508.21258), see `interp.engine.rules`.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.engine.forward import Visitor
from interp.engine.parts import Parts
from interp.tracing.bases.basis import Basis, Carried, Held, Place, Replaced, Stated, Watching
from interp.tracing.frozen import FrozenRun, bias, matrix, wide

__all__ = ["LayerOfNeurons", "LinearMLP", "Neurons", "neuron_constant", "neuron_readers", "neuron_writers"]


class Neurons(Basis):
    """Every layer's neurons, exact but for those that are not chosen as nodes."""

    name = "neurons"

    def check(self, parts: Parts, fingerprint: str) -> None:
        """Every model will do."""

    def stated(self, run: FrozenRun) -> dict[Place, Stated]:
        return {("mlp_out", layer): Stated(neuron_constant(run, layer)) for layer in range(run.parts.graph.n_layers)}

    def replaced(self, run: FrozenRun) -> list[Replaced]:
        return [LayerOfNeurons(run, layer) for layer in range(run.parts.graph.n_layers)]

    def about(self) -> dict[str, Any]:
        return {"kind": self.name, "rules": "activation=identity, gate=half"}

    def readers(self, parts: Parts, layer: int) -> dict[str, Float[Tensor, "feature d_model"]]:
        return neuron_readers(parts, layer)

    def writers(self, parts: Parts, layer: int) -> dict[Place, Float[Tensor, "feature d_model"]]:
        return neuron_writers(parts, layer)


class Factors:
    """The constants of a layer's neurons on a prompt, "pos neuron": what its inputs are multiplied by."""

    def __init__(self, run: FrozenRun, layer: int) -> None:
        block, x = run.parts.blocks[layer], run.mlp_in[layer]
        self.of_up, self.of_gate = _factors(
            block.activation, _affine(block.up, x), None if block.gate is None else _affine(block.gate, x)
        )


class LayerOfNeurons(Replaced):
    """One layer's neurons on a prompt; the unit's number is position times width plus neuron."""

    reads, normed = "mlp", True

    def __init__(self, run: FrozenRun, layer: int) -> None:
        self.run, self.layer, self.writes = run, layer, (("mlp_out", layer),)
        self.block, x = run.parts.blocks[layer], run.mlp_in[layer]
        up, gate = _affine(self.block.up, x), self.block.gate
        self.post = wide(self.block.activation(up if gate is None else _affine(gate, x)))
        self.post = self.post if gate is None else self.post * up
        self.width = self.post.shape[1]
        self.activations = self.post.flatten()
        self.down = matrix(self.block.down)

    @property
    def positions(self) -> Int[Tensor, " unit"]:  # type: ignore[override]
        return torch.arange(len(self.activations), device=self.activations.device) // self.width

    @property
    def features(self) -> Int[Tensor, " unit"]:  # type: ignore[override]
        return torch.arange(len(self.activations), device=self.activations.device) % self.width

    def reading(self, which: Int[Tensor, " some"]) -> tuple[Float[Tensor, "some d_model"], Float[Tensor, " some"]]:
        """The neurons' factors are made for these alone: of all of a long prompt's they are three times as large."""
        x, neuron = self.run.mlp_in[self.layer][which // self.width], which % self.width
        linears = [self.block.up] if self.block.gate is None else [self.block.up, self.block.gate]
        rows = [matrix(linear).T[neuron] for linear in linears]
        offsets = [x.new_zeros(()) if (b := bias(linear)) is None else b[neuron] for linear in linears]
        read = [torch.linalg.vecdot(row, x) + offset for row, offset in zip(rows, offsets, strict=True)]
        both = _factors(self.block.activation, read[0], read[1] if len(read) > 1 else None)
        factors = [factor for factor in both if factor is not None]
        vector, constant = torch.zeros_like(x), x.new_zeros(len(which))
        for factor, row, offset in zip(factors, rows, offsets, strict=True):
            vector += factor[:, None] * row
            constant += factor * offset
        return vector, constant

    def writing(self, place: Place, which: Int[Tensor, " some"]) -> Float[Tensor, "some d_model"]:
        direction = self.down[which % self.width]
        return self.activations[which][:, None] * self.run.mlp_written(self.layer, direction, which // self.width)

    def effects(self, place: Place, gradient: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row unit"]:
        found = self.run.mlp_written_back(self.layer, gradient) @ self.down.T
        found *= self.post[: gradient.shape[1]]
        found = found.flatten(1)
        missing = len(self.activations) - found.shape[1]
        return found if not missing else torch.nn.functional.pad(found, (0, missing))

    def written(self, place: Place) -> Float[Tensor, "pos d_model"]:
        return self.run.mlp_written(self.layer, self.post @ self.down)

    def unit(self, position: int, feature: int) -> int:
        return position * self.width + feature

    def held(self, held: Held) -> Visitor:
        return _Holding(self, held)

    def watched(self, which: Int[Tensor, " some"]) -> Watching:
        return _Watching(self, which)


class _Holding(Visitor):
    def __init__(self, part: LayerOfNeurons, held: Held) -> None:
        self.part, self.held = part, held
        self.position, self.neuron = held.units // part.width, held.units % part.width

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        if (site, layer) == ("post", self.part.layer):
            x = x.clone()
            x[self.held.rows, self.position, self.neuron] = self.held.values.to(x.dtype)
        return x


class _Watching(Watching):
    def __init__(self, part: LayerOfNeurons, which: Tensor) -> None:
        self.part, self.position, self.neuron = part, which // part.width, which % part.width

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        if (site, layer) == ("post", self.part.layer):
            self.found = wide(x[:, self.position, self.neuron])
        return x


class LinearMLP(Carried):
    """A whole MLP carried linearly under the same rules, with no neuron as a node."""

    def __init__(self, run: FrozenRun, layer: int) -> None:
        self.run, self.layer, self.block = run, layer, run.parts.blocks[layer]
        self.factors = Factors(run, layer)

    def _inputs(self) -> list[tuple[Any, Tensor]]:
        pairs = ((self.block.up, self.factors.of_up), (self.block.gate, self.factors.of_gate))
        return [(linear, factor) for linear, factor in pairs if factor is not None]

    def forward(self, x: Float[Tensor, "*batch pos d_model"]) -> Float[Tensor, "*batch pos d_model"]:
        post = torch.stack([(x @ matrix(linear)) * factor for linear, factor in self._inputs()]).sum(0)
        return self.run.mlp_written(self.layer, post @ matrix(self.block.down))

    def backward(self, gradient: Float[Tensor, "*batch pos d_model"]) -> Float[Tensor, "*batch pos d_model"]:
        n = gradient.shape[-2]
        back = self.run.mlp_written_back(self.layer, gradient) @ matrix(self.block.down).T
        return torch.stack([(back * factor[:n]) @ matrix(linear).T for linear, factor in self._inputs()]).sum(0)

    @property
    def constant(self) -> Float[Tensor, "pos d_model"]:
        """What the MLP writes whatever it reads, under the rules."""
        own = neuron_constant(self.run, self.layer)
        for linear, factor in self._inputs():
            if (offset := bias(linear)) is not None:
                own = own + self.run.mlp_written(self.layer, (factor * offset) @ matrix(self.block.down))
        return own


def neuron_constant(run: FrozenRun, layer: int) -> Float[Tensor, "pos d_model"]:
    """What a layer's MLP writes whatever its neurons hold: the biases of the down projection and the norm behind."""
    block = run.parts.blocks[layer]
    out = run.final.new_zeros(1, 1).expand(run.length, run.parts.graph.d_model)
    if (offset := bias(block.down)) is not None:
        out = run.mlp_written(layer, out + offset)
    if block.ln2_post is not None and block.ln2_post.bias is not None:
        out = out + wide(block.ln2_post.bias)
    return out


def neuron_readers(parts: Parts, layer: int) -> dict[str, Float[Tensor, "feature d_model"]]:
    """What neurons read the stream along: of gated ones the gate's and the other input's."""
    block = parts.blocks[layer]
    inputs = {"in": block.up} if block.gate is None else {"gate": block.gate, "in": block.up}
    found = {}
    for name, linear in inputs.items():
        rows = matrix(linear).T
        rows = rows if block.ln2.weight is None else rows * wide(block.ln2.weight)
        found[name] = block.ln2.centre(rows)
    return found


def neuron_writers(parts: Parts, layer: int) -> dict[Place, Float[Tensor, "feature d_model"]]:
    """What neurons write, with the weight of a norm behind."""
    block = parts.blocks[layer]
    rows = matrix(block.down)
    if block.ln2_post is not None:
        rows = block.ln2_post.centre(rows)
        rows = rows if block.ln2_post.weight is None else rows * wide(block.ln2_post.weight)
    return {("mlp_out", layer): rows}


def _factors(activation: Any, up: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """What a neuron's inputs are multiplied by, of what it reads: of the one by the up projection, and by the gate."""
    if before is None:
        return _ratio(wide(activation(up)), up), None
    gate = wide(activation(before))
    return gate / 2, _ratio(gate, before) * up / 2


def _affine(linear: Any, x: Tensor) -> Tensor:
    out, offset = x @ matrix(linear), bias(linear)
    return out if offset is None else out + offset


def _ratio(value: Tensor, x: Tensor) -> Tensor:
    """value / x, and 0 where both are 0: an input of 0 has no share."""
    return torch.where(x == 0, torch.zeros_like(x), value / torch.where(x == 0, torch.ones_like(x), x))
