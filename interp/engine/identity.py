"""Where numbers come from: a model's fingerprint, not read anew for every array, and the libraries' versions."""

from __future__ import annotations

import importlib.metadata
import warnings
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.models._fingerprint import digest, joined, weights_of
from interp.results.confirming import asked

__all__ = ["confirm", "exactly", "identity", "versions"]

_SAMPLED = 256


@dataclass(frozen=True)
class _Seen:
    """One weight as it was when its digest was taken."""

    tensor: weakref.ref[Tensor]
    mark: tuple[int, int, bytes]
    bits: int
    digest: str


_known: weakref.WeakKeyDictionary[TransformerBridge, dict[str, _Seen]] = weakref.WeakKeyDictionary()


def identity(model: TransformerBridge) -> str:
    """The model's `fingerprint`, of which each weight's part is read anew only when that weight has changed.

    A weight counts as unchanged if it is the same tensor at the same place, has not been written to since as far as
    torch counts, and 256 of its values are what they were (which is where a change behind torch's back through
    ``.data`` shows, unless it is of a few elements: those are found when something is saved, see `confirm`). This
    takes some milliseconds, on the model's device.
    """
    weights = weights_of(model)
    seen = _known.setdefault(model, {})
    for name in seen.keys() - weights.keys():
        del seen[name]
    for (name, weight), mark in zip(weights.items(), _marks(weights), strict=True):
        before = seen.get(name)
        if before is None or before.tensor() is not weight or before.mark != mark:
            seen[name] = _Seen(weakref.ref(weight), mark, _bits(weight), digest(weight))
    return joined(model.cfg, {name: one.digest for name, one in seen.items()})


def exactly(model: TransformerBridge) -> str:
    """A name for these weights to the last bit, for what may only go on in the very same model."""
    bits = {name: (str(weight.dtype), _bits(weight)) for name, weight in weights_of(model).items()}
    return f"{identity(model)} {sorted(bits.items())}"


def confirm(fingerprint: str) -> None:
    """Read every weight of the models of this fingerprint, before something is saved under it.

    The sum of a weight's bits taken as integers changes with any single change. A weight that has another one although
    neither torch's count nor the sampled values told of a change was written to through ``.data``; this warns, and the
    model's next fingerprint is read anew.
    """
    for model, seen in list(_known.items()):
        if not seen or joined(model.cfg, {name: one.digest for name, one in seen.items()}) != fingerprint:
            continue
        weights = {name: one.tensor() for name, one in seen.items()}
        alive = {name: weight for name, weight in weights.items() if weight is not None}
        silently = [
            name
            for (name, weight), mark in zip(alive.items(), _marks(alive), strict=True)
            if mark == seen[name].mark and _bits(weight) != seen[name].bits
        ]
        for name in silently:
            del seen[name]
        if silently:
            warnings.warn(
                f"{silently[0]} of {model.cfg.model_name} was changed through .data after the fingerprint "
                f"{fingerprint} was taken; what is saved bears it, and belongs to other weights if it was computed "
                "after the change: change weights in place under torch.no_grad(), which is noticed at once",
                stacklevel=4,
            )


asked.append(confirm)


def versions() -> dict[str, str]:
    """Of the libraries that numbers may depend on."""
    return {name: importlib.metadata.version(name) for name in ("interp", "transformer-lens", "transformers", "torch")}


def _marks(weights: dict[str, Tensor]) -> list[tuple[int, int, bytes]]:
    """Where each weight lies, how often it was written to, and some of its bytes; one transfer a device and type."""
    some = {name: _flat(weight)[:: max(1, weight.numel() // _SAMPLED)] for name, weight in weights.items()}
    together: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    for name, sample in some.items():
        together.setdefault((sample.device, sample.dtype), []).append(name)
    content: dict[str, bytes] = {}
    for names in together.values():
        joint = torch.cat([some[name] for name in names]).cpu()
        for name, sample in zip(names, joint.split([len(some[name]) for name in names]), strict=True):
            content[name] = sample.contiguous().view(torch.uint8).numpy().tobytes()
    return [(weight.data_ptr(), _writes(weight), content[name]) for name, weight in weights.items()]


def _writes(weight: Tensor) -> int:
    return 0 if weight.is_inference() else weight._version


def _bits(weight: Tensor) -> int:
    """The sum of the bits, taken as integers, on the weight's device."""
    whole = _flat(weight).view(torch.uint8)
    words = whole[: len(whole) // 8 * 8]
    aligned = words.view(torch.int64) if words.storage_offset() % 8 == 0 else words
    return int(aligned.sum()) + int(whole[len(words) :].sum())


def _flat(weight: Tensor) -> Tensor:
    return weight.detach().contiguous().view(-1)
