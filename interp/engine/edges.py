"""Runs in which chosen edges carry another run's writes: path patching of any set of edges, in one pass.

A port reads the sum of all writes before it. Where an edge is replaced, the port reads the *alternative* write of
that node instead of the current one, so its input is the residual stream plus the sum of (alternative - current)
over its replaced edges. All ports are corrected in the one forward pass; no edge needs a run of its own
(Hanna et al. 2024, arXiv 2403.17806, section 2; Goldowsky-Dill et al. 2023, arXiv 2304.05969).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.engine.forward import Recorder, Walk, mix
from interp.engine.parts import Block, Parts

__all__ = ["EdgeWalk", "Writes", "head_writes", "input_matrices", "output_matrices", "record_writes"]


@dataclass(frozen=True, eq=False)
class Writes:
    """What every node of a run wrote, and what it takes to resume the run at any layer.

    Attributes:
        nodes: Writes "node batch pos d_model", in the order of `Graph.nodes`.
        resid: The residual stream that enters each block.
        keys: Rotated keys of each block, "batch pos head d_head".
        values: Values of each block.
        final: The final residual stream.
    """

    nodes: Float[Tensor, "node batch pos d_model"]
    resid: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    final: Tensor


@torch.no_grad()
def record_writes(parts: Parts, tokens: Int[Tensor, "batch pos"], ungrouped: bool = False) -> Writes:
    """Runs prompts and keeps what every node wrote. With an attention bias, it belongs to no head and is left out."""
    walk = Walk(parts, tokens.shape[1], ungrouped=ungrouped)
    recorder = Recorder({"resid_pre", "z", "mlp_out", "k_rotated", "v"})
    final = walk(walk.embed(tokens.to(parts.device)), recorder)
    kept, layers = recorder.kept, range(parts.graph.n_layers)
    nodes = [kept["resid_pre", 0][None]]
    for layer, block in enumerate(parts.blocks):
        nodes += [head_writes(block, kept["z", layer]), kept["mlp_out", layer][None]]
    per_layer = {site: [kept[site, layer] for layer in layers] for site in ("resid_pre", "k_rotated", "v")}
    return Writes(torch.cat(nodes), per_layer["resid_pre"], per_layer["k_rotated"], per_layer["v"], final)


def head_writes(
    block: Block, z: Float[Tensor, "batch pos head d_head"], whole: Float[Tensor, "batch pos head d_head"] | None = None
) -> Float[Tensor, "head batch pos d_model"]:
    """What each head adds to the residual stream; behind a norm, its share of what the norm lets through.

    Args:
        block: The block.
        z: The heads' outputs, or a part of them.
        whole: Of a part, the outputs that it is part of.
    """
    writes = torch.einsum("bphk,hkd->hbpd", z, output_matrices(block, z.shape[2]))
    if block.ln1_post is None:
        return writes
    norm, written = block.ln1_post, block.o((z if whole is None else whole).flatten(-2))
    writes = writes - writes.mean(-1, keepdim=True) if norm.centred else writes
    writes = writes * norm.inverse_scale(written)
    return writes if norm.weight is None else writes * norm.weight.to(writes.dtype)


def output_matrices(block: Block, heads: int) -> Float[Tensor, "head d_head d_model"]:
    """The output projection of each head."""
    weight = block.o.weight if type(block.o).__name__ == "Conv1D" else block.o.weight.T
    return weight.unflatten(0, (heads, -1))


def input_matrices(linear, heads: int, repeat: int = 1) -> Float[Tensor, "head d_head d_model"]:
    """A query, key or value projection of each head; `repeat` gives every head of a group its own copy."""
    weight = linear.weight.T if type(linear).__name__ == "Conv1D" else linear.weight
    return weight.unflatten(0, (heads, -1)).repeat_interleave(repeat, 0)


class EdgeWalk(Walk):
    """Walks a model with some edges replaced.

    Args:
        parts: The model.
        base: The run in which edges are replaced.
        alternative: Writes "node batch pos d_model" that replaced edges carry.
        start: The first position where the alternative differs from the base; earlier ones are not run.
        ungrouped: As in `Graph.ports`.
    """

    def __init__(
        self,
        parts: Parts,
        base: Writes,
        alternative: Float[Tensor, "node batch pos d_model"],
        start: int = 0,
        ungrouped: bool = False,
    ) -> None:
        super().__init__(parts, base.nodes.shape[2], ungrouped=ungrouped)
        self.base, self.alternative, self.start = base, alternative, start
        graph = parts.graph
        self.kv_heads = graph.n_heads if ungrouped else graph.n_kv_heads
        self.ports_per_layer = graph.n_heads + 2 * self.kv_heads + 1
        self.nodes_per_layer = graph.n_heads + 1
        self.difference = (alternative - base.nodes)[:, :, start:]

    def layer_of(self, port: int) -> int:
        """The block that a port (by its number) belongs to; the number of blocks for the logits."""
        return port // self.ports_per_layer

    @torch.no_grad()
    def replaced(
        self,
        out: Bool[Tensor, "port node"],
        port: int | None = None,
        also: Bool[Tensor, "row node"] | None = None,
    ) -> Float[Tensor, "row batch pos d_model"]:
        """The final residual stream, as the logits read it, of positions from `start` on.

        Args:
            out: Which edges are replaced, in all rows. Edges that don't exist must be False.
            port: A port (by its number) where rows differ.
            also: Which edges into that port are replaced in each row, besides those in `out`.
        """
        run = _Run(self, out, port, also)
        n_layers = self.parts.graph.n_layers
        touched = out.any(1).nonzero().flatten().tolist() + ([] if port is None else [port])
        first = min((self.layer_of(p) for p in touched), default=n_layers)
        run.known = 1 + first * self.nodes_per_layer
        resid = self.base.resid[first] if first < n_layers else self.base.final
        resid = resid[:, self.start :].repeat(run.rows, 1, 1)
        for layer in range(first, n_layers):
            resid = run.block(layer, resid)
        correction = run.correction(n_layers * self.ports_per_layer, 1)
        return (resid if correction is None else resid + correction[0]).unflatten(0, (run.rows, -1))


class _Run:
    """One call of `EdgeWalk.replaced`: rows "(row batch)" on their way through the blocks."""

    def __init__(self, walk: EdgeWalk, out: Tensor, port: int | None, also: Tensor | None) -> None:
        # what is asked of the masks is answered by the processor, so that no port waits for the model's device
        self.walk, self.port, self.out = walk, port, out.cpu()
        self.also = torch.zeros(1, out.shape[1], dtype=torch.bool) if also is None else also.cpu()
        self.factors, self.also_factors = (mask.to(walk.difference) for mask in (self.out, self.also))
        self.rows = len(self.also)
        self.known = 0
        self.late: list[tuple[slice, Tensor]] = []

    def correction(self, port: int, count: int) -> Tensor | None:
        """What `count` ports from `port` on read beyond the residual stream: "port (row batch) pos d_model"."""
        wanted = self.out[port : port + count]
        own = self.port is not None and port <= self.port < port + count
        if not own and not wanted.any():
            return None
        difference, early = self.walk.difference, slice(0, self.known)
        ours, also = self.factors[port : port + count], self.also_factors
        total = torch.einsum("pu,ubsd->pbsd", ours[:, early], difference[early]).repeat(1, self.rows, 1, 1)
        extra = torch.einsum("ru,ubsd->rbsd", also[:, early], difference[early]).flatten(0, 1)
        for nodes, late in self.late:
            if wanted[:, nodes].any():
                total = total + torch.einsum("pu,umsd->pmsd", ours[:, nodes], late)
            if own and self.also[:, nodes].any():
                each = late.unflatten(1, (self.rows, -1))
                extra = extra + torch.einsum("ru,urbsd->rbsd", also[:, nodes], each).flatten(0, 1)
        if own and self.port is not None:
            total[self.port - port] += extra
        return total

    def block(self, layer: int, resid: Tensor) -> Tensor:
        walk, graph = self.walk, self.walk.parts.graph
        block, port, node = walk.parts.blocks[layer], layer * walk.ports_per_layer, 1 + layer * walk.nodes_per_layer
        heads, kv, repeat = graph.n_heads, walk.kv_heads, walk.kv_heads // graph.n_kv_heads
        q = self._projected(block, block.q, graph.n_heads, 1, resid, port)
        k = self._projected(block, block.k, graph.n_kv_heads, repeat, resid, port + heads)
        v = self._projected(block, block.v, graph.n_kv_heads, repeat, resid, port + heads + kv)
        q, k = walk.turned(block, q, "q", walk.start), walk.turned(block, k, "k", walk.start)
        if walk.start:
            k, v = (
                torch.cat([before[:, : walk.start].repeat(self.rows, 1, 1, 1), x], 1)
                for before, x in ((walk.base.keys[layer], k), (walk.base.values[layer], v))
            )
        z = mix(walk._pattern(block, q, k, walk.start), v)
        attn_out = block.o(z.flatten(-2))
        attn_out = attn_out if block.ln1_post is None else block.ln1_post(attn_out)
        mid = resid + attn_out
        if self._asked(slice(node, node + heads)):
            self._keep(node, head_writes(block, z))
        x = resid if graph.parallel else mid
        correction = self.correction(port + heads + 2 * kv, 1)
        mlp_out = walk.mlp(block, block.ln2(x if correction is None else x + correction[0]), layer)
        mlp_out = mlp_out if block.ln2_post is None else block.ln2_post(mlp_out)
        if self._asked(slice(node + heads, node + heads + 1)):
            self._keep(node + heads, mlp_out[None])
        return mid + mlp_out

    def _asked(self, nodes: slice) -> bool:
        """Whether any edge from these nodes is replaced, in any row."""
        return bool(self.out[:, nodes].any() or self.also[:, nodes].any())

    def _keep(self, node: int, writes: Tensor) -> None:
        """Remembers alternative minus current writes of some nodes, "node (row batch) pos d_model"."""
        nodes = slice(node, node + len(writes))
        alternative = self.walk.alternative[nodes, :, self.walk.start :].repeat(1, self.rows, 1, 1)
        self.late.append((nodes, alternative - writes))

    def _projected(self, block: Block, linear, heads: int, repeat: int, resid: Tensor, port: int) -> Tensor:
        """Queries, keys or values "(row batch) pos head d_head", each head from its own port's input."""
        correction = self.correction(port, heads * repeat)
        if correction is None:
            return linear(block.ln1(resid)).unflatten(-1, (heads, -1)).repeat_interleave(repeat, 2)
        x = block.ln1(resid[None] + correction)
        out = torch.einsum("hmsd,hkd->mshk", x, input_matrices(linear, heads, repeat))
        bias = getattr(linear, "bias", None)
        return out if bias is None else out + bias.unflatten(0, (heads, -1)).repeat_interleave(repeat, 0)
