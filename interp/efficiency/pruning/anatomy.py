"""What can be cut out of a deployed model: its blocks, and in each the weights that belong to a head or a neuron."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.efficiency.deployment import deployment
from interp.efficiency.pruning.absent import NoAttention, NoMLP
from interp.errors import UsageError
from interp.upstream import key_value_heads

__all__ = ["MLP", "Anatomy", "Attention", "Cut", "anatomy"]

_OUTPUTS = ("o_proj", "c_proj", "dense", "out_proj")
_NORMS = (("q_norm", False), ("k_norm", True))
_MLPS = (
    ("gate_proj", "up_proj", "down_proj"),
    ("gate_up_proj", "down_proj"),
    ("up_proj", "down_proj"),
    ("c_fc", "c_proj"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("fc_in", "fc_out"),
    ("fc1", "fc2"),
)
"""Names say in which order a map holds things; whether it holds what they say, its shape does."""


_FUSED = ("qkv_proj", "c_attn", "query_key_value")
_BY_HEAD = ("GPTNeoXAttention", "FalconAttention", "GPTBigCodeAttention")
"""Whose fused maps hold a head's query, key and value together, unless heads share keys and values."""
_NORMS_APART = (("q_layernorm", False), ("k_layernorm", True))
"""Lists with a norm for each head, or each key-value head (StableLM)."""


@dataclass(frozen=True)
class Cut:
    """The rows or columns of a linear map that belong to some units.

    Args:
        module: The linear map.
        side: ``out`` where the units are among what it writes, ``in`` where they are among what it reads.
        index: "part unit", the channels of each unit; several parts where a map holds more than one thing of it.
    """

    module: nn.Module
    side: str
    index: Int[Tensor, "part channel"]

    @property
    def axis(self) -> int:
        """The axis of the weight on which the units are; GPT-2's maps are transposed."""
        return int((self.side == "in") != (type(self.module).__name__ == "Conv1D"))

    @property
    def width(self) -> int:
        """How many channels the map has on that side."""
        weight: Any = self.module.weight
        return int(weight.shape[self.axis])

    def squares(self) -> Float[Tensor, " channel"]:
        """The sum of squares of each channel's weights."""
        weight: Any = self.module.weight
        sums = weight.detach().float().square().sum(1 - self.axis)
        return sums[self.index.to(sums.device)].sum(0)


@dataclass(frozen=True)
class Attention:
    """The attention of a block.

    Args:
        module: The module.
        heads: The original numbers of the query heads that are left; none where it was removed.
        per_group: How many query heads share a key-value head in the whole model.
        head_dim: Channels of a head.
    """

    module: Any
    heads: tuple[int, ...]
    per_group: int
    head_dim: int

    @property
    def groups(self) -> tuple[int, ...]:
        """The original numbers of the key-value heads that are left."""
        return tuple(dict.fromkeys(head // self.per_group for head in self.heads))

    @property
    def output(self) -> Any:
        """The map from the heads to the residual stream.

        Raises:
            UsageError: There is none that is known.
        """
        found = [getattr(self.module, name) for name in _OUTPUTS if _has(self.module, name)]
        if not found:
            raise self._unknown("no map from the heads that is known")
        return found[0]

    def cuts(self, heads: tuple[int, ...]) -> list[tuple[Cut, bool]]:
        """The weights of some of the heads that are left, and whether each belongs to key-value heads.

        Raises:
            UsageError: A layout that is not known; the message names the part.
        """
        part, of = self.module, [self.heads.index(head) for head in heads]
        mine = dict.fromkeys(head // self.per_group for head in heads)
        groups = [self.groups.index(group) for group in mine]
        output = Cut(self.output, "in", self._channels(of))
        if all(_has(part, name) for name in ("q_proj", "k_proj", "v_proj")):
            rows = [(Cut(part.q_proj, "out", self._channels(of)), False)]
            rows += [(Cut(getattr(part, name), "out", self._channels(groups)), True) for name in ("k_proj", "v_proj")]
        elif (fused := next((name for name in _FUSED if _has(part, name)), None)) is None:
            raise self._unknown("no map to the heads that is known")
        elif self._by_head:
            # the query, key and value of a head stand next to each other
            rows = [(Cut(getattr(part, fused), "out", self._channels(of, 3 * self.head_dim)), False)]
        else:
            # all queries, all keys, all values
            first = len(self.heads) * self.head_dim
            theirs = self._channels(groups)
            starts = (first, first + len(self.groups) * self.head_dim)
            index = torch.cat([self._channels(of), *(theirs + start for start in starts)], 1)
            rows = [(Cut(getattr(part, fused), "out", index), False)]
        found = [*rows, (output, False)]
        self._check(found)
        return found + [
            (Cut(getattr(part, name), "out", torch.tensor([groups if grouped else of])), grouped)
            for name, grouped in _NORMS
            if self._own_norm(name, grouped)
        ]

    @property
    def _by_head(self) -> bool:
        """Whether a fused map holds each head's query, key and value next to each other."""
        return self.per_group == 1 and type(self.module).__name__ in _BY_HEAD

    def _own_norm(self, name: str, grouped: bool) -> bool:
        """Whether each head has weights of its own in a norm of queries or keys (Cohere)."""
        weight = getattr(getattr(self.module, name, None), "weight", None)
        return weight is not None and weight.shape == (len(self.groups if grouped else self.heads), self.head_dim)

    def _check(self, cuts: list[tuple[Cut, bool]]) -> None:
        """Each map is as wide as its heads are, and nothing else belongs to single heads."""
        for cut, grouped in cuts:
            units = len(self.groups if grouped else self.heads)
            if cut.side == "out" and len(cuts) == 2:
                units += 2 * len(self.groups)
            if cut.width != units * self.head_dim:
                raise self._unknown(f"a map {cut.width} wide where {units} times {self.head_dim} are expected")
        norms = [getattr(self.module, name) for name, grouped in _NORMS if self._own_norm(name, grouped)]
        norms += [getattr(self.module, name) for name, _ in _NORMS_APART if _has(self.module, name)]
        known = [*(cut.module for cut, _ in cuts), *norms]
        odd = _left_over(self.module, known, (1, self.head_dim), None if self.sinks is None else "sinks")
        if odd:
            joint = any(_has(self.module, name) and f"{name}.weight" in odd for name, _ in _NORMS)
            raise self._unknown("q_norm and k_norm are over all heads together" if joint else odd)

    def _unknown(self, why: str) -> UsageError:
        return UsageError(
            f"{type(self.module).__name__} holds its heads in a way that can't be cut ("
            f"{', '.join(name for name, _ in self.module.named_children())}: {why}); "
            "remove its neurons or whole blocks instead"
        )

    @property
    def sinks(self) -> nn.Parameter | None:
        """Each head's score in its softmax that belongs to no key (GPT-OSS)."""
        found = getattr(self.module, "sinks", None)
        return found if isinstance(found, nn.Parameter) and found.shape == (len(self.heads),) else None

    def norms_apart(self, heads: tuple[int, ...]) -> list[tuple[Any, list[nn.Module]]]:
        """The lists that have a norm for each head, and what is left of them with some of the heads that are left."""
        groups = dict.fromkeys(head // self.per_group for head in heads)
        at = {False: [self.heads.index(head) for head in heads], True: [self.groups.index(group) for group in groups]}
        lists = [(getattr(self.module, name), grouped) for name, grouped in _NORMS_APART if _has(self.module, name)]
        return [(one, [one.norms[place] for place in at[grouped]]) for one, grouped in lists]

    def squares(self) -> Float[Tensor, " head"]:
        """The sum of squares of each head's weights; those of a key-value head are shared among its query heads."""
        total = torch.zeros(len(self.heads))
        for cut, grouped in self._apart(self.cuts(self.heads)):
            units = len(self.groups if grouped else self.heads)
            each = cut.squares().cpu().unflatten(0, (units, -1)).sum(1)
            total += each.repeat_interleave(len(self.heads) // units) * units / len(self.heads)
        return total

    def _apart(self, cuts: list[tuple[Cut, bool]]) -> list[tuple[Cut, bool]]:
        """The same weights, with the keys and the values of a map that has all queries first by themselves."""
        (fused, _), *others = cuts
        sizes = [len(self.heads) * self.head_dim, *2 * [len(self.groups) * self.head_dim]]
        if self._by_head or fused.index.numel() != sum(sizes):
            return cuts
        parts = enumerate(fused.index.split(sizes, 1))
        return [*((Cut(fused.module, "out", part), at > 0) for at, part in parts), *others]

    def _channels(self, units: list[int], size: int | None = None) -> Int[Tensor, "one channel"]:
        each = torch.arange(size or self.head_dim)
        return (torch.tensor(units, dtype=torch.long)[:, None] * len(each) + each).reshape(1, -1)


@dataclass(frozen=True)
class MLP:
    """The MLP of a block.

    Args:
        module: The module.
        neurons: The original numbers of the neurons that are left; none where it was removed.
    """

    module: Any
    neurons: tuple[int, ...]

    @property
    def output(self) -> Any:
        """The map from the neurons to the residual stream."""
        return self._maps()[-1]

    def cuts(self, at: Int[Tensor, " neuron"]) -> list[Cut]:
        """The weights of some of the neurons that are left, by their places among them.

        Raises:
            UsageError: A layout that is not known; the message names the part.
        """
        *reading, writing = self._maps()
        last, n = Cut(writing, "in", at[None]), len(self.neurons)
        parts = Cut(reading[0], "out", at[None]).width // n if len(reading) == 1 else 1
        found = [*(Cut(one, "out", at[None] + n * torch.arange(parts)[:, None]) for one in reading), last]
        if parts not in (1, 2) or [cut.width for cut in found] != [*(parts * n for _ in reading), n]:
            raise self._unknown(f"maps {', '.join(str(cut.width) for cut in found)} wide for {n} neurons")
        if not self.is_block and (odd := _left_over(self.module, self._maps(), (1,))):
            raise self._unknown(odd)
        return found

    @property
    def is_block(self) -> bool:
        """Whether the MLP is no module of its own, and its maps are the block's (OPT)."""
        return any(_has(self.module, name) for name in ("self_attn", "attn", "attention"))

    def squares(self) -> Float[Tensor, " neuron"]:
        """The sum of squares of each neuron's weights."""
        cuts = self.cuts(torch.arange(len(self.neurons)))
        return torch.stack([cut.squares().cpu() for cut in cuts]).sum(0)

    def _maps(self) -> list[Any]:
        for names in _MLPS:
            if all(_has(self.module, name) for name in names):
                return [getattr(self.module, name) for name in names]
        raise self._unknown("no maps that are known")

    def _unknown(self, why: str) -> UsageError:
        return UsageError(
            f"{type(self.module).__name__} holds its neurons in a way that can't be cut ("
            f"{', '.join(name for name, _ in self.module.named_children())}: {why}); "
            f"remove heads{', experts' if _has(self.module, 'experts') else ''} or whole blocks instead"
        )


def _has(module: nn.Module, name: str) -> bool:
    return isinstance(getattr(module, name, None), nn.Module)


def _left_over(module: nn.Module, maps: list[nn.Module], sizes: tuple[int, ...], own: str | None = None) -> str:
    """The first parameter of a module that is in none of the maps and has another size; it may be some unit's own."""
    known = {id(parameter) for one in maps for parameter in one.parameters()}
    for name, parameter in module.named_parameters():
        if id(parameter) not in known and parameter.numel() not in sizes and name != own:
            return f"nothing is known of {name} of shape {list(parameter.shape)}"
    return ""


@dataclass(frozen=True)
class Anatomy:
    """A deployed model's blocks. Blocks, heads and neurons carry their original numbers.

    Args:
        owner: The module that has the blocks.
        name: Under which name.
        layers: The original number of each block that is left.
        heads: Query heads of a block of the whole model.
        kv_heads: Key-value heads of a block of the whole model.
        head_dim: Channels of a head.
    """

    owner: Any
    name: str
    layers: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def blocks(self) -> list[Any]:
        """The blocks that are left."""
        return list(getattr(self.owner, self.name))

    def block(self, layer: int) -> Any:
        """A block by its original number."""
        return self.blocks[self.layers.index(layer)]

    def check_alike(self) -> None:
        """Refuses to take blocks out of a model that mixes kinds of them: its masks and caches go by their numbers.

        Raises:
            UsageError: There are several kinds.
        """
        if len({tuple(name for name, _ in block.named_children()) for block in self.blocks}) > 1:
            raise UsageError(f"the blocks of {type(self.owner).__name__} are of several kinds, so none can be removed")

    def attention(self, layer: int) -> Attention:
        """The attention of a block."""
        owner, name = attention_place(self.block(layer))
        part = getattr(owner, name)
        left = () if isinstance(part, NoAttention) else vars(part).get("kept_heads", tuple(range(self.heads)))
        return Attention(part, left, self.heads // self.kv_heads, self.head_dim)

    def mlp(self, layer: int) -> MLP:
        """The MLP of a block.

        Raises:
            UsageError: The block has none that is known.
        """
        part = getattr(self.block(layer), "mlp", None)
        if isinstance(part, NoMLP):
            return MLP(part, ())
        if part is None and _has(self.block(layer), "fc1"):  # OPT: the block has the MLP's maps
            part = self.block(layer)
        if part is None:
            raise UsageError(f"{type(self.block(layer)).__name__} has no part `mlp` whose neurons could be removed")
        size = Cut(MLP(part, ()).output, "in", torch.empty(1, 0)).width
        return MLP(part, vars(part).get("kept_neurons", tuple(range(size))))


def anatomy(model: PreTrainedModel) -> Anatomy:
    """The blocks of a deployed model.

    Raises:
        UsageError: They are not found; the message names the model's class.
    """
    record, config, body = deployment(model), model.config.get_text_config(), model.base_model
    length, within = len(record.layers), [part for part in body.children() if not isinstance(part, nn.ModuleList)]
    found = _lists(body, length) or [place for part in within for place in _lists(part, length)]  # OPT's: in a decoder
    if len(found) != 1:
        raise UsageError(f"{type(body).__name__} does not hold its blocks in one list, so nothing can be removed")
    heads = getattr(config, "num_attention_heads", None)
    if heads is None:
        raise UsageError(f"{type(config).__name__} says no num_attention_heads: models without attention aren't pruned")
    return Anatomy(
        owner=found[0][0],
        name=found[0][1],
        layers=tuple(record.layers),
        heads=heads,
        kv_heads=key_value_heads(config),
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def _lists(owner: nn.Module, length: int) -> list[tuple[nn.Module, str]]:
    """The lists of so many modules that a module has."""
    parts = owner.named_children()
    return [(owner, name) for name, part in parts if isinstance(part, nn.ModuleList) and len(part) == length]


def attention_place(block: Any) -> tuple[Any, str]:
    """What of a block has its attention, and under which name.

    Raises:
        UsageError: It has none that is known.
    """
    for name in ("self_attn", "attn", "attention", "self_attention"):
        if (found := getattr(block, name, None)) is not None:
            # GPT-Neo's has another within
            return (found, "attention") if _has(found, "attention") else (block, name)
    raise UsageError(f"{type(block).__name__} has no part for attention that is known, so its heads can't be removed")
