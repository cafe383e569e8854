"""What frozen patterns hide: which heads carry an edge, and why a head looked where it did.

*Edges.* An edge sums over all paths from source to target through heads and the residual stream. Every path that meets
a head at all has a last one and a first one, so that the edge splits exactly by either. The paths that meet one head
only are another split; what is left of it are paths through several heads.

*Patterns.* A score before the softmax is bilinear in what the query and the key read, and both are sums over the
graph's sources and biases; so is the score, over pairs of them.

Reference: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits" (paths through heads); Kamath et al.
2025, "Tracing Attention Computation Through Feature Interactions" (QK attributions to pairs of features).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.attention.weights.matrices import Head, head_weights, parse_head, rotations
from interp.engine.forward import Recorder, Walk
from interp.errors import UsageError, unknown_name
from interp.results.scores import scores
from interp.tracing.assembly import Assembly
from interp.tracing.frozen import matrix, wide
from interp.tracing.graph import AttributionGraph
from interp.tracing.linear import LocalModel, Reads, order
from interp.tracing.trace import assembled

__all__ = ["EdgeByHead", "ScoreByPairs", "edge_by_head", "score_by_pairs"]

_WAYS = ("last", "first", "only")


@dataclass(frozen=True, eq=False)
class EdgeByHead:
    """An edge split by head.

    Attributes:
        heads: What each head carries, "layer head", in units of the target's value.
        direct: What no head carries.
        rest: What is left: with ``only`` the paths through several heads, else rounding.
        weight: The whole edge, their sum.
    """

    heads: xr.DataArray
    direct: float
    rest: float
    weight: float

    def top(self, k: int = 5) -> pd.DataFrame:
        """The heads that carry most: columns ``head``, ``weight``, ``share`` (of the whole edge, signed)."""
        values = self.heads.values
        order_of = np.argsort(-np.abs(values), axis=None, kind="stable")[:k]
        cells = [np.unravel_index(i, values.shape) for i in order_of]
        found = [float(values[cell]) for cell in cells]
        share = [value / self.weight if self.weight else float("nan") for value in found]
        return pd.DataFrame({"head": [f"a{a}.h{b}" for a, b in cells], "weight": found, "share": share})


@dataclass(frozen=True, eq=False)
class ScoreByPairs:
    """An attention score before the softmax, and before a cap on scores, split by pairs of sources.

    Attributes:
        names: The sources; the last one is ``bias``.
        pairs: What each pair adds, "query_source key_source"; sums to `score`.
        score: The model's own score.
    """

    names: tuple[str, ...]
    pairs: Float[np.ndarray, "source source"]
    score: float

    def top(self, k: int = 10) -> pd.DataFrame:
        """The largest: columns ``query``, ``key`` (sources that are read at the query and at the key), ``score``."""
        best = np.argsort(-np.abs(self.pairs), axis=None, kind="stable")[:k]
        rows, columns = np.unravel_index(best, self.pairs.shape)
        names = [[self.names[i] for i in some] for some in (rows, columns)]
        return pd.DataFrame({"query": names[0], "key": names[1], "score": self.pairs[rows, columns]})


@torch.no_grad()
def edge_by_head(graph: AttributionGraph, source: str, target: str, by: str = "last") -> EdgeByHead:
    """Which heads carry an edge.

    Args:
        graph: The graph, in memory or attached, without supernodes.
        source: A token, feature or error.
        target: A feature or logit.
        by: ``last`` or ``first`` head of each path, or ``only`` for paths through one head.

    Returns:
        The split; its parts sum to the edge's weight.

    Raises:
        UsageError: No such nodes, a source or target that is none, or another word for `by`.
    """
    if by not in _WAYS:
        raise unknown_name("way to split an edge", str(by), _WAYS)
    _check(graph, source, target)
    found = assembled(graph)
    local, reads = found.local, found.reads.some(torch.tensor([_number_of_target(graph, found, target)]))
    writes = _injected(found, found.names.index(source))
    streams = dict(local.push(writes, attention=by == "last"))
    gradients = _gradients(local, reads, attention=by == "first")
    parts, (n_layers, n_heads) = local.parts, (local.parts.graph.n_layers, local.parts.graph.n_heads)
    values = np.zeros((n_layers, n_heads))
    for layer, gradient in gradients.items():
        z = local.run.z(layer, streams[order("resid_pre", layer)])[0, : len(gradient)]
        back = (
            gradient if parts.blocks[layer].ln1_post is None else local.run.norm_back("attn_written", layer, gradient)
        )
        onto = (back @ matrix(parts.blocks[layer].o).T).unflatten(-1, (n_heads, -1))
        values[layer] = (z * onto).sum((0, 2)).double().cpu().numpy()
    at = int(reads.order[0])
    position, vector = int(reads.position[0]), reads.vector[0]
    weight = _dot(dict(local.push(writes))[at][0, position], vector)
    direct = _dot(dict(local.push(writes, attention=False))[at][0, position], vector)
    array = scores(values, ("layer", "head"), name="weight of an edge", units="the target's value", edge=by)
    return EdgeByHead(array, direct, weight - direct - float(values.sum()), weight)


@torch.no_grad()
def score_by_pairs(graph: AttributionGraph, head: Head, query: int, key: int) -> ScoreByPairs:
    """Which pairs of sources make a head's score between two positions.

    Where queries and keys are normed, the scales of these norms are constants.

    Args:
        graph: The graph, in memory or attached, without supernodes.
        head: ``a3.h5``, or layer and index.
        query: The position that looks.
        key: The position that is looked at, not after `query`.

    Raises:
        UsageError: No such head, or positions that make no score.
    """
    found = assembled(graph)
    local = found.local
    layer, index = parse_head(local.parts, head)
    if not 0 <= key <= query < local.length:
        raise UsageError(f"no query at {query} sees a key at {key}: the prompt has {local.length} positions")
    walk, recorder = Walk(local.parts, local.length), Recorder({"q", "k", "q_rotated", "k_rotated"})
    walk(walk.embed(local.run.tokens[None].to(local.parts.device)), recorder, last_layer=layer)
    repeat = local.parts.graph.n_heads // local.parts.graph.n_kv_heads
    turned = [
        recorder.kept["q_rotated", layer][0, query, index],
        recorder.kept["k_rotated", layer][0, key, index // repeat],
    ]
    block, turn = local.parts.blocks[layer], rotations(local.parts, layer, local.length)
    sides = []
    for site, position, row in (("q", query, index), ("k", key, index // repeat)):
        side = _side(found, layer, index, site, position)
        norm = block.q_norm if site == "q" else block.k_norm
        if norm is not None:
            side = side * norm.scale_of_head(wide(recorder.kept[site, layer][0, position]), row)
        sides.append(side @ turn[position].T)
    pairs = (sides[0] @ sides[1].T * block.scale).double().cpu().numpy()
    return ScoreByPairs((*found.names, "bias"), pairs, block.scale * _dot(*(wide(x) for x in turned)))


def _side(found: Assembly, layer: int, head: int, site: str, position: int) -> Float[Tensor, "source d_head"]:
    """What each source, and at the end the biases, adds to a query or key before its norm's scale and its rotation."""
    local, weights = found.local, head_weights(found.local.parts, layer)
    rows, bias = (weights.q, weights.q_bias) if site == "q" else (weights.k, weights.k_bias)
    at = torch.full((rows.shape[1],), position, device=rows.device)
    vectors = rows[head] * local.run.scales["resid_pre", layer][position]
    reads = Reads(torch.full_like(at, order("resid_pre", layer)), at, vectors, bias[head])
    effects, constants = local.effects(reads, found.writes, found.n_sources)
    return torch.cat([effects, constants[:, None]], 1).T


def _check(graph: AttributionGraph, source: str, target: str) -> None:
    kinds = graph.nodes["kind"]
    a, b = (kinds.iloc[graph.row(name)] for name in (source, target))
    if a == "error" and "pruned" in graph.about:
        raise UsageError(
            f"{source} can't be split in a pruned graph, which does not say what else it held; take it whole"
        )
    if a == "logit" or b not in ("feature", "logit"):
        raise UsageError(f"no edge goes from {source} to {target}: a {a} and a {b}")


def _number_of_target(graph: AttributionGraph, found: Assembly, target: str) -> int:
    if target.startswith("logit."):
        logits = [str(name) for name in graph.nodes.index[graph.nodes["kind"] == "logit"]]
        return found.n_units + logits.index(target)
    return found.names.index(target)


def _injected(found: Assembly, column: int) -> dict[int, Tensor]:
    """What one source adds to the stream, by the `order` of the first reader."""
    local = found.local
    made: dict[int, Tensor] = {}
    for (site, layer), writes in found.writes.items():
        here = writes.column == column
        if not here.any():
            continue
        x = local.run.final.new_zeros(1, local.length, local.parts.graph.d_model)
        x[0].index_add_(0, writes.position[here], writes.vector[here])
        at = {"embed": 0, "mlp_out": order("resid_post", layer), "resid_post": order("resid_pre", layer + 1)}[site]
        made[at] = made.get(at, 0.0) + x
    return made


def _gradients(local: LocalModel, reads: Reads, attention: bool) -> dict[int, Float[Tensor, "pos d_model"]]:
    """The gradient of one target at every layer's ``attn_out``."""
    site, found = ("mlp_out" if local.parts.graph.parallel else "attn_out"), {}

    def see(place, some: slice, gradient: Tensor) -> None:
        if place[0] == site:
            found[place[1]] = gradient[0].clone()

    local.pull(reads, see, attention)
    return found


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.double(), b.double()))
