"""Plans for weights and inputs in few bits: for each linear layer, how it is stored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go
import torch
from torch import Tensor
from transformers import PreTrainedModel

from interp.efficiency.counting import shape_ledger
from interp.efficiency.deployment import deployment
from interp.efficiency.ledger import Ledger
from interp.efficiency.plan import Plan, Undo, fit
from interp.efficiency.quantization.building import Source, built
from interp.efficiency.quantization.calibration import gptq_codes
from interp.efficiency.quantization.codes import Codes, Scheme
from interp.efficiency.quantization.kept import Kept
from interp.efficiency.quantization.linear import CodedEmbedding, CodedLinear, Int8Linear, has_kernel
from interp.efficiency.quantization.spots import HEAD, Spot, embedding_of, spots
from interp.errors import UsageError

__all__ = ["QuantPlan"]


@dataclass(frozen=True, kw_only=True)
class QuantPlan(Plan):
    """How linear layers are stored. Codes are made from the weights when the plan is applied, always the same ones.

    Args:
        schemes: The different ways, each a table of settings, see `Scheme`.
        layers: For each layer, its name with the block's original number, and its scheme's place in `schemes`.
        sizes: For each of `layers`, inputs; what decides about kernels.
        values: For each of `layers`, the number that its method chose: AWQ's or SmoothQuant's exponent, the share of
            the largest weight that a floating-point grid reaches; 0 for none.
        errors: For each of `layers`, the share of the output's size that the method expects as error; may be empty.
        statistics: Sizes of input channels as text, by layer and inputs.
        calibration: Tokens that GPTQ's moments are of, one row a text.
        left_out: Positions in these texts that don't count.
        kept: ``positions`` and ``tokens`` whose inputs stay in full precision.
        tied: Whether the output layer's weights are the embedding's.
    """

    schemes: tuple[dict[str, Any], ...]
    layers: tuple[tuple[str, int], ...]
    sizes: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()
    statistics: Mapping[str, str] = field(default_factory=dict)
    calibration: tuple[tuple[int, ...], ...] = ()
    left_out: tuple[int, ...] = ()
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    tied: bool = False

    kind: ClassVar[str] = "quantization"

    def __post_init__(self) -> None:
        super().__post_init__()
        for index in range(len(self.schemes)):
            self.scheme(index)
        for name, _ in self.layers:
            if name != HEAD and not re.fullmatch(r"layers\.\d{1,9}\..+", name):
                raise UsageError(f"{name!r} names no layer; layers are named {HEAD} or layers.0.mlp.down_proj")
        fit(self.layers, self.schemes, sizes=self.sizes, values=self.values, errors=self.errors)
        object.__setattr__(self, "_built", {})

    @property
    def real(self) -> bool:  # type: ignore[override]
        """Whether every layer runs on a kernel of this processor."""
        rows = zip(self.layers, self.sizes, strict=True)
        return all(has_kernel(self.scheme(index), inputs) for (_, index), inputs in rows)

    def scheme(self, index: int) -> Scheme:
        """One of the schemes."""
        return Scheme.from_dict(self.schemes[index])

    def change(self, model: PreTrainedModel, undo: Undo) -> None:
        there = self._there(model)
        made = self._modules(model, there)
        kept = Kept(self.kept.get("positions", ()), self.kept.get("tokens", ()))
        if any(self.scheme(index).activations for _, index in self.layers):
            base: Any = getattr(model, model.base_model_prefix)
            undo.callback(base.register_forward_pre_hook(kept, with_kwargs=True).remove)
        for name, module in made.items():
            own = module.twin()
            own.kept = kept if own.scheme.activations else None
            undo.set(there[name].owner, there[name].attribute, own)
        if self.tied and HEAD in made:
            _untie(model, undo)

    def ledger(self, model: PreTrainedModel, length: int, batch: int = 1) -> Ledger:
        return shape_ledger(model, self.shape, length, batch)

    def to_frame(self) -> pd.DataFrame:
        """One row a layer: ``layer``, ``stored``, ``kernel``, the ``value`` chosen for it, and its ``error``."""
        rows = [
            {
                "layer": name,
                "stored": self.scheme(index).words(),
                "kernel": has_kernel(self.scheme(index), self.sizes[row]),
                "value": self.values[row] if self.values else None,
                "error": self.errors[row] if self.errors else None,
            }
            for row, (name, index) in enumerate(self.layers)
        ]
        return pd.DataFrame(rows, columns=["layer", "stored", "kernel", "value", "error"])

    def figure(self) -> go.Figure:
        """Each layer's expected error, or the bits that it is stored in, by block and place."""
        from interp.efficiency.quantization.picture import by_place

        return by_place(self)

    # How

    def _there(self, model: PreTrainedModel) -> dict[str, Spot]:
        """The layers that the plan is about, as far as their blocks are left."""
        found, left = spots(model), set(deployment(model).layers)
        for name, _ in self.layers:
            gone = name != HEAD and int(name.split(".")[1]) not in left
            if name not in found and not gone:
                raise UsageError(f"{type(model).__name__} has no linear layer {name}, which the plan is about")
            if name in found and isinstance(found[name].module, CodedLinear):
                raise UsageError(f"{name} is quantised already; a layer takes one plan at a time")
        return {name: found[name] for name, _ in self.layers if name in found}

    def _scaled(self, row: int) -> bool:
        return self.scheme(self.layers[row][1]).scaled is not None and self.values[row] > 0

    def _modules(self, model: PreTrainedModel, there: Mapping[str, Spot]) -> dict[str, CodedLinear]:
        """The modules, made anew only where weights have changed since they were made."""
        memory: dict[str, tuple[Tensor, int, CodedLinear]] = self._built  # type: ignore[attr-defined]
        solved = self._solved(model, there)
        for row, (name, index) in enumerate(self.layers):
            if name not in there:
                continue
            spot = there[name]
            weight = spot.module.weight
            if _same(memory.get(name), weight):
                continue
            value = self.values[row] if self.values else 0.0
            source = Source(spot, self.scheme(index), value, self.statistics, solved.get(name))
            memory[name] = (weight, weight._version, built(source))
        return {name: memory[name][2] for name in there}

    def _solved(self, model: PreTrainedModel, there: Mapping[str, Spot]) -> dict[str, Codes]:
        """GPTQ's codes, if any layer lacks them."""
        wanted = [(there[name], self.scheme(i)) for name, i in self.layers if name in there]
        wanted = [(spot, scheme) for spot, scheme in wanted if scheme.solver == "gptq"]
        memory: dict[str, tuple[Tensor, int, CodedLinear]] = self._built  # type: ignore[attr-defined]
        fresh = all(_same(memory.get(spot.name), spot.module.weight) for spot, _ in wanted)
        if fresh or any(spot.module.weight.is_meta for spot, _ in wanted):
            return {}
        for spot, _ in wanted:
            memory.pop(spot.name, None)
        tokens = torch.tensor(self.calibration)
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        mask[:, list(self.left_out)] = True
        return gptq_codes(model, wanted, tokens, mask if self.left_out else None)


def _untie(model: PreTrainedModel, undo: Undo) -> None:
    """The embedding reads the output layer's codes, where it can, or keeps its weights alone."""
    head: Any = model.get_output_embeddings()
    found = embedding_of(model)
    if found is not None and isinstance(head, Int8Linear) and head.inverse is None and head.left is None:
        undo.set(*found, CodedEmbedding(head, getattr(*found)))
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        undo.set(config, "tie_word_embeddings", False)


def _same(known: tuple[Tensor, int, CodedLinear] | None, weight: Tensor) -> bool:
    return known is not None and known[0] is weight and known[1] == weight._version
