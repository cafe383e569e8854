"""From chosen units to a graph: all sources and targets, what they write and read, and the table of the nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from interp.tracing.explore import Chosen
from interp.tracing.frozen import FrozenRun, wide
from interp.tracing.graph import COLUMNS, feature_name
from interp.tracing.linear import LocalModel, Reads, Writes
from interp.tracing.targets import Target, directions

__all__ = ["Assembly"]


class Assembly:
    """The chosen units, the errors they leave, the tokens and the targets: as sources, as targets, and as a table."""

    def __init__(self, local: LocalModel, chosen: Chosen, logits: Reads) -> None:
        self.local, self.chosen = local, chosen
        self.places = local.error_places
        self.begins = np.cumsum([0, *map(len, chosen)])
        self.n_units = int(self.begins[-1])
        self.n_sources = self.n_units + (len(self.places) + 1) * local.length
        pairs = [(part, which) for part, which in zip(local.replaced, chosen, strict=True) if len(which)]
        units = [local.feature_reads(part, which) for part, which in pairs]
        self.reads = Reads.joined([*units, logits])
        self.n_logits = len(logits)
        self.writes = self._writes()

    def _writes(self) -> dict[Any, Writes]:
        length, device = self.local.length, self.local.run.final.device
        everywhere = torch.arange(length, device=device)
        found = {("embed", 0): Writes(everywhere + self.n_sources - length, everywhere, self.local.embedded)}
        for number, place in enumerate(self.places):
            left = self.local.rest(place).clone()
            columns, positions, vectors = [], [], []
            for part, which, begin in zip(self.local.replaced, self.chosen, self.begins, strict=False):
                if place in part.writes and len(which):
                    columns.append(torch.arange(len(which), device=device) + int(begin))
                    positions.append(part.positions[which])
                    vectors.append(part.writing(place, which))
                    left.index_add_(0, positions[-1], -vectors[-1])
            errors = everywhere + self.n_units + number * length
            columns.append(torch.where(everywhere < self.local.folded, found["embed", 0].column, errors))
            found[place] = Writes(*map(torch.cat, (columns, [*positions, everywhere], [*vectors, left])))
        return found

    @property
    def names(self) -> list[str]:
        """The sources' names, in the order of the columns; errors at folded positions are their tokens."""
        found: list[str] = []
        for part, which in zip(self.local.replaced, self.chosen, strict=True):
            pairs = zip(part.features[which].tolist(), part.positions[which].tolist(), strict=True)
            found += [feature_name(part.layer, feature, position) for feature, position in pairs]
        everywhere = range(self.local.length)
        found += [f"error.{layer}@{position}" for _, layer in self.places for position in everywhere]
        return [*found, *(f"token@{position}" for position in everywhere)]

    def table(
        self, words: Sequence[str], wanted: list[Target], run: FrozenRun, constants: Float[np.ndarray, " target"]
    ) -> tuple[pd.DataFrame, Int[np.ndarray, " end"]]:
        """The nodes, and for each source and target of the matrix its row among them."""
        length, n_layers = self.local.length, self.local.parts.graph.n_layers
        rows: list[dict[str, Any]] = []
        for part, which, begin in zip(self.local.replaced, self.chosen, self.begins, strict=False):
            columns = (part.positions[which], part.features[which], part.activations[which])
            for i, (position, feature, activation) in enumerate(zip(*(x.tolist() for x in columns), strict=True)):
                name = feature_name(part.layer, feature, position)
                label = self.local.basis.label(part.layer, feature)
                rows.append(_row(name, "feature", part.layer, position, feature, activation, label=label, at=begin + i))
        at = self.n_units
        for _, layer in self.places:
            for position in range(self.local.folded, length):
                rows.append(
                    _row(f"error.{layer}@{position}", "error", layer, position, label="error", at=at + position)
                )
            at += length
        for position, (token, word) in enumerate(zip(run.tokens.tolist(), words, strict=True)):
            rows.append(_row(f"token@{position}", "token", -1, position, token, label=word, at=at))
            at += 1
        chance, values = run.logits.double().softmax(-1), self._logits(run, wanted)
        for target, value in zip(wanted, values, strict=True):
            p = float(chance[target.token])
            row = _row(target.name, "logit", n_layers, length - 1, target.token, p, label=target.label, at=at)
            rows.append({**row, "weight": target.weight, "value": value})
            at += 1
        return self._ordered(pd.DataFrame(rows), constants)

    def _logits(self, run: FrozenRun, wanted: list[Target]) -> list[float]:
        """The targets' values in the model's own run."""
        direction, offset = directions(run.parts, wanted)
        return (direction @ wide(run.parts.ln_final(run.final[-1])) + offset).tolist()

    def _ordered(self, table: pd.DataFrame, constants: np.ndarray):
        table["expanded"] = table["kind"].isin(["feature", "logit"])
        table["bias"] = 0.0
        table.loc[table["expanded"], "bias"] = constants  # units, then logits, as in the table
        table["influence"] = 0.0
        kinds = table["kind"].map({"token": 0, "feature": 1, "error": 2, "logit": 3})
        keys = pd.DataFrame({"layer": table["layer"], "kind": kinds, "position": table["position"], "at": table["at"]})
        order = keys.sort_values(["layer", "kind", "position", "at"]).index.to_numpy()
        place = np.full(self.n_sources + self.n_logits, -1)
        place[table.loc[order, "at"]] = np.arange(len(table))
        nodes = table.loc[order].set_index("node")[list(COLUMNS)]
        return nodes, place


def _row(name, kind, layer, position, feature=-1, activation=1.0, *, label, at) -> dict[str, Any]:
    return {
        "node": name,
        "kind": kind,
        "layer": layer,
        "position": position,
        "feature": feature,
        "activation": activation,
        "weight": 0.0,
        "value": activation,
        "label": label,
        "at": at,
    }
