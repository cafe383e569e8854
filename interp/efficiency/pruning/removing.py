"""Taking blocks, heads, neurons and experts out of a deployed model: smaller matrices, not zeros."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from interp.efficiency.deployment import deployment
from interp.efficiency.plan import Undo
from interp.efficiency.pruning.absent import NoAttention, NoMLP
from interp.efficiency.pruning.anatomy import Anatomy, Cut, anatomy, attention_place
from interp.efficiency.pruning.experts import remove_experts
from interp.errors import UsageError
from interp.upstream import layer_of

__all__ = ["Removal", "remove"]


@dataclass(frozen=True)
class Removal:
    """What is taken out, by original numbers.

    Args:
        blocks: Whole blocks.
        heads: Of each layer, query heads.
        neurons: Of each layer, neurons of the MLP.
        experts: Of each layer, experts of the mixture that its MLP is.
    """

    blocks: Sequence[int] = ()
    heads: Mapping[int, Sequence[int]] = field(default_factory=dict)
    neurons: Mapping[int, Sequence[int]] = field(default_factory=dict)
    experts: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def __or__(self, other: Removal) -> Removal:
        """Both."""
        return Removal(
            tuple(sorted({*self.blocks, *other.blocks})),
            _joined(self.heads, other.heads),
            _joined(self.neurons, other.neurons),
            _joined(self.experts, other.experts),
        )


def remove(model: PreTrainedModel, removal: Removal, undo: Undo) -> None:
    """Takes something out; what is gone already is passed over.

    A key-value head goes with its last query head, and attention as a whole with its last head.

    Args:
        model: A deployed model; its record of layers and groups is brought up to date.
        removal: What is taken out.
        undo: Takes it back.

    Raises:
        UsageError: Nothing would be left, a part that can't be cut, or key-value heads of a layer that would be left
            with different numbers of query heads.
    """
    found = anatomy(model)
    gone = set(removal.blocks)
    if not set(found.layers) - gone:
        raise UsageError("a plan that removes every block leaves no model; keep at least one")
    for layer in found.layers:
        if layer not in gone:
            _remove_heads(model, found, layer, set(removal.heads.get(layer, ())), undo)
            _remove_neurons(found, layer, set(removal.neurons.get(layer, ())), undo)
            remove_experts(found.block(layer), layer, set(removal.experts.get(layer, ())), undo)
    _remove_blocks(model, found, gone, undo)


class Narrowed:
    """A layer's view of the model's configuration with another number of query heads.

    Args:
        config: The configuration, whose other settings are seen as they are at the time.
        heads: Query heads.
    """

    def __init__(self, config: Any, heads: int) -> None:
        self.num_attention_heads = heads
        self._config = config

    def __getattr__(self, name: str) -> Any:
        if name == "_config":  # not there yet while a copy is made
            raise AttributeError(name)
        return getattr(self._config, name)


def _remove_heads(model: PreTrainedModel, found: Anatomy, layer: int, gone: set[int], undo: Undo) -> None:
    if not gone:
        return
    part = found.attention(layer)
    left = tuple(head for head in part.heads if head not in gone)
    if left == part.heads:
        return
    _check_even(part.per_group, layer, left)
    cuts = part.cuts(left)
    record, at = deployment(model), found.layers.index(layer)
    groups = list(dict.fromkeys(head // part.per_group for head in left))
    undo.set(record, "groups", [*record.groups[:at], groups, *record.groups[at + 1 :]])
    if not left:
        owner, name = attention_place(found.block(layer))
        undo.set(owner, name, NoAttention(layer_of(part.module), getattr(part.output, "bias", None)))
        return
    for cut, _ in cuts:
        _cut(cut, undo)
    undo.set(part.module, "kept_heads", left)
    if part.sinks is not None:
        places = torch.tensor([part.heads.index(head) for head in left], device=part.sinks.device)
        undo.set(part.module, "sinks", nn.Parameter(part.sinks.detach()[places], part.sinks.requires_grad))
    for norms, kept in part.norms_apart(left):
        undo.set(norms, "norms", nn.ModuleList(kept))
    sizes = {"num_key_value_groups": len(left) // len(groups), "num_key_value_heads": len(groups)}
    sizes |= {"num_heads": len(left), "num_attention_heads": len(left), "split_size": len(left) * part.head_dim}
    if type(part.module).__name__ == "GPTBigCodeAttention":
        sizes |= {"embed_dim": len(left) * part.head_dim}
    for name, value in sizes.items():
        if name in vars(part.module):
            undo.set(part.module, name, value)
    if hasattr(part.module, "qkv_proj"):  # Phi-3 asks its configuration where the keys begin
        undo.set(part.module, "config", Narrowed(part.module.config, len(left)))


def _remove_neurons(found: Anatomy, layer: int, gone: set[int], undo: Undo) -> None:
    if not gone:
        return
    part = found.mlp(layer)
    left = [at for at, neuron in enumerate(part.neurons) if neuron not in gone]
    if len(left) == len(part.neurons):
        return
    if not left and not part.is_block:
        undo.set(found.block(layer), "mlp", NoMLP(getattr(part.output, "bias", None)))
        return
    for cut in part.cuts(torch.tensor(left, dtype=torch.long)):
        _cut(cut, undo)
    undo.set(part.module, "kept_neurons", tuple(part.neurons[at] for at in left))


def _remove_blocks(model: PreTrainedModel, found: Anatomy, gone: set[int], undo: Undo) -> None:
    left = [at for at, layer in enumerate(found.layers) if layer not in gone]
    if len(left) == len(found.layers):
        return
    found.check_alike()
    record, blocks, config = deployment(model), found.blocks, model.config.get_text_config()
    undo.set(found.owner, found.name, nn.ModuleList(blocks[at] for at in left))
    undo.set(record, "layers", [record.layers[at] for at in left])
    undo.set(record, "groups", [record.groups[at] for at in left])
    for name, kinds in list(vars(config).items()):  # layer_types, attention_layers, ...
        if "layer" in name and isinstance(kinds, list) and len(kinds) == len(blocks) and isinstance(kinds[0], str):
            undo.set(config, name, [kinds[at] for at in left])
    count = getattr(config, "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers")
    undo.set(config, count, len(left))
    for new, at in enumerate(left):
        for module in blocks[at].modules():
            for name in ("layer_idx", "layer_id"):
                if isinstance(vars(module).get(name), int):
                    undo.set(module, name, new)


def _cut(cut: Cut, undo: Undo) -> None:
    """Leaves a map with the channels of a cut alone."""
    module: Any = cut.module
    index, before = cut.index.flatten(), module.weight
    new = before.detach().index_select(cut.axis, index.to(before.device))
    undo.set(module, "weight", nn.Parameter(new, before.requires_grad))
    if cut.side == "out" and getattr(module, "bias", None) is not None:
        bias = module.bias.detach().index_select(0, index.to(before.device))
        undo.set(module, "bias", nn.Parameter(bias, before.requires_grad))
    names = {"out": ("out_features", "nf"), "in": ("in_features", "nx")}[cut.side]
    for name in names:
        if name in vars(module):
            undo.set(module, name, index.numel())


def _check_even(per_group: int, layer: int, heads: tuple[int, ...]) -> None:
    counts: dict[int, int] = {}
    for head in heads:
        counts[head // per_group] = counts.get(head // per_group, 0) + 1
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} of key-value head {group}" for group, count in counts.items())
        raise UsageError(
            f"layer {layer} would keep different numbers of query heads ({listed}), which attention can't compute; "
            "remove whole key-value heads, or as many query heads of each"
        )


def _joined(one: Mapping[int, Sequence[int]], other: Mapping[int, Sequence[int]]) -> dict[int, tuple[int, ...]]:
    return {layer: tuple(sorted({*one.get(layer, ()), *other.get(layer, ())})) for layer in sorted({*one, *other})}
