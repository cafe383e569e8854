"""Attention with some heads calibrated: the model's own function does all, and a difference is added to those heads.

So what is not calibrated stays bit-identical. Registered with transformers' `AttentionInterface`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.efficiency.calibration.account import Running
from interp.efficiency.calibration.redistribute import redistributed
from interp.efficiency.calibration.rules import Rule
from interp.upstream import own_attention, register, scoring

__all__ = ["NAMES", "Flagging", "Spot"]

NAMES = {"sdpa": "interp_calibration_sdpa", "eager": "interp_calibration_eager"}
"""The names of the functions in transformers' registry, by what they build on."""


@dataclass
class Spot:
    """The heads of an attention module that are calibrated.

    Args:
        layer: The original number of the block.
        heads: Their places among the module's heads.
        strength: See `redistributed`.
        rule: Which keys are sinks.
        running: Has the account of the pass.
        gate: "head", what the change is multiplied by; none for one. To ask for its gradient.
    """

    layer: int
    heads: tuple[int, ...]
    strength: float
    rule: Rule
    running: Running
    gate: Tensor | None = None

    def added(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
    ) -> Float[Tensor, "row new head d"]:
        """What is added to the heads' outputs."""
        made = scoring(query, options, "calibration")
        at = torch.tensor(self.heads, device=query.device)
        group = at // (query.shape[1] // key.shape[1])
        query, key, value = query[:, at], key[:, group], value[:, group]
        visible = _visible(query, key, mask)
        scores = (query @ key.transpose(2, 3)).float() * made.scaling
        if made.softcap is not None:
            scores = made.softcap * torch.tanh(scores / made.softcap)
        pattern = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(-1)
        sinks = self.rule.sinks(self.running.now(), self.layer, pattern, visible)
        change = redistributed(pattern, sinks, self.strength, self.rule.toward(self.layer, pattern))
        if self.gate is not None:
            change = change * self.gate[:, None, None]
        return (change.to(value.dtype) @ value).transpose(1, 2)


@dataclass
class Flagging:
    """A hook before a block that shows the rule what enters."""

    layer: int
    rule: Rule
    running: Running

    def __call__(self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        resid = args[0] if args else kwargs["hidden_states"]
        self.rule.see(self.running.now(), self.layer, resid)


def _visible(query: Tensor, key: Tensor, mask: Tensor | None) -> Bool[Tensor, "row one new key"]:
    new, keys = query.shape[2], key.shape[2]
    if mask is None:
        at = torch.arange(keys, device=query.device)
        return (at <= at[keys - new :, None]).expand(len(query), 1, -1, -1)
    mask = mask[..., :keys]
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return seen[:, :1].expand(len(query), -1, -1, -1)


def _function(base: str) -> Any:
    def calibrated(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        found, weights = own_attention(module, base)(module, query, key, value, attention_mask, **options)
        spot: Spot | None = vars(module).get("calibration")
        if spot is None:
            return found, weights
        added = spot.added(query, key, value, attention_mask, options)
        return found.index_add(2, torch.tensor(spot.heads, device=found.device), added.to(found.dtype)), None

    return calibrated


for _base, _name in NAMES.items():
    register(_name, _function(_base), like=_base)
