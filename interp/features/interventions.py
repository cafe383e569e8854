"""Features steered, ablated and clamped, in a run of the model and in `interp.patching.intervene`.

An edit changes some features and leaves the rest of the activation alone: what the dictionary does not reconstruct
is kept, unless it is asked to go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.forward import Visitor, Walk
from interp.engine.parts import Parts
from interp.engine.verify import verified
from interp.errors import UsageError
from interp.features.judging.splice import decode, encode, places, sized
from interp.features.place import MLP_IN
from interp.graph import SITES
from interp.tasks.tokens import Encoder

__all__ = ["Edit", "Intervening", "ablate", "clamp", "functions", "logit_change", "steer", "strongest"]


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of some features of one dictionary; made by `steer`, `ablate` and `clamp`.

    Args:
        dictionary: Anything with `encode`, `decode`, `W_dec`, `scale_out`, and the places `reads` and `writes`.
        features: The features that change.
        change: From their activations "batch pos feature" to the new ones.
        reads: The new activations depend on the old ones, so that the dictionary must read.
        error: Keep what the dictionary does not reconstruct.
        positions: Where the change is made; None for all positions.
    """

    dictionary: Any
    features: tuple[int, ...]
    change: Callable[[Tensor], Tensor]
    reads: bool = True
    error: bool = True
    positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        size = len(self.dictionary.W_dec)
        bad = [feature for feature in self.features if not 0 <= feature < size]
        if bad or not self.features or len(set(self.features)) < len(self.features):
            raise UsageError(f"features must be different numbers from 0 to {size - 1}, got {list(self.features)}")
        if self.positions is not None and (not self.positions or min(self.positions) < 0):
            raise UsageError(f"positions are counted from 0, got {list(self.positions)}")

    @property
    def needs_reading(self) -> bool:
        """Whether the new activation depends on what the dictionary reads."""
        return self.reads or not self.error or getattr(self.dictionary, "resizes", False)

    def __call__(
        self, read: Float[Tensor, "batch pos d_in"] | None, written: Float[Tensor, "batch pos d_out"]
    ) -> Float[Tensor, "batch pos d_out"]:
        """The new activation where the dictionary writes, from the first position on.

        Args:
            read: What the dictionary reads; not looked at unless `needs_reading`.
            written: What the model has where it writes.
        """
        new = self._changed(read, written)
        if self.positions is None:
            return new
        at = [position for position in self.positions if position < written.shape[1]]
        out = written.clone()
        out[:, at] = new[:, at]
        return out

    def _changed(self, read: Tensor | None, written: Tensor) -> Tensor:
        columns, weight = list(self.features), self.dictionary.W_dec.detach()
        if read is None or not self.needs_reading:
            before = torch.zeros(*written.shape[:2], len(columns), dtype=weight.dtype, device=weight.device)
        else:
            features = encode(self.dictionary, read)
            before = features[..., columns]
        after = self.change(before)
        if not self.error and read is not None:
            features = features.clone()
            features[..., columns] = after
            return decode(self.dictionary, features, read)
        step = sized(self.dictionary, (after - before) @ weight[columns], read)
        return written + step.to(written.device, written.dtype)


def steer(
    dictionary: Any,
    feature: int,
    coefficient: float,
    *,
    error: bool = True,
    positions: Iterable[int] | None = None,
) -> Edit:
    """Adds to a feature: `coefficient` times its decoder row goes into the activation, whatever is there.

    Args:
        dictionary: The dictionary.
        feature: Its number.
        coefficient: In units of the feature's activation.
        error: Keep what the dictionary does not reconstruct.
        positions: Where; all by default.

    Raises:
        UsageError: No such feature, or a negative position.

    Reference: Templeton et al. 2024, "Scaling Monosemanticity", section on feature steering.

    Example:
        >>> intervene(model, task, functions(model, steer(sae, 12, 8.0)))     # doctest: +SKIP
    """
    return Edit(dictionary, (int(feature),), lambda f: f + coefficient, False, error, _some(positions))


def ablate(
    dictionary: Any, features: int | Sequence[int], *, error: bool = True, positions: Iterable[int] | None = None
) -> Edit:
    """Sets features to 0; one that is inactive changes nothing. Arguments and errors as in `steer`."""
    chosen = (features,) if isinstance(features, int) else tuple(int(feature) for feature in features)
    return Edit(dictionary, chosen, torch.zeros_like, True, error, _some(positions))


def clamp(
    dictionary: Any, feature: int, value: float, *, error: bool = True, positions: Iterable[int] | None = None
) -> Edit:
    """Holds a feature at `value`, whether it is active or not. Arguments and errors as in `steer`."""
    return Edit(dictionary, (int(feature),), lambda f: torch.full_like(f, value), True, error, _some(positions))


def functions(model: TransformerBridge, *edits: Edit) -> dict[str, Callable[[Tensor], Tensor]]:
    """Edits as functions of activations, by node: what `interp.patching.intervene` takes.

    A dictionary that reads elsewhere than it writes has a function there, too, which only looks. Edits at one place
    are made one after the other. The functions belong to one run at a time.

    Raises:
        UsageError: No edit, or a dictionary that does not fit the model.
    """
    return {f"{site}.{layer}": function for (site, layer), function in _functions(verified(model), edits).items()}


class Intervening(Visitor):
    """Makes edits in a walk that begins at the first position.

    Raises:
        UsageError: No edit, or a dictionary that does not fit the model.
    """

    def __init__(self, parts: Parts, *edits: Edit) -> None:
        self.functions = _functions(parts, edits)

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        function = self.functions.get((site, layer))
        return x if function is None else function(x)


@torch.no_grad()
def logit_change(
    model: TransformerBridge, tokens: Int[Tensor, "batch pos"], *edits: Edit, at: int = -1
) -> Float[Tensor, "batch vocab"]:
    """What edits do to the logits at one position: edited minus clean.

    Args:
        model: Any bridge.
        tokens: Token ids.
        *edits: Made together.
        at: The position; the last by default.

    Raises:
        UsageError: No edit, no such position, or a dictionary that does not fit the model.
    """
    if not -tokens.shape[1] <= at < tokens.shape[1]:
        raise UsageError(f"position {at} is out of range: the texts have {tokens.shape[1]} positions")
    parts = verified(model)
    tokens = tokens.to(parts.device)[:, : at % tokens.shape[1] + 1]
    walk = Walk(parts, tokens.shape[1])
    changed, clean = (
        parts.logits(walk(walk.embed(tokens), visitor)[:, -1]) for visitor in (Intervening(parts, *edits), Visitor())
    )
    return changed - clean


def strongest(model: TransformerBridge, change: Float[Tensor, "batch vocab"], k: int = 10) -> pd.DataFrame:
    """The tokens whose logits rose and fell most in the mean over texts: columns ``token``, ``id``, ``change``."""
    mean = change.double().mean(0).cpu()
    order = mean.sort(descending=True, stable=True).indices.tolist()
    chosen = order if len(order) <= 2 * k else order[:k] + order[-k:]
    names = Encoder(model).decode(tuple(chosen))
    return pd.DataFrame({"token": names, "id": chosen, "change": mean[chosen].numpy()})


def _some(positions: Iterable[int] | None) -> tuple[int, ...] | None:
    return None if positions is None else tuple(int(position) for position in positions)


def _functions(parts: Parts, edits: Sequence[Edit]) -> dict[tuple[str, int], Callable[[Tensor], Tensor]]:
    """What edits do at each site, in the order of computation."""
    if not edits:
        raise UsageError("give one edit at least, e.g. steer(dictionary, feature, coefficient)")
    at: dict[tuple[str, int], list[Callable[[Tensor], Tensor]]] = {}
    for edit in edits:
        reads, writes = places(edit.dictionary, parts.graph)
        seen: dict[str, Tensor] = {}
        if edit.needs_reading and reads != writes:
            at.setdefault(_shown(reads, parts), []).append(_looking(parts, reads, seen))
        at.setdefault((writes.site, writes.layer), []).append(_writing(edit, reads == writes, seen))
    order = sorted(at, key=lambda place: (place[1], SITES.index(place[0])))
    return {place: _one_after_the_other(at[place]) for place in order}


def _shown(place: Any, parts: Parts) -> tuple[str, int]:
    """The site that shows what a dictionary reads: before the norm, if that is what the MLP reads."""
    if place.site != MLP_IN:
        return place.site, place.layer
    return ("resid_pre" if parts.graph.parallel else "resid_mid"), place.layer


def _looking(parts: Parts, place: Any, seen: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def look(x: Tensor) -> Tensor:
        seen["read"] = parts.blocks[place.layer].ln2(x) if place.site == MLP_IN else x.flatten(2)
        return x

    return look


def _writing(edit: Edit, same: bool, seen: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def write(x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return edit(flat if same else seen.get("read"), flat).reshape(x.shape)

    return write


def _one_after_the_other(steps: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    def all_of_them(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return all_of_them
