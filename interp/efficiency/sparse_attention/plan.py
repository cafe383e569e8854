"""Plans for sparse prefill: for each layer and query head, the pattern of key blocks that its prompt is read with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
import plotly.graph_objects as go
from transformers import PreTrainedModel

from interp.efficiency.counting import count
from interp.efficiency.kv_cache.geometry import Geometry, geometry
from interp.efficiency.kv_cache.running import CachedForward
from interp.efficiency.ledger import Amount, Ledger
from interp.efficiency.plan import Plan, Undo, fit
from interp.efficiency.sparse_attention.patterns import DENSE, pattern
from interp.efficiency.sparse_attention.running import SparseForward, in_one_go
from interp.errors import UsageError
from interp.upstream import takes_function

__all__ = ["BACKENDS", "PrefillPlan", "supported"]

BACKENDS = ("gathered", "flex")


@dataclass(frozen=True, kw_only=True)
class PrefillPlan(Plan):
    """How prompts are read. Single new tokens, and pieces shorter than a block behind a prompt, see all that there is.

    Beside a plan for the cache, in whichever order they are applied, the prompt is read sparsely, and everything
    further sees what the cache holds; one that reads prompts in chunks is refused.

    Args:
        rules: The different patterns' settings, see `interp.efficiency.sparse_attention.patterns`.
        heads: For each layer and query head, by their original numbers, the settings' place in `rules`. Heads without a
            row see everything, or the window that their layer has by design.
        densities: For each of `heads`, the share of the causal blocks that it computes at `length` tokens: counted
            where it depends on positions alone, otherwise as measured on a text.
        block: Tokens of a block.
        length: The prompt's length that budget and densities are for.
        backend: "gathered", attention on gathered blocks; or "flex", torch's compiled `flex_attention`, for prompts in
            one go without softcap, which compiles anew for every new length.
        scores: For each of `heads`, what it was chosen by; may be empty.
    """

    rules: tuple[dict[str, Any], ...]
    heads: tuple[tuple[int, int, int], ...]
    densities: tuple[float, ...]
    block: int
    length: int
    backend: str = "gathered"
    scores: tuple[float, ...] = ()

    kind: ClassVar[str] = "sparse_attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        for rule in self.rules:
            pattern(rule)
        fit(self.heads, self.rules, densities=self.densities, scores=self.scores)
        if self.block < 1 or self.length < 1 or len(self.densities) < len(self.heads) or self.backend not in BACKENDS:
            raise UsageError(
                f"a plan for prompts of {self.length} tokens in blocks of {self.block} with {len(self.densities)} "
                f"densities on the backend {self.backend!r} makes no sense; the backends are {', '.join(BACKENDS)}"
            )

    @property
    def dense(self) -> bool:
        """Whether it leaves nothing out."""
        return all(rule == DENSE for rule in self.rules)

    @property
    def density(self) -> float:
        """The mean over heads of the share of the causal blocks that is computed."""
        return sum(self.densities) / len(self.densities)

    def change(self, model: PreTrainedModel, undo: Undo) -> None:
        supported(model)
        in_one_go(model)
        found = vars(model).get("forward")
        owner, name = (found, "before") if isinstance(found, CachedForward) else (model, "forward")
        if isinstance(getattr(owner, name), SparseForward):
            raise UsageError("a plan for sparse prefill is in force already; a model takes one at a time")
        undo.set(owner, name, SparseForward(model, self, getattr(owner, name)))

    def ledger(self, model: PreTrainedModel, length: int, batch: int = 1) -> Ledger:
        """Attention's FLOPs are the dense model's times each head's density, and what choosing takes is added."""
        shape, dense = geometry(model), count(model, length)
        present = {(layer, group) for layer, groups in zip(shape.layers, shape.groups, strict=True) for group in groups}
        saved, choosing = 0.0, [pattern(rule).flops(length, self.block, shape.head_dim) for rule in self.rules]
        for (layer, head, index), share in zip(self.heads, self.densities, strict=True):
            if (layer, head // shape.query_heads) in present:
                saved += 4 * shape.head_dim * length * (length + 1) / 2 * (1 - share) - choosing[index]
        return Ledger(
            weight_bytes=Amount(dense.weight_bytes, dense.weight_bytes),
            cache_bytes=Amount(dense.cache_bytes * batch, dense.cache_bytes * batch),
            prefill_flops=Amount(dense.prefill_flops * batch, (dense.prefill_flops - saved) * batch),
            decode_flops=Amount(dense.decode_flops * batch, dense.decode_flops * batch),
            length=length,
            batch=batch,
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a head: ``layer``, ``head``, ``sees``, ``density`` at the plan's length, and its ``score``."""
        rows = [
            {
                "layer": layer,
                "head": head,
                "sees": pattern(self.rules[index]).words(self.block),
                "density": self.densities[number],
                "score": self.scores[number] if self.scores else None,
            }
            for number, (layer, head, index) in enumerate(self.heads)
        ]
        return pd.DataFrame(rows, columns=["layer", "head", "sees", "density", "score"])

    def figure(self) -> go.Figure:
        """Density by layer and head."""
        from interp.efficiency.sparse_attention.picture import densities

        return densities(self)

    def summary(self) -> str:
        return f"{super().summary()}; {self.density:.0%} of the causal blocks at {self.length:,} tokens"


def supported(model: PreTrainedModel) -> Geometry:
    """The shape of a model's attention.

    Raises:
        UsageError: An architecture whose attention can't be given a function; the message names the part.
    """
    takes_function(model, "sparse prefill")
    return geometry(model)
