"""Attention patterns of whole models, seen piece by piece, so that those of a long input never exist at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.forward import Visitor, Walk
from interp.engine.identity import identity
from interp.engine.memory import available_bytes
from interp.engine.parts import Parts
from interp.engine.progress import track
from interp.engine.verify import verified
from interp.errors import InterpError, UsageError
from interp.results import scores
from interp.tasks.tokens import Encoder

__all__ = ["Patterns", "patterns", "queries_at_once", "stream"]

_PIECE = 1 << 21
"""Numbers of a piece of one layer's pattern: few enough to stay near the processor while they are reduced."""


@dataclass(frozen=True, eq=False)
class Patterns:
    """The pattern of one layer's heads, for some successive queries and all keys up to the last of them.

    Args:
        layer: the layer.
        pattern: attention, "row head query key"; each row of it sums to 1 over the keys.
        first: position of the first query; the keys' positions count from 0.
        tokens: token ids of the whole input, "row pos".
        marks: named masks of the input's positions, "row pos".
    """

    layer: int
    pattern: Float[Tensor, "row head query key"]
    first: int
    tokens: Int[Tensor, "row pos"]
    marks: Mapping[str, Bool[Tensor, "row pos"]] = field(default_factory=dict)

    @cached_property
    def queries(self) -> Int[Tensor, " query"]:
        """Positions of the queries."""
        return torch.arange(self.first, self.first + self.pattern.shape[2], device=self.pattern.device)

    @cached_property
    def keys(self) -> Int[Tensor, " key"]:
        """Positions of the keys."""
        return torch.arange(self.pattern.shape[3], device=self.pattern.device)

    def back(self, distance: int | Int[Tensor, " query"]) -> Float[Tensor, "row head query"]:
        """Attention of each query to the key so many positions before it; NaN where there is none."""
        return self.at(self.queries - distance)

    def at(self, positions: Int[Tensor, " query"] | Int[Tensor, "row query"]) -> Float[Tensor, "row head query"]:
        """Attention of each query to one position of its own; NaN where the position is negative."""
        rows, heads, queries, _ = self.pattern.shape
        index = positions.expand(rows, queries)[:, None, :, None].expand(-1, heads, -1, -1)
        found = self.pattern.gather(3, index.clamp(min=0)).squeeze(3)
        return found.masked_fill(index.squeeze(3) < 0, torch.nan)

    def on(self, keys: Tensor) -> Float[Tensor, "row head query"]:
        """Attention of each query to some of the keys together.

        Args:
            keys: weight of each key of the input, "pos" or "row pos": a mask, or numbers to have a mean of.
        """
        stop = self.pattern.shape[3]
        weights = keys[..., :stop].to(self.pattern.dtype).expand(len(self.pattern), stop)
        return torch.matmul(self.pattern, weights[:, None, :, None]).squeeze(3)

    def over(self, keys: Bool[Tensor, "row query key"]) -> Float[Tensor, "row head query"]:
        """Attention of each query to keys of its own together."""
        return torch.einsum("rhqk,rqk->rhq", self.pattern, keys.to(self.pattern.dtype))

    @cached_property
    def same_token(self) -> Bool[Tensor, "row query key"]:
        """Which earlier keys hold the query's token."""
        here, there = self.tokens[:, self.queries], self.tokens[:, self.keys]
        return (here[:, :, None] == there[:, None, :]) & (self.keys < self.queries[:, None])

    @cached_property
    def after_same_token(self) -> Bool[Tensor, "row query key"]:
        """Which keys, up to the query itself, come right after an earlier occurrence of the query's token."""
        return torch.nn.functional.pad(self.same_token[..., :-1], (1, 0))

    @cached_property
    def strongest(self) -> Int[Tensor, "row head query"]:
        """Position of the key that gets most of each query's attention."""
        return self.pattern.argmax(-1)


def stream(
    model: TransformerBridge | Parts,
    tokens: Int[Tensor, "row pos"],
    see: Callable[[Patterns], None],
    *,
    marks: Mapping[str, Bool[Tensor, "row pos"]] | None = None,
    visitor: Visitor | None = None,
    layers: Sequence[int] | None = None,
    description: str = "attention",
) -> Float[Tensor, "row pos d_model"]:
    """Runs a model once and shows every layer's pattern to a function, some queries at a time.

    Args:
        model: any bridge, or its verified parts.
        tokens: token ids.
        see: called with each piece, layer by layer; what it keeps of a piece stays in memory.
        marks: named masks of positions that `see` finds in the pieces.
        visitor: sees and may replace the other activations, see `interp.engine.forward.Visitor`; it also gets the
            pattern, before `see` does.
        layers: the layers whose patterns are wanted; the walk ends after the last of them.
        description: of the progress bar.

    Returns:
        The final residual stream (that behind the last layer wanted).

    Raises:
        InterpError: attention that is not finite; the message names layer and query.
    """
    parts = model if isinstance(model, Parts) else verified(model)
    wanted = set(range(parts.graph.n_layers)) if layers is None else set(layers)
    for layer in wanted:
        if not 0 <= layer < parts.graph.n_layers:
            raise UsageError(f"layer {layer} is out of range: the model has layers 0 to {parts.graph.n_layers - 1}")
    tokens = tokens.to(parts.device)
    there = {name: mark.to(parts.device) for name, mark in (marks or {}).items()}

    def shown(layer: int, pattern: Tensor, first: int) -> None:
        see(Patterns(layer, pattern, first, tokens, marks=there))

    walk = Walk(parts, tokens.shape[1], queries_at_once=queries_at_once(parts, tokens))
    with track(max(wanted, default=0) + 1, description) as advance, torch.no_grad():
        watcher = _Watcher(shown, visitor or Visitor(), wanted, advance)
        return walk(walk.embed(tokens), watcher, last_layer=max(wanted, default=0))


def queries_at_once(parts: Parts, tokens: Int[Tensor, "row pos"]) -> int:
    """How many queries of a layer are looked at together."""
    rows, length = tokens.shape
    size = _PIECE if parts.device.type == "cpu" else max(_PIECE, available_bytes(parts.device) // 64)
    return max(16, min(length, size // max(1, rows * parts.graph.n_heads * length)))


def patterns(
    model: TransformerBridge,
    prompt: str | Int[Tensor, " pos"],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> xr.DataArray:
    """The attention patterns of one prompt, to be looked at.

    Args:
        model: any bridge.
        prompt: a text, or token ids.
        layers: only these.
        heads: only these of each layer.

    Returns:
        Attention "layer head query key" with the prompt's tokens as labels ``query_token`` and ``key_token``.

    Raises:
        UsageError: a prompt of fewer than 2 tokens, a layer or head that there is not, or one too long to hold.
    """
    parts, encoder = verified(model), Encoder(model)
    ids = tuple(prompt.tolist()) if isinstance(prompt, Tensor) else encoder.encode(prompt).ids
    chosen = list(range(parts.graph.n_layers)) if layers is None else list(layers)
    which = list(range(parts.graph.n_heads)) if heads is None else list(heads)
    for head in which:
        if not 0 <= head < parts.graph.n_heads:
            raise UsageError(f"head {head} is out of range: a layer has heads 0 to {parts.graph.n_heads - 1}")
    if len(ids) < 2:
        raise UsageError(f"a prompt needs two tokens at least to show attention, {prompt!r} has {len(ids)}")
    size = 4 * len(chosen) * len(which) * len(ids) ** 2
    if size > available_bytes(torch.device("cpu")) // 2:
        raise UsageError(f"these patterns take {size / 2**30:.1f} GiB; ask for fewer layers or heads")
    values = torch.zeros(len(chosen), len(which), len(ids), len(ids))
    place = {layer: at for at, layer in enumerate(chosen)}

    def keep(seen: Patterns) -> None:
        rows = slice(seen.first, seen.first + seen.pattern.shape[2])
        values[place[seen.layer], :, rows, : seen.pattern.shape[3]] = seen.pattern[0, which].float().cpu()

    stream(parts, torch.tensor([ids]), keep, layers=chosen)
    words = [f"{at}: {word}" for at, word in enumerate(encoder.decode(ids))]
    return scores(
        values,
        ("layer", "head", "query", "key"),
        {"layer": chosen, "head": which, "query_token": ("query", words), "key_token": ("key", words)},
        name="attention",
        units="share of attention",
        model=str(model.cfg.model_name),
        fingerprint=identity(model),
        prompt=prompt if isinstance(prompt, str) else encoder.text(ids),
    )


class _Watcher(Visitor):
    """Hands on everything to a visitor, and the patterns of some layers to a function."""

    def __init__(self, see: Callable, visitor: Visitor, wanted: set[int], advance: Any) -> None:
        self.see, self.visitor, self.wanted, self.advance = see, visitor, wanted, advance

    def enter(self, layer, stage, first, live):
        return self.visitor.enter(layer, stage, first, live)

    def visit(self, layer, site, first, x):
        x = self.visitor.visit(layer, site, first, x)
        if site == "pattern" and layer in self.wanted:
            if not bool(torch.isfinite(x.sum())):
                raise InterpError(
                    f"attention in layer {layer} is not finite from query {first} on; look for overflow in the model's "
                    "activations, or load it in float32"
                )
            self.see(layer, x, first)
        elif site == "resid_post":
            self.advance(1)
        return x
