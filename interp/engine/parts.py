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

from interp.engine.experts import Experts, NoNeurons, experts_of
from interp.engine.norms import NOTHING, Norm, factor, head_norm_of, norm_of, times
from interp.engine.rotary import rotary_of
from interp.errors import UsageError
from interp.graph import Graph
from interp.upstream import turning

__all__ = ["Block", "Multiplied", "Norm", "Parts", "on_one_device", "parts_of", "without_hooks"]


@dataclass(frozen=True)
class Block:
    """One transformer block: its projections as modules, its norms and its attention's settings.

    Where attention and the MLP read through one norm, `ln1` and `ln2` are the same. `turning` says which channels the
    rotary embedding turns together: those half a head apart (``halves``), neighbours (``adjacent``), or none (None).
    Where the MLP is a mixture of `experts`, `gate`, `up`, `down` and `activation` refuse whatever is asked of them.
    `sinks`: for each head, a score in its softmax that belongs to no key (GPT-OSS).
    """

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
    turning: str | None
    gate: Any
    up: Any
    down: Any
    activation: Callable[[Tensor], Tensor]
    experts: Experts | None = None
    sinks: Tensor | None = None


@dataclass(frozen=True)
class Multiplied:
    """Embeddings times a number, as Granite's are."""

    table: Callable[[Tensor], Tensor]
    number: float

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.table(tokens) * self.number


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
        """Cosines and sines ("pos rotary") of all positions, for each kind of rotary embedding in use.

        Each angle stands twice, as `Block.turning` says: half a head apart or next to each other.
        """
        if self.rotary is None:
            return {}
        positions = torch.arange(length, device=self.device)[None]
        like = torch.empty(1, length, self.graph.d_model, device=self.device, dtype=self.dtype)
        found = {}
        for kind in {block.rotary for block in self.blocks if block.turning is not None}:
            cos, sin = self.rotary(like, positions) if kind is None else self.rotary(like, positions, kind)
            once = getattr(self.rotary, "inv_freq", cos.new_empty(0)).numel() == cos.shape[-1]  # GPT-OSS
            cos, sin = (torch.cat([x, x], -1) if once else x for x in (cos, sin))
            found[kind] = (cos[0], sin[0])
        return found

    def logits(self, resid: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits ("... vocab") of final residuals ("... d_model"); of the given tokens only ("... tokens") if any."""
        return self.unembedded(self.ln_final(resid), tokens)

    def unembedded(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits of what the final norm gives."""
        if tokens is None:
            out = self.unembed(x)
        else:
            bias = getattr(self.unembed, "bias", None)
            out = F.linear(x, self.unembed.weight[tokens], None if bias is None else bias[tokens])
        return out if self.logit_softcap is None else self.logit_softcap * torch.tanh(out / self.logit_softcap)


def parts_of(model: TransformerBridge) -> Parts:
    """Reads the parts off a bridge.

    Raises:
        UsageError: The architecture has a part that can't be described, or hooks of the user's own hang on it.
    """
    graph = Graph.of(model)
    without_hooks(model, "an analysis")
    on_one_device(model)
    bridge: Any = model
    weight = bridge.embed.original_component.weight
    config = getattr(bridge.original_model, "config", None)
    rotary = rotary_of(bridge)
    return Parts(
        graph=graph,
        embed=_embed(bridge.embed.original_component, getattr(config, "embedding_multiplier", 1.0)),
        pos_embed=_pos_embed(bridge.pos_embed.original_component) if graph.positional == "learned" else None,
        rotary=rotary,
        blocks=tuple(_block(bridge, layer, graph, rotary) for layer in range(graph.n_layers)),
        ln_final=times(norm_of(bridge.ln_final), _logit_scale(bridge.original_model, config)),
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
    hooked = [
        name for name, point in model.hook_dict.items() if point.bwd_hooks or not all(map(_wiring, point.fwd_hooks))
    ]
    if hooked:
        raise UsageError(
            f"the model carries hooks of your own ({', '.join(hooked[:3])}{', ...' if len(hooked) > 3 else ''}), "
            f"which {what} would not run; take them off first with model.reset_hooks(including_permanent=True)"
        )


def _wiring(handle: Any) -> bool:
    """Whether a hook is the bridge's own: where an MLP is no module (OPT), the hooks of its maps call its own."""
    made_in = str(getattr(handle.user_hook, "__module__", ""))
    return bool(handle.is_permanent) and made_in.startswith("transformer_lens.")


def on_one_device(model: TransformerBridge) -> None:
    """Refuses a bridge whose weights lie on several devices or are offloaded, as `device_map` of transformers does it.

    Accelerate moves activations between modules where they are called; the walk reads weights without calling them.

    Raises:
        UsageError: There are weights on several devices, or on none; the message names them.
    """
    places: dict[str, str] = {}
    for name, weight in model.named_parameters():
        places.setdefault(str(weight.device), name.replace("_original_component.", ""))
    if "meta" in places:
        raise UsageError(
            f"weights of this model are offloaded ({places['meta']} among them): they are read from elsewhere only "
            "while a module is called, which an analysis does not wait for; load it whole, with interp.load(..., "
            "device=...), in dtype=torch.bfloat16 if it is too large"
        )
    if len(places) > 1:
        told = ", ".join(f"{name} on {place}" for place, name in places.items())
        raise UsageError(
            f"this model is spread over {len(places)} devices ({told}), and an analysis wants it on one: load it with "
            "interp.load(..., device=...), in dtype=torch.bfloat16 if it is too large"
        )


def _block(model: Any, layer: int, graph: Graph, rotary: Any) -> Block:
    block = model.blocks[layer]
    attn, mlp, original = block.attn, block.mlp, block.attn.original_component
    kinds = getattr(getattr(original, "config", None), "layer_types", None)
    by_kind = rotary is not None and "layer_type" in inspect.signature(rotary.forward).parameters
    parts, device = block.submodules, attn.o.original_component.weight.device
    added = factor(getattr(block, "residual_contribution_scale", 1.0), graph.d_model, device)
    ln1 = norm_of(block.ln1) if "ln1" in parts else NOTHING
    # Falcon, Phi-2 and others: in parallel, behind one norm
    ln2 = norm_of(block.ln2) if "ln2" in parts else ln1 if graph.parallel else NOTHING
    return Block(
        ln1=ln1,
        ln2=ln2,
        ln1_post=norm_of(block.ln1_post) if graph.attn_post_norm else added,
        ln2_post=norm_of(block.ln2_post) if graph.mlp_post_norm else added,
        q=attn.q.original_component,
        k=attn.k.original_component,
        v=attn.v.original_component,
        o=attn.o.original_component,
        q_norm=head_norm_of(attn.q_norm, graph.d_head) if graph.qk_norm else None,
        k_norm=head_norm_of(attn.k_norm, graph.d_head) if graph.qk_norm else None,
        scale=_scale(original, graph),
        softcap=getattr(original, "attn_logit_softcapping", None),
        window=graph.windows[layer],
        rotary=kinds[layer] if by_kind and kinds is not None else None,
        turning=None if rotary is None else turning(original),
        **(_mixture(mlp, layer) if graph.n_experts else _neurons(mlp, layer, graph)),
        sinks=getattr(original, "sinks", None),
    )


def _neurons(mlp: Any, layer: int, graph: Graph) -> dict[str, Any]:
    return {
        "gate": mlp.gate.original_component if graph.gated_mlp else None,
        "up": getattr(mlp, "in").original_component,
        "down": mlp.out.original_component,
        "activation": _activation(mlp.original_component, layer),
    }


def _mixture(mlp: Any, layer: int) -> dict[str, Any]:
    none = NoNeurons(layer)
    return {"gate": none, "up": none, "down": none, "activation": none, "experts": experts_of(mlp)}


def _embed(table: Any, number: float) -> Callable[[Tensor], Tensor]:
    return table if number == 1 else Multiplied(table, number)


def _pos_embed(table: Any) -> Callable[[Tensor], Tensor]:
    """OPT's table begins with rows that stand for no position."""
    offset = getattr(table, "offset", 0)
    return (lambda positions: F.embedding(positions + offset, table.weight)) if offset else table


def _logit_scale(model: Any, config: Any) -> float:
    """What logits are multiplied by: Cohere says the factor, Granite what they are divided by."""
    return float(getattr(model, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", 1.0))


def _scale(attention: Any, graph: Graph) -> float:
    """What scores are multiplied by; GPT-Neo's are not."""
    if type(attention).__name__ == "GPTNeoSelfAttention":
        return 1.0
    scale = getattr(attention, "scaling", None)
    return 1 / math.sqrt(graph.d_head) if scale is None else float(scale)


def _activation(mlp: Any, layer: int) -> Callable[[Tensor], Tensor]:
    for name in ("act_fn", "act", "activation_fn", "activation"):  # OPT's belongs to the block
        if callable(found := getattr(mlp, name, None)):
            return found
    raise UsageError(
        f"this architecture can't be described as a graph: in block {layer}, {type(mlp).__name__} has no activation "
        f"function that is known"
    )
