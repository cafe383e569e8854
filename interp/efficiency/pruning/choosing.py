"""From scores to what is taken out: the units with the lowest scores, so many that the budget is met."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from interp.efficiency.pruning.anatomy import Anatomy
from interp.efficiency.pruning.plan import Reason
from interp.efficiency.pruning.removing import Removal
from interp.errors import UsageError

__all__ = ["Choice", "choose_blocks", "choose_heads", "choose_neurons", "kept_of"]

Scores = Float[np.ndarray, "layer unit"]


@dataclass(frozen=True)
class Choice:
    """What goes, and why.

    Args:
        removal: What goes.
        reasons: One for each unit, see `Reason`.
    """

    removal: Removal
    reasons: tuple[Reason, ...] = ()


def kept_of(budget: float, n: int, what: str, name: str) -> int:
    """How many of `n` units a budget keeps, rounded down.

    Raises:
        UsageError: None; the message says which budget works.
    """
    keep = int(budget * n + 1e-9)
    if keep < 1:
        least = np.ceil(1e6 / n) / 1e6
        raise UsageError(
            f"{name}: a budget of {budget:.3g} keeps none of {n} {what}; the least that works is {least:.3g}"
        )
    return keep


def choose_heads(body: Anatomy, scores: Scores, keep: int, unit: str = "group") -> Choice:
    """Keeps the heads with the highest scores, over all layers together.

    Args:
        body: The model.
        scores: Of every query head, by original numbers; rows and heads that are gone are not looked at.
        keep: How many are kept: key-value heads for ``group``; for ``head`` query heads, taken away from all key-value
            heads of a layer alike, first the lowest of each, then the second lowest of each, ... A layer's next lot may
            be too large for the budget; then it goes, too.
        unit: ``group`` or ``head``.

    Raises:
        UsageError: A part that can't be cut.
    """
    lots: list[tuple[float, int, tuple[int, ...]]] = []
    for layer in body.layers:
        part = body.attention(layer)
        if part.heads:
            part.cuts(part.heads)  # refused now, not when the plan is applied
        by_group = [[h for h in part.heads if h // part.per_group == group] for group in part.groups]
        mine = [sorted(heads, key=lambda h: (scores[layer, h], h)) for heads in by_group]
        if unit == "head":
            mine = [list(lot) for lot in zip(*mine, strict=True)]
        lots += [(float(sum(scores[layer, h] for h in lot)), layer, tuple(lot)) for lot in mine]
    size = (lambda lot: 1) if unit == "group" else len
    left = sum(size(lot) for _, _, lot in lots)
    gone: dict[int, tuple[int, ...]] = {}
    for _, layer, lot in sorted(lots, key=lambda one: one[0]):
        if left <= keep:
            break
        gone[layer] = tuple(sorted((*gone.get(layer, ()), *lot)))
        left -= size(lot)
    if unit == "group":
        reasons = [
            ("group", layer, lot[0] // body.attention(layer).per_group, float(lot[0] not in gone.get(layer, ())), score)
            for score, layer, lot in lots
        ]
    else:
        reasons = [
            ("head", layer, head, float(head not in gone.get(layer, ())), float(scores[layer, head]))
            for layer in body.layers
            for head in body.attention(layer).heads
        ]
    return Choice(Removal(heads=gone), tuple(sorted(reasons)))


def choose_neurons(body: Anatomy, scores: Scores, budget: float, across: str, name: str) -> Choice:
    """Keeps the neurons with the highest scores.

    Args:
        body: The model.
        scores: Of every neuron, by original numbers.
        budget: The share that is kept.
        across: ``model``: over all layers together; ``layer``: the same share of each.
        name: Of the method, for messages.
    """
    present = {layer: np.array(body.mlp(layer).neurons, dtype=int) for layer in body.layers}
    if across == "layer":
        keep = {at: kept_of(budget, len(n), "neurons of a layer", name) for at, n in present.items() if len(n)}
        order = {at: n[np.argsort(scores[at, n], kind="stable")] for at, n in present.items()}
        gone = {at: order[at][: len(order[at]) - keep[at]] for at in keep}
    else:
        layers = np.concatenate([np.full(len(n), at) for at, n in present.items()])
        numbers = np.concatenate(list(present.values()))
        lowest = np.argsort(scores[layers, numbers], kind="stable")
        lowest = lowest[: len(lowest) - kept_of(budget, len(lowest), "neurons", name)]
        gone = {at: numbers[lowest][layers[lowest] == at] for at in present}
    reasons = []
    for at, n in present.items():
        whole, lost = np.abs(scores[at, n]).sum(), np.abs(scores[at, gone.get(at, n[:0])]).sum()
        kept = 1 - len(gone.get(at, ())) / max(1, len(n))
        reasons.append(("neurons", at, -1, float(kept), float(1 - lost / whole) if whole else 1.0))
    return Choice(
        Removal(neurons={at: tuple(sorted(int(i) for i in n)) for at, n in gone.items() if len(n)}), tuple(reasons)
    )


def choose_blocks(body: Anatomy, scores: Float[np.ndarray, " layer"], budget: float, name: str) -> Choice:
    """Keeps the blocks with the highest scores.

    Args:
        body: The model.
        scores: Of every block, by original numbers.
        budget: The share that is kept.
        name: Of the method, for messages.
    """
    body.check_alike()
    layers = np.array(body.layers)
    keep = kept_of(budget, len(layers), "blocks", name)
    gone = set(layers[np.argsort(scores[layers], kind="stable")][: len(layers) - keep].tolist())
    reasons = tuple(("block", int(at), int(at), float(at not in gone), float(scores[at])) for at in layers)
    return Choice(Removal(blocks=tuple(sorted(gone))), reasons)
