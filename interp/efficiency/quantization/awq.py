"""AWQ: input channels that carry much are scaled up before rounding, and their inputs down.

Lin et al. 2023 (arXiv 2306.00978), section 3.2: with ``s = mean|x|^alpha`` for each input channel, the weights that
are rounded are ``W diag(s)`` and the inputs ``x / s``; alpha is searched in [0, 1] for each layer so that
``|Q(W diag(s)) diag(s)^-1 X - W X|`` is least (equations 4 and 5). Here inputs are divided when they enter the layer,
not in the norm before it, so each layer has an alpha of its own and any architecture can take it, and the error is
what the mean squares of the inputs make one expect, so no text is needed beside the finding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from interp.efficiency.quantization.codes import rounded
from interp.efficiency.quantization.method import Choice, QuantMethod, integers, without_sinks
from interp.efficiency.quantization.plan import QuantPlan
from interp.efficiency.quantization.solvers import output_error
from interp.efficiency.quantization.spots import Spot
from interp.efficiency.quantization.statistics import awq_scales, key, text_of, values_of
from interp.results.findings import ActivationStatistics

__all__ = ["AWQ"]


class AWQ(QuantMethod):
    """Activation-aware weights: see the module.

    Args:
        statistics: What enters each layer; tokens that are sinks are left out.
        group: As for `RTN`.
        steps: Of the grid of alphas; the paper has 20.
        budget, bits, head, skip: As `QuantMethod` takes them.
    """

    name = "awq"

    def __init__(
        self,
        statistics: ActivationStatistics,
        *,
        group: int | None = None,
        steps: int = 20,
        budget: float | None = None,
        bits: int | None = None,
        head: bool = True,
        skip: Sequence[str] = (),
    ) -> None:
        super().__init__(budget=budget, bits=bits, head=head, skip=skip)
        self.statistics, self.steps = statistics, steps
        self.group = 32 if group is None and self.bits == 4 else group
        self._sizes: dict[str, Float[Tensor, " channel"]] = {}

    def findings(self) -> list[ActivationStatistics]:
        return [self.statistics]

    def choice(self, spot: Spot) -> Choice:
        scheme = integers(self.bits, self.group).changed(scaled="awq")
        weight, square = spot.weight.float(), without_sinks(self.statistics, spot, "square")
        size = self._size(spot)
        best = Choice(scheme, 0.0, output_error(weight, rounded(weight, scheme).decoded(), square))
        for step in range(1, self.steps):
            alpha = step / self.steps
            s = awq_scales(size, alpha).to(weight.device)
            error = output_error(weight, rounded(weight * s, scheme).decoded() / s, square)
            if best.error is None or error < best.error:
                best = Choice(scheme, alpha, error)
        return best

    def beside(self, model: PreTrainedModel) -> Mapping[str, Any]:
        return {"statistics": {name: text_of(values) for name, values in self._sizes.items()}}

    def random_plan(self, model: Any, seed: int = 0) -> QuantPlan:
        """The sizes of channels are shuffled, then everything as before."""
        generator = torch.Generator().manual_seed(seed)
        return self._with(model, lambda size: size[torch.randperm(len(size), generator=generator)], "random")

    def inverted_plan(self, model: Any) -> QuantPlan:
        """The channels that carry least are scaled up."""
        return self._with(model, lambda size: 1 / size.clamp(min=1e-4 * float(size.max())), "inverted")

    def plan(self, model: Any) -> QuantPlan:
        return self._with(model, lambda size: size, "")

    def _with(self, model: Any, change: Any, word: str) -> QuantPlan:
        self._sizes, self._change = {}, change
        return self._plan(model, f"{self.name}, {word}" if word else self.name)

    def _size(self, spot: Spot) -> Float[Tensor, " channel"]:
        """A layer's input sizes, as the plan will have them."""
        assert spot.layer is not None
        name = key(spot.layer, spot.part)
        if name not in self._sizes:
            self._sizes[name] = values_of(text_of(self._change(without_sinks(self.statistics, spot, "mean")))).float()
        return self._sizes[name]
