"""A dictionary in the model: its reconstruction put in where it writes, and the rest of the model run from there.

Everything before that place is computed once, whatever is put in. The *error* is what the dictionary does not
reconstruct, the activation minus the reconstruction; with the error added back the model computes what it computes
without the dictionary, exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.engine.forward import LIVE_AT_STAGE, STAGE_OF_SITE, Visitor, Walk
from interp.engine.parts import Parts
from interp.errors import UsageError
from interp.features.place import MLP_IN, Place
from interp.graph import Graph

__all__ = [
    "CleanRun",
    "Keeper",
    "Splicing",
    "counted",
    "decode",
    "encode",
    "placed",
    "places",
    "rebuilt",
    "scale_out",
    "sized",
    "spliced",
]

_TOKENS_AT_ONCE = 1024
"""Tokens that are encoded together: d_sae numbers each."""


def places(dictionary: Any, graph: Graph) -> tuple[Place, Place]:
    """Where a dictionary reads and writes, checked against a model.

    Raises:
        UsageError: It has no place, it does not fit the model, or it writes before it reads or where nothing can be
            put in.
    """
    reads, writes = getattr(dictionary, "reads", None), getattr(dictionary, "writes", None)
    if not isinstance(reads, Place) or not isinstance(writes, Place):
        raise UsageError(f"the dictionary must say at which place it reads and writes, got {reads!r} and {writes!r}")
    for place, size, what in ((reads, "d_in", "reads"), (writes, "d_out", "writes")):
        wide, has = place.width(graph), getattr(dictionary, size, None)
        if has is not None and has != wide:
            raise UsageError(f"the dictionary {what} {has} numbers at {place}, where this model has {wide}")
    if writes.site == MLP_IN:
        raise UsageError(f"nothing can be put in at {writes}; a dictionary there must write elsewhere, e.g. at mlp_out")
    if _order(reads) > _order(writes):
        raise UsageError(f"the dictionary writes at {writes}, before it reads at {reads}")
    return reads, writes


def counted(tokens: Int[Tensor, "text pos"], model: Any, skip: int = 0, special: bool = True) -> Bool[Tensor, ...]:
    """Which positions count, "text pos": those from `skip` on and, without `special`, no special tokens.

    Raises:
        UsageError: No position is left that has a next token.
    """
    if not 0 <= skip < tokens.shape[1] - 1:
        raise UsageError(f"skip must leave a position with a next token, 0 to {tokens.shape[1] - 2}; got {skip}")
    found = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape) >= skip
    ids = getattr(getattr(model, "tokenizer", None), "all_special_ids", None) or ()
    if not special and len(ids):
        found = found & ~torch.isin(tokens, torch.tensor(sorted(ids), device=tokens.device))
    if not found[:, :-1].any():
        raise UsageError("no position counts: the texts are made of special tokens only")
    return found


def placed(dictionary: Any, device: torch.device) -> Any:
    """A dictionary on a device: itself if it is there, or no module; else a copy."""
    weight = next(dictionary.parameters(), None) if isinstance(dictionary, torch.nn.Module) else None
    return dictionary if weight is None or weight.device == device else copy.deepcopy(dictionary).to(device)


def encode(dictionary: Any, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
    """The features of activations, in the dictionary's own type of numbers."""
    like = dictionary.W_dec
    return dictionary.encode(x.to(like.device, like.dtype))


def decode(
    dictionary: Any, features: Float[Tensor, "*batch d_sae"], x: Float[Tensor, "*batch d_in"]
) -> Float[Tensor, "*batch d_out"]:
    """What features stand for, in the type and on the device of the activation; `x` is what they were read off.

    Two kinds look at `x`: a transcoder with a skip connection, whose matrix ``W_skip`` carries it past the features,
    and a dictionary that normalises each activation, and gives it its own size back.
    """
    like = dictionary.W_dec
    resizes = getattr(dictionary, "resizes", False)
    out = dictionary.decode(features, x.to(like.device, like.dtype)) if resizes else dictionary.decode(features)
    if getattr(dictionary, "W_skip", None) is not None:
        skip = dictionary.W_skip
        out = out + (x.to(skip.device, skip.dtype) * getattr(dictionary, "scale", 1.0)) @ skip.T / scale_out(dictionary)
    return out.to(x.device, x.dtype)


def scale_out(dictionary: Any) -> float:
    """What is decoded has been divided by this: one unit of a feature writes its decoder row divided by it.

    Raises:
        UsageError: It is another number for each token.
    """
    if getattr(dictionary, "resizes", False):
        raise UsageError(
            f"this dictionary normalises each activation ({dictionary.normalisation}), so that what a feature writes "
            f"depends on the token, and what is asked for here takes it to be one row; judge, read, steer and ablate "
            f"features of it, or take a dictionary that does not normalise"
        )
    return float(getattr(dictionary, "scale_out", getattr(dictionary, "scale", 1.0)))


def sized(
    dictionary: Any, rows: Float[Tensor, "*batch d_out"], x: Float[Tensor, "*batch d_in"] | None
) -> Float[Tensor, "*batch d_out"]:
    """A sum of decoder rows as a dictionary writes it that reads `x`."""
    if not getattr(dictionary, "resizes", False):
        return rows / scale_out(dictionary)
    assert x is not None
    return rows * dictionary.normalised(x.to(dictionary.W_dec)).size / dictionary.scale_out


def rebuilt(
    dictionary: Any, x: Float[Tensor, "batch pos d_in"], see: Callable[[slice, Tensor], None] | None = None
) -> Float[Tensor, "batch pos d_out"]:
    """The reconstruction, some tokens at a time.

    Args:
        dictionary: Anything with `encode` and `decode`.
        x: What it reads.
        see: Gets each piece's features "token d_sae" and which of the flattened tokens they are.
    """
    flat, pieces = x.flatten(0, 1), []
    for begin in range(0, len(flat), _TOKENS_AT_ONCE):
        piece = slice(begin, min(begin + _TOKENS_AT_ONCE, len(flat)))
        features = encode(dictionary, flat[piece])
        if see is not None:
            see(piece, features)
        pieces.append(decode(dictionary, features, flat[piece]))
    return torch.cat(pieces).unflatten(0, x.shape[:2])


class Keeper(Visitor):
    """Keeps what a dictionary reads and what the model has where it writes, and some other sites if asked."""

    def __init__(self, parts: Parts, reads: Place, writes: Place, others: Sequence[tuple[str, int]] = ()) -> None:
        self.parts, self.reads, self.writes = parts, reads, writes
        self.wanted = {_seen_at(reads), (writes.site, writes.layer), *others}
        self.kept: dict[tuple[str, int], Tensor] = {}

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        if (site, layer) in self.wanted:
            self.kept[site, layer] = x
        return x

    @property
    def found(self) -> tuple[Float[Tensor, "batch pos d_in"], Float[Tensor, "batch pos d_out"]]:
        """What is read and what is written, heads side by side."""
        read = _as_read(self.parts, self.reads, self.kept[_seen_at(self.reads)])
        return read, self.kept[self.writes.site, self.writes.layer].flatten(2)


class CleanRun:
    """A plain run up to the place where a dictionary writes, to go on from there with any activation.

    Args:
        parts: The model's parts.
        tokens: Token ids "batch pos".
        reads: Where the dictionary reads; `read` is the activation, "batch pos d_in".
        writes: Where it writes; `written` is what the model has there, "batch pos d_out".
    """

    def __init__(self, parts: Parts, tokens: Int[Tensor, "batch pos"], reads: Place, writes: Place) -> None:
        self.parts, self.writes, self.stage = parts, writes, STAGE_OF_SITE[writes.site]
        live = [(site, writes.layer) for site in LIVE_AT_STAGE[self.stage]]
        keeper = Keeper(parts, reads, writes, live)
        self.walk = Walk(parts, tokens.shape[1])
        self.walk(self.walk.embed(tokens.to(parts.device)), keeper, last_layer=writes.layer)
        self.read, self.written = keeper.found
        self.live = tuple(keeper.kept[at] for at in live)

    def final(
        self, new: Float[Tensor, "batch pos d_out"] | None = None, watch: Visitor | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """The final residual stream with `new` in place of what is at `writes`; without it, the clean one.

        Args:
            new: May carry gradients.
            watch: Visits the sites of the rest of the walk, after the replacement.
        """
        graph, like = self.parts.graph, self.live[0]
        empty = like.new_empty(0, like.shape[1], graph.d_model)
        joining = _Joining(self.writes, self.stage, self.live, self.written if new is None else new, watch)
        return self.walk(empty, joining, first_layer=self.writes.layer)


class Splicing(Visitor):
    """Runs a walk through a dictionary, which reads what the walk itself has.

    Args:
        parts: The model's parts.
        dictionary: Anything with `encode`, `decode`, `reads` and `writes`.
        change: From features "batch pos d_sae" to the new ones; none by default.
        error: Keep what the dictionary does not reconstruct: then only the change has an effect.
        where: Positions "batch pos" at which the activation is replaced; all by default.

    Raises:
        UsageError: The dictionary does not fit the model.
    """

    def __init__(
        self,
        parts: Parts,
        dictionary: Any,
        change: Callable[[Tensor], Tensor] | None = None,
        error: bool = False,
        where: Bool[Tensor, "batch pos"] | None = None,
    ) -> None:
        self.parts, self.dictionary, self.change, self.error, self.where = parts, dictionary, change, error, where
        self.reads, self.writes = places(dictionary, parts.graph)
        self.read: Tensor | None = None

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        if (site, layer) == _seen_at(self.reads):
            self.read = _as_read(self.parts, self.reads, x)
        if (site, layer) != (self.writes.site, self.writes.layer) or self.read is None:
            return x
        new = spliced(self.dictionary, self.read, x.flatten(2), self.change, self.error)
        if self.where is not None:
            at = self.where[:, first : first + x.shape[1], None].to(x.device)
            new = torch.where(at, new, x.flatten(2))
        return new.reshape(x.shape)


def spliced(
    dictionary: Any,
    read: Float[Tensor, "batch pos d_in"],
    written: Float[Tensor, "batch pos d_out"],
    change: Callable[[Tensor], Tensor] | None = None,
    error: bool = False,
) -> Float[Tensor, "batch pos d_out"]:
    """The reconstruction, or with the `error` what the model has plus what the change of the features adds."""
    features = encode(dictionary, read)
    new = features if change is None else change(features)
    if not error:
        return decode(dictionary, new, read)
    return written + (decode(dictionary, new, read) - decode(dictionary, features, read))


class _Joining(Visitor):
    """Lets recorded rows join an empty walk, with another activation at one place."""

    def __init__(
        self, writes: Place, stage: str, live: tuple[Tensor, ...], new: Tensor, watch: Visitor | None = None
    ) -> None:
        self.writes, self.stage, self.live, self.new, self.watch = writes, stage, live, new, watch or Visitor()

    def enter(self, layer: int, stage: str, first: int, live: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.live if (layer, stage) == (self.writes.layer, self.stage) else live

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        here = (layer, site) == (self.writes.layer, self.writes.site)
        return self.watch.visit(layer, site, first, self.new.reshape(x.shape) if here else x)


def _seen_at(place: Place) -> tuple[str, int]:
    """Where a walk shows what a dictionary reads; the MLP's input is the norm of what is shown."""
    return ("mlp_port" if place.site == MLP_IN else place.site), place.layer


def _as_read(parts: Parts, place: Place, x: Tensor) -> Tensor:
    return parts.blocks[place.layer].ln2(x) if place.site == MLP_IN else x.flatten(2)


def _order(place: Place) -> tuple[int, int]:
    order = ("resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", MLP_IN, "post", "mlp_out", "resid_post")
    return place.layer, order.index(place.site)
