"""The locally linear model of one prompt, and what flows back through it.

Attention patterns and the scales of all norms are constants, and so is everything that a basis cuts out of the stream.
What is left is linear: a target's reading vector, pulled back through it, meets what each source writes.

Reference: Ameisen et al. 2025, "Circuit Tracing: Revealing Computational Graphs in Language Models", section
"Constructing an Attribution Graph for a Prompt"; Dunefsky et al. 2024, arXiv:2406.11944, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.tracing.bases.basis import Basis, Place, Replaced, Stated
from interp.tracing.frozen import FrozenRun, wide

__all__ = ["LocalModel", "Reads", "Writes", "order"]

_PULLED = 1 << 27
"""Bytes of the gradients that are pulled back together, in float32; a few times as much is needed on the way."""
_ORDER = {"resid_pre": 0, "mlp": 1, "resid_post": 2}

See = Callable[[Place, slice, Float[Tensor, "row pos d_model"]], None]


def order(site: str, layer: int) -> int:
    """When something is read; ``resid_pre`` lies behind what replaces the ``resid_post`` of the layer before."""
    return 3 * layer + _ORDER[site]


@dataclass(frozen=True, eq=False)
class Reads:
    """Targets: each reads the stream along a vector at one place and position.

    Args:
        order: Where, see `order`.
        position: Which position.
        vector: In the stream's coordinates.
        constant: What is added to the product.
    """

    order: Int[Tensor, " target"]
    position: Int[Tensor, " target"]
    vector: Float[Tensor, "target d_model"]
    constant: Float[Tensor, " target"]

    def __len__(self) -> int:
        return len(self.order)

    def some(self, which: Tensor) -> Reads:
        return Reads(self.order[which], self.position[which], self.vector[which], self.constant[which])

    @classmethod
    def joined(cls, many: list[Reads]) -> Reads:
        return cls(
            *(torch.cat([getattr(reads, n) for reads in many]) for n in ("order", "position", "vector", "constant"))
        )


@dataclass(frozen=True, eq=False)
class Writes:
    """Sources that write at one place: what each one adds at its position.

    Args:
        column: Their columns in the matrix of effects.
        position: Where.
        vector: What is written.
    """

    column: Int[Tensor, " source"]
    position: Int[Tensor, " source"]
    vector: Float[Tensor, "source d_model"]


class LocalModel:
    """A frozen run whose MLPs or stream a basis has replaced by nodes.

    Args:
        run: The run.
        basis: What replaces them.
        folded: At so many first positions, whatever is written counts as written by the token.
    """

    def __init__(self, run: FrozenRun, basis: Basis, folded: int = 0) -> None:
        self.run, self.basis, self.folded = run, basis, folded
        self.parts, self.length = run.parts, run.length
        self.stated: dict[Place, Stated] = basis.stated(run)
        self.replaced: list[Replaced] = basis.replaced(run)
        layers = range(self.parts.graph.n_layers)
        self.attention_constants = [run.attention_constant(layer) for layer in layers]
        self.mlp_constants = [self._mlp_constant(layer) for layer in layers]
        self.cuts = {layer for site, layer in self.stated if site == "resid_post"}
        self.embedded = run.kept["resid_pre", 0]

    @property
    def error_places(self) -> list[Place]:
        """Where something is left as an error, in causal order."""
        mlps = [("mlp_out", layer) for layer in range(self.parts.graph.n_layers)]
        found = [at for at in mlps if at not in self.stated or not self.stated[at].exact]
        return sorted(found + [at for at in self.stated if at[0] == "resid_post"], key=lambda at: at[1])

    def rest(self, place: Place) -> Float[Tensor, "pos d_model"]:
        """What is at a place, less its constant and what is carried there."""
        actual, stated = self.run.kept[place], self.stated.get(place)
        if stated is None:
            return actual
        actual = actual - stated.constant
        return actual if stated.carried is None else actual - stated.carried.forward(self.run.mlp_in[place[1]])

    def feature_reads(self, part: Replaced, which: Int[Tensor, " some"]) -> Reads:
        """Units of a part as targets."""
        vector, constant = part.reading(which)
        at = part.positions[which]
        if part.normed:
            norm = self.parts.blocks[part.layer].ln2
            if norm.bias is not None:
                constant = constant + vector @ wide(norm.bias)
            vector = self.run.norm_back("mlp_port", part.layer, vector, at)
        where = order(part.reads, part.layer)
        return Reads(torch.full_like(at, where), at, vector, constant)

    def logit_reads(self, direction: Float[Tensor, "target d_model"], constant: Float[Tensor, " target"]) -> Reads:
        """Directions that the final norm's output meets at the last position, as targets."""
        last = torch.full((len(direction),), self.length - 1, device=direction.device)
        if self.parts.ln_final.bias is not None:
            constant = constant + direction @ wide(self.parts.ln_final.bias)
        n_layers = self.parts.graph.n_layers
        vector = self.run.norm_back("final", n_layers, direction, last)
        return Reads(torch.full_like(last, order("resid_pre", n_layers)), last, vector, constant)

    def pull(self, reads: Reads, see: See, attention: bool = True) -> Float[Tensor, " target"]:
        """Pulls targets' vectors back through the model.

        Args:
            reads: Targets, latest first in their `order`.
            see: Called at each place where sources write, ``("embed", 0)`` at the end, with the place, which targets
                these are, and the gradient there, up to the last position that any of them reads.
            attention: Whether attention passes anything back.

        Returns:
            The targets' constant parts.
        """
        gradient = self.run.final.new_zeros(len(reads), self.length, self.parts.graph.d_model)
        flow = _Flow(reads, gradient)
        for layer in reversed(range(self.parts.graph.n_layers)):
            flow.join(order("resid_pre", layer + 1))
            if layer in self.cuts:
                flow.show(see, ("resid_post", layer), self.stated["resid_post", layer].constant)
                flow.finish()
            flow.join(order("resid_post", layer))
            self._pull_layer(layer, flow, see, attention)
        flow.join(0)
        flow.show(see, ("embed", 0), None)
        return flow.constant

    def _pull_layer(self, layer: int, flow: _Flow, see: See, attention: bool) -> None:
        if self.parts.graph.parallel:
            if flow.busy:
                flow.show(see, ("mlp_out", layer), self.mlp_constants[layer] + self.attention_constants[layer])
                mlp = self._mlp_back(layer, flow.now)
                flow.add(mlp, self.run.attended_back(layer, flow.now) if attention else None)
            flow.join(order("mlp", layer))
            return
        if flow.busy:
            flow.show(see, ("mlp_out", layer), self.mlp_constants[layer])
            flow.add(self._mlp_back(layer, flow.now))
        flow.join(order("mlp", layer))
        if flow.busy:
            flow.show(see, ("attn_out", layer), self.attention_constants[layer])
            flow.add(self.run.attended_back(layer, flow.now) if attention else None)

    def effects(
        self, reads: Reads, writes: dict[Place, Writes], columns: int, batch: int = 64
    ) -> tuple[Tensor, Tensor]:
        """The direct effects of sources on targets.

        Args:
            reads: Targets in any order.
            writes: Sources by place; tokens at ``("embed", 0)``.
            columns: How many sources there are.
            batch: Targets that are pulled back together.

        Returns:
            The effects "target column" and the targets' constant parts.
        """
        found = self.run.final.new_zeros(len(reads), columns)
        constants = self.run.final.new_zeros(len(reads))
        for rows, effects, constant in self.rows(reads, writes, columns, batch):
            found[rows], constants[rows] = effects, constant
        return found, constants

    def rows(
        self, reads: Reads, writes: dict[Place, Writes], columns: int, batch: int = 64
    ) -> Iterator[tuple[Int[Tensor, " row"], Float[Tensor, "row column"], Float[Tensor, " row"]]]:
        """As `effects`, some targets at a time, latest first: which targets, their effects and constant parts."""
        latest = torch.argsort(reads.order, descending=True, stable=True)
        for rows in latest.split(self.at_once(batch)):
            found = self.run.final.new_zeros(len(rows), columns)

            def see(place: Place, some: slice, gradient: Tensor, found: Tensor = found) -> None:
                if place in writes:
                    at = writes[place]
                    near = (at.position < gradient.shape[1]).nonzero()[:, 0]
                    product = torch.einsum("tsd,sd->ts", gradient[:, at.position[near]], at.vector[near])
                    found[some, at.column[near]] += product

            constants = self.pull(reads.some(rows), see)
            yield rows, found, constants

    def at_once(self, batch: int) -> int:
        """How many targets of `batch` are pulled back together, so that their gradients stay small."""
        return max(1, min(batch, _PULLED // (4 * self.length * self.parts.graph.d_model)))

    def push(
        self, writes: Mapping[int, Float[Tensor, "row pos d_model"]], attention: bool = True
    ) -> Iterator[tuple[int, Float[Tensor, "row pos d_model"]]]:
        """Pushes writes forward: the stream that they make, at each point where something reads, by `order`.

        Args:
            writes: What is added to the stream, by the `order` of its first reader.
            attention: Whether attention passes anything on.
        """
        x = torch.zeros_like(next(iter(writes.values())))
        for layer in range(self.parts.graph.n_layers):
            for at, step in self._steps(layer, attention):
                x = x + writes.get(order(at, layer), 0.0)
                yield order(at, layer), x
                x = step(x)
        last = order("resid_pre", self.parts.graph.n_layers)
        yield last, x + writes.get(last, 0.0)

    def _steps(self, layer: int, attention: bool) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
        def attended(x: Tensor) -> Tensor:
            return self.run.attended(layer, x) if attention else torch.zeros_like(x)

        def carried(x: Tensor) -> Tensor:
            way = self._carried(layer)
            return torch.zeros_like(x) if way is None else way.forward(self.run.normed("mlp_port", layer, x))

        def cut(x: Tensor) -> Tensor:
            return torch.zeros_like(x) if layer in self.cuts else x

        if self.parts.graph.parallel:
            steps = [lambda x: x, lambda x: x + attended(x) + carried(x), cut]
        else:
            steps = [lambda x: x + attended(x), lambda x: x + carried(x), cut]
        return list(zip(("resid_pre", "mlp", "resid_post"), steps, strict=True))

    def _mlp_constant(self, layer: int) -> Tensor:
        stated, norm = self.stated.get(("mlp_out", layer)), self.parts.blocks[layer].ln2
        if stated is None:
            return self.run.final.new_zeros(1, 1).expand(self.length, self.parts.graph.d_model)
        if stated.carried is None or norm.bias is None:
            return stated.constant
        return stated.constant + stated.carried.forward(wide(norm.bias).expand(self.length, -1))

    def _carried(self, layer: int):
        stated = self.stated.get(("mlp_out", layer))
        return None if stated is None else stated.carried

    def _mlp_back(self, layer: int, gradient: Tensor) -> Tensor | None:
        carried = self._carried(layer)
        return None if carried is None else self.run.norm_back("mlp_port", layer, carried.backward(gradient))


class _Flow:
    """The gradients of targets that have joined the way back and have not been cut off."""

    def __init__(self, reads: Reads, gradient: Tensor) -> None:
        self.reads, self.gradient = reads, gradient
        self.orders, self.positions = reads.order.tolist(), reads.position.tolist()
        self.constant = reads.constant.clone()
        self.begin = self.end = self.length = 0

    @property
    def busy(self) -> bool:
        return self.end > self.begin

    @property
    def now(self) -> Tensor:
        return self.gradient[self.begin : self.end, : self.length]

    def join(self, where: int) -> None:
        """Takes in the targets that read here."""
        while self.end < len(self.orders) and self.orders[self.end] >= where:
            self.gradient[self.end, self.positions[self.end]] += self.reads.vector[self.end]
            self.length = max(self.length, self.positions[self.end] + 1)
            self.end += 1

    def show(self, see: See, place: Place, constant: Tensor | None) -> None:
        if not self.busy:
            return
        some = slice(self.begin, self.end)
        if constant is not None:
            self.constant[some] += torch.einsum("tpd,pd->t", self.now, constant[: self.length])
        see(place, some, self.now)

    def add(self, *more: Tensor | None) -> None:
        for gradient in more:
            if gradient is not None:
                self.now.add_(gradient)

    def finish(self) -> None:
        self.begin, self.length = self.end, 0
