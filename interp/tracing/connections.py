"""Connections that hold for every input: what a feature writes times what later features read.

The weights of norms are folded in; their scales, which depend on the input, are left out, so that connections into one
place can be compared with each other and not across places.

Reference: Dunefsky, Chlenski and Nanda 2024, "Transcoders Find Interpretable LLM Feature Circuits", arXiv:2406.11944,
section 4.1 (the input-invariant factor, decoder row times encoder row) and section 4.2 (through the OV of a head).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.attention.weights.matrices import Head, head_weights, parse_head
from interp.engine.identity import identity
from interp.engine.parts import Parts
from interp.engine.verify import verified
from interp.errors import UsageError
from interp.tasks.tokens import Encoder
from interp.tracing.bases import basis_of
from interp.tracing.bases.basis import Basis
from interp.tracing.frozen import wide

__all__ = ["connections"]


@torch.no_grad()
def connections(
    model: TransformerBridge,
    basis: Any,
    source: tuple[int, int],
    target: int | str,
    *,
    head: Head | None = None,
    k: int = 10,
) -> pd.DataFrame:
    """The features (or tokens) that one feature's output is read by, for any input.

    Args:
        model: Any bridge.
        basis: As in `interp.tracing.trace`.
        source: Layer and number of the feature that writes.
        target: The layer whose features read, or ``"logits"`` for tokens (less the mean over the vocabulary).
        head: A head that the output goes through, by its OV circuit; directly through the stream by default.
        k: How many rows.

    Returns:
        Strongest first: ``feature`` (or token id), ``label``, ``input`` (``in``, or ``gate`` of a gated neuron),
        ``weight`` (of one unit of activation, before the norms' scales) and ``z``, the weight in units of the root mean
        square over all features of that layer and input.

    Raises:
        UsageError: Layers or features that the model does not have, or that come in the wrong order.

    Example:
        >>> connections(model, "neurons", (3, 17), 8)     # doctest: +SKIP
    """
    chosen, parts = basis_of(basis), verified(model)
    chosen.check(parts, identity(model))
    chosen = chosen.to(parts.device)
    layer, feature = source
    where = None if head is None else parse_head(parts, head)
    end = _target_layer(parts, target)
    _check_order(parts, layer, where, end)
    vector = _written(chosen, parts, layer, feature, end if where is None else where[0])
    if where is not None:
        weights = head_weights(parts, where[0])
        vector = weights.v[where[1]] @ vector.to(weights.v.dtype) @ weights.o[where[1]]
    tables = []
    for name, rows in _readers(chosen, parts, target).items():
        weight = (rows @ vector.to(rows.dtype)).double().cpu().numpy()
        size = float(np.sqrt(np.mean(weight**2))) or 1.0
        tables.append(
            pd.DataFrame({"feature": np.arange(len(weight)), "input": name, "weight": weight, "z": weight / size})
        )
    table = pd.concat(tables)
    table = table.iloc[np.argsort(-np.abs(table["z"].to_numpy()), kind="stable")[:k]].reset_index(drop=True)
    if target == "logits":
        labels: list[str] = list(Encoder(model).decode(tuple(table["feature"].tolist())))
    else:
        labels = [chosen.label(end, int(number)) for number in table["feature"]]
    table.insert(1, "label", labels)
    return table


def _target_layer(parts: Parts, target: int | str) -> int:
    n_layers = parts.graph.n_layers
    if target == "logits":
        return n_layers
    if isinstance(target, str) or not 0 <= target < n_layers:
        raise UsageError(f"the target must be a layer from 0 to {n_layers - 1}, or 'logits'; got {target!r}")
    return target


def _check_order(parts: Parts, layer: int, head: tuple[int, int] | None, end: int) -> None:
    if not 0 <= layer < parts.graph.n_layers:
        raise UsageError(f"layer {layer} is out of range: the model has layers 0 to {parts.graph.n_layers - 1}")
    if head is None:
        fits = layer < end
    else:
        fits = layer < head[0] and (head[0] < end if parts.graph.parallel else head[0] <= end)
    if not fits:
        way = "" if head is None else f" through a{head[0]}.h{head[1]}"
        raise UsageError(f"nothing that layer {layer} writes is read{way} by layer {end}: it comes too early")


def _written(basis: Basis, parts: Parts, layer: int, feature: int, before: int) -> Float[Tensor, " d_model"]:
    """What one unit of a feature adds to the stream before a layer."""
    writers = basis.writers(parts, layer)
    size = len(next(iter(writers.values())))
    if not 0 <= feature < size:
        raise UsageError(f"feature {feature} is out of range: layer {layer} has the features 0 to {size - 1}")
    return torch.stack([rows[feature] for (_, at), rows in writers.items() if at < before]).sum(0)


def _readers(basis: Basis, parts: Parts, target: int | str) -> dict[str, Float[Tensor, "feature d_model"]]:
    if target != "logits":
        assert isinstance(target, int)
        return basis.readers(parts, target)
    rows, norm = wide(parts.unembed.weight), parts.ln_final
    rows = rows - rows.mean(0)
    return {"in": norm.centre(rows if norm.weight is None else rows * wide(norm.weight))}
