"""One prompt's run with its attention patterns and the scales of its norms held constant: linear maps of the stream.

Patterns are kept while they are small. A long prompt's are made again, some queries at a time, whenever something goes
through them, so that memory grows with the prompt's length and not with its square.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.engine.forward import Recorder, Walk
from interp.engine.parts import Norm, Parts
from interp.tracing.bases.basis import Place

__all__ = ["FrozenRun", "bias", "matrix", "wide"]

_SITES = {"resid_pre", "resid_post", "attn_written", "mlp_port", "mlp_written", "mlp_out"}
_KEPT = 1 << 29
"""Bytes of patterns, in float32, that are kept at most."""
_PIECE = 1 << 26
"""Bytes of a pattern that is made again, at most at once."""


class FrozenRun:
    """One prompt's run: its activations, patterns and scales, and the frozen norms and heads as linear maps.

    Args:
        parts: The model.
        tokens: The prompt's ids.
    """

    def __init__(self, parts: Parts, tokens: Int[Tensor, " pos"]) -> None:
        self.parts, self.tokens, self.length = parts, tokens, len(tokens)
        graph, row = parts.graph, 4 * parts.graph.n_heads * self.length
        self.keeps_patterns = graph.n_layers * row * self.length <= _KEPT
        self.queries_at_once = self.length if self.keeps_patterns else max(1, _PIECE // row)
        self.walk = Walk(parts, self.length, queries_at_once=None if self.keeps_patterns else self.queries_at_once)
        self._last: tuple[Any, ...] = (None,)
        recorder = Recorder(_SITES | ({"pattern"} if self.keeps_patterns else set()))
        with torch.no_grad():
            final = self.walk(self.walk.embed(tokens[None].to(parts.device)), recorder)
            self.logits = parts.logits(final[0, -1]).float()
            self.kept = {at: wide(x[0]) for at, x in recorder.kept.items()}
            self.final = wide(final[0])
            self.norms = self._norms()
            self.scales = {at: self._scale(*at) for at in self.norms}
            self.mlp_in = [block.ln2(recorder.kept["mlp_port", layer][0]) for layer, block in enumerate(parts.blocks)]
            self.mlp_in = [wide(x) for x in self.mlp_in]
        self.dtype = self.final.dtype

    def _norms(self) -> dict[Place, Norm]:
        found: dict[Place, Norm] = {("final", self.parts.graph.n_layers): self.parts.ln_final}
        for layer, block in enumerate(self.parts.blocks):
            found["resid_pre", layer], found["mlp_port", layer] = block.ln1, block.ln2
            if block.ln1_post is not None:
                found["attn_written", layer] = block.ln1_post
            if block.ln2_post is not None:
                found["mlp_written", layer] = block.ln2_post
        return found

    def pattern(self, layer: int, first: int, stop: int) -> Float[Tensor, "head query key"]:
        """The pattern of the queries from `first` to before `stop`, on the keys before `stop`."""
        if self.keeps_patterns:
            return self.kept["pattern", layer][:, first:stop, :stop]
        q, k = self._turned(layer)
        return wide(self.walk.pattern(layer, q[:, first:stop], k[:, :stop], first)[0])

    def _patterns(self, layer: int, n: int) -> Iterator[tuple[int, int, Float[Tensor, "group head query key"]]]:
        """The pattern of the first n positions piece by piece: first query, end, and pattern by key-value head."""
        for first in range(0, n, self.queries_at_once):
            stop = min(n, first + self.queries_at_once)
            yield first, stop, self.pattern(layer, first, stop).unflatten(0, (self.parts.graph.n_kv_heads, -1))

    def _turned(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's rotated queries and keys, of one layer at a time."""
        if self._last[0] != layer:
            block, walk, d_head = self.parts.blocks[layer], self.walk, self.parts.graph.d_head
            x = block.ln1(self.kept["resid_pre", layer].to(self.parts.dtype))[None]
            q, k = (linear(x).unflatten(-1, (-1, d_head)) for linear in (block.q, block.k))
            self._last = layer, walk.turned(block, q, "q", 0, layer), walk.turned(block, k, "k", 0, layer)
        return self._last[1], self._last[2]

    def _scale(self, site: str, layer: int) -> Float[Tensor, "pos 1"]:
        return self.norm(site, layer).inverse_scale(self.final if site == "final" else self.kept[site, layer])

    def norm(self, site: str, layer: int) -> Norm:
        """The norm that reads at a site."""
        return self.norms[site, layer]

    def normed(
        self, site: str, layer: int, x: Float[Tensor, "*row pos d_model"], at: Tensor | slice = slice(None)
    ) -> Float[Tensor, "*row pos d_model"]:
        """A frozen norm of something, without its bias; `at` are its positions."""
        norm = self.norm(site, layer)
        out = norm.centre(x) * self.scales[site, layer][at]
        return out if norm.weight is None else out * wide(norm.weight)

    def norm_back(
        self, site: str, layer: int, gradient: Float[Tensor, "*row pos d_model"], at: Tensor | slice | None = None
    ) -> Float[Tensor, "*row pos d_model"]:
        """The transpose of `normed`; positions are the first ones unless `at` tells."""
        norm = self.norm(site, layer)
        scale = self.scales[site, layer][slice(gradient.shape[-2]) if at is None else at]
        return norm.centre(gradient * scale if norm.weight is None else gradient * (scale * wide(norm.weight)))

    def mlp_written_back(self, layer: int, gradient: Tensor) -> Tensor:
        """From ``mlp_out`` back to what the down projection writes."""
        return gradient if self.parts.blocks[layer].ln2_post is None else self.norm_back("mlp_written", layer, gradient)

    def mlp_written(self, layer: int, x: Tensor, at: Tensor | slice = slice(None)) -> Tensor:
        """From what the down projection writes to ``mlp_out``, without the norm's bias."""
        return x if self.parts.blocks[layer].ln2_post is None else self.normed("mlp_written", layer, x, at)

    def z(self, layer: int, x: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos head d_head"]:
        """What the heads mix of a stream, without biases."""
        graph = self.parts.graph
        v = self.normed("resid_pre", layer, x) @ matrix(self.parts.blocks[layer].v)
        return self._mixed(layer, v.unflatten(-1, (graph.n_kv_heads, graph.d_head)))

    def _mixed(self, layer: int, v: Tensor) -> Tensor:
        pieces = (
            torch.einsum("ghqk,rkgd->rqghd", pattern, v[:, :stop])
            for _, stop, pattern in self._patterns(layer, v.shape[1])
        )
        return torch.cat(list(pieces), 1).flatten(2, 3)

    def attended(self, layer: int, x: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        """What attention writes of a stream, patterns and scales frozen, without any constant."""
        out = self.z(layer, x).flatten(-2) @ matrix(self.parts.blocks[layer].o)
        return out if self.parts.blocks[layer].ln1_post is None else self.normed("attn_written", layer, out)

    def attention_constant(self, layer: int) -> Float[Tensor, "pos d_model"]:
        """What attention writes whatever it reads: biases of its norm, its values, its output and the norm behind."""
        block, graph = self.parts.blocks[layer], self.parts.graph
        biases = [block.ln1.bias, bias(block.v), bias(block.o), block.ln1_post and block.ln1_post.bias]
        if all(offset is None for offset in biases):
            return self.final.new_zeros(1, 1).expand(self.length, graph.d_model)
        v = self.final.new_zeros(1, self.length, graph.n_kv_heads * graph.d_head)
        if block.ln1.bias is not None:
            v = v + wide(block.ln1.bias) @ matrix(block.v)
        if (offset := bias(block.v)) is not None:
            v = v + offset
        out = self._mixed(layer, v.unflatten(-1, (graph.n_kv_heads, graph.d_head))).flatten(-2) @ matrix(block.o)
        out = out[0]
        if (offset := bias(block.o)) is not None:
            out = out + offset
        if block.ln1_post is None:
            return out
        out = self.normed("attn_written", layer, out)
        return out if block.ln1_post.bias is None else out + wide(block.ln1_post.bias)

    def attended_back(self, layer: int, gradient: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        """The transpose of `attended`, of gradients at the first positions."""
        block, graph, n = self.parts.blocks[layer], self.parts.graph, gradient.shape[1]
        if block.ln1_post is not None:
            gradient = self.norm_back("attn_written", layer, gradient)
        z = (gradient @ matrix(block.o).T).unflatten(-1, (graph.n_kv_heads, -1, graph.d_head))
        back = z.new_zeros(graph.n_kv_heads, n, len(z) * graph.d_head)
        for first, stop, pattern in self._patterns(layer, n):  # one product a group: rows are columns of the right side
            here = z[:, first:stop].permute(2, 3, 1, 0, 4).flatten(3).flatten(1, 2)
            back[:, :stop] += pattern.flatten(1, 2).transpose(1, 2) @ here
        back = back.unflatten(-1, (len(z), graph.d_head)).permute(2, 1, 0, 3)
        return self.norm_back("resid_pre", layer, back.flatten(-2) @ matrix(block.v).T)


def matrix(linear) -> Float[Tensor, "d_in d_out"]:
    """A projection's weights, so that ``x @ matrix`` is what it makes of x but for the bias."""
    weight = linear.weight if type(linear).__name__ == "Conv1D" else linear.weight.T
    return wide(weight)


def bias(linear) -> Float[Tensor, " d_out"] | None:
    """A projection's bias."""
    given = getattr(linear, "bias", None)
    return None if given is None else wide(given)


def wide(x: Tensor) -> Tensor:
    """In float32 at least, without gradient."""
    x = x.detach()
    return x if x.dtype == torch.float64 else x.float()
