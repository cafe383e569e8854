"""Plans that set single weights to zero: simulated, since zeros take as many bytes and as long as other numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.efficiency.counting import count
from interp.efficiency.ledger import Amount, Ledger
from interp.efficiency.plan import Plan, Undo
from interp.efficiency.pruning.anatomy import anatomy
from interp.errors import UsageError

__all__ = ["SparsePlan", "keep_mask", "matrices"]


@dataclass(frozen=True, kw_only=True)
class SparsePlan(Plan):
    """Which weights of the blocks' matrices are zero: those with the lowest abs(weight) x factor of input x factor of
    output. Masks are made anew from the weights, so the plan is small.

    Args:
        inputs: Of some matrices, by layer and name, a factor for each input channel; 1 for others.
        outputs: The same for output channels.
        pattern: Of every so many consecutive inputs of a row, how many are kept at most: (2, 4) keeps 2 of 4. Empty
            for unstructured.
        by_row: Compare the weights of each row with each other, instead of those of the whole matrix.
        sign: 1; -1 keeps the lowest instead.
        seed: For random scores instead of weights; none otherwise.
    """

    inputs: tuple[tuple[int, str, tuple[float, ...]], ...] = ()
    outputs: tuple[tuple[int, str, tuple[float, ...]], ...] = ()
    pattern: tuple[int, ...] = ()
    by_row: bool = False
    sign: int = 1
    seed: int | None = None

    kind: ClassVar[str] = "sparse"
    real: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        kept, *of = self.pattern or (1, 1)
        if self.sign not in (1, -1) or len(of) != 1 or not 0 < kept <= of[0]:
            raise UsageError(f"a sparse plan of sign {self.sign} and pattern {self.pattern} makes no sense")

    def change(self, model: PreTrainedModel, undo: Undo) -> None:
        if self.budget == 1:
            return
        inputs = {(layer, name): factor for layer, name, factor in self.inputs}
        outputs = {(layer, name): factor for layer, name, factor in self.outputs}
        for number, ((layer, name), module) in enumerate(matrices(model).items()):
            weight, transposed = module.weight.detach(), type(module).__name__ == "Conv1D"
            rows = weight.T if transposed else weight
            if self.seed is None:
                scores = rows.float().abs()
                scores = scores * _factor(inputs.get((layer, name)), rows, 1, layer, name)
                scores = scores * _factor(outputs.get((layer, name)), rows, 0, layer, name)[:, None]
            else:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
                scores = torch.rand(rows.shape, generator=generator).to(rows.device)
            kept = rows * keep_mask(self.sign * scores, self.budget, self.pattern, self.by_row)
            new = kept.T.contiguous() if transposed else kept
            undo.set(module, "weight", nn.Parameter(new, module.weight.requires_grad))

    def shape(self, model: PreTrainedModel, undo: Undo) -> None:
        """Nothing: zeros are saved like other numbers."""

    def ledger(self, model: PreTrainedModel, length: int, batch: int = 1) -> Ledger:
        """What would be saved if zeros cost nothing."""
        found = count(model, length)
        maps = sum(module.weight.numel() for module in matrices(model).values())
        saved = (1 - self.budget) * maps
        flops = Amount(found.prefill_flops * batch, (found.prefill_flops - 2 * saved * length) * batch, False)
        return Ledger(
            weight_bytes=Amount(found.weight_bytes, found.weight_bytes - saved * model.dtype.itemsize, False),
            cache_bytes=Amount(found.cache_bytes * batch, found.cache_bytes * batch),
            prefill_flops=flops,
            decode_flops=Amount(found.decode_flops * batch, (found.decode_flops - 2 * saved) * batch, False),
            length=length,
            batch=batch,
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a matrix with factors: ``layer``, ``matrix``, the share ``kept``; or one row."""
        named = sorted({(layer, name) for layer, name, _ in (*self.inputs, *self.outputs)}) or [(-1, "all")]
        return pd.DataFrame(
            [{"layer": layer, "matrix": name, "kept": self.budget, "simulated": True} for layer, name in named]
        )

    def figure(self) -> go.Figure:
        """The factors of the inputs, largest first, of each matrix that has them."""
        figure = go.Figure()
        for layer, name, factor in self.inputs:
            figure.add_trace(go.Scatter(y=sorted(factor, reverse=True), name=f"{layer} {name}", mode="lines"))
        title = f"{self.method} at {self.budget:.0%} (simulated), {self.model}"
        return figure.update_layout(title=title, xaxis_title="input channel, by rank", yaxis_title="factor")


def matrices(model: PreTrainedModel) -> dict[tuple[int, str], Any]:
    """The linear maps of the blocks that are left, by original layer and name."""
    body = anatomy(model)
    return {
        (layer, name): module
        for layer in body.layers
        for name, module in body.block(layer).named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }


def keep_mask(
    scores: Float[Tensor, "out in"], budget: float, pattern: tuple[int, ...] = (), by_row: bool = False
) -> Bool[Tensor, "out in"]:
    """Which weights stay: exactly the share `budget`, rounded down, of what is compared.

    Raises:
        UsageError: Rows that can't be divided as the pattern asks.
    """
    if pattern:
        keep, of = pattern
        if scores.shape[1] % of:
            raise UsageError(f"a matrix with {scores.shape[1]} inputs can't be divided into runs of {of}")
        lots = scores.unflatten(1, (-1, of))
        return _highest(lots, keep).flatten(1)
    lots = scores if by_row else scores.flatten()
    return _highest(lots, int(budget * lots.shape[-1] + 1e-9)).view_as(scores)


def _highest(lots: Tensor, keep: int) -> Tensor:
    mask = torch.zeros(lots.shape, dtype=torch.bool, device=lots.device)
    return mask.scatter_(-1, lots.argsort(dim=-1, descending=True, stable=True)[..., :keep], True)


def _factor(given: Any, rows: Tensor, axis: int, layer: int, name: str) -> Tensor:
    if given is None:
        return torch.ones(rows.shape[axis], device=rows.device)
    if len(given) != rows.shape[axis]:
        raise UsageError(
            f"{name} of layer {layer} has {rows.shape[axis]} channels, and the plan was made for {len(given)}: put it "
            "before a plan that removes parts"
        )
    return torch.tensor(given, device=rows.device)
