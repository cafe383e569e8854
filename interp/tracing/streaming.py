"""A graph's edges row by row: of each target the strongest are kept, and influence and scores are of all.

Rows come latest first, so that all that reads a node has come before the node's own row: its influence is complete by
then, and one pass is enough, however many edges are dropped. Memory grows with nodes times kept edges, and not with
nodes times sources.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from interp.tracing.assembly import Assembly

__all__ = ["Stream"]


class Stream:
    """Takes in the effects on a graph's targets, latest first.

    Args:
        found: The graph's sources and targets.
        weight: The logits' weights in the influence.
        of_each: How many edges into each target are kept at most, the strongest by absolute weight; None for all.

    Attributes:
        reach: The influence of every source, over all paths along all edges, kept or not.
    """

    def __init__(self, found: Assembly, weight: Float[np.ndarray, " logit"], of_each: int | None) -> None:
        self.found, self.weight, self.of_each = found, np.abs(weight), of_each
        self.reach = np.zeros(found.n_sources)
        self.constants = np.zeros(found.n_units + found.n_logits)
        self.tokens = found.n_sources - found.local.length
        self.explained = self.outputs = 0.0
        self.dropped, self.least = 0, 1.0
        self.rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, rows: Int[Tensor, " row"], effects: Float[Tensor, "row source"], constants: Tensor) -> None:
        """Takes in some targets' rows; none that comes later reads what one of these writes."""
        number, weights = rows.cpu().numpy(), effects.float().cpu().numpy()
        self.constants[number] = constants.double().cpu().numpy()
        order = self.found.reads.order[rows].cpu().numpy()
        ends = np.flatnonzero(np.diff(order, append=order[-1:] - 1)) + 1
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):  # targets that read at one place write no other
            self._add(number[begin:end], weights[begin:end])

    def _add(self, number: np.ndarray, weights: Float[np.ndarray, "row source"]) -> None:
        n_units = self.found.n_units
        size = np.abs(weights)
        total = size.sum(1, dtype=np.float64)
        logit = number >= n_units
        out = np.where(logit, self.weight[(number - n_units) * logit], self.reach[np.where(logit, 0, number)])
        shares = np.divide(out, total, out=np.zeros_like(total), where=total > 0)
        self.reach += shares @ size
        errors = size[:, n_units : self.tokens].sum(1, dtype=np.float64)
        self.explained += float((out - shares * errors).sum())
        self.outputs += float(out.sum())
        if self.of_each is None or self.of_each >= weights.shape[1]:
            row, column = np.nonzero(weights)
        else:
            best = np.argpartition(size, -self.of_each, axis=1)[:, -self.of_each :]
            row, at = np.nonzero(np.take_along_axis(weights, best, 1))
            column = best[row, at]
            kept = np.bincount(row, size[row, column], len(number))
            self.least = min(self.least, *np.divide(kept, total, out=np.ones_like(total), where=total > 0))
            self.dropped += int(np.count_nonzero(weights)) - len(row)
        self.rows.append((number[row].astype(np.int32), column.astype(np.int32), weights[row, column]))

    def influence(self, place: Int[np.ndarray, " end"], n: int) -> Float[np.ndarray, " node"]:
        """The influence of every node; `place` as for `edges`, -1 of sources that are no nodes."""
        found, place = np.zeros(n), place[: len(self.reach)]
        found[place[place >= 0]] = self.reach[place >= 0]
        return found

    def scores(self) -> dict[str, float]:
        """As `interp.tracing.influence.scores`, of all edges."""
        features, errors = self.reach[: self.found.n_units].sum(), self.reach[self.found.n_units : self.tokens].sum()
        tokens = self.reach[self.tokens :].sum()
        return {
            "replacement": _ratio(tokens, tokens + errors),
            "completeness": _ratio(self.explained + tokens + errors, self.outputs + tokens + errors),
            "error_share": _ratio(errors, features + tokens + errors),
        }

    def about(self) -> dict[str, Any]:
        """What was dropped, if anything was: how many edges, and the least share of a target's inputs that is kept."""
        if not self.dropped:
            return {}
        return {"strongest": {"of_each": self.of_each, "dropped": self.dropped, "least_kept": float(self.least)}}

    def edges(self, place: Int[np.ndarray, " end"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Targets, sources and weights, targets in causal order.

        Args:
            place: Of each source, and behind them each logit, its row among the nodes.
        """
        target, source, weights = (np.concatenate(column) for column in zip(*self.rows, strict=True))
        n_units = self.found.n_units
        target = place[np.where(target < n_units, target, target - n_units + self.found.n_sources)]
        source = place[source]
        order = np.lexsort((source, target))
        return target[order], source[order], weights[order]


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else 0.0
