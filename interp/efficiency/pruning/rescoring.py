"""Importance of heads measured on a deployed model as it is, with whatever plans are in force: for greedy pruning."""

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
from interp.efficiency.pruning.anatomy import anatomy
from interp.gradients import gradients
from interp.tasks import Task, corpus, sized
from interp.tasks.splits import half_of_corpus

__all__ = ["GradientScores"]


class GradientScores:
    """E abs(z . dL/dz) of every head that is left, L the loss of a text or the metric of a task.

    Args:
        source: Text, see `interp.tasks.corpus`, or a task, whose prompts are all taken.
        n: Stretches of text; 4, or all rows of token ids.
        length: Tokens of each; 128, or all of the token ids.
        seed: Of the choice of stretches.
        by_layer: Divide the scores of each layer by their l2 norm, as the paper does.

    Reference: Michel et al. 2019, arXiv:1905.10650, eq. 2.
    """

    def __init__(
        self,
        source: Task | str | Path | Sequence[str] | Int[Tensor, "text pos"] = "prose",
        n: int | None = None,
        length: int | None = None,
        seed: int = 0,
        by_layer: bool = True,
    ) -> None:
        n, length = sized(source, n, length, 4, 128)
        self.source, self.n, self.length, self.seed, self.by_layer = source, n, length, seed, by_layer

    @gradients()
    def __call__(self, model: PreTrainedModel) -> Float[np.ndarray, "layer head"]:
        """Scores by original numbers; of blocks and heads that are gone NaN."""
        body = anatomy(model)
        found = np.full((max(body.layers) + 1, body.heads), np.nan)
        parts = {layer: body.attention(layer) for layer in body.layers if body.attention(layer).heads}
        kept: dict[int, Tensor] = {}

        def keeping(layer: int) -> Any:
            def hook(module: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                z = given[0] if given[0].requires_grad else given[0].detach().requires_grad_()
                kept[layer] = z
                return (z, *given[1:])

            return hook

        hooks = [part.output.register_forward_pre_hook(keeping(layer)) for layer, part in parts.items()]
        try:
            flows = torch.autograd.grad(self._total(model), list(kept.values()))
        finally:
            for hook in hooks:
                hook.remove()
        for (layer, z), flow in zip(kept.items(), flows, strict=True):
            heads = parts[layer].heads
            each = (z.detach() * flow).unflatten(-1, (len(heads), -1)).sum((1, 3)).abs().mean(0).float().cpu()
            found[layer, list(heads)] = each / each.norm().clamp(min=1e-30) if self.by_layer else each
        return found

    def _total(self, model: PreTrainedModel) -> Float[Tensor, ""]:
        """The loss or the metric, summed over texts or prompts."""
        run = uncached(model)
        if isinstance(self.source, Task):
            task = self.source.to(model.device)
            logits = task.end_logits(run(input_ids=task.clean).logits)
            return task.measure(logits, task.right, task.wrong, logits.detach()).sum()
        tokens = corpus(
            self.source, model, self.n, self.length, self.seed, split=half_of_corpus(self.source, "find")
        ).to(model.device)
        return run(input_ids=tokens, labels=tokens).loss * len(tokens)
