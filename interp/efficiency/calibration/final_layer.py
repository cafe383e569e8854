"""The last layer's anti-overconfidence turned down: what its attention and its MLP add counts less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor
from transformers import PreTrainedModel

from interp.efficiency.calibration.costs import dearer
from interp.efficiency.calibration.method import CalibrationMethod
from interp.efficiency.deployment import deployment
from interp.efficiency.kv_cache.geometry import deployed
from interp.efficiency.ledger import Ledger
from interp.efficiency.plan import Plan, Undo
from interp.efficiency.pruning.anatomy import anatomy, attention_place
from interp.errors import UsageError, unknown_name

__all__ = ["FinalLayer", "FinalLayerPlan"]

PARTS = ("attention", "mlp")


@dataclass(frozen=True, kw_only=True)
class FinalLayerPlan(Plan):
    """Outputs of some blocks' parts are scaled before they are added to the residual stream. Nothing is saved by it.

    Args:
        parts: The block's original number, ``attention`` or ``mlp``, and the share that is taken away; below 0 it is
            added.
    """

    parts: tuple[tuple[int, str, float], ...]

    kind: ClassVar[str] = "final_layer"

    def __post_init__(self) -> None:
        super().__post_init__()
        for _, part, _ in self.parts:
            if part not in PARTS:
                raise unknown_name("part", part, PARTS)

    def change(self, model: PreTrainedModel, undo: Undo) -> None:
        body = anatomy(model)
        for layer, part, strength in self.parts:
            if layer in body.layers:
                writer = _writer(body.block(layer), part)
                undo.callback(writer.register_forward_hook(_Scaled(1 - strength)).remove)

    def ledger(self, model: PreTrainedModel, length: int, batch: int = 1) -> Ledger:
        each = len(self.parts) * model.config.get_text_config().hidden_size
        return dearer(model, length, batch, prefill=each * length, decode=each)

    def to_frame(self) -> pd.DataFrame:
        """One row a part: ``layer``, ``part``, ``strength``."""
        return pd.DataFrame(list(self.parts), columns=["layer", "part", "strength"])

    def figure(self) -> go.Figure:
        """What is left of each part's output."""
        from interp.efficiency.calibration.picture import scaled_parts

        return scaled_parts(self)


class FinalLayer(CalibrationMethod):
    """Scales what the last layer's attention and MLP add.

    The paper sees in the last layer of GPT-2, OPT and Llama 2 heads and an MLP that lower the right answer's logit
    for frequent tokens', and turns this down to raise confidence. Which share is taken from which part is not in what
    we could read of it (the abstract): scaling the parts' outputs is our reading of "mitigate this suppression".
    Choose `parts` and `budget` on held-out examples.

    Args:
        budget: The share of the outputs that is kept.
        parts: ``attention``, ``mlp`` or both.

    Reference: Lv et al. 2024, "Interpreting Key Mechanisms of Factual Recall in Transformer-Based Language Models",
    arXiv:2403.19521.
    """

    name: ClassVar[str] = "final_layer"

    def __init__(self, *, budget: float = 0.5, parts: str | tuple[str, ...] = PARTS) -> None:
        super().__init__(budget=budget)
        self.parts = (parts,) if isinstance(parts, str) else tuple(parts)
        for part in self.parts:
            if part not in PARTS:
                raise unknown_name("part", part, PARTS)
        if not self.parts:
            raise UsageError(f"final_layer: give at least one part of {', '.join(PARTS)}")

    def plan(self, model: Any) -> FinalLayerPlan:
        hf = deployed(model)
        return self._made(hf, self.name, deployment(hf).layers[-1])

    def random_plan(self, model: Any, seed: int = 0) -> FinalLayerPlan:
        """The same parts of another layer of the second half."""
        hf = deployed(model)
        layers = deployment(hf).layers
        others = layers[len(layers) // 2 : -1] or layers[:-1]
        if not others:
            raise UsageError("the model has no layer but the last, so there is no random one")
        return self._made(hf, f"{self.name}, random", int(np.random.default_rng(seed).choice(others)))

    def inverted_plan(self, model: Any) -> FinalLayerPlan:
        """The outputs are enlarged by the share that the plan takes away."""
        hf = deployed(model)
        return self._made(hf, f"{self.name}, inverted", deployment(hf).layers[-1], -1)

    def _made(self, model: PreTrainedModel, name: str, layer: int, sign: int = 1) -> FinalLayerPlan:
        strength = round(sign * (1 - self.budget), 12)
        parts = tuple((layer, part, strength) for part in self.parts) if strength else ()
        return FinalLayerPlan(**self.about(model, name), parts=parts)


class _Scaled:
    """A hook that scales what a module gives."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, module: Any, args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return output * self.factor
        return (output[0] * self.factor, *output[1:])


def _writer(block: Any, part: str) -> torch.nn.Module:
    """The module whose output is added to the residual stream: behind a norm of it, where there is one."""
    behind = hasattr(block, "post_feedforward_layernorm")
    if part == "attention":
        name = "post_attention_layernorm" if behind else attention_place(block)[1]
    else:
        name = "post_feedforward_layernorm" if behind else "mlp"
    if not hasattr(block, name):
        raise UsageError(f"{type(block).__name__} has no part `{name}` whose output could be scaled")
    return getattr(block, name)
