"""What decides which key blocks are attended: patterns, each made from a table of settings that a plan is saved with.

A pattern sees the queries and keys of one prompt in one layer, for the heads that it is for, and gives their
`BlockList`.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.checking import arguments, checked
from interp.efficiency.sparse_attention.blocks import BlockList, causal_blocks
from interp.errors import unknown_name

__all__ = ["DENSE", "PATTERNS", "Dense", "Pattern", "View", "covering", "pattern", "pooled", "pooling_flops"]

DENSE: dict[str, Any] = {"pattern": "dense"}
"""The settings of a head that attends everything."""

PATTERNS: dict[str, str] = {
    "dense": "patterns:Dense",
    "window": "a_shape:Window",
    "flexprefill": "flexprefill:Flexible",
    "anchor": "anchor:Stripes",
    "moba": "moba:Gated",
    "sparge": "sparge:Predicted",
    "star": "star:TwoPhases",
    "random": "random_blocks:Random",
}
"""The patterns, by the name in their settings."""


@dataclass(frozen=True, eq=False)
class View:
    """What a pattern sees: one prompt's queries and keys in one layer, rotated as they are compared.

    Args:
        query: Of some heads; the new tokens are the last of the keys' tokens.
        keys: Of all key-value heads.
        kv: The key-value head of each query head.
        block: Tokens of a block.
        scaling: What scores are multiplied by.
        softcap: Where scores are bent to by tanh; none otherwise.
        layer: The layer's original number.
        heads: The query heads' original numbers; may be empty.
    """

    query: Float[Tensor, "head new d"]
    keys: Float[Tensor, "kv_head key d"]
    kv: tuple[int, ...]
    block: int
    scaling: float
    softcap: float | None = None
    layer: int = 0
    heads: tuple[int, ...] = ()

    @property
    def first(self) -> int:
        """The first query's position among the keys."""
        return self.keys.shape[1] - self.query.shape[1]

    @property
    def total(self) -> int:
        """How many keys there are."""
        return self.keys.shape[1]

    @cached_property
    def causal(self) -> Bool[Tensor, "query_block key_block"]:
        """Which key blocks don't stand behind the query block."""
        return causal_blocks(self.first, self.total, self.block).to(self.query.device)

    @property
    def own(self) -> Bool[Tensor, "query_block key_block"]:
        """Each query block's own key block."""
        at = torch.arange(self.causal.shape[1], device=self.query.device)
        return at == at[self.first // self.block :, None]

    @cached_property
    def pooled_query(self) -> Float[Tensor, "head query_block d"]:
        """Mean query of each block."""
        return pooled(self.query.float(), self.block, self.first)

    @cached_property
    def pooled_keys(self) -> Float[Tensor, "head key_block d"]:
        """Mean key of each block, for each query head."""
        return pooled(self.keys.float(), self.block)[list(self.kv)]

    def scores(
        self, query: Float[Tensor, "head some d"], keys: Float[Tensor, "head other d"]
    ) -> Float[Tensor, "head some other"]:
        """Scores as attention has them before its softmax."""
        found = query.float() @ keys.float().transpose(1, 2) * self.scaling
        return found if self.softcap is None else self.softcap * torch.tanh(found / self.softcap)

    def last_attention(self, last: int) -> Float[Tensor, "head last key"]:
        """The true attention of the last so many queries."""
        last = min(last, self.query.shape[1])
        groups: dict[int, list[int]] = {}
        for head, group in enumerate(self.kv):
            groups.setdefault(group, []).append(head)
        found = self.query.new_empty(len(self.kv), last, self.total, dtype=torch.float32)
        later = torch.ones(last, last, dtype=torch.bool, device=found.device).triu(1)
        for group, heads in groups.items():
            packed = self.query[heads, -last:].flatten(0, 1)[None]
            scores = self.scores(packed, self.keys[group : group + 1]).unflatten(1, (len(heads), last))[0]
            scores[..., -last:].masked_fill_(later, float("-inf"))
            found[heads] = scores.softmax(-1)
        return found

    def listed(
        self,
        kept: Bool[Tensor, "head query_block key_block"],
        columns: Bool[Tensor, "head query_block key"] | None = None,
    ) -> BlockList:
        """The list of these blocks and columns."""
        return BlockList(self.block, self.first, self.total, kept & self.causal, columns)


class Pattern(ABC):
    """Chooses key blocks."""

    fixed: ClassVar[bool] = False
    """Whether how much it chooses follows from positions alone."""

    @abstractmethod
    def select(self, view: View) -> BlockList:
        """The keys that each block of queries attends."""

    @abstractmethod
    def words(self, block: int) -> str:
        """What it keeps, in words."""

    def flops(self, length: int, block: int, width: int) -> float:
        """What choosing takes for one head, on top of attention; a multiplication and an addition count two."""
        return 0.0


class Dense(Pattern):
    """Everything is attended."""

    fixed = True

    def select(self, view: View) -> BlockList:
        return view.listed(view.causal.expand(len(view.kv), -1, -1))

    def words(self, block: int) -> str:
        return "everything"


def pattern(settings: dict[str, Any]) -> Pattern:
    """The pattern that a table of settings is of.

    Raises:
        UsageError: An unknown pattern.
        InterpError: Settings that it does not have.
    """
    name = checked(settings, "pattern", str, "the plan")
    if name not in PATTERNS:
        raise unknown_name("pattern", name, PATTERNS)
    module, _, made = PATTERNS[name].partition(":")
    found = getattr(importlib.import_module(f"interp.efficiency.sparse_attention.{module}"), made)
    options = {key: value for key, value in settings.items() if key != "pattern"}
    return found(**arguments(options, found, "the plan", least=0))


def pooled(x: Float[Tensor, "head token d"], block: int, first: int = 0) -> Float[Tensor, "head block d"]:
    """Means over blocks of a grid on which the first token is number `first`."""
    number = torch.arange(first, first + x.shape[1], device=x.device) // block - first // block
    sums = x.new_zeros(x.shape[0], int(number[-1]) + 1, x.shape[2]).index_add_(1, number, x)
    return sums / torch.bincount(number)[:, None]


def covering(
    mass: Float[Tensor, "*rest item"], share: float | Float[Tensor, "*rest one"], least: int = 0
) -> Bool[Tensor, "*rest item"]:
    """The fewest items, largest first, that hold a share of the whole mass together, and at least so many."""
    ordered, index = mass.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    needed = (before < share * mass.sum(-1, keepdim=True)) | (torch.as_tensor(share, device=mass.device) >= 1)
    needed[..., :least] = True
    return torch.zeros_like(needed).scatter(-1, index, needed)


def pooling_flops(length: int, block: int, width: int) -> float:
    """FLOPs of one head's means of queries and keys by block, and of the products of the means."""
    blocks = -(-length // block)
    return 2.0 * length * width + blocks * (blocks + 1) * width
