"""Mixtures of experts: a router's weights, and what each expert writes, as plain functions of tensors.

An MLP that is a mixture writes the sum over experts of the router's weight times what the expert makes of the same
input (Shazeer et al. 2017, arXiv 1701.06538, eq. 1). The weights of experts that the router does not choose are zero.
An expert that every token goes through (Qwen 2's shared one) is counted as one more, behind those that are routed to;
its weight is its own gate's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp.engine.rule_sets import Rules
from interp.engine.rules import activate, gated, project
from interp.errors import UsageError

__all__ = ["Experts", "NoNeurons", "experts_of"]


@dataclass(frozen=True)
class Linear:
    """A linear map cut out of a larger tensor, "out in"."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """What the map makes of x."""
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Experts:
    """The experts of a block.

    Args:
        router: Its module, which gives logits, weights and numbers of the chosen experts for each token.
        module: The module with the routed experts' weights, one on another.
        shared: The MLP that every token goes through, or none.
        shared_gate: What makes the shared expert's weight, behind a sigmoid.
        routed: How many experts are routed to.
    """

    router: Any
    module: Any
    shared: Any
    shared_gate: Any
    routed: int

    @property
    def count(self) -> int:
        """How many experts there are, a shared one among them."""
        return self.routed + (self.shared is not None)

    def weights(self, x: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos expert"]:
        """What each expert's write is multiplied by; zero where it is not chosen."""
        flat = x.reshape(-1, x.shape[-1])
        _, weights, chosen = self.router(flat)
        found = weights.new_zeros(len(flat), self.routed).scatter(1, chosen, weights).to(x.dtype)
        if self.shared is not None:
            found = torch.cat([found, torch.sigmoid(self.shared_gate(flat))], 1)
        return found.unflatten(0, x.shape[:-1])

    def write(self, number: int, x: Float[Tensor, "token d_model"], chosen: Rules) -> Float[Tensor, "token d_model"]:
        """What one expert makes of its input, before its weight, under the rules of the backward pass."""
        if number == self.routed:
            gate, up, down = (bare(getattr(self.shared, name)) for name in ("gate_proj", "up_proj", "down_proj"))
            function, other = self.shared.act_fn, None
        else:
            gate, up, down = self._maps(number)
            function, other = self._functions()
        left = activate(chosen, function, project(chosen, gate, x))
        right = project(chosen, up, x)
        return project(chosen, down, gated(chosen, left, right if other is None else other(right)))

    def _maps(self, number: int) -> tuple[Linear, Linear, Linear]:
        """Gate, up and down projection; GPT-OSS has them transposed, gate and up in turn, with biases."""
        both, down = self.module.gate_up_proj[number], self.module.down_proj[number]
        if not self._alternating:
            return (*map(Linear, both.chunk(2)), Linear(down))  # type: ignore[return-value]
        bias = self.module.gate_up_proj_bias[number]
        gate, up = (Linear(both.T[start::2], bias[start::2]) for start in (0, 1))
        return gate, up, Linear(down.T, self.module.down_proj_bias[number])

    def _functions(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor] | None]:
        """Of the gate and of the other factor; GPT-OSS bounds both and adds one to the latter."""
        if not self._alternating:
            return self.module.act_fn, None
        limit, alpha = self.module.limit, self.module.alpha

        def function(x: Tensor) -> Tensor:
            x = x.clamp(max=limit)
            return x * torch.sigmoid(alpha * x)

        return function, lambda x: x.clamp(-limit, limit) + 1

    @property
    def _alternating(self) -> bool:
        return hasattr(self.module, "gate_up_proj_bias")

    def mixed(
        self, x: Float[Tensor, "row pos d_model"], weights: Float[Tensor, "row pos expert"], chosen: Rules, every: bool
    ) -> Float[Tensor, "row pos d_model"]:
        """The mixture. Experts are computed of the tokens for which they have a weight; of all with `every`."""
        flat, each = x.reshape(-1, x.shape[-1]), weights.reshape(-1, weights.shape[-1])
        found = torch.zeros_like(flat)
        for number in range(self.count):
            share = each[:, number]
            tokens = torch.arange(len(flat), device=x.device) if every else share.detach().nonzero()[:, 0]
            if len(tokens):
                write = self.write(number, flat[tokens], chosen) * share[tokens, None]
                found = found.index_add(0, tokens, write.to(found.dtype))
        return found.view(x.shape)

    def apart(
        self, x: Float[Tensor, "row pos d_model"], weights: Float[Tensor, "row pos expert"], chosen: Rules
    ) -> Float[Tensor, "row pos expert d_model"]:
        """What each expert adds, its weight in it."""
        flat = x.flatten(0, -2)
        writes = torch.stack([self.write(number, flat, chosen) for number in range(self.count)], 1)
        return writes.unflatten(0, x.shape[:-1]) * weights[..., None]


class NoNeurons:
    """Stands for the projections of an MLP whose neurons are inside experts; whatever asks for one is refused.

    Args:
        layer: The block.
    """

    def __init__(self, layer: int) -> None:
        self.__dict__["layer"] = layer

    def __getattr__(self, name: str) -> Any:
        raise UsageError(
            f"the MLP of block {self.__dict__['layer']} is a mixture of experts, whose neurons can't be taken apart; "
            f"look at its experts (m{self.__dict__['layer']}.e0) or at the whole MLP instead"
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Refused as everything else."""
        return self.weight


def experts_of(mlp: Any) -> Experts:
    """The experts of a bridge's MLP."""
    block = bare(mlp)
    router = bare(getattr(block, "gate", None) or block.router)
    shared, gate = getattr(block, "shared_expert", None), getattr(block, "shared_expert_gate", None)
    return Experts(
        router=router,
        module=bare(block.experts),
        shared=None if shared is None else bare(shared),
        shared_gate=None if gate is None else bare(gate),
        routed=int(router.weight.shape[0]),
    )


def bare(module: Any) -> Any:
    """A module without the bridge's parts around it."""
    while isinstance(inner := getattr(module, "original_component", None), torch.nn.Module):
        module = inner
    return module
