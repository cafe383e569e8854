"""Attention scores, written in the singular vectors of W_QK: which few terms make a head look where it looks.

The score of a query at i and a key at j, before softcap, mask and softmax, is a product of two inputs,

    score = x_i^T Omega x_j = sum_k s_k (x_i . u_k) (v_k . x_j)        Omega = sum_k s_k u_k v_k^T

(Franco and Crovella 2024, arXiv:2410.00340, section 3). x is the residual stream behind the norm's scale, with a one
appended for the biases; Omega has the norm's weight, the projections and the score's scale in it. The terms are exact:

*Rotary positions*: Omega = W_Q^T R_i^T R_j W_K has the rotation of the very positions in it, so its singular vectors
depend on the distance. *Norms on queries and keys*: their weights are in Omega, their scales, two numbers for a pair of
positions, multiply every term. *Grouped queries*: a query head has its group's W_K.

The *signal* is the smallest set of terms, largest first, that adds up to a share of the score. As the score is linear
in either input, what each earlier node wrote to position i (or j) contributes its part of the signal, the norm's scale
held; these parts add up, with what is constant (biases), to the signal. The paper's own code weights a source by the
square roots of the s_k and leaves out the other side's input; here the weights are exactly those of the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.attention.weights.matrices import Components, Head, head_weights, parse_head, product_svd, rotations
from interp.engine.edges import Writes, record_writes
from interp.engine.forward import Recorder, Walk
from interp.engine.identity import identity
from interp.engine.parts import Parts
from interp.engine.verify import verified
from interp.errors import UsageError, unknown_name
from interp.results import scores
from interp.tasks import Task

__all__ = ["SIDES", "AttentionRun", "Terms", "attention_terms", "signal_sources"]

SIDES = ("query", "key")
Place = str | int | Int[Tensor, " example"]


@dataclass(frozen=True, eq=False)
class Terms:
    """One head's score at one query and key of each example, term by term.

    Attributes:
        layer, head: the head.
        query, key: the positions.
        terms: the terms; their sum is the score.
        omega: singular components of Omega, with the vectors' last entry, that of the biases, left out.
        inputs: ``x_i . u_k`` and ``v_k . x_j`` by side.
        scales: what the norm multiplies the residual stream by at the two positions, by side.
        norm_scale: the scales of norms on queries and keys multiplied; 1 without.
    """

    layer: int
    head: int
    query: Int[Tensor, " example"]
    key: Int[Tensor, " example"]
    terms: Float[Tensor, "example component"]
    omega: Components
    inputs: dict[str, Float[Tensor, "example component"]]
    scales: dict[str, Float[Tensor, "example 1"]]
    norm_scale: Float[Tensor, "example 1"]

    @property
    def score(self) -> Float[Tensor, " example"]:
        """The score before softcap, mask and softmax."""
        return self.terms.sum(-1)

    def directions(self, side: str) -> Float[Tensor, "example component d_model"]:
        """The singular vectors of one side."""
        return self.omega.left if side == "query" else self.omega.right

    def signal(self, share: float = 0.7) -> Bool[Tensor, "example component"]:
        """The fewest terms, of the score's own sign, that add up to this share of each example's score."""
        signed = self.terms * self.score.sign()[:, None]
        ordered, order = signed.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered
        needed = before < share * signed.sum(-1, keepdim=True)
        return torch.zeros_like(needed).scatter(-1, order, needed)

    def gradient(self, side: str, chosen: Bool[Tensor, "example component"]) -> Float[Tensor, "example d_model"]:
        """What a change of one side's residual stream is multiplied by to give the change of the chosen terms."""
        other = self.inputs["key" if side == "query" else "query"]
        weights = self.omega.sizes * self.norm_scale * other * chosen
        return torch.einsum("ek,ekd->ed", weights, self.directions(side)) * self.scales[side]


class AttentionRun:
    """Prompts, run once, whose attention scores can be taken apart.

    Args:
        model: any bridge, or its verified parts.
        tokens: token ids of the prompts.

    Raises:
        UsageError: the model's norms on queries or keys have biases.
    """

    def __init__(self, model: TransformerBridge | Parts, tokens: Int[Tensor, "example pos"]) -> None:
        self.parts = parts = model if isinstance(model, Parts) else verified(model)
        norms = [norm for block in parts.blocks for norm in (block.q_norm, block.k_norm) if norm is not None]
        if any(norm.bias is not None for norm in norms):
            raise UsageError(
                "the norms on this model's queries and keys have biases, with which a score is no product of the two "
                "residual streams; it can't be taken apart"
            )
        self.tokens = tokens.to(parts.device)
        self.rows = torch.arange(len(tokens), device=parts.device)
        walk, recorder = Walk(parts, tokens.shape[1]), Recorder({"resid_pre", "q", "k", "pattern"})
        with torch.no_grad():
            self.final = walk(walk.embed(self.tokens), recorder)
        self.kept = recorder.kept

    @cached_property
    def writes(self) -> Writes:
        """What every node wrote."""
        return record_writes(self.parts, self.tokens)

    @torch.no_grad()
    def terms(self, head: Head, query: Place, key: Place) -> Terms:
        """The terms of one head's score of one query and key of each example.

        Raises:
            UsageError: a head that there is not, or a key behind the query.
        """
        layer, index = parse_head(self.parts, head)
        graph, block = self.parts.graph, self.parts.blocks[layer]
        at = {"query": self._positions(query), "key": self._positions(key)}
        if bool((at["key"] > at["query"]).any()):
            raise UsageError("a query sees no key behind it; exchange query and key")
        weights, turns = head_weights(self.parts, layer), rotations(self.parts, layer, self.tokens.shape[1])
        reading = torch.cat([weights.q[index], weights.q_bias[index, :, None]], 1)
        matching = torch.cat([weights.k[index], weights.k_bias[index, :, None]], 1)
        pairs, of = torch.stack([at["query"], at["key"]], 1).unique(dim=0, return_inverse=True)
        middle = turns[pairs[:, 0]].mT @ turns[pairs[:, 1]] * block.scale
        omega = product_svd(reading, matching, middle)
        left, sizes, right = omega.left[of], omega.sizes[of], omega.right[of]

        inputs, scales = {}, {}
        for side, vectors in (("query", left), ("key", right)):
            resid = self.kept["resid_pre", layer][self.rows, at[side]].to(sizes.dtype)
            scales[side] = block.ln1.inverse_scale(resid)
            x = torch.cat([block.ln1.centre(resid) * scales[side], torch.ones_like(scales[side])], -1)
            inputs[side] = torch.einsum("ekd,ed->ek", vectors, x)
        norm_scale = torch.ones_like(scales["query"])
        group = index * graph.n_kv_heads // graph.n_heads
        for norm, side, site, which in ((block.q_norm, "query", "q", index), (block.k_norm, "key", "k", group)):
            if norm is not None:
                norm_scale = norm_scale * norm.scale_of_head(self.kept[site, layer][self.rows, at[side]], which)
        return Terms(
            layer=layer,
            head=index,
            query=at["query"],
            key=at["key"],
            terms=sizes * inputs["query"] * inputs["key"] * norm_scale,
            omega=Components(left[..., :-1], sizes, right[..., :-1]),
            inputs=inputs,
            scales=scales,
            norm_scale=norm_scale,
        )

    @torch.no_grad()
    def sources(
        self, terms: Terms, side: str, chosen: Bool[Tensor, "example component"]
    ) -> Float[Tensor, "node example"]:
        """What each earlier node's write at one side's position contributes to the chosen terms.

        Nodes are the input, and the heads and the MLP of each earlier layer, in the order of `Graph.nodes`.
        """
        if side not in SIDES:
            raise unknown_name("side", side, SIDES)
        graph = self.parts.graph
        before = 1 + terms.layer * (graph.n_heads + 1)
        written = self.writes.nodes[:before, self.rows, terms.query if side == "query" else terms.key]
        return torch.einsum("ned,ed->ne", written.to(terms.terms.dtype), terms.gradient(side, chosen))

    def attention(self, head: tuple[int, int], query: Place, key: Place) -> Float[Tensor, " example"]:
        """The head's attention from query to key."""
        layer, index = head
        return self.kept["pattern", layer][self.rows, index, self._positions(query), self._positions(key)]

    def _positions(self, place: Place) -> Int[Tensor, " example"]:
        if isinstance(place, str):
            raise UsageError(f"the position {place!r} has a name in a task only; give the task instead of its tokens")
        at = torch.as_tensor(place, device=self.tokens.device).expand(len(self.tokens))
        if int(at.min()) < 0 or int(at.max()) >= self.tokens.shape[1]:
            raise UsageError(f"positions must be in 0 to {self.tokens.shape[1] - 1}, got {at.tolist()}")
        return at


def attention_terms(
    model: TransformerBridge, prompts: Task | Int[Tensor, "example pos"], head: Head, query: Place, key: Place
) -> xr.DataArray:
    """The terms of a head's attention score from one position to another, in the singular vectors of W_QK.

    Args:
        model: any bridge.
        prompts: a task, whose clean prompts are run, or token ids.
        head: such as ``a23.h3``.
        query, key: positions: an index, one for each example, or with a task the name of a position.

    Returns:
        Terms with dims ``example`` and ``component`` (largest singular value first). They add up to the score that
        the model has before softcap, mask and softmax.

    Raises:
        UsageError: a head or position that there is not, a key behind the query, or norms on queries and keys that
            have biases.

    Reference: Franco and Crovella 2024, arXiv:2410.00340, section 3.

    Example:
        >>> terms = attention_terms(model, task, "a23.h3", "end", "io")      # doctest: +SKIP
        >>> terms.sum("component")                                           # doctest: +SKIP
    """
    run, (query, key) = prepared(model, prompts, query, key)
    found = run.terms(head, query, key)
    return scores(
        found.terms,
        ("example", "component"),
        {"query_position": ("example", found.query.tolist()), "key_position": ("example", found.key.tolist())},
        name="attention score",
        units="score before softmax",
        head=f"a{found.layer}.h{found.head}",
        attention=float(run.attention((found.layer, found.head), query, key).mean()),
        model=str(model.cfg.model_name),
        fingerprint=identity(model),
    )


def signal_sources(
    model: TransformerBridge,
    prompts: Task | Int[Tensor, "example pos"],
    head: Head,
    query: Place,
    key: Place,
    share: float = 0.7,
    sides: Sequence[Literal["query", "key"]] = ("query", "key"),
) -> xr.DataArray:
    """What each earlier node contributes to the signal of a head's attention score, by side (section 4 of the paper).

    Args:
        model, prompts, head, query, key: as in `attention_terms`.
        share: of the score that the signal's terms have to reach; the paper has 0.7.
        sides: ``query``, ``key`` or both: where a node's write enters.

    Returns:
        Mean contributions over the examples with dims ``kind`` (the side) and ``node``, in units of the score. Of
        each side they add up to the signal, but for biases.

    Raises:
        UsageError: as `attention_terms`; a share outside of (0, 1].
    """
    check_share(share)
    run, (query, key) = prepared(model, prompts, query, key)
    found = run.terms(head, query, key)
    chosen = found.signal(share)
    each = torch.stack([run.sources(found, side, chosen).mean(-1) for side in sides])
    return scores(
        each,
        ("kind", "node"),
        {"kind": list(sides), "node": list(run.parts.graph.nodes()[: each.shape[1]])},
        name="contribution",
        units="score before softmax",
        head=f"a{found.layer}.h{found.head}",
        share=share,
        score=float(found.score.mean()),
        signal=float((found.terms * chosen).sum(-1).mean()),
        components=float(chosen.sum(-1).float().mean()),
        model=str(model.cfg.model_name),
        fingerprint=identity(model),
    )


def prepared(
    model: TransformerBridge | Parts, prompts: Task | Tensor, *places: Place
) -> tuple[AttentionRun, list[Place]]:
    """A run of the prompts, and positions with the names that a task gives them looked up."""
    if not isinstance(prompts, Task):
        return AttentionRun(model, prompts), list(places)
    found: list[Place] = []
    for place in places:
        if isinstance(place, str):
            if place not in prompts.positions:
                raise unknown_name("position", place, prompts.positions)
            place = prompts.positions[place]
        found.append(place)
    return AttentionRun(model, prompts.clean), found


def check_share(share: float) -> None:
    """Refuses a share that no terms have."""
    if not 0 < share <= 1:
        raise UsageError(f"share must be above 0 and at most 1, got {share}")
