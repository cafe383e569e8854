"""What all dictionaries share: weights, places, the reconstruction loss, and how they are saved."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.errors import UsageError
from interp.features.architectures.normalisation import NORMALISATIONS, Normalised
from interp.features.architectures.sparse import Codes, affine
from interp.features.overlap import TextSketch
from interp.features.place import Places, listed, spelled

__all__ = ["Batch", "Dictionary", "Step"]


class Batch(NamedTuple):
    """What a dictionary is trained on: ``x`` read, ``target`` to be written, and perhaps the loss's gradient at x.

    Of several places the activations stand side by side.
    """

    x: Float[Tensor, "batch d_in"]
    target: Float[Tensor, "batch d_out"]
    gradient: Float[Tensor, "batch d_in"] | None = None


@dataclass(frozen=True)
class Step:
    """What one batch gives: the terms of the loss, the codes, and what the reconstruction misses of the target.

    `seen` are numbers to report that are no part of the loss.
    """

    terms: dict[str, Tensor]
    codes: Codes
    missed: Float[Tensor, "batch d_out"]
    seen: dict[str, Tensor] = field(default_factory=dict)

    @property
    def error(self) -> Float[Tensor, "batch d_out"]:
        """What the reconstruction misses, without gradients."""
        return self.missed.detach()

    @property
    def loss(self) -> Float[Tensor, ""]:
        return torch.stack(list(self.terms.values())).sum()


class Dictionary(nn.Module, ABC):
    """A wide layer of latents that reads activations at one place and writes a reconstruction at a place.

    Where it reads and writes the same place it is a sparse autoencoder and subtracts ``b_dec`` from what it reads;
    otherwise it is a transcoder. A subclass adds how activations become codes (`activation`), which entries take part
    in training (`preactivations`), and what the loss has beside the reconstruction (`penalties`).

    Some kinds read or write several places. Their activations stand side by side; each place has a width and a scale.

    Args:
        d_in: Width of the activations read; of several places a width for each.
        d_sae: Number of latents.
        d_out: Width of what is written; `d_in` by default.
        reads: Where it reads, or None for activations of no model; a tuple of several places.
        writes: Where it writes; by default the same place, an autoencoder.
        scale: Activations are multiplied by this before encoding and what is decoded is divided by it. Saving folds
            it into the weights. Of several places one for all or one for each.
        scale_out: The same for what a transcoder writes; `scale` by default.
        transcoder: Whether it is a transcoder although the places don't tell.
        skip: Add a linear map from the input to the output, of a transcoder (Paulo et al. 2025, arXiv:2501.18823).
        seed: Seed of the initial weights.

    Raises:
        UsageError: Sizes that make no sense, or a skip from a place to itself.
    """

    architecture: ClassVar[str] = ""
    unit_norm: ClassVar[bool] = True
    """Whether rows of the decoder are kept at norm 1."""
    initial_norm: ClassVar[float] = 1.0
    model: tuple[str, str] | None = None
    """Name and fingerprint of the model that it was trained on, where that is known; saved with it."""
    text: TextSketch | None = None
    """The text that it was trained on, where that is known; saved with it."""
    normalisation: str | None = None
    """One of `NORMALISATIONS`, which each activation goes through before it is encoded; saved with it."""
    options: ClassVar[tuple[str, ...]] = ()
    """Arguments of the subclass's own, which a checkpoint records."""

    def __init__(
        self,
        d_in: int | Sequence[int],
        d_sae: int,
        *,
        d_out: int | Sequence[int] | None = None,
        reads: Places | None = None,
        writes: Places | None = None,
        scale: float | Sequence[float] = 1.0,
        scale_out: float | Sequence[float] | None = None,
        skip: bool = False,
        transcoder: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.widths_in = _listed(d_in)
        self.widths_out = self.widths_in if d_out is None else _listed(d_out)
        for name, sizes in {"d_in": self.widths_in, "d_sae": (d_sae,), "d_out": self.widths_out}.items():
            if min(sizes, default=0) < 1:
                raise UsageError(f"{name} must be at least 1, got {min(sizes, default=0)}")
        self.d_in, self.d_sae, self.d_out = sum(self.widths_in), d_sae, sum(self.widths_out)
        self.reads, self.writes = reads, reads if writes is None else writes
        self.scale = _scale(scale, self.widths_in)
        self.scale_out = self.scale if scale_out is None else _scale(scale_out, self.widths_out)
        for what, places, widths in (("reads", self.reads, self.widths_in), ("writes", self.writes, self.widths_out)):
            if places is not None and len(listed(places)) != len(widths):
                raise UsageError(f"it {what} {len(listed(places))} places, but there are {len(widths)} widths")
        self.is_transcoder = transcoder or skip or self.reads != self.writes or self.widths_out != self.widths_in
        if not self.is_transcoder and self.scale != self.scale_out:
            raise UsageError("an autoencoder has one scale; scale_out is for transcoders")
        if skip and reads is not None and self.reads == self.writes:
            raise UsageError(f"a skip from {reads} to itself would be the identity; give a transcoder another `writes`")
        self._make_weights(skip, torch.Generator().manual_seed(seed))

    def _make_weights(self, skip: bool, generator: torch.Generator) -> None:
        """Decoder rows in random directions; an autoencoder's encoder begins as their transpose (Gao et al., A.1)."""
        decoder = torch.nn.functional.normalize(torch.randn(self.d_sae, self.d_out, generator=generator), dim=1)
        if self.is_transcoder:
            encoder = torch.nn.functional.normalize(torch.randn(self.d_sae, self.d_in, generator=generator), dim=1)
        else:
            encoder = decoder.clone()
        # The encoder's transpose is contiguous, so that its gradient is made latent by latent.
        self.W_enc = nn.Parameter(self.initial_norm * encoder.t())
        self.b_enc = nn.Parameter(torch.zeros(self.d_sae))
        self.W_dec = nn.Parameter(self.initial_norm * decoder)
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        self.W_skip = nn.Parameter(torch.zeros(self.d_out, self.d_in)) if skip else None

    @property
    def centre(self) -> Tensor | None:
        """What is subtracted from the (scaled) input."""
        return None if self.is_transcoder else self.b_dec

    def units(self, like: Tensor, out: bool = False) -> float | Tensor:
        """What activations read, or (`out`) to be written, are multiplied by: a number, or one for each of theirs."""
        scale, widths = (self.scale_out, self.widths_out) if out else (self.scale, self.widths_in)
        if isinstance(scale, float):
            return scale
        return torch.cat([like.new_full((width,), one) for one, width in zip(scale, widths, strict=True)])

    # Inference: dense, differentiable

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """The codes of activations."""
        x = self._known_width(x)
        x = (x if self.normalisation is None else self.normalised(x).x) * self.units(x)
        x = x if self.centre is None else x - self.centre
        flat = x.reshape(-1, self.d_in) @ self.W_enc
        flat = flat if self.bias is None else flat + self.bias
        return self.activation(Codes(flat)).values.reshape(*x.shape[:-1], self.d_sae)

    def decode(
        self, codes: Float[Tensor, "*batch d_sae"], x: Float[Tensor, "*batch d_in"] | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """What codes write; without the skip of a skip transcoder, which needs the input (`forward` has it).

        Args:
            codes: The codes.
            x: What they are codes of. Needed where the reconstruction gets an activation's own size back.

        Raises:
            UsageError: It is needed and was not given.
        """
        out = (codes @ self.W_dec + self.b_dec) / self.units(codes, out=True)
        if not self.resizes:
            return out
        if x is None:
            raise UsageError(
                f"this dictionary normalises each activation ({self.normalisation}), so that a reconstruction needs "
                f"it, too: decode(codes, x)"
            )
        whole = self.normalised(x)
        return out * whole.size + whole.centre

    def normalised(self, x: Float[Tensor, "*batch d_in"]) -> Normalised:
        """Activations as they are encoded, with what undoes it; only where there is a `normalisation`."""
        assert self.normalisation is not None
        return NORMALISATIONS[self.normalisation](x)

    @property
    def resizes(self) -> bool:
        """Whether what a feature writes depends on the activation; a transcoder normalises its input alone."""
        return self.normalisation is not None and not self.is_transcoder

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The reconstruction of activations, or of what is to be written."""
        out = self.decode(self.encode(x), x)
        if self.W_skip is None:
            return out
        return out + (x * self.units(x)) @ self.W_skip.t() / self.units(x, out=True)

    def _known_width(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.d_in:
            raise UsageError(f"the activations are {x.shape[-1]} wide, but this dictionary reads {self.d_in}")
        return x

    # Training: sparse

    def step(self, batch: Batch, sparsity: float = 1.0, dead: Bool[Tensor, d_sae] | None = None) -> Step:
        """The loss of a batch, already scaled.

        Args:
            batch: Activations.
            sparsity: The share of the sparsity penalty in force, from 0 to 1 (warmup).
            dead: Latents that have not fired for long.
        """
        pre = self.preactivations(batch)
        codes = self.activation(pre)
        loss, error = self.reconstruction(codes, batch)
        terms = {"mse": loss, **self.penalties(batch, pre, codes, error, sparsity, dead)}
        return Step(terms, codes, error)

    def reconstruction(self, codes: Codes, batch: Batch) -> tuple[Tensor, Float[Tensor, "batch d_out"]]:
        """The squared error, summed over the width and averaged over the batch, and the error."""
        error = batch.target - self._written(codes.decoded(self.W_dec), batch)
        return error.square().sum(-1).mean(), error

    def _written(self, decoded: Tensor, batch: Batch) -> Tensor:
        out = decoded + self.b_dec
        return out if self.W_skip is None else out + batch.x @ self.W_skip.t()

    @property
    def bias(self) -> Tensor | None:
        """The bias of the preactivations."""
        return self.b_enc

    def preactivations(self, batch: Batch) -> Codes:
        """``(x - b_dec) @ W_enc + b_enc`` where it matters."""
        return affine(batch.x, self.centre, self.W_enc, self.bias, self.kept)

    def kept(self, pre: Float[Tensor, "some d_sae"]) -> Bool[Tensor, "some d_sae"]:
        """Which preactivations change the loss or get a gradient."""
        return pre > 0

    @abstractmethod
    def activation(self, pre: Codes) -> Codes:
        """Codes of preactivations, dense ones (inference) or those of a pattern (training)."""

    @abstractmethod
    def penalties(
        self, batch: Batch, pre: Codes, codes: Codes, error: Tensor, sparsity: float, dead: Tensor | None
    ) -> dict[str, Tensor]:
        """Further terms of the loss, by name."""

    def after_update(self) -> None:
        """Called after each step of the optimiser."""
        if self.unit_norm:
            self.normalise()

    @torch.no_grad()
    def normalise(self) -> None:
        """Sets every row of the decoder to norm 1."""
        for rows in self.W_dec.split(_ROWS):
            rows.div_(rows.norm(dim=1, keepdim=True).clamp_min(1e-12))

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Removes what in the decoder's gradient would change its rows' norms (Bricken et al. 2023)."""
        if self.unit_norm and self.W_dec.grad is not None:
            for rows, grad in zip(self.W_dec.split(_ROWS), self.W_dec.grad.split(_ROWS), strict=True):
                along = torch.linalg.vecdot(grad, rows) / torch.linalg.vecdot(rows, rows).clamp_min(1e-24)
                grad.addcmul_(rows, along[:, None], value=-1)

    # Files

    def settings(self) -> dict[str, Any]:
        """The arguments that make this dictionary again, except for its weights."""
        shared = {
            "d_in": self.d_in if len(self.widths_in) == 1 else self.widths_in,
            "d_sae": self.d_sae,
            "d_out": self.d_out if len(self.widths_out) == 1 else self.widths_out,
            "reads": spelled(self.reads),
            "writes": spelled(self.writes),
            "scale": self.scale,
            "scale_out": self.scale_out,
            "skip": self.W_skip is not None,
            "transcoder": self.is_transcoder,
        }
        return shared | {name: getattr(self, name) for name in self.options}

    def check_model(self, fingerprint: str) -> None:
        """Refuses a model with other weights than those that it was trained on, where these are known.

        Raises:
            UsageError: The model is another one.
        """
        if self.model is not None and self.model[1] != fingerprint:
            raise UsageError(
                f"this dictionary was trained on {self.model[0]} with the fingerprint {self.model[1]}, the model has "
                f"{fingerprint}; take a dictionary of this model, or set dictionary.model = None to use it all the same"
            )

    def save(self, directory: str | os.PathLike[str], **metadata: Any) -> None:
        """Writes ``cfg.json`` and ``sae_weights.safetensors`` in SAELens's layout, see `formats.saelens`."""
        from interp.features.formats.saelens import save

        known = {} if self.model is None else {"model_name": self.model[0], "model_fingerprint": self.model[1]}
        known |= {} if self.text is None else {"dataset_path": self.text.source}
        save(self, directory, **{**known, **metadata})

    @classmethod
    def load(cls, directory: str | os.PathLike[str], norm_scaling_factor: float | None = None) -> Dictionary:
        """Reads a directory in SAELens's layout.

        Args:
            directory: Where.
            norm_scaling_factor: What SAELens's ``expected_average_only_in`` multiplies activations by, if the files
                don't say; see `formats.saelens.load`.

        Raises:
            UsageError: The directory holds a dictionary of another architecture than this class.
            InterpError: Files are missing or damaged.
        """
        from interp.features.formats.saelens import load

        dictionary = load(directory, norm_scaling_factor)
        if not isinstance(dictionary, cls):
            raise UsageError(
                f"{os.fspath(directory)} holds a {dictionary.architecture} dictionary, "
                f"not {cls.architecture}; load it with Dictionary.load"
            )
        return dictionary


_ROWS = 256
"""Rows of the decoder handled at once, so that they stay in cache."""


def _listed(widths: int | Sequence[int]) -> tuple[int, ...]:
    return (widths,) if isinstance(widths, int) else tuple(widths)


def _scale(scale: float | Sequence[float], widths: Sequence[int]) -> float | tuple[float, ...]:
    """One scale, or one for each place where they differ.

    Raises:
        UsageError: Not a positive finite number, or another number of them than of places.
    """
    scales = tuple(float(one) for one in scale) if isinstance(scale, Sequence) else (float(scale),)
    if not all(0 < one < float("inf") for one in scales):
        raise UsageError(f"scales must be positive and finite, got {scale}")
    if len(scales) not in (1, len(widths)):
        raise UsageError(f"there are {len(scales)} scales for {len(widths)} places")
    return scales[0] if len(set(scales)) == 1 else scales
