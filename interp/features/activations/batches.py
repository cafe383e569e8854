"""Batches of stored activations in a shuffled order that is the same each time, and can be taken up anywhere.

The shuffle: each epoch takes the shards in a random order, some at a time, and mixes the activations of those. So each
activation comes once an epoch, and two that stand together in a batch come from anywhere in that many shards. Epochs
follow one another without a gap; only the very last batch can be smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.checking import checked, typed
from interp.errors import UsageError

__all__ = ["Batches", "Shards"]


class Shards(Protocol):
    """What batches are made from."""

    sizes: list[int]
    """How many activations each shard holds."""

    def load(self, number: int, names: Sequence[str]) -> dict[str, Tensor]:
        """Some tensors of one shard."""

    def sign(self, dictionary: Any) -> None:
        """Writes into a dictionary what it was trained on."""


class Batches(Iterator[Any]):
    """Batches of activations at one place, or at several at once.

    Args:
        shards: where the activations come from.
        batch_size: activations of a batch.
        places: whose activations; the same tokens' of all.
        single: give the only place's tensor itself and not a dict by place.
        seed: of the shuffle.
        epochs: how often to go through all; None goes on for ever.
        shuffle: or give them in the order in which they were harvested.
        mixed: how many shards are in memory together.
        dtype: of the batches.
        device: where the batches lie.
        about: what else a state has to agree with when it is restored.
    """

    def __init__(
        self,
        shards: Shards,
        batch_size: int,
        places: Sequence[str],
        *,
        single: bool = False,
        seed: int = 0,
        epochs: int | None = 1,
        shuffle: bool = True,
        mixed: int = 8,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        about: Mapping[str, Any] | None = None,
    ) -> None:
        if batch_size < 1 or mixed < 1 or (epochs is not None and epochs < 1):
            raise UsageError(f"batch_size, epochs and mixed must be 1 at least, got {batch_size}, {epochs} and {mixed}")
        self.shards, self.batch_size, self.places, self.single = shards, batch_size, tuple(places), single
        self.seed, self.epochs, self.shuffle, self.mixed = seed, epochs, shuffle, mixed
        self.dtype, self.device = dtype, torch.device(device)
        self._settings = {
            **(about or {}),
            "batch_size": batch_size,
            "places": list(self.places),
            "seed": seed,
            "shuffle": shuffle,
            "mixed": mixed,
        }
        self.per_epoch = sum(shards.sizes)
        self.given = 0
        self.index: Int[Tensor, " batch"] = torch.empty(0, dtype=torch.long)
        """Which activation of the store, in the order of harvesting, each one of the last batch is."""
        self._first = [0, *accumulate(shards.sizes)]
        self._group: tuple[int, int] | None = None
        self._held: dict[str, Tensor] = {}
        self._order = self._at = torch.empty(0, dtype=torch.long)

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Float[Tensor, "batch width"] | dict[str, Float[Tensor, "batch width"]]:
        pieces: list[dict[str, Tensor]] = []
        missing = self.batch_size
        if self.epochs is not None:
            missing = min(missing, self.epochs * self.per_epoch - self.given)
        if missing <= 0 or not self.per_epoch:
            raise StopIteration
        given, index = self.given, []
        while missing:
            start = self._enter(given)
            chosen = self._order[start : start + missing]
            pieces.append({name: self._rows(held, chosen) for name, held in self._held.items()})
            index.append(self._at[chosen])
            given, missing = given + len(chosen), missing - len(chosen)
        self.given, self.index = given, torch.cat(index)
        batch = {name: torch.cat([p[name] for p in pieces]).to(self.dtype) for name in self.places}
        return batch[self.places[0]] if self.single else batch

    def sign(self, dictionary: Any) -> None:
        """Writes into a dictionary which model's activations, and which text, it was trained on."""
        self.shards.sign(dictionary)

    def state(self) -> dict[str, Any]:
        """What to keep, of JSON's types, so that `restore` can go on behind the last batch given."""
        return {**self._settings, "given": self.given}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where a state was taken: the next batch is the one that came next then.

        Raises:
            UsageError: the state is of batches of another store or of other settings.
        """
        state = typed(state, dict, "the state of the batches")
        for name, mine in self._settings.items():
            if state.get(name) != mine:
                raise UsageError(f"the state is of batches with {name} {state.get(name)!r}, here it is {mine!r}")
        self.given = checked(state, "given", int, "the state of the batches", least=0)

    def _enter(self, given: int) -> int:
        """Loads the shards that the next activation is in, and says which one of their mixture it is."""
        epoch, start = divmod(given, self.per_epoch)
        order = self._permutation(len(self.shards.sizes), epoch, 0).tolist()
        group = 0
        while start >= (size := self._size(members := order[group * self.mixed :][: self.mixed])):
            group, start = group + 1, start - size
        if self._group != (epoch, group):
            self._load(members)
            self._order = self._permutation(size, epoch, group + 1)
            self._group = (epoch, group)
        return start

    def _rows(self, held: Float[Tensor, "n width"], chosen: Int[Tensor, " some"]) -> Float[Tensor, "some width"]:
        """Some activations, gathered where they are held and then moved, without waiting where memory can be pinned."""
        out = torch.empty(
            len(chosen), *held.shape[1:], dtype=held.dtype, device=held.device, pin_memory=self._pinned(held)
        )
        return torch.index_select(held, 0, chosen.to(held.device), out=out).to(self.device, non_blocking=True)

    def _pinned(self, held: Tensor) -> bool:
        return held.is_cpu and self.device.type != "cpu" and torch.accelerator.is_available()

    def _size(self, members: Sequence[int]) -> int:
        return sum(self.shards.sizes[number] for number in members)

    def _permutation(self, n: int, epoch: int, which: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(n)
        return torch.from_numpy(np.random.default_rng([self.seed, epoch, which]).permutation(n))

    def _load(self, members: Sequence[int]) -> None:
        total, self._held, self._group, at = self._size(members), {}, None, 0
        for number in members:
            for name, x in self.shards.load(number, self.places).items():
                if name not in self._held:
                    self._held[name] = torch.empty(total, *x.shape[1:], dtype=x.dtype, device=x.device)
                self._held[name][at : at + len(x)] = x
            at += self.shards.sizes[number]
        self._at = torch.cat([torch.arange(self._first[i], self._first[i + 1]) for i in members])
