"""One pass over texts that keeps what extreme tokens are told by: attention received, residual peaks, value norms."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.attention.patterns import Patterns, stream
from interp.engine.forward import Visitor
from interp.engine.parts import Parts
from interp.engine.progress import track
from interp.engine.verify import verified
from interp.errors import UsageError

__all__ = ["LARGE", "MANY_TIMES", "Census", "census", "check_threshold", "checked_tokens"]

LARGE = 100.0
"""A massive activation is larger than this ..."""
MANY_TIMES = 1000.0
"""... and than this many times the median of its hidden state (Sun et al. 2024, arXiv:2402.17762, section 2)."""
_TOKENS_AT_ONCE = 2048


@dataclass(frozen=True, eq=False)
class Census:
    """What every position of every text got and held; nothing in it grows with the square of the length.

    Args:
        tokens: token ids.
        received: attention that each key got from all queries together.
        own: the part of it that came from the key's own query.
        value_norm: norm of the value at each position.
        resid_norm: norm of the residual stream behind each layer.
        size: largest absolute value of the residual stream behind each layer.
        median: median absolute value of the whole residual stream behind each layer.
        massive: the massive activations, a row for each: layer, text, position, channel.
        massive_values: their values.
    """

    tokens: Int[Tensor, "text pos"]
    received: Float[Tensor, "layer text head pos"]
    own: Float[Tensor, "layer text head pos"]
    value_norm: Float[Tensor, "layer text kv_head pos"]
    resid_norm: Float[Tensor, "layer text pos"]
    size: Float[Tensor, "layer text pos"]
    median: Float[Tensor, "layer text"]
    massive: Int[Tensor, "found 4"]
    massive_values: Float[Tensor, " found"]

    @property
    def seen_by(self) -> Int[Tensor, " pos"]:
        """How many queries see each key, its own among them."""
        return torch.arange(self.tokens.shape[1], 0, -1)

    @cached_property
    def importance(self) -> Float[Tensor, "layer text head pos"]:
        """Mean attention of all queries that see a key: alpha of Gu et al. 2024 (arXiv:2410.10781), section 3.1."""
        return self.received / self.seen_by

    @cached_property
    def from_others(self) -> Float[Tensor, "layer text head pos"]:
        """Mean attention of the later queries, since the first token's own has no choice; 0 at the last position."""
        return (self.received - self.own).clamp(min=0) / (self.seen_by - 1).clamp(min=1)

    def sinks(self, threshold: float) -> Bool[Tensor, "layer text head pos"]:
        """Where a head's importance is above the threshold."""
        return self.importance > threshold

    def rows(self, which: slice) -> Census:
        """The census of some successive texts."""
        start, stop, _ = which.indices(len(self.tokens))
        here = (self.massive[:, 1] >= start) & (self.massive[:, 1] < stop)
        moved = self.massive[here] - torch.tensor([0, start, 0, 0])
        by_text = {name: getattr(self, name)[:, which] for name in _BY_TEXT}
        return Census(tokens=self.tokens[which], massive=moved, massive_values=self.massive_values[here], **by_text)


@torch.no_grad()
def census(model: Any, tokens: Int[Tensor, "text pos"], visitor: Visitor | None = None) -> Census:
    """Runs a model over texts once and keeps what extreme tokens are told by.

    Args:
        model: any bridge, or its verified parts.
        tokens: token ids, of 2 positions or more.
        visitor: an intervention under which it is taken, the same for all texts.

    Returns:
        The census, on the processor, in float32 or wider.

    Raises:
        UsageError: token ids of another shape or kind.
        InterpError: attention that is not finite.
    """
    checked_tokens(tokens)
    parts = model if isinstance(model, Parts) else verified(model)
    pieces, step = [], max(1, _TOKENS_AT_ONCE // tokens.shape[1])
    with track(len(tokens), "attention received") as advance:
        for start in range(0, len(tokens), step):
            batch = tokens[start : start + step]
            taker = _Taker(parts, batch, start, visitor or Visitor())
            stream(parts, batch, taker.see, visitor=taker)
            pieces.append(taker)
            advance(len(batch))
    by_text = {name: torch.cat([getattr(piece, name) for piece in pieces], 1).cpu() for name in _BY_TEXT}
    found, values = (
        torch.cat([torch.cat(each) for each in lists]).cpu()
        for lists in ([piece.found for piece in pieces], [piece.values for piece in pieces])
    )
    return Census(tokens=tokens.cpu(), massive=found, massive_values=values, **by_text)


def checked_tokens(tokens: Tensor) -> None:
    """Raises UsageError unless there is a text of two tokens or more."""
    if tokens.ndim != 2 or tokens.dtype.is_floating_point or not len(tokens) or tokens.shape[1] < 2:
        raise UsageError(
            f"token ids must be 'text pos' with at least one text of 2 tokens, got {tokens.dtype} of shape "
            f"{list(tokens.shape)}"
        )


def check_threshold(threshold: float) -> None:
    """Raises UsageError for a threshold that no share of attention can be above, or that all are."""
    if not 0 < threshold < 1:
        raise UsageError(f"the threshold must lie between 0 and 1, got {threshold}")


_BY_TEXT = ("received", "own", "value_norm", "resid_norm", "size", "median")


class _Taker(Visitor):
    """Reduces every activation of one batch where it arises, on its device; `start` is the batch's first text."""

    def __init__(self, parts: Parts, tokens: Tensor, start: int, inner: Visitor) -> None:
        graph, (texts, length) = parts.graph, tokens.shape
        wide = torch.float64 if parts.dtype == torch.float64 else torch.float32
        self.start, self.inner = start, inner

        def zeros(*shape: int, dtype: torch.dtype = wide) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=parts.device)

        self.received = zeros(graph.n_layers, texts, graph.n_heads, length)
        self.own = torch.zeros_like(self.received)
        self.value_norm = zeros(graph.n_layers, texts, graph.n_kv_heads, length)
        self.resid_norm = zeros(graph.n_layers, texts, length)
        self.size = torch.zeros_like(self.resid_norm)
        self.median = zeros(graph.n_layers, texts)
        self.found: list[Tensor] = [zeros(0, 4, dtype=torch.long)]
        self.values: list[Tensor] = [zeros(0)]

    def see(self, seen: Patterns) -> None:
        stop = seen.pattern.shape[3]
        pattern = seen.pattern.to(self.received.dtype)
        self.received[seen.layer, :, :, :stop] += pattern.sum(2)
        self.own[seen.layer, :, :, seen.first : stop] = pattern[..., seen.first :].diagonal(dim1=2, dim2=3)

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        x = self.inner.visit(layer, site, first, x)
        if site == "v":
            self.value_norm[layer] = x.to(self.size.dtype).norm(dim=-1).transpose(1, 2)
        elif site == "resid_post":
            self._residual(layer, x.to(self.size.dtype))
        return x

    def _residual(self, layer: int, x: Tensor) -> None:
        size = x.abs()
        self.resid_norm[layer], self.size[layer] = x.norm(dim=-1), size.amax(-1)
        self.median[layer] = _median(size.flatten(1))
        bound = (MANY_TIMES * self.median[layer]).clamp(min=LARGE)
        if bool((self.size[layer].amax(1) > bound).any()):
            at = (size > bound[:, None, None]).nonzero()
            self.values.append(x[tuple(at.T)])
            at[:, 0] += self.start
            self.found.append(torch.cat([torch.full_like(at[:, :1], layer), at], 1))


def _median(x: Float[Tensor, "row number"]) -> Float[Tensor, " row"]:
    """torch's median of each row, the lower of two; NumPy finds it on a processor in an eighth of the time."""
    if x.device.type != "cpu":
        return x.median(1).values
    middle = (x.shape[1] - 1) // 2
    return torch.from_numpy(np.partition(x.numpy(), middle, axis=1)[:, middle].copy())
