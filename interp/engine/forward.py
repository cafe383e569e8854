"""One forward pass, walked block by block, with a visitor at every site.

The walk is what every analysis runs on: it can begin at any layer, compute only the positions from some
position on (the keys and values of earlier ones are given), take in further rows at any stage of any layer, and
keep only the positions that are read at the end. `tests/test_engine.py` holds it against the bridge's own pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from interp.engine.experts import Experts
from interp.engine.parts import Block, Norm, Parts
from interp.engine.rules import (
    GRADIENT,
    Rules,
    activate,
    carrying,
    gated,
    normed,
    project,
    scaled_back,
    secant_slope,
    softmax_secant,
)
from interp.errors import UsageError

__all__ = ["STAGE_OF_SITE", "Recorder", "Visitor", "Walk", "inside", "mix", "run"]

STAGE_OF_SITE = {
    "resid_pre": "resid_pre",
    "q": "qkv",
    "k": "qkv",
    "v": "qkv",
    "pattern": "qkv",
    "z": "z",
    "attn_out": "attn_out",
    "resid_mid": "resid_mid",
    "router": "resid_mid",
    "expert": "resid_mid",
    "post": "post",
    "mlp_out": "mlp_out",
    "resid_post": "resid_post",
}
"""The last stage at which a row whose first changed site this is can join a walk."""

LIVE_AT_STAGE = {
    "resid_pre": ("resid_pre",),
    "qkv": ("resid_pre", "q", "k", "v"),
    "z": ("resid_pre", "z"),
    "attn_out": ("resid_pre", "attn_out"),
    "resid_mid": ("resid_mid",),
    "post": ("resid_mid", "post"),
    "mlp_out": ("resid_mid", "mlp_out"),
    "resid_post": ("resid_post",),
}
"""The activations that are all a row needs to go on from a stage."""


def inside(rules: Rules) -> set[str]:
    """The sites of the other run that rules look at; ``final`` is the final residual stream."""
    sites = {"gate", "up"} if rules.two_runs else set()
    if rules.norm == "secant":
        sites |= {"resid_pre", "q", "k", "attn_written", "mlp_port", "mlp_written", "final"}
    return sites | ({"q_rotated", "k_rotated", "v"} if rules.attention == "secant" else set())


class Visitor:
    """What happens at the sites of a walk. This one lets everything pass."""

    needs_pattern = True
    """Whether it reads or replaces patterns. One that nobody needs is never made where no gradient is wanted."""

    def enter(self, layer: int, stage: str, first: int, live: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """May append rows to the tensors that are live at a stage; `first` is their first position."""
        return live

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        """May read or replace the activation at a site; `first` is its first (query) position."""
        return x

    def wants(self, layer: int, site: str) -> bool:
        """Whether a site that takes work of its own (one of `interp.graph.EXPERT_SITES`) is looked at."""
        return False


class Recorder(Visitor):
    """Keeps the activations at some sites: ``recorder.kept["z", 3]`` is "batch pos head d_head"."""

    def __init__(self, sites: set[str]) -> None:
        self.sites = sites
        self.kept: dict[tuple[str, int], Tensor] = {}

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        if site in self.sites:
            self.kept[site, layer] = x
        return x

    def wants(self, layer: int, site: str) -> bool:
        return site in self.sites


class Walk:
    """Walks a model over sequences of one length.

    Args:
        parts: The model's parts.
        length: How many positions there are; later ones than the last that is read need not be counted.
        rules: What the backward pass does, where there is one. The forward pass is the same under all rules.
        ungrouped: Give every query head keys and values of its own (``k`` and ``v`` then have as many heads as
            ``q``), so that a gradient with respect to them can be had for each.
        other: For rules that look at both runs: the other run's activations at the sites `inside` names.
        queries_at_once: Attend from so many queries at a time, each to the keys up to its last one, so that a long
            input's pattern never exists as a whole: the visitor gets it piece by piece, "row head query key".
    """

    def __init__(
        self,
        parts: Parts,
        length: int,
        rules: Rules = GRADIENT,
        ungrouped: bool = False,
        other: Mapping[tuple[str, int], Tensor] | None = None,
        queries_at_once: int | None = None,
    ) -> None:
        self.queries_at_once = queries_at_once
        self.parts, self.length, self.rules, self.ungrouped = parts, length, rules, ungrouped
        self.other = other or {}
        self.rotation = parts.rotation(length)
        position = torch.arange(length, device=parts.device)
        distance = position[:, None] - position[None, :]
        self.visible = {
            window: (distance >= 0) if window is None else (distance >= 0) & (distance < window)
            for window in {block.window for block in parts.blocks}
        }

    def embed(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream that enters the first block."""
        x = self.parts.embed(tokens)
        if self.parts.pos_embed is not None:
            x = x + self.parts.pos_embed(torch.arange(tokens.shape[1], device=tokens.device))[None]
        return x

    def __call__(
        self,
        resid: Float[Tensor, "row span d_model"],
        visitor: Visitor,
        *,
        start: int = 0,
        first_layer: int = 0,
        earlier: Callable[[int, int], tuple[Tensor, Tensor]] | None = None,
        read_from: int | None = None,
        last_layer: int | None = None,
    ) -> Float[Tensor, "row read d_model"]:
        """Walks the blocks and returns the final residual stream.

        Args:
            resid: What enters `first_layer`, at positions `start` and later.
            visitor: Called at every stage and site.
            start: The first position that is computed.
            first_layer: The first block that is computed.
            earlier: ``earlier(layer, rows)`` gives the rotated keys and the values of the positions before
                `start`, each "row start kv_head d_head". Needed when `start` is not 0.
            read_from: The first position whose final residual is wanted; the last block computes no earlier one.
            last_layer: The last block that is computed.
        """
        last = len(self.parts.blocks) - 1 if last_layer is None else last_layer
        for layer in range(first_layer, last + 1):
            keep = max(start, read_from) if read_from is not None and layer == last else start
            resid = self._block(layer, resid, visitor, start, keep, earlier)
        return resid

    def _block(self, layer, resid, visitor, start, keep, earlier):
        block, graph = self.parts.blocks[layer], self.parts.graph

        def enter(stage: str, *live: Tensor, first: int = keep) -> tuple[Tensor, ...]:
            return visitor.enter(layer, stage, first, live)

        def visit(site: str, x: Tensor, first: int = keep) -> Tensor:
            return visitor.visit(layer, site, first, x)

        (resid,) = enter("resid_pre", resid, first=start)
        resid = visit("resid_pre", resid, start)

        x = self._norm(block.ln1, resid, "resid_pre", layer)
        q, k, v = (
            self._project(projection, x).unflatten(-1, (heads, graph.d_head))
            for projection, heads in (
                (block.q, graph.n_heads),
                (block.k, graph.n_kv_heads),
                (block.v, graph.n_kv_heads),
            )
        )
        if self.ungrouped:
            k, v = (x.repeat_interleave(graph.n_heads // graph.n_kv_heads, dim=2) for x in (k, v))
        resid, q, k, v = enter("qkv", resid, q, k, v, first=start)
        q, k, v = (visit(site, x, start) for site, x in (("q", q), ("k", k), ("v", v)))

        resid, q = resid[:, keep - start :], q[:, keep - start :]
        q, k, v_mixed = self._share(q, k, v)
        q, k = self.turned(block, q, "q", keep, layer), self.turned(block, k, "k", start, layer)
        q, k = visit("q_rotated", q), visit("k_rotated", k, start)
        if start:
            keys, values = earlier(layer, k.shape[0])
            k, v_mixed = torch.cat([keys, k], 1), torch.cat([values, v_mixed], 1)
        odd = block.softcap is not None or block.sinks is not None
        if visitor.needs_pattern or odd or torch.is_grad_enabled():
            z = self._attend(block, q, k, v_mixed, keep, layer, visit)
        else:
            z = self._fused(block, q, k, v_mixed, keep)

        resid, z = enter("z", resid, z)
        z = visit("z", z)
        attn_out = self._project(block.o, z.flatten(-2))
        if block.ln1_post is not None:
            attn_out = self._norm(block.ln1_post, visit("attn_written", attn_out), "attn_written", layer)
        resid, attn_out = enter("attn_out", resid, attn_out)
        attn_out = visit("attn_out", attn_out)
        mid = resid + attn_out

        if graph.parallel:
            x = self._norm(block.ln2, visit("mlp_port", resid.view_as(resid)), "mlp_port", layer)
        else:
            (mid,) = enter("resid_mid", mid)
            mid = visit("resid_mid", mid)
            x = self._norm(block.ln2, visit("mlp_port", mid.view_as(mid)), "mlp_port", layer)
        if block.experts is None:
            post = self._neurons(block, x, layer, visit)
            mid, post = enter("post", mid, post)
            mlp_out = self._project(block.down, visit("post", post))
        else:
            mlp_out = self._mixture(block.experts, x, visit, lambda site: visitor.wants(layer, site))
        if block.ln2_post is not None:
            mlp_out = self._norm(block.ln2_post, visit("mlp_written", mlp_out), "mlp_written", layer)
        mid, mlp_out = enter("mlp_out", mid, mlp_out)
        if graph.parallel:
            visit("resid_mid", mid)
        mlp_out = visit("mlp_out", mlp_out)
        (out,) = enter("resid_post", mid + mlp_out)
        return visit("resid_post", out)

    def _attend(self, block, q, k, v, first, layer, visit):
        """z "row query head d_head" of rotated queries, whose first position is `first`."""
        if self.queries_at_once is None:
            return self._mixed(visit("pattern", self._pattern(block, q, k, first, layer)), v, layer, block, first)
        pieces = []
        for piece in q.split(self.queries_at_once, dim=1):
            stop = first + piece.shape[1]
            pattern = visit("pattern", self._pattern(block, piece, k[:, :stop], first, layer), first)
            pieces.append(self._mixed(pattern, v[:, :stop], layer, block, first))
            first = stop
        return torch.cat(pieces, 1)

    def _fused(self, block: Block, q: Tensor, k: Tensor, v: Tensor, first: int) -> Tensor:
        """z "row query head d_head" as `_attend` gives it, but for rounding, by torch's fused attention."""
        causal = first == 0 and q.shape[1] == k.shape[1] and (block.window is None or block.window >= k.shape[1])
        groups = q.shape[2] // k.shape[2]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if not causal and groups > 1:  # kernels that take masks take no groups
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        mask = None if causal else self.visible[block.window][first : first + q.shape[2], : k.shape[2]]
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=block.scale, enable_gqa=causal and groups > 1
        ).transpose(1, 2)

    def pattern(
        self,
        layer: int,
        q: Float[Tensor, "row query head d_head"],
        k: Float[Tensor, "row key kv_head d_head"],
        first: int,
    ) -> Float[Tensor, "row head query key"]:
        """A block's pattern of rotated queries, whose first position is `first`, on rotated keys from position 0."""
        return self._pattern(self.parts.blocks[layer], q, k, first, layer)

    def turned(self, block: Block, x: Tensor, site: str, first: int, layer: int = 0) -> Tensor:
        """Queries or keys "row pos head d_head" as the scores are made of: normed if the model does that, rotated."""
        norm = block.q_norm if site == "q" else block.k_norm
        if norm is not None:
            x = self._norm(norm.of_heads(x.shape[2]), x, site, layer)
        return self._rotate(block, x, first)

    def _rotate(self, block: Block, x: Tensor, first: int) -> Tensor:
        """Rotary position embedding of "row span head d_head", whose first position is `first`."""
        if block.turning is None:
            return x
        cos, sin = (table[first : first + x.shape[1], None] for table in self.rotation[block.rotary])
        size = cos.shape[-1]
        turned, rest = x[..., :size], x[..., size:]
        if block.turning == "adjacent":
            a, b = turned[..., ::2], turned[..., 1::2]
            turned = turned * cos + torch.stack([-b, a], dim=-1).flatten(-2) * sin
        else:
            a, b = turned.chunk(2, dim=-1)
            turned = turned * cos + torch.cat([-b, a], dim=-1) * sin
        return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned

    def _pattern(self, block: Block, q: Tensor, k: Tensor, first: int, layer: int = 0) -> Tensor:
        """Attention pattern "row head query key" of queries whose first position is `first`."""
        scores = self.scores(block, q, k, first)
        wide = None if scores.dtype == torch.float64 else torch.float32
        if block.sinks is not None:  # GPT-OSS: a score that no key has takes its share
            if self.rules.attention == "secant":
                raise UsageError("the rule 'secant' for attention does not know learned sinks; use 'gradient'")
            sink = block.sinks.to(scores.dtype)[:, None, None].expand(len(scores), -1, scores.shape[2], 1)
            pattern = torch.softmax(torch.cat([scores, sink], -1), dim=-1, dtype=wide)[..., :-1].to(q.dtype)
        else:
            pattern = torch.softmax(scores, dim=-1, dtype=wide).to(q.dtype)
        if self.rules.attention == "constant":
            return pattern.detach()
        if self.rules.attention == "secant" and pattern.requires_grad:
            other_q, other_k = self._other("q_rotated", layer, q), self._other("k_rotated", layer, k)
            other = self.scores(block, other_q, other_k, first)
            linear = self._raw_scores(block, q, (k.detach() + other_k) / 2)
            linear = linear + self._raw_scores(block, (q.detach() + other_q) / 2, k)
            if block.softcap is not None:
                raw = (self._raw_scores(block, a, b) for a, b in ((q.detach(), k.detach()), (other_q, other_k)))
                linear = linear * secant_slope(lambda x: block.softcap * torch.tanh(x / block.softcap), *raw)
            linear = linear.masked_fill(~self._seen(block, first, q, k), 0.0)
            return softmax_secant(pattern, scores, other, linear)
        return scaled_back(pattern, 0.5) if self.rules.attention == "attnlrp" else pattern

    def _mixed(self, pattern: Tensor, v: Tensor, layer: int, block: Block, first: int) -> Tensor:
        """Attention's mean of the values under its rule."""
        z = mix(pattern, v)
        if self.rules.attention != "secant" or not z.requires_grad:
            return z
        other_q, other_k = self._other("q_rotated", layer, pattern, 2), self._other("k_rotated", layer, v)
        other_pattern = torch.softmax(self.scores(block, other_q, other_k, first), -1)
        middle, middle_v = (pattern.detach() + other_pattern) / 2, (v.detach() + self._other("v", layer, v)) / 2
        return carrying(z.detach(), mix(pattern, middle_v) + mix(middle, v))

    def _other(self, site: str, layer: int, like: Tensor, axis: int = 1) -> Tensor:
        """The other run's activation, at the positions and for the heads that `like` has."""
        x = self.other.get((site, layer))
        if x is None:
            raise UsageError(f"the rules ({self.rules}) look at {site} of the other run, and it is not given")
        x = x[:, x.shape[1] - like.shape[axis] :]
        grouped = self.ungrouped and site in ("k", "k_rotated", "v")
        return x.repeat_interleave(self.parts.graph.n_heads // x.shape[2], 2) if grouped else x

    def scores(self, block: Block, q: Tensor, k: Tensor, first: int) -> Tensor:
        """Attention scores "row head query key" of rotated queries, whose first position is `first`, and keys."""
        scores = self._raw_scores(block, q, k)
        if block.softcap is not None:
            scores = block.softcap * torch.tanh(scores / block.softcap)
        return scores.masked_fill(~self._seen(block, first, q, k), torch.finfo(scores.dtype).min)

    def _seen(self, block: Block, first: int, q: Tensor, k: Tensor) -> Tensor:
        return self.visible[block.window][first : first + q.shape[1], : k.shape[1]]

    def _raw_scores(self, block: Block, q: Tensor, k: Tensor) -> Tensor:
        groups, keys, queries = k.shape[2], k.shape[1], q.shape[1]
        q = rearrange(q, "row query (group head) d -> row group (head query) d", group=groups)
        scores = torch.matmul(q, rearrange(k, "row key group d -> row group d key")) * block.scale
        return scores.reshape(len(q), self.parts.graph.n_heads, queries, keys)

    def _share(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values; under AttnLRP each gets back half of what comes back to its product."""
        if self.rules.attention != "attnlrp":
            return q, k, v
        return scaled_back(q, 0.5), scaled_back(k, 0.5), scaled_back(v, 0.5)

    def _norm(self, norm: Norm, x: Tensor, site: str = "", layer: int = 0) -> Tensor:
        """A norm under its rule; `site` is where its input is recorded."""
        secant = self.rules.norm == "secant" and x.requires_grad
        return normed(self.rules, norm, x, self._other(site, layer, x) if secant else None)

    def _project(self, linear, x: Tensor) -> Tensor:
        return project(self.rules, linear, x)

    def _neurons(self, block: Block, x: Tensor, layer: int, visit: Callable[[str, Tensor], Tensor]) -> Tensor:
        """What the MLP's neurons hold before the down projection."""
        up, other_up = visit("up", self._project(block.up, x)), self.other.get(("up", layer))
        if block.gate is None:
            return activate(self.rules, block.activation, up, other_up)
        before, other_gate = visit("gate", self._project(block.gate, x)), self.other.get(("gate", layer))
        gate = activate(self.rules, block.activation, before, other_gate)
        if not torch.is_grad_enabled() and gate is not before:
            return gate.mul_(up)
        return gated(self.rules, gate, up, None if other_gate is None else block.activation(other_gate), other_up)

    def _mixture(
        self, experts: Experts, x: Tensor, visit: Callable[[str, Tensor], Tensor], wants: Callable[[str], bool]
    ) -> Tensor:
        """What a mixture of experts writes; each expert by itself only where somebody looks at it."""
        if self.rules.two_runs and x.requires_grad:
            raise UsageError(
                f"the rules ({self.rules}) look at both runs, and in a mixture of experts the two may go through "
                "different experts; use 'relp', 'attnlrp' or 'gradient'"
            )
        weights = visit("router", experts.weights(x.detach() if self.rules.holds_router else x))
        if wants("expert"):
            return visit("expert", experts.apart(x, weights, self.rules)).sum(2)
        return experts.mixed(x, weights, self.rules, every=weights.requires_grad and wants("router"))

    def mlp(self, block: Block, x: Float[Tensor, "row pos d_model"], layer: int) -> Float[Tensor, "row pos d_model"]:
        """What the MLP writes of its normed input, before a norm behind it."""
        if block.experts is not None:
            return self._mixture(block.experts, x, _unseen, lambda site: False)
        return self._project(block.down, self._neurons(block, x, layer, _unseen))

    def logits(self, resid: Tensor, tokens: Tensor | None = None, other: Tensor | None = None) -> Tensor:
        """As `Parts.logits`, with the final norm under its rule; `other` is the other run's `resid`."""
        return self.parts.unembedded(normed(self.rules, self.parts.ln_final, resid, other), tokens)


def _unseen(site: str, x: Tensor) -> Tensor:
    return x


def mix(pattern: Tensor, v: Tensor) -> Tensor:
    """Attention's mean of the values: z, "row query head d_head"."""
    rows, heads, queries, keys = pattern.shape
    groups = v.shape[2]
    pattern = pattern.reshape(rows, groups, heads // groups * queries, keys)
    z = torch.matmul(pattern, v.transpose(1, 2))
    return rearrange(z, "row group (head query) d -> row query (group head) d", query=queries, head=heads // groups)


def run(
    parts: Parts, tokens: Int[Tensor, "batch pos"], sites: set[str], read_from: int = 0
) -> tuple[dict[tuple[str, int], Tensor], Float[Tensor, "batch read d_model"]]:
    """A plain forward pass: the activations at `sites`, by site and layer, and the final residual stream.

    Args:
        parts: The model's parts.
        tokens: Token ids.
        sites: Names of `interp.graph.SITES`, and ``k_rotated`` (keys after the rotary embedding).
        read_from: The first position that is wanted of the final residual stream.
    """
    walk, recorder = Walk(parts, tokens.shape[1]), Recorder(sites)
    return recorder.kept, walk(walk.embed(tokens.to(parts.device)), recorder, read_from=read_from)
