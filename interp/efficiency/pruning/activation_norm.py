"""Neurons whose activation times the norm of what they write is smallest go; no finding is needed.

The structured form of Wanda's score (Sun et al. 2023, arXiv 2306.11695, eq. 1): the l2 norm of a neuron's activations
over some text, times the l2 norm of its column of the down projection. The same share of every layer goes, since the
sizes of activations of different layers can't be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from interp.efficiency.kv_cache.running import uncached
from interp.efficiency.pruning.anatomy import Anatomy, anatomy
from interp.efficiency.pruning.choosing import Choice, choose_neurons
from interp.efficiency.pruning.method import ScoredPruning
from interp.errors import UsageError
from interp.tasks import corpus, sized
from interp.tasks.splits import half_of_corpus

__all__ = ["ActivationNormPruning", "input_norms"]


class ActivationNormPruning(ScoredPruning):
    """Keeps the neurons that write most.

    Args:
        budget: The share of each layer's neurons that is kept.
        source: Text, see `interp.tasks.corpus`.
        n: Stretches of it; 4, or all rows of token ids.
        length: Tokens of each; 128, or all of the token ids.
        seed: Of the choice of stretches.
        skip: Leave so many tokens at the start of each text out of the norms. Better not: the neurons that make the
            massive activations of sinks fire hardest at the first token. It is here to show what that costs.
    """

    name = "activation norm"

    def __init__(
        self,
        *,
        budget: float = 0.75,
        source: str | Path | Sequence[str] | Int[Tensor, "text pos"] = "prose",
        n: int | None = None,
        length: int | None = None,
        seed: int = 0,
        skip: int = 0,
    ) -> None:
        super().__init__(budget=budget)
        n, length = sized(source, n, length, 4, 128)
        if not 0 <= skip < length:
            raise UsageError(f"{self.name}: skip must be at least 0 and less than the length of {length}, got {skip}")
        self.source, self.n, self.length, self.seed, self.skip = source, n, length, seed, skip

    def scores(self, model: PreTrainedModel) -> np.ndarray:
        body = anatomy(model)
        tokens = corpus(self.source, model, self.n, self.length, self.seed, split=half_of_corpus(self.source, "find"))
        parts = {layer: body.mlp(layer) for layer in body.layers if body.mlp(layer).neurons}
        norms = input_norms(model, tokens, {layer: part.output for layer, part in parts.items()}, self.skip)
        width = max(max(part.neurons) for part in parts.values()) + 1
        found = np.zeros((max(body.layers) + 1, width))
        for layer, part in parts.items():
            column = part.cuts(torch.arange(len(part.neurons)))[-1].squares().sqrt().cpu()
            found[layer, list(part.neurons)] = (norms[layer].cpu() * column).numpy()
        return found

    def choose(self, body: Anatomy, scores: np.ndarray) -> Choice:
        return choose_neurons(body, scores, self.budget, "layer", self.name)


@torch.no_grad()
def input_norms(
    model: PreTrainedModel, tokens: Int[Tensor, "text pos"], maps: dict[Any, Any], skip: int = 0
) -> dict[Any, Float[Tensor, " channel"]]:
    """The l2 norm over all tokens of each channel that some linear maps read.

    Args:
        model: A deployed model.
        tokens: The texts.
        maps: Linear maps by any name.
        skip: Leave so many tokens at the start of each text out.
    """
    sums: dict[Any, Tensor] = {}

    def summing(name: Any) -> Any:
        def hook(module: Any, given: tuple[Tensor, ...]) -> None:
            x = given[0].detach().float()[:, skip:]
            sums[name] = sums.get(name, 0) + x.square().flatten(0, -2).sum(0)

        return hook

    hooks = [module.register_forward_pre_hook(summing(name)) for name, module in maps.items()]
    run = uncached(model)
    try:
        for row in tokens:
            run(input_ids=row[None].to(model.device), logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total.sqrt() for name, total in sums.items()}
