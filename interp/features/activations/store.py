"""Stores of activations: on disk, or made as they are read."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.errors import InterpError, UsageError
from interp.features.activations import shards as files
from interp.features.activations.base import Activations, totals
from interp.features.activations.rows import LAYOUT

__all__ = ["ActivationStore", "ActivationStream"]


class ActivationStore(Activations):
    """Activations on disk. Open one with `ActivationStore.open`; `interp.features.harvest` makes it."""

    def __init__(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        shards: Sequence[files.Shard],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(manifest, [shard.tokens for shard in shards], device)
        self.folder, self.shards = folder, list(shards)
        self._sound: set[int] = set()

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        model: Any = None,
        *,
        any_model: bool = False,
        skip_corrupted: bool = False,
        incomplete: bool = False,
    ) -> ActivationStore:
        """Opens a store for reading.

        Args:
            directory: its folder.
            model: the model (or its fingerprint) that the activations are to be used with; batches lie where it is.
            any_model: take them although they are another model's.
            skip_corrupted: read all shards through now and leave out those that are damaged, with a warning that names
                them. Otherwise each is checked when it is first read.
            incomplete: take a store whose harvest has not come to its end.

        Raises:
            UsageError: activations of another model.
            InterpError: no store, one that is not complete, or a damaged shard.
        """
        folder = Path(directory)
        manifest, shards = files.read_manifest(folder)
        _same_model(manifest, model, any_model)
        if len(shards) < manifest["n_shards"] and not incomplete:
            raise InterpError(
                f"the harvest into {folder} stopped after {len(shards)} of {manifest['n_shards']} shards; call harvest "
                "again with the same arguments to go on, or open it with incomplete=True"
            )
        places = manifest["places"]
        bad = [found for shard in shards if (found := files.damage(folder, shard, places, whole=skip_corrupted))]
        if bad and not skip_corrupted:
            raise InterpError(f"{bad[0]}; {_REPAIR}")
        if bad:
            warnings.warn(f"left out {len(bad)} of {len(shards)} shards: {'; '.join(bad)}", stacklevel=2)
            shards = [shard for shard in shards if not files.damage(folder, shard, places, whole=True)]
        if not shards:
            raise InterpError(f"{folder} holds no shard that can be read; harvest again")
        weight = next(model.parameters(), None) if hasattr(model, "parameters") else None
        return cls(folder, manifest, shards, "cpu" if weight is None else weight.device)

    def load(self, number: int, names: Sequence[str]) -> dict[str, Tensor]:
        shard = self.shards[number]
        if number not in self._sound:
            if found := files.damage(self.folder, shard, self.manifest["places"], whole=True):
                raise InterpError(f"{found}; {_REPAIR}")
            self._sound.add(number)
        return files.load(self.folder, shard, names)

    def _sum_up(self, name: str) -> tuple[Tensor, float, int]:
        sums = [self.load(number, [f"sum.{name}"])[f"sum.{name}"] for number in range(len(self.shards))]
        return torch.stack(sums).sum(0), sum(shard.norms[name] for shard in self.shards), self.n_tokens

    def __getstate__(self) -> dict[str, Any]:
        """Another process may stand in another folder."""
        return {**vars(self), "folder": self.folder.resolve()}

    def __repr__(self) -> str:
        return f"ActivationStore({self.folder}, {self.n_tokens:,} tokens at {', '.join(self.manifest['places'])})"


class ActivationStream(Activations):
    """Activations that are made when they are asked for; nothing is written, and nothing kept but a few shards.

    Args:
        manifest: as a store's.
        sizes: how many activations each part of the text gives.
        make: gives the activations of one part at all places.
        layout: gives one part's tokens, see `interp.features.activations.rows.Rows.layout`.
        device: where the model is.
    """

    def __init__(
        self,
        manifest: Mapping[str, Any],
        sizes: Sequence[int],
        make: Callable[[int], dict[str, Tensor]],
        layout: Callable[[int], dict[str, Tensor]],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(manifest, sizes, device)
        self._make, self._layout = make, layout

    def load(self, number: int, names: Sequence[str]) -> dict[str, Tensor]:
        made = self._layout(number) if set(names) & set(LAYOUT) else {}
        if set(names) & set(self.manifest["places"]):
            made |= self._make(number)
        return {name: made[name] for name in names}

    def _sum_up(self, name: str) -> tuple[Tensor, float, int]:
        """From the first shard alone, as the others are not made yet."""
        made = self._make(0)
        self._totals |= {place: (*totals(x), len(x)) for place, x in made.items()}
        return self._totals[name]

    def __repr__(self) -> str:
        return f"ActivationStream({self.n_tokens:,} tokens at {', '.join(self.manifest['places'])})"


_REPAIR = (
    "call harvest again with the same arguments to make it anew, or leave it out with "
    "ActivationStore.open(..., skip_corrupted=True)"
)


def _same_model(manifest: Mapping[str, Any], model: Any, any_model: bool) -> None:
    if model is None or any_model:
        return
    from interp.engine.identity import identity

    theirs = model if isinstance(model, str) else identity(model)
    if theirs != manifest["fingerprint"]:
        raise UsageError(
            f"these activations are of {manifest['model']} with the fingerprint {manifest['fingerprint']}, the model "
            f"given has {theirs}; harvest anew with this model, or open them with any_model=True"
        )
