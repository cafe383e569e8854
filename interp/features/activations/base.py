"""What a store and a stream of activations have in common: batches, means, scales, and where a token stood."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from interp.errors import UsageError, unknown_name
from interp.features.activations.batches import Batches
from interp.features.activations.rows import LAYOUT
from interp.features.overlap import TextSketch, sketch
from interp.features.place import Place

__all__ = ["Activations", "Origin", "totals"]


@dataclass(frozen=True, eq=False)
class Origin:
    """Where activations come from: token id, the document's number in the source, position in the model's input."""

    token: Int[Tensor, " n"]
    document: Int[Tensor, " n"]
    position: Int[Tensor, " n"]


class Activations(ABC):
    """Activations of a model at some places, of the same tokens at each. Made by `interp.features.harvest`.

    Args:
        manifest: the model and its fingerprint, the places, the corpus and the settings, of JSON's types.
        sizes: how many activations each shard holds.
        device: where batches lie unless they are asked for elsewhere: where the model is.
    """

    def __init__(self, manifest: Mapping[str, Any], sizes: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.manifest, self.sizes, self.device = manifest, list(sizes), torch.device(device)
        self._first = torch.tensor([0, *accumulate(self.sizes)])
        self._totals: dict[str, tuple[Tensor, float, int]] = {}

    @abstractmethod
    def load(self, number: int, names: Sequence[str]) -> dict[str, Tensor]:
        """Some tensors of one shard: places' activations "n width", and of `rows.LAYOUT`."""

    @property
    def places(self) -> list[Place]:
        """Where the activations were read."""
        return [Place.parse(name) for name in self.manifest["places"]]

    @property
    def n_tokens(self) -> int:
        """How many activations there are of each place."""
        return sum(self.sizes)

    def width(self, place: Place | str | None = None) -> int:
        """How many numbers an activation has."""
        return int(self.manifest["places"][self._name(place)]["width"])

    def check(self, place: Place | str, width: int) -> None:
        """Refuses a place that was not harvested, or that has another width than a dictionary reads.

        Raises:
            UsageError: one of those.
        """
        if self.width(place) != width:
            raise UsageError(f"activations at {self._name(place)} have {self.width(place)} numbers, {width} are wanted")

    def batches(
        self,
        batch_size: int,
        place: Place | str | Sequence[Place | str] | None = None,
        seed: int = 0,
        epochs: int | None = 1,
        *,
        shuffle: bool = True,
        mixed: int = 8,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Batches:
        """Batches in a shuffled order, see `interp.features.activations.batches`; the same call gives the same ones.

        Args:
            batch_size: activations of a batch.
            place: of which place, giving tensors "batch width"; of several, giving dicts by place's name (a
                transcoder's input and output); may be left out where there is only one.
            seed: of the shuffle.
            epochs: how often to go through all; None goes on for ever.
            shuffle: or give them in the order in which they were harvested.
            mixed: how many shards are mixed, and in memory, together.
            dtype: of the batches.
            device: where the batches lie; None for where the model is that was harvested, or with which the store was
                opened.

        Returns:
            An iterator with `state`, `restore`, and `index`, which says which activations the last batch holds.

        Raises:
            UsageError: a place that was not harvested, or sizes below 1.
        """
        single = place is None or isinstance(place, Place | str)
        chosen = [self._name(one) for one in ([place] if place is None or isinstance(place, Place | str) else place)]
        about = {"corpus": self.manifest["corpus"]["sha256"], "n_tokens": self.n_tokens}
        return Batches(
            self,
            batch_size,
            chosen,
            single=single,
            seed=seed,
            epochs=epochs,
            shuffle=shuffle,
            mixed=mixed,
            dtype=dtype,
            device=self.device if device is None else device,
            about={**about, "model": self.manifest["fingerprint"]},
        )

    def mean(self, place: Place | str | None = None) -> Float[Tensor, " width"]:
        """The mean activation."""
        total, _, n = self._total(self._name(place))
        return (total / n).float()

    def scale(self, place: Place | str | None = None) -> float:
        """What to multiply activations by so that their norms are the root of their width on average.

        Returns:
            sqrt(width) / E[norm]. Tokens at the start, which can have enormous norms, count like all others; leave
            them out of the harvest with ``exclude_special=True`` if they shall not.

        Reference:
            Conerly et al., "Update on how we train SAEs", Transformer Circuits, April 2024: E[norm] = sqrt(width).
        """
        name = self._name(place)
        _, norms, n = self._total(name)
        return math.sqrt(self.width(name)) * n / norms

    def sketch(self) -> TextSketch:
        """Of the text that was run, so that a dictionary knows it again."""

        def pieces() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for number in range(len(self.sizes)):
                layout = self.load(number, ("tokens", "edges"))
                lengths = layout["edges"].diff().numpy()
                yield layout["tokens"].numpy(), np.repeat(np.arange(len(lengths)), lengths)

        about = self.manifest["corpus"]
        half = f", {about['split']}" if about.get("split") else ""
        return sketch(pieces(), about["source"] + half)

    def sign(self, dictionary: Any) -> None:
        """Writes into a dictionary which model's activations, and which text, it was trained on."""
        dictionary.model = (self.manifest["model"], self.manifest["fingerprint"])
        found = self.sketch()
        dictionary.text = found if dictionary.text is None else dictionary.text | found

    def origin(self, index: Int[Tensor, " n"]) -> Origin:
        """Where some activations come from, by their index in the order of harvesting (`Batches.index`)."""
        found = torch.empty(3, len(index), dtype=torch.long)
        for chosen, local, layout in self._by_shard(index):
            here = (layout["edges"][layout["row"]] + layout["position"])[local]
            found[:, chosen] = torch.stack(
                [layout["tokens"][here], layout["documents"][here], layout["position"][local]]
            ).long()
        return Origin(*found)

    def contexts(self, index: Int[Tensor, " n"], before: int, after: int = 0) -> Int[Tensor, "n context"]:
        """Token ids around some activations' tokens: `before` of them, its own, `after` more; -1 where the row ends."""
        window = torch.arange(-before, after + 1)
        found = torch.full((len(index), len(window)), -1, dtype=torch.long)
        for chosen, local, layout in self._by_shard(index):
            row = layout["row"][local]
            begin, end = (layout["edges"][row + i].long()[:, None] for i in (0, 1))
            at = begin + layout["position"][local].long()[:, None] + window
            tokens = layout["tokens"][at.clamp(0, len(layout["tokens"]) - 1)].long()
            found[chosen] = tokens.masked_fill((at < begin) | (at >= end), -1)
        return found

    def _by_shard(self, index: Tensor) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """For each shard that is touched: which of the index it has, which of its activations, and its layout."""
        index = index.cpu()
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.n_tokens:
            raise UsageError(
                f"activations are numbered 0 to {self.n_tokens - 1}, got {int(index.min())} to {int(index.max())}"
            )
        owner = torch.searchsorted(self._first, index, right=True) - 1
        for number in owner.unique().tolist():
            chosen = (owner == number).nonzero().squeeze(1)
            yield chosen, index[chosen] - self._first[number], self.load(number, LAYOUT)

    def _total(self, name: str) -> tuple[Tensor, float, int]:
        if name not in self._totals:
            self._totals[name] = self._sum_up(name)
        return self._totals[name]

    @abstractmethod
    def _sum_up(self, name: str) -> tuple[Tensor, float, int]:
        """The sum of the activations at a place, the sum of their norms, and of how many."""

    def _name(self, place: Place | str | None) -> str:
        known = list(self.manifest["places"])
        if place is None and len(known) == 1:
            return known[0]
        if place is None:
            raise UsageError(f"activations of several places are here, name one: {', '.join(known)}")
        name = str(Place.parse(place) if isinstance(place, str) else place)
        if name not in known:
            raise unknown_name("place in this store", name, known)
        return name


def totals(x: Float[Tensor, "n width"]) -> tuple[Float64[Tensor, " width"], float]:
    """The sum of activations, and the sum of their norms."""
    norms = torch.linalg.vector_norm(x, dim=1, dtype=torch.float32)
    return x.sum(0, dtype=torch.float64).cpu(), float(norms.sum(dtype=torch.float64))
