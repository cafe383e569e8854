"""The computational graph of a transformer: its nodes, its ports and their hook names.

A *node* writes to the residual stream (``input``, ``a3.h5``, ``m3``); a *port* reads from it (``a3.h5<q>``,
``m3``, ``logits``). With grouped-query attention the ``k`` and ``v`` ports belong to key-value heads. An edge
goes from a node to every port that comes after it. The spelling follows EAP-IG (Hanna et al. 2024).

A *site* is a place where an activation can be read or replaced. Sites carry TransformerLens's names; this is
the only module that spells a hook name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["EXPERT_SITES", "HOOKS", "INDEX_OF_SITE", "ORDER", "SITES", "Graph", "Node", "site_of"]

SITES = (
    "resid_pre",
    "q",
    "k",
    "v",
    "pattern",
    "z",
    "attn_out",
    "resid_mid",
    "post",
    "mlp_out",
    "resid_post",
)
"""Where activations of a layer can be read or replaced, in the order of computation."""

EXPERT_SITES = ("router", "expert")
"""More of them, where the MLP is a mixture of experts: the router's weights "row pos expert", zero for experts that are
not chosen, and what each expert adds, its weight in it, "row pos expert d_model". They stand in place of ``post``."""

ORDER = (*SITES[: SITES.index("post")], *EXPERT_SITES, *SITES[SITES.index("post") :])
"""All sites in the order of computation."""

INDEX_OF_SITE = {
    "q": "head",
    "k": "kv_head",
    "v": "kv_head",
    "pattern": "head",
    "z": "head",
    "post": "neuron",
    "router": "expert",
    "expert": "expert",
}
"""The index that a site has besides layer and position; the other sites have none."""

_ALIASES = {
    "heads": "z",
    "head": "z",
    "neurons": "post",
    "neuron": "post",
    "mlp": "mlp_out",
    "attn": "attn_out",
    "experts": "expert",
}

HOOKS = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "q": "blocks.{}.attn.hook_q",
    "k": "blocks.{}.attn.hook_k",
    "v": "blocks.{}.attn.hook_v",
    "pattern": "blocks.{}.attn.hook_pattern",
    "z": "blocks.{}.attn.hook_z",
    "attn_out": "blocks.{}.hook_attn_out",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "post": "blocks.{}.mlp.hook_post",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "resid_post": "blocks.{}.hook_resid_post",
}
"""TransformerLens's name of the hook at each site; `Graph.hook` fills in the layer."""


def site_of(nodes: str) -> str:
    """The site that a name of a kind of node stands for (``"heads"`` -> ``"z"``).

    Raises:
        UsageError: The name is none of the sites or their synonyms.
    """
    site = _ALIASES.get(nodes, nodes)
    if site not in ORDER:
        raise unknown_name("kind of node", nodes, [*ORDER, *_ALIASES])
    return site


@dataclass(frozen=True)
class Node:
    """One place in one layer: a head's output, a neuron, a layer's residual stream, ...

    Args:
        site: One of `SITES` or `EXPERT_SITES`.
        layer: The block, from 0.
        index: The head, key-value head, neuron or expert; None where the site has none, or for all of them.
    """

    site: str
    layer: int
    index: int | None = None

    @classmethod
    def parse(cls, text: str) -> Node:
        """Reads ``a3.h5`` (a head's output z), ``a3.h5.q``, ``m3`` (an MLP), ``m3.n17`` (a neuron), ``resid_pre.3``,
        ``m3.e5`` (an expert), ``m3.router`` (all of its router's weights) and ``m3.e5.router`` (one of them).

        Raises:
            UsageError: The text is no such name.
        """
        if match := re.fullmatch(r"a(\d{1,9})\.h(\d{1,9})(?:\.(q|k|v|z|pattern))?", text):
            return cls(match[3] or "z", int(match[1]), int(match[2]))
        if match := re.fullmatch(r"m(\d{1,9})(?:\.n(\d{1,9}))?", text):
            return cls("post" if match[2] else "mlp_out", int(match[1]), int(match[2]) if match[2] else None)
        if match := re.fullmatch(r"m(\d{1,9})\.(?:e(\d{1,9}))?(\.?router)?", text):
            number = int(match[2]) if match[2] else None
            if match[3] == ("router" if number is None else ".router") or (number is not None and not match[3]):
                return cls("router" if match[3] else "expert", int(match[1]), number)
        if (match := re.fullmatch(r"([a-z_]+)\.(\d{1,9})", text)) and match[1] in SITES:
            return cls(match[1], int(match[2]))
        raise UsageError(
            f"{text!r} names no node; write a3.h5 (head), a3.h5.q (its query), m3 (MLP), m3.n17 (neuron) "
            f"or resid_pre.3 (residual stream)"
        )

    def __str__(self) -> str:
        if self.index is None:
            if self.site == "router":
                return f"m{self.layer}.router"
            return f"m{self.layer}" if self.site == "mlp_out" else f"{self.site}.{self.layer}"
        if self.site == "post":
            return f"m{self.layer}.n{self.index}"
        if self.site in EXPERT_SITES:
            return f"m{self.layer}.e{self.index}" + (".router" if self.site == "router" else "")
        return f"a{self.layer}.h{self.index}" + ("" if self.site == "z" else f".{self.site}")


@dataclass(frozen=True)
class Graph:
    """The shape of a model: enough to name and order all of its nodes and ports.

    Read it off a bridge with `Graph.of`. Sizes are counts; `windows` has one entry a layer, the number of
    latest positions that the layer's queries see (a sliding window) or None for all.

    `attn_post_norm` and `mlp_post_norm`: the block normalises what attention or the MLP wrote before adding it
    (Gemma 2 and 3). A head's share of the normalised sum is its own write divided by the norm's scale *of the
    whole write* and multiplied by the norm's weight, so that the shares add up exactly to what is added.

    `n_experts`: where the MLPs are mixtures, how many experts each has, a shared one the last of them; otherwise 0.
    `d_mlp` is then the width of one, and there is no site ``post``. Edges know the mixture as one node, ``m3``.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    norm: str
    gated_mlp: bool
    parallel: bool
    qk_norm: bool
    attn_post_norm: bool
    mlp_post_norm: bool
    positional: str
    windows: tuple[int | None, ...]
    n_experts: int = 0

    @classmethod
    def of(cls, model: TransformerBridge) -> Graph:
        """The graph of a bridge.

        Raises:
            UsageError: The architecture has a part that this graph can't describe; the message names it.
        """
        blocks = _known_blocks(model)
        cfg: Any = model.cfg
        first = blocks[0]
        windows = tuple(_window(block, layer, cfg) for layer, block in enumerate(blocks))
        experts = _n_experts(first.mlp)
        width = first.mlp.original_component.experts.down_proj[0].numel() // int(cfg.d_model) if experts else None
        return cls(
            n_layers=len(blocks),
            n_heads=int(cfg.n_heads),
            n_kv_heads=int(getattr(cfg, "n_key_value_heads", None) or cfg.n_heads),
            d_model=int(cfg.d_model),
            d_head=int(cfg.d_head),
            d_mlp=width or int(_out_features(getattr(first.mlp, "in"))),
            d_vocab=int(cfg.d_vocab),
            norm="rmsnorm" if model.ln_final.uses_rms_norm else "layernorm",
            gated_mlp=bool(experts) or "gate" in first.mlp.submodules,
            parallel=type(first).__name__ == "ParallelBlockBridge",
            qk_norm="q_norm" in first.attn.submodules,
            attn_post_norm="ln1_post" in first.submodules,
            mlp_post_norm="ln2_post" in first.submodules,
            positional="learned" if hasattr(model, "pos_embed") else "rotary",
            windows=windows,
            n_experts=experts,
        )

    def hook(self, site: str, layer: int) -> str:
        """TransformerLens's name of the hook at a site: ``hook("z", 3) == "blocks.3.attn.hook_z"``.

        Raises:
            UsageError: No such site or layer, or parallel blocks, which have no ``resid_mid``.
        """
        self.check(Node(site_of(site), layer))
        if site_of(site) in EXPERT_SITES:
            raise UsageError(f"TransformerLens has no hook at {site_of(site)}; patch it with interp.patching instead")
        return HOOKS[site_of(site)].format(layer)

    def size(self, site: str) -> int:
        """How many heads, key-value heads or neurons a site has in one layer; 1 where it has no index."""
        index = INDEX_OF_SITE.get(site)
        return {
            "head": self.n_heads,
            "kv_head": self.n_kv_heads,
            "neuron": self.d_mlp,
            "expert": self.n_experts,
            None: 1,
        }[index]

    def check(self, node: Node) -> None:
        """Refuses a node that the model does not have.

        Raises:
            UsageError: Layer or index out of range, or a site that the architecture lacks.
        """
        if node.site == "resid_mid" and self.parallel:
            raise UsageError("this model's blocks run attention and MLP in parallel: there is no resid_mid")
        if node.site == "post" and self.n_experts:
            raise UsageError(
                "this model's neurons are inside experts and can't be told apart; look at its experts (m3.e5) instead"
            )
        if node.site in EXPERT_SITES and not self.n_experts:
            raise UsageError(f"this model's MLPs are no mixtures of experts: there is no {node.site}")
        if not 0 <= node.layer < self.n_layers:
            raise UsageError(f"layer {node.layer} is out of range: the model has layers 0 to {self.n_layers - 1}")
        index = INDEX_OF_SITE.get(node.site)
        if node.index is None:
            return
        if index is None:
            raise UsageError(f"{node.site} has no heads or neurons, so the index {node.index} means nothing there")
        if not 0 <= node.index < self.size(node.site):
            name = index.replace("kv_head", "key-value head")
            raise UsageError(
                f"{name} {node.index} is out of range: "
                f"a layer of this model has {name}s 0 to {self.size(node.site) - 1}"
            )

    def nodes(self) -> tuple[str, ...]:
        """All nodes that write to the residual stream, in order, and ``logits``."""
        names = ["input"]
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}" for head in range(self.n_heads)]
            names.append(f"m{layer}")
        return (*names, "logits")

    def ports(self, ungrouped: bool = False) -> tuple[str, ...]:
        """All ports that read from the residual stream, in order.

        Args:
            ungrouped: Give every query head ``k`` and ``v`` ports of its own, as peers count them, although
                under grouped-query attention the heads of a group share them.
        """
        kv_heads = self.n_heads if ungrouped else self.n_kv_heads
        names: list[str] = []
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{head}<q>" for head in range(self.n_heads)]
            names += [f"a{layer}.h{head}<{letter}>" for letter in "kv" for head in range(kv_heads)]
            names.append(f"m{layer}")
        return (*names, "logits")

    def upstream(self, port: str) -> tuple[str, ...]:
        """The nodes whose writes a port reads.

        Raises:
            UsageError: No such port.
        """
        nodes = self.nodes()
        if port == "logits":
            return nodes[:-1]
        match = re.fullmatch(r"(?:a(\d{1,9})\.h\d{1,9}<[qkv]>|m(\d{1,9}))", port)
        if match is None or int(match[1] or match[2] or 0) >= self.n_layers:
            raise unknown_name("port", port, self.ports(ungrouped=True))
        layer, reads_heads = int(match[1] or match[2] or 0), match[2] is not None and not self.parallel
        before = 1 + layer * (self.n_heads + 1)
        return nodes[: before + (self.n_heads if reads_heads else 0)]

    def edges(self, ungrouped: bool = False) -> Iterator[tuple[str, str]]:
        """All edges, as pairs of node and port, port by port in order."""
        for port in self.ports(ungrouped):
            for node in self.upstream(port):
                yield node, port

    def n_edges(self, ungrouped: bool = False) -> int:
        """How many edges there are."""
        return sum(len(self.upstream(port)) for port in self.ports(ungrouped))


_BLOCKS = {"BlockBridge", "ParallelBlockBridge", "ScaledResidualBlockBridge", "_OptBlockBridge"}
_ATTENTIONS = {
    "AttentionBridge",
    "PositionEmbeddingsAttentionBridge",
    "JointQKVAttentionBridge",
    "JointQKVPositionEmbeddingsAttentionBridge",
    "_SmolLM3AttentionBridge",
    "_Cohere2AttentionBridge",
}
_MLPS = {"MLPBridge", "GatedMLPBridge", "JointGateUpMLPBridge", "MoEBridge"}
_NORMS = {"NormalizationBridge", "RMSNormalizationBridge", "LayerNormPreBridge", "RMSNormPreBridge"}
_TOP_LEVEL = {"embed", "pos_embed", "rotary_emb", "blocks", "ln_final", "unembed"}
_IN_BLOCK = {"ln1", "ln1_post", "ln2", "ln2_post", "attn", "mlp"}
_IN_ATTENTION = {"q", "k", "v", "o", "qkv", "q_norm", "k_norm"}
_IN_MLP = {"in", "out", "gate"}
_IN_MIXTURE = {"gate", "router", "experts", "shared_expert", "shared_expert_gate"}
_ODD_ATTENTION = ("key_multiplier", "q_gate", "gate_proj")
_ODD_CONFIG = ("rotary_adjacent_pairs", "qk_norm_after_rope", "gated_q_proj")


def _known_blocks(model: TransformerBridge) -> list[Any]:
    """The blocks, each part of which has been recognised."""
    from transformer_lens.model_bridge import TransformerBridge

    if not isinstance(model, TransformerBridge):
        raise UsageError(f"expected a TransformerBridge, got {type(model).__name__}; make one with interp.load(...)")
    top = {name for name, _ in model.named_children() if not name.startswith("_")}
    _refuse(top - _TOP_LEVEL, "the model's part")
    for flag in _ODD_CONFIG:
        _refuse([flag] if getattr(model.cfg, flag, False) else [], "the setting")
    blocks: list[Any] = list(model.blocks)
    for layer, block in enumerate(blocks):
        where = f"in block {layer}, the"
        _refuse({type(block).__name__} - _BLOCKS, f"{where} block type")
        _refuse(set(block.submodules) - _IN_BLOCK, f"{where} part")
        _refuse({"attn", "mlp", *_norms_before(block)} - set(block.submodules), f"{where} absence of")
        _refuse({type(block.attn).__name__} - _ATTENTIONS, f"{where} attention type")
        _refuse(set(block.attn.submodules) - _IN_ATTENTION, f"{where} part of attention")
        _refuse({type(block.mlp).__name__} - _MLPS, f"{where} MLP type")
        mixture = type(block.mlp).__name__ == "MoEBridge"
        parts = {name for name in block.mlp.submodules if hasattr(block.mlp, name)}
        _refuse(parts - (_IN_MIXTURE if mixture else _IN_MLP), f"{where} part of the MLP")
        if mixture and not hasattr(getattr(block.mlp.original_component, "experts", None), "gate_up_proj"):
            _refuse([type(block.mlp.original_component).__name__], f"{where} kind of experts")
        norms = [block.submodules[name] for name in block.submodules if name.startswith("ln")]
        _refuse({type(norm).__name__ for norm in norms} - _NORMS, f"{where} norm type")
        original = block.attn.original_component
        if getattr(block.original_component, "do_layer_norm_before", True) is False:  # OPT-350m
            _refuse(["do_layer_norm_before=False"], f"{where} setting")
        odd = [name for name in _ODD_ATTENTION if getattr(original, name, None) is not None]
        _refuse(odd, f"{where} attention's")
        settings = getattr(original, "config", None)
        if getattr(settings, "clip_qkv", None) is not None:
            _refuse(["clip_qkv"], f"{where} attention's")
        if getattr(settings, "scale_attn_weights", True) is False:  # which TransformerLens leaves out
            _refuse(["scale_attn_weights=False"], f"{where} attention's")
    return blocks


def _norms_before(block: Any) -> list[str]:
    """The norms before attention and MLP that a block needs: one in parallel blocks, none where norms come after."""
    if type(block).__name__ == "ParallelBlockBridge":
        return ["ln1"]
    return [name for name in ("ln1", "ln2") if f"{name}_post" not in block.submodules]


def _refuse(parts: Any, what: str) -> None:
    for part in sorted(parts):
        raise UsageError(f"this architecture can't be described as a graph: unknown to it is {what} {part!r}")


def _window(block: Any, layer: int, cfg: Any) -> int | None:
    """The sliding window of one layer, as Hugging Face's own attention module has it."""
    original = block.attn.original_component
    config = getattr(original, "config", None)
    if (kind := getattr(original, "attention_type", None)) in ("global", "local"):  # GPT-Neo
        return int(original.config.window_size) if kind == "local" else None
    types = getattr(config, "layer_types", None)
    if types is not None:
        return int(original.config.sliding_window) if types[layer] == "sliding_attention" else None
    window = getattr(original, "sliding_window", None)
    if window is None and getattr(config, "use_sliding_window", True):
        window = getattr(config, "sliding_window", None)
    return None if window is None else int(window)


def _n_experts(mlp: Any) -> int:
    """How many experts a mixture has, a shared one among them; 0 where the MLP is none."""
    if type(mlp).__name__ != "MoEBridge":
        return 0
    block = mlp.original_component
    return len(block.experts.gate_up_proj) + hasattr(block, "shared_expert")


def _out_features(linear: Any) -> int:
    original = linear.original_component
    return getattr(original, "out_features", None) or original.nf
