"""Cross-layer transcoders: latents that read one layer and write the MLP outputs of it and of all later layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.errors import UsageError, unknown_name
from interp.features.architectures.batch_topk import BatchTopK
from interp.features.architectures.dictionary import Batch, Dictionary, Step
from interp.features.architectures.jumprelu import JumpReLU
from interp.features.architectures.sparse import Codes, Pattern
from interp.features.architectures.standard import Standard
from interp.features.architectures.topk import TopK
from interp.features.place import Place

__all__ = ["LAYERS", "CrossLayerTranscoder", "TanhJumpReLU", "cross_layer_transcoder"]


class TanhJumpReLU(JumpReLU):
    """JumpReLU whose penalty is ``l0 Σ_i tanh(c f_i |W_dec,i|)``: it counts strong latents and shrinks none of them.

    Args:
        d_in: Width of the activations.
        d_sae: Number of latents.
        l0: The penalty's weight.
        c: How soon a latent counts in full.
        revive: Weight of ``Σ ReLU(θ - z) |W_dec|`` over dead latents, which pulls them back to where they fire.
        bandwidth: As in `JumpReLU`.
        initial_threshold: As in `JumpReLU`.
        **shared: See `Dictionary`.

    Reference:
        Ameisen et al. 2025, "Circuit Tracing" (transformer-circuits.pub/2025/attribution-graphs/methods.html),
        sparsity penalty of the cross-layer transcoder; Anthropic's update of January 2025 for the penalty on
        preactivations. Deviations: that one acts on dead latents only; θ is trained as in `JumpReLU`.
    """

    architecture: ClassVar[str] = "tanh_jumprelu"
    unit_norm: ClassVar[bool] = False
    options: ClassVar[tuple[str, ...]] = (*JumpReLU.options, "c", "revive")

    def __init__(
        self,
        d_in: int | Sequence[int],
        d_sae: int,
        l0: float = 1.0,
        *,
        c: float = 4.0,
        revive: float = 0.0,
        bandwidth: float = 1.0,
        initial_threshold: float = 0.03,
        **shared: Any,
    ) -> None:
        super().__init__(d_in, d_sae, l0, bandwidth=bandwidth, initial_threshold=initial_threshold, **shared)  # type: ignore[arg-type]
        self.c, self.revive = c, revive

    def penalties(
        self, batch: Batch, pre: Codes, codes: Codes, error: Tensor, sparsity: float, dead: Tensor | None
    ) -> dict[str, Tensor]:
        norms = self.W_dec.norm(dim=1)
        strength = torch.tanh(self.c * codes.values * codes.at(norms))
        terms = {"sparsity": sparsity * self.l0 * strength.sum() / codes.n_rows}
        if self.revive and dead is not None and bool(dead.any()):
            below = self.threshold.relu()[dead] - batch.x @ self.W_enc.t()[dead].t() - self.b_enc[dead]
            terms["revive"] = self.revive * (torch.relu(below) * norms[dead]).sum() / codes.n_rows
        return terms


LAYERS: dict[str, type[Dictionary]] = {
    "tanh": TanhJumpReLU,
    "jumprelu": JumpReLU,
    "standard": Standard,
    "topk": TopK,
    "batch_topk": BatchTopK,
}
"""What a layer of a cross-layer transcoder can be, by name."""


class CrossLayerTranscoder(Dictionary):
    """``ŷ_m = Σ_{l ≤ m} f_l W_dec,l→m + b_dec,m``, where ``f_l`` is the code of what layer l reads.

    The loss is ``Σ_m |y_m - ŷ_m|²`` and the penalties of the layers.

    It is a transcoder for each layer (`layers`), whose decoder rows hold what a latent writes at its own and all later
    layers side by side; what they write is added up. Codes stand side by side, layer after layer. The inputs of the
    layers are not mixed, so that its weights are far fewer than those of a transcoder between the activations side by
    side, and there is no ``W_enc`` or ``W_dec`` of all layers.

    Args:
        d_in: The width of each layer's input.
        d_sae: Number of latents of all layers together.
        kind: Of each layer: ``tanh`` (`TanhJumpReLU`), ``jumprelu``, ``standard``, ``topk`` or ``batch_topk``.
        of_layer: Arguments of that kind. With TopK and BatchTopK k latents are active in each layer.
        d_out: The width of each layer's output; `d_in` by default.
        **shared: See `Dictionary`.

    Raises:
        UsageError: Different numbers of inputs and outputs, latents that can't be shared out evenly, or a skip.

    Reference:
        Ameisen et al. 2025, "Circuit Tracing", section "Architecture": feature output, reconstruction and loss.
        Deviation: TopK kinds choose in each layer, not among all.
    """

    architecture: ClassVar[str] = "cross_layer_transcoder"
    options: ClassVar[tuple[str, ...]] = ("kind", "of_layer")

    def __init__(
        self,
        d_in: int | Sequence[int],
        d_sae: int,
        kind: str = "tanh",
        *,
        of_layer: Mapping[str, Any] | None = None,
        seed: int = 0,
        **shared: Any,
    ) -> None:
        super().__init__(d_in, d_sae, seed=seed, **{**shared, "transcoder": True})
        if kind not in LAYERS:
            raise unknown_name("kind of a cross-layer transcoder", kind, LAYERS)
        n = len(self.widths_in)
        if len(self.widths_out) != n:
            raise UsageError(f"it reads {n} layers and writes {len(self.widths_out)}; both must be as many")
        if d_sae % n:
            raise UsageError(f"{d_sae} latents can't be shared out evenly among {n} layers")
        self.kind, self.of_layer, self.per_layer = kind, dict(of_layer or {}), d_sae // n
        self.begins = [0, *accumulate(self.widths_out)]
        made = [
            LAYERS[kind](
                width, self.per_layer, d_out=self.d_out - begin, transcoder=True, seed=n * seed + at, **self.of_layer
            )
            for at, (width, begin) in enumerate(zip(self.widths_in, self.begins, strict=False))
        ]
        for layer in made:  # what is written has one constant, not one from each layer
            del layer.b_dec
            layer.register_buffer("b_dec", torch.zeros(layer.d_out), persistent=False)
        self.layers = nn.ModuleList(made)

    def _make_weights(self, skip: bool, generator: torch.Generator) -> None:
        if skip:
            raise UsageError("a cross-layer transcoder has no skip")
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        self.W_skip = None

    def of(self, layer: int) -> Dictionary:
        """One layer's transcoder, counted from its first layer on; it writes that layer and the later ones."""
        found = self.layers[layer]
        assert isinstance(found, Dictionary)
        return found

    def decoder(self, layer: int, target: int) -> Float[Tensor, "per_layer d_out"]:
        """What the latents of one layer write at another, later one (both counted from the first)."""
        begin = self.begins[layer]
        return self.of(layer).W_dec[:, self.begins[target] - begin : self.begins[target + 1] - begin]

    # Inference

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        pieces = (self._known_width(x) * self.units(x)).split(self.widths_in, -1)
        return torch.cat([self.of(at).encode(piece) for at, piece in enumerate(pieces)], -1)

    def decode(self, codes: Float[Tensor, "*batch d_sae"], x: Tensor | None = None) -> Float[Tensor, "*batch d_out"]:
        out = self.b_dec.expand(*codes.shape[:-1], self.d_out)
        for at, piece in enumerate(codes.split(self.per_layer, -1)):
            out = out + F.pad(piece @ self.of(at).W_dec, (self.begins[at], 0))
        return out / self.units(codes, out=True)

    def activation(self, pre: Codes) -> Codes:
        pieces = pre.values.split(self.per_layer, -1)
        return Codes(torch.cat([self.of(at).activation(Codes(piece)).values for at, piece in enumerate(pieces)], -1))

    # Training

    def step(self, batch: Batch, sparsity: float = 1.0, dead: Bool[Tensor, d_sae] | None = None) -> Step:
        inputs, missed = batch.x.split(self.widths_in, 1), list((batch.target - self.b_dec).split(self.widths_out, 1))
        found = []
        for at, x in enumerate(inputs):
            piece = Batch(x.contiguous(), batch.target[:, self.begins[at] :])
            pre = self.of(at).preactivations(piece)
            codes = self.of(at).activation(pre)
            found.append((piece, pre, codes))
            written = codes.decoded(self.of(at).W_dec).split(self.widths_out[at:], 1)
            missed[at:] = [left - part for left, part in zip(missed[at:], written, strict=True)]
        error = torch.cat(missed, 1)
        terms = {"mse": error.square().sum(-1).mean()}
        of_dead = [None] * len(found) if dead is None else dead.split(self.per_layer)
        for at, (piece, pre, codes) in enumerate(found):
            added = self.of(at).penalties(piece, pre, codes, error[:, self.begins[at] :], sparsity, of_dead[at])
            terms |= {name: terms.get(name, 0.0) + term for name, term in added.items()}
        return Step(terms, _side_by_side([codes for _, _, codes in found], self.per_layer), error)

    def penalties(
        self, batch: Batch, pre: Codes, codes: Codes, error: Tensor, sparsity: float, dead: Tensor | None
    ) -> dict[str, Tensor]:
        """None beside those of the layers, which `step` adds up."""
        return {}

    def after_update(self) -> None:
        for layer in self.layers:
            layer.after_update()  # type: ignore[operator]

    def project_gradient(self) -> None:
        for layer in self.layers:
            layer.project_gradient()  # type: ignore[operator]

    def normalise(self) -> None:
        for layer in self.layers:
            layer.normalise()  # type: ignore[operator]


@torch.no_grad()
def _side_by_side(codes: Sequence[Codes], width: int) -> Codes:
    """The codes of all layers as one batch, without gradients."""
    rows, columns, values = [], [], []
    for at, some in enumerate(codes):
        if some.pattern is None:
            row, column = some.values.nonzero(as_tuple=True)
            value = some.values[row, column]
        else:
            row, column, value = some.pattern.rows, some.pattern.columns, some.values
        rows.append(row)
        columns.append(column + at * width)
        values.append(value)
    row = torch.cat(rows)
    order = row.argsort(stable=True)
    offsets = F.pad(torch.bincount(row, minlength=codes[0].n_rows).cumsum(0), (1, 0))
    return Codes(torch.cat(values)[order], Pattern(offsets, torch.cat(columns)[order], len(codes) * width))


def cross_layer_transcoder(
    layers: Sequence[int],
    d_model: int,
    width: int,
    *,
    kind: str = "tanh",
    reads: str = "mlp_in",
    writes: str = "mlp_out",
    scale: float | Sequence[float] = 1.0,
    scale_out: float | Sequence[float] | None = None,
    seed: int = 0,
    **of_layer: Any,
) -> CrossLayerTranscoder:
    """A cross-layer transcoder of some layers of a model.

    Train it on batches that hold all its places: ``store.batches(4096, [*clt.reads, *clt.writes])``.

    Args:
        layers: Which layers, in increasing order; all of them if it shall replace the model's MLPs.
        d_model: The width of what is read and written.
        width: Latents of each layer.
        kind: See `CrossLayerTranscoder`.
        reads: The site read: ``mlp_in`` (after the norm) or, as in the paper, ``resid_mid``.
        writes: The site written.
        scale: What inputs are multiplied by, one for all layers or one for each.
        scale_out: The same for outputs; `scale` by default.
        seed: Of the initial weights.
        **of_layer: Arguments of the kind: ``l0=2.0``, ``k=16``, ...

    Raises:
        UsageError: Layers that do not increase, or an unknown kind or site.

    Example:
        >>> clt = cross_layer_transcoder(range(30), 576, 2048, kind="batch_topk", k=16)     # doctest: +SKIP
    """
    chosen = list(layers)
    if not chosen or any(a >= b for a, b in pairwise(chosen)):
        raise UsageError(f"layers must increase, got {chosen}")
    return CrossLayerTranscoder(
        (d_model,) * len(chosen),
        width * len(chosen),
        kind,
        of_layer=of_layer,
        d_out=(d_model,) * len(chosen),
        reads=tuple(Place(reads, layer) for layer in chosen),
        writes=tuple(Place(writes, layer) for layer in chosen),
        scale=scale,
        scale_out=scale_out,
        seed=seed,
    )
