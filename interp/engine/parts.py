"""The weights and settings of one model, read off its bridge, as plain functions of tensors."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import UsageError
from interp.graph import Graph

__all__ = ["Block", "Norm", "Parts", "parts_of"]


@dataclass(frozen=True)
class Norm:
    """LayerNorm or RMSNorm over the last axis."""

    centred: bool
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def __call__(self, x: Tensor, constant_scale: bool = False) -> Tensor:
        """The normalised input; with `constant_scale`, nothing flows back through the scale."""
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        scale = self.inverse_scale(wide.detach() if constant_scale else wide)
        out = (wide - wide.mean(-1, keepdim=True) if self.centred else wide) * scale
        if self.weight is not None:
            out = out * self.weight.to(wide.dtype)
        if self.bias is not None:
            out = out + self.bias.to(wide.dtype)
        return out.to(x.dtype)

    def centre(self, x: Tensor) -> Tensor:
        """The input less its mean, if the norm does that."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def inverse_scale(self, x: Tensor) -> Tensor:
        """What the norm multiplies its (centred) input by, before its weight."""
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        return torch.rsqrt(torch.linalg.vecdot(x, x).unsqueeze(-1) / x.shape[-1] + self.eps)


@dataclass(frozen=True)
class Block:
    """One transformer block: its projections as modules, its norms and its attention's settings."""

    ln1: Norm
    ln2: Norm
    ln1_post: Norm | None
    ln2_post: Norm | None
    q: Any
    k: Any
    v: Any
    o: Any
    q_norm: Norm | None
    k_norm: Norm | None
    scale: float
    softcap: float | None
    window: int | None
    rotary: str | None
    gate: Any
    up: Any
    down: Any
    activation: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Parts:
    """A whole model, ready to be walked block by block."""

    graph: Graph
    embed: Callable[[Tensor], Tensor]
    pos_embed: Callable[[Tensor], Tensor] | None
    rotary: Any
    blocks: tuple[Block, ...]
    ln_final: Norm
    unembed: Any
    logit_softcap: float | None
    device: torch.device
    dtype: torch.dtype

    def rotation(self, length: int) -> dict[str | None, tuple[Tensor, Tensor]]:
        """Cosines and sines ("pos rotary") of all positions, for each kind of rotary embedding in use."""
        if self.rotary is None:
            return {}
        positions = torch.arange(length, device=self.device)[None]
        like = torch.empty(1, length, self.graph.d_model, device=self.device, dtype=self.dtype)
        found = {}
        for kind in {block.rotary for block in self.blocks}:
            cos, sin = self.rotary(like, positions) if kind is None else self.rotary(like, positions, kind)
            found[kind] = (cos[0], sin[0])
        return found

    def logits(self, resid: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits ("... vocab") of final residuals ("... d_model"); of the given tokens only ("... tokens") if any."""
        return self.unembedded(self.ln_final(resid), tokens)

    def unembedded(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits of what the final norm gives."""
        weight, bias = self.unembed.weight, getattr(self.unembed, "bias", None)
        if tokens is not None:
            weight, bias = weight[tokens], None if bias is None else bias[tokens]
        out = F.linear(x, weight, bias)
        return out if self.logit_softcap is None else self.logit_softcap * torch.tanh(out / self.logit_softcap)


def parts_of(model: TransformerBridge) -> Parts:
    """Reads the parts off a bridge.

    Raises:
        UsageError: The architecture has a part that can't be described, or hooks of the user's own hang on it.
    """
    graph = Graph.of(model)
    without_hooks(model, "an analysis")
    bridge: Any = model
    weight = bridge.embed.original_component.weight
    config = getattr(bridge.original_model, "config", None)
    pos_embed = bridge.pos_embed.original_component if graph.positional == "learned" else None
    rotary = bridge.rotary_emb.original_component if hasattr(bridge, "rotary_emb") else None
    return Parts(
        graph=graph,
        embed=bridge.embed.original_component,
        pos_embed=pos_embed,
        rotary=rotary,
        blocks=tuple(_block(bridge, layer, graph, rotary) for layer in range(graph.n_layers)),
        ln_final=_norm(bridge.ln_final),
        unembed=bridge.unembed.original_component,
        logit_softcap=getattr(config, "final_logit_softcapping", None),
        device=weight.device,
        dtype=weight.dtype,
    )


def without_hooks(model: TransformerBridge, what: str) -> None:
    """Refuses a bridge on which hooks of the user's own hang.

    Raises:
        UsageError: There are some; the message says what would not run them.
    """
    hooked = [name for name, point in model.hook_dict.items() if point.fwd_hooks or point.bwd_hooks]
    if hooked:
        raise UsageError(
            f"the model carries hooks of your own ({', '.join(hooked[:3])}{', ...' if len(hooked) > 3 else ''}), "
            f"which {what} would not run; take them off first with model.reset_hooks(including_permanent=True)"
        )


def _block(model: Any, layer: int, graph: Graph, rotary: Any) -> Block:
    block = model.blocks[layer]
    attn, mlp, original = block.attn, block.mlp, block.attn.original_component
    scale = getattr(original, "scaling", None)
    if scale is None:
        scale = 1 / math.sqrt(graph.d_head)
    kinds = getattr(getattr(original, "config", None), "layer_types", None)
    by_kind = rotary is not None and "layer_type" in inspect.signature(rotary.forward).parameters
    return Block(
        ln1=_norm(block.ln1),
        ln2=_norm(block.ln2),
        ln1_post=_norm(block.ln1_post) if graph.attn_post_norm else None,
        ln2_post=_norm(block.ln2_post) if graph.mlp_post_norm else None,
        q=attn.q.original_component,
        k=attn.k.original_component,
        v=attn.v.original_component,
        o=attn.o.original_component,
        q_norm=_norm(attn.q_norm) if graph.qk_norm else None,
        k_norm=_norm(attn.k_norm) if graph.qk_norm else None,
        scale=float(scale),
        softcap=getattr(original, "attn_logit_softcapping", None),
        window=graph.windows[layer],
        rotary=kinds[layer] if by_kind and kinds is not None else None,
        gate=mlp.gate.original_component if graph.gated_mlp else None,
        up=getattr(mlp, "in").original_component,
        down=mlp.out.original_component,
        activation=_activation(mlp.original_component, layer),
    )


def _norm(bridge: Any) -> Norm:
    original, bare = bridge.original_component, type(bridge).__name__.endswith("PreBridge")
    weight = None if bare else getattr(original, "weight", None)  # OLMo's norm has none
    if weight is not None and bridge.uses_weight_offset:
        weight = 1.0 + weight.float()
    eps = getattr(original, "eps", getattr(original, "variance_epsilon", None))
    return Norm(
        centred=not bridge.uses_rms_norm,
        weight=weight,
        bias=None if bare else getattr(original, "bias", None),
        eps=float(eps if eps is not None else bridge.config.eps),
    )


def _activation(mlp: Any, layer: int) -> Callable[[Tensor], Tensor]:
    for name in ("act_fn", "act", "activation_fn", "activation"):
        if callable(found := getattr(mlp, name, None)):
            return found
    raise UsageError(
        f"this architecture can't be described as a graph: in block {layer}, {type(mlp).__name__} has no activation "
        f"function that is known"
    )
