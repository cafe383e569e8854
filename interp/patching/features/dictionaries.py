"""Dictionaries standing in a model: what their features and their error write in a run, as nodes with names.

What the model has where a dictionary writes is the sum of what each feature writes (its activation times its decoder
row), of the decoder's bias, and of the *error*, what the dictionary does not reconstruct. A skip transcoder's skip
connection writes, too. Each of these but the bias is a node: ``resid_post.15.f17``, ``resid_post.15.error``,
``mlp_out.3.skip``. Together they make up all of the difference between two runs at that place.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.engine.parts import Parts
from interp.errors import UsageError
from interp.graph import SITES, Node

__all__ = ["Chosen", "FeatureNode", "NodeName", "Standing", "State", "difference", "find", "standing"]

Values = Mapping[tuple[str, int], Tensor]


@dataclass(frozen=True)
class NodeName:
    """A feature, error or skip node: the dictionary's name, ``f17``, ``error`` or ``skip``, and perhaps a position."""

    dictionary: str
    part: str
    position: int | None = None

    @classmethod
    def parse(cls, text: str) -> NodeName:
        """Reads ``resid_post.15.f17``, ``resid_post.15.error`` or, at one position only, ``resid_post.15.f17@4``.

        Raises:
            UsageError: The text is no such name.
        """
        if match := re.fullmatch(r"(.+)\.(f\d{1,9}|error|skip)(?:@(\d{1,9}))?", text):
            return cls(match[1], match[2], None if match[3] is None else int(match[3]))
        raise UsageError(
            f"{text!r} names no node of a dictionary; write resid_post.15.f17 (a feature) or resid_post.15.error"
        )

    def __str__(self) -> str:
        return f"{self.dictionary}.{self.part}" + ("" if self.position is None else f"@{self.position}")

    @property
    def is_feature(self) -> bool:
        return self.part not in ("error", "skip")


@dataclass(frozen=True)
class FeatureNode(Node):
    """The place where a dictionary writes, of which only one feature's, the error's or the skip's share is meant."""

    name: str = ""
    number: int = 0
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.name} of {self.digest}"


@dataclass(frozen=True, eq=False)
class State:
    """What a dictionary's nodes are in a run.

    Attributes:
        features: The features' activations.
        rest: What the error (and the skip connection) write.
    """

    features: Float[Tensor, "batch pos d_sae"]
    rest: dict[str, Float[Tensor, "batch pos d_out"]]

    def __getitem__(self, where: Any) -> State:
        return State(self.features[where], {part: x[where] for part, x in self.rest.items()})


class Standing:
    """One dictionary at its places in a model.

    Args:
        name: What its nodes' names begin with.
        dictionary: Anything with `encode`, `decode`, `W_dec`, and the places `reads` and `writes`.
        parts: The model.

    Raises:
        UsageError: The dictionary does not fit the model.
    """

    def __init__(self, name: str, dictionary: Any, parts: Parts) -> None:
        # Dictionaries belong to interp.features, which is not loaded for those who patch without any.
        from interp.features.judging.splice import placed, places, scale_out
        from interp.features.place import MLP_IN

        self.name, self.dictionary, self.parts = name, placed(dictionary, parts.device), parts
        self.reads, self.writes = places(dictionary, parts.graph)
        self.normed = self.reads.site == MLP_IN
        self.read_at = ("mlp_port" if self.normed else self.reads.site, self.reads.layer)
        self.at = (self.writes.site, self.writes.layer)
        self.size, self.scale = len(dictionary.W_dec), scale_out(dictionary)
        self.rest = ("error",) if getattr(dictionary, "W_skip", None) is None else ("error", "skip")

    @property
    def parts_of_nodes(self) -> list[str]:
        """``f0``, ``f1``, ..., ``error``: the last parts of its nodes' names."""
        return [f"f{feature}" for feature in range(self.size)] + list(self.rest)

    @property
    def nodes(self) -> list[str]:
        """The names of its nodes."""
        return [f"{self.name}.{part}" for part in self.parts_of_nodes]

    @property
    def rows(self) -> Float[Tensor, "d_sae d_out"]:
        """What one unit of each feature writes."""
        return self.dictionary.W_dec.detach() / self.scale

    def digest(self) -> str:
        """A hash of the decoder's and encoder's weights, to tell dictionaries apart."""
        found = hashlib.sha256(f"{self.reads} {self.writes} {self.scale}".encode())
        for weight in ("W_dec", "W_enc"):
            if (tensor := getattr(self.dictionary, weight, None)) is not None:
                found.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()[:16]

    def read(self, x: Tensor) -> Float[Tensor, "batch pos d_in"]:
        """What it reads, of the activation that a walk shows at `read_at`."""
        return self.parts.blocks[self.reads.layer].ln2(x) if self.normed else x.flatten(2)

    def state(self, read: Float[Tensor, "batch pos d_in"], written: Float[Tensor, "batch pos d_out"]) -> State:
        """Its nodes in a run, from what it reads and what the model has where it writes."""
        from interp.features.judging.splice import decode, encode

        features = encode(self.dictionary, read)
        rest = {"error": written - decode(self.dictionary, features, read)}
        if "skip" in self.rest:
            nothing = torch.zeros_like(features)
            bias = decode(self.dictionary, nothing[:1, :1], torch.zeros_like(read[:1, :1]))
            rest["skip"] = decode(self.dictionary, nothing, read) - bias
        return State(features, rest)

    def state_of(self, values: Values) -> State:
        """Its nodes in a run whose activations were recorded at `read_at` and `at`."""
        written = values[self.at].flatten(2)
        # In the last block a walk computes only the positions that are read.
        return self.state(self.read(values[self.read_at])[:, -written.shape[1] :], written)

    def effects(self, change: State, flow: Tensor) -> Float[Tensor, "batch pos node"]:
        """The inner product of each node's change in what it writes with what flows back to where it is written."""
        flow = flow.flatten(2)
        weight = self.dictionary.W_dec.detach()
        slopes = flow.to(weight.device, weight.dtype) @ weight.T / self.scale
        rest = torch.stack([torch.linalg.vecdot(change.rest[part], flow) for part in self.rest], -1)
        return torch.cat([(change.features * slopes).to(flow.device, flow.dtype), rest], -1)

    def step(self, change: State, node: int) -> Float[Tensor, "batch pos d_out"]:
        """What the change of one node adds to the activation."""
        if node >= self.size:
            return change.rest[self.rest[node - self.size]]
        like = change.rest["error"]
        return (change.features[..., node, None] * self.rows[node]).to(like.device, like.dtype)

    def replaced(
        self, read: Tensor, x: Float[Tensor, "batch pos *d_out"], out: Bool[Tensor, "*pos node"], reference: State
    ) -> Float[Tensor, "batch pos *d_out"]:
        """The activation with the nodes in `out` as they are in the reference, and all others as they are now."""
        flat, weight = x.flatten(2), self.dictionary.W_dec.detach()
        now = self.state(read[:, -flat.shape[1] :], flat)
        change = difference(reference, now)
        features = torch.where(out[..., : self.size].to(weight.device), change.features, 0)
        new = flat + (features @ weight / self.scale).to(flat.device, flat.dtype)
        for number, part in enumerate(self.rest, self.size):
            new = new + torch.where(out[..., number, None].to(flat.device), change.rest[part], 0)
        return new.reshape(x.shape)


class Chosen:
    """The nodes asked for, in the order in which their effects are given.

    Args:
        dictionaries: The dictionaries.
        names: Of the nodes; None for all.

    Raises:
        UsageError: No node, or one that there is not.
    """

    def __init__(self, dictionaries: list[Standing], names: Sequence[str] | None) -> None:
        self.dictionaries = dictionaries
        if names is None:
            self.nodes = [(one, number) for one in dictionaries for number in range(one.size + len(one.rest))]
            self.names = [name for one in dictionaries for name in one.nodes]
        else:
            if isinstance(names, str) or not names:
                raise UsageError(f"nodes must be a list of one node or more, got {names!r}")
            if bad := [name for name in names if "@" in name]:
                raise UsageError(f"{bad[0]!r}: choose positions with by_position=True and positions=[...]")
            self.nodes = [(one, number) for one, number, _ in find(names, dictionaries)]
            self.names = list(names)
        self.of = {
            one.name: (
                [i for i, (owner, _) in enumerate(self.nodes) if owner is one],
                [number for owner, number in self.nodes if owner is one],
            )
            for one in dictionaries
        }

    @property
    def labels(self) -> dict[str, Any]:
        """The coordinates of scores along ``node``."""
        return {
            "node": self.names,
            "dictionary": ("node", [one.name for one, _ in self.nodes]),
            "layer": ("node", [one.writes.layer for one, _ in self.nodes]),
            "site": ("node", [one.writes.site for one, _ in self.nodes]),
            "feature": ("node", [number if number < one.size else -1 for one, number in self.nodes]),
        }


def difference(one: State, other: State) -> State:
    """The change from the other state to the one."""
    return State(one.features - other.features, {part: x - other.rest[part] for part, x in one.rest.items()})


def standing(dictionaries: Any, parts: Parts) -> list[Standing]:
    """Dictionaries in a model, in the order in which they write.

    Args:
        dictionaries: One, several, or several by name; without names they are called after where they write.
        parts: The model.

    Raises:
        UsageError: There is none, or two have the same name, or one does not fit the model.
    """
    if isinstance(dictionaries, Mapping):
        named = list(dictionaries.items())
    else:
        some = dictionaries if isinstance(dictionaries, Sequence) else [dictionaries]
        named = [(str(getattr(one, "writes", None)), one) for one in some]
    if not named:
        raise UsageError("give one dictionary at least")
    names = [name for name, _ in named]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two dictionaries write at {twice[0]}; tell them apart with names: {{'mine': ..., ...}}")
    if odd := [name for name in names if "@" in name or not name]:
        raise UsageError(f"a dictionary's name must have letters and no '@', got {odd[0]!r}")
    return sorted((Standing(name, one, parts) for name, one in named), key=_order)


def find(names: Sequence[str], dictionaries: Sequence[Standing]) -> list[tuple[Standing, int, int | None]]:
    """The dictionary, the number among its nodes, and the position of each name.

    Raises:
        UsageError: No such dictionary or node.
    """
    by_name, found = {one.name: one for one in dictionaries}, []
    for text in names:
        name = NodeName.parse(text)
        if name.dictionary not in by_name:
            raise UsageError(f"{text!r}: there is no dictionary {name.dictionary!r} here, only {', '.join(by_name)}")
        one = by_name[name.dictionary]
        if name.is_feature and int(name.part[1:]) >= one.size:
            raise UsageError(f"{text!r}: dictionary {one.name} has features 0 to {one.size - 1}")
        if not name.is_feature and name.part not in one.rest:
            raise UsageError(f"{text!r}: dictionary {one.name} has no skip connection")
        number = int(name.part[1:]) if name.is_feature else one.size + one.rest.index(name.part)
        found.append((one, number, name.position))
    return found


def _order(one: Standing) -> tuple[int, int]:
    return one.writes.layer, SITES.index(one.writes.site)
