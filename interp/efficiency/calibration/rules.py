"""Which keys are sinks for a query: by the attention that they got so far, or by massive activations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.checking import arguments, checked
from interp.efficiency.calibration.account import Account
from interp.errors import unknown_name

__all__ = ["ByAttention", "ByChannels", "Rule", "outlying", "rule"]


class Rule(ABC):
    """Says which keys are sinks."""

    @abstractmethod
    def sinks(
        self,
        account: Account,
        layer: int,
        pattern: Float[Tensor, "row head new key"],
        visible: Bool[Tensor, "row one new key"],
    ) -> Bool[Tensor, "row head new key"]:
        """The sinks of each query and head, among the keys that it sees; none where nothing is to be changed."""

    def toward(
        self, layer: int, pattern: Float[Tensor, "row head new key"]
    ) -> Float[Tensor, "row head new key"] | None:
        """Attention in whose proportions the others get what sinks give; none for each head's own."""
        return None

    def see(self, account: Account, layer: int, resid: Float[Tensor, "row new channel"]) -> None:  # noqa: B027
        """What enters the block, before its attention."""

    def settings(self) -> dict[str, Any]:
        """Of JSON's types."""
        return {"by": next(n for n, kind in RULES.items() if kind is type(self)), **vars(self)}


@dataclass(frozen=True)
class ByAttention(Rule):
    """A key behind the first ones is a sink of a head if the queries so far gave it alpha / N or more on average.

    The paper takes the mean over all queries of the prompt that see the key; ours is the mean over those up to the
    query in question (the same at the prompt's last token), so that nothing looks ahead and a text gives the same
    in one piece, in chunks and token by token. N are the keys that the query sees.

    Args:
        alpha: The paper has 5.
        initial: So many tokens at the start of a text are left alone; the paper has 1.

    Reference: Yu et al. 2024, arXiv:2406.15765, section 4: sinks S = {t : a_t > alpha / N}.
    """

    alpha: float = 5.0
    initial: int = 1

    def sinks(
        self,
        account: Account,
        layer: int,
        pattern: Float[Tensor, "row head new key"],
        visible: Bool[Tensor, "row one new key"],
    ) -> Bool[Tensor, "row head new key"]:
        new, keys = pattern.shape[2:]
        counted = visible & account.real[:, None, -new:, None]
        received = (pattern.detach() * counted).cumsum(2)
        times = counted.long().cumsum(2)
        before = account.earlier(layer, "received", keys - new)
        if before is not None:
            received[..., : keys - new] += before[:, :, None]
            times[..., : keys - new] += account.earlier(layer, "times", keys - new)[:, :, None]  # type: ignore[index]
        account.write(layer, received=received[:, :, -1], times=times[:, :, -1])
        level = self.alpha / visible.sum(-1, keepdim=True).clamp(min=1)
        later = account.positions[:, None, None, -keys:] >= self.initial
        return (received / times.clamp(min=1) > level) & visible & later


@dataclass(frozen=True)
class ByChannels(Rule):
    """A token is a sink if a channel of what enters the block is far out; heads that look elsewhere give its share on.

    Args:
        channels: Those with massive activations.
        level: phi from which on a token is a sink, see `outlying`.
        content: The share of a query's attention that must go to other tokens for a head to be changed there.
        order: For each layer and head that may be changed, the head in the proportions of whose attention the others
            get its share; itself where empty. A control: as much attention is moved, to where another head looks.

    Reference: Kang et al. 2025, arXiv:2503.03321, sections 3 and 5.
    """

    channels: Sequence[int]
    level: float
    content: float = 0.5
    order: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def see(self, account: Account, layer: int, resid: Float[Tensor, "row new channel"]) -> None:
        found = outlying(resid, self.channels) >= self.level
        before = account.layers.get(layer, {}).get("flags")
        if before is not None:
            found = torch.cat([before.expand(len(found), -1), found], 1)
        account.write(layer, flags=found)

    def sinks(
        self,
        account: Account,
        layer: int,
        pattern: Float[Tensor, "row head new key"],
        visible: Bool[Tensor, "row one new key"],
    ) -> Bool[Tensor, "row head new key"]:
        found = account.layers[layer]["flags"][:, None, None, -pattern.shape[-1] :] & visible
        return found & ((pattern * ~found).sum(-1, keepdim=True) >= self.content)

    def toward(
        self, layer: int, pattern: Float[Tensor, "row head new key"]
    ) -> Float[Tensor, "row head new key"] | None:
        order = dict(self.order).get(layer)
        if order is None:
            return None
        return pattern[:, [head for head in order if head < pattern.shape[1]]]  # heads that are left


def outlying(resid: Float[Tensor, "*rows channel"], channels: Sequence[int]) -> Float[Tensor, "*rows"]:
    """How far out some channels are: phi(x) = max over them of |x_d| / sqrt(mean of x^2); sqrt(channels) at most.

    Args:
        resid: The residual stream.
        channels: The channels.

    Reference: Kang et al. 2025, arXiv:2503.03321, section 3.
    """
    x = resid.detach().float()
    return x[..., list(channels)].abs().amax(-1) / x.square().mean(-1).sqrt().clamp(min=1e-12)


RULES: dict[str, type[Rule]] = {"attention": ByAttention, "channels": ByChannels}


def rule(settings: dict[str, Any]) -> Rule:
    """The rule with some settings, as `Rule.settings` gives them.

    Raises:
        UsageError: An unknown rule.
    """
    options = dict(settings)
    name = checked(options, "by", str, "the plan")
    if name not in RULES:
        raise unknown_name("rule for sinks", name, RULES)
    del options["by"]
    return RULES[name](**arguments(options, RULES[name], "the plan", least=0))
