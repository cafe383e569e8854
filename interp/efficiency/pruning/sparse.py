"""Single weights go, unstructured or N of every M; simulated.

*Magnitude*: abs(W), over a matrix. *Wanda* (Sun et al. 2023, arXiv 2306.11695, eq. 1): abs(W_ij) ||x_j||_2, compared
within each row; unlike there, the norms are those of the whole model's activations, not of the partly pruned one's.
*Relevance*: abs(W_ij) times the relevance of the neuron that the weight reads or feeds, over a matrix; matrices outside
the MLPs as by magnitude. With a pattern, all compare within its runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from interp.efficiency.kv_cache.geometry import deployed
from interp.efficiency.method import Method
from interp.efficiency.pruning.activation_norm import input_norms
from interp.efficiency.pruning.anatomy import anatomy
from interp.efficiency.pruning.sparse_plan import SparsePlan, matrices
from interp.efficiency.registry import check_budget, missing
from interp.errors import UsageError, unknown_name
from interp.results.findings import NeuronRelevance
from interp.tasks import corpus, sized
from interp.tasks.splits import half_of_corpus

__all__ = ["SparsePruning"]

WAYS = ("magnitude", "wanda", "relevance")


class SparsePruning(Method):
    """Sets weights to zero.

    Args:
        budget: The share of each matrix's weights that is kept; with a pattern, that of the pattern.
        by: ``magnitude``, ``wanda`` or ``relevance``.
        relevance: For ``relevance``.
        pattern: (2, 4) keeps 2 of every 4 consecutive inputs; unstructured unless given.
        source: Text for Wanda's norms, see `interp.tasks.corpus`.
        n: Stretches of it; 4, or all rows of token ids.
        length: Tokens of each; 128, or all of the token ids.
        seed: Of the choice of stretches.
    """

    name = "sparse"
    budget: float

    def __init__(
        self,
        *,
        budget: float | None = None,
        by: Literal["magnitude", "wanda", "relevance"] | None = None,
        relevance: NeuronRelevance | None = None,
        pattern: tuple[int, int] | None = None,
        source: str | Path | Sequence[str] | Int[Tensor, "text pos"] = "prose",
        n: int | None = None,
        length: int | None = None,
        seed: int = 0,
    ) -> None:
        self.by = by or ("magnitude" if relevance is None else "relevance")
        if self.by not in WAYS:
            raise unknown_name("way to choose weights", self.by, WAYS)
        if self.by == "relevance" and relevance is None:
            raise missing(self.name, "NeuronRelevance")
        if pattern is not None and (len(pattern) != 2 or not 1 <= pattern[0] <= pattern[1]):
            raise UsageError(f"{self.name}: pattern must be how many are kept of how many, as (2, 4), got {pattern}")
        share = 0.5 if pattern is None else pattern[0] / pattern[1]
        if pattern is not None and budget not in (None, share, 1.0):
            raise UsageError(f"{self.name}: the pattern {pattern} keeps {share:.3g}, and a budget of {budget} is given")
        self.budget = check_budget(self.name, share if budget is None else budget)
        self.relevance, self.pattern = relevance if self.by == "relevance" else None, pattern or ()
        n, length = sized(source, n, length, 4, 128)
        self.source, self.n, self.length, self.seed = source, n, length, seed

    def findings(self) -> Sequence[NeuronRelevance]:
        return () if self.relevance is None else (self.relevance,)

    def plan(self, model: Any) -> SparsePlan:
        """The plan for a model.

        Args:
            model: A bridge, or a deployed model.

        Raises:
            UsageError: A finding about another model, or a part that is not known.
        """
        return self._plan(deployed(model), self.by)

    def random_plan(self, model: Any, seed: int = 0) -> SparsePlan:
        """As many random weights."""
        return self._plan(deployed(model), f"{self.by}, random", seed=seed)

    def inverted_plan(self, model: Any) -> SparsePlan:
        """The highest scores go."""
        return self._plan(deployed(model), f"{self.by}, inverted", sign=-1)

    def _plan(self, hf: PreTrainedModel, name: str, **changes: Any) -> SparsePlan:
        label = f"{self.pattern[0]}:{self.pattern[1]}" if self.pattern else self.name
        about = self.about(hf, f"{label} {name}")
        inputs: dict[Any, Any] = {}
        outputs: dict[Any, Any] = {}
        if self.budget < 1 and "seed" not in changes:
            inputs, outputs = self._wanda(hf) if self.by == "wanda" else self._relevance(hf)
        return SparsePlan(
            **about,
            inputs=tuple((*at, values) for at, values in inputs.items()),
            outputs=tuple((*at, values) for at, values in outputs.items()),
            pattern=tuple(self.pattern),
            by_row=self.by == "wanda",
            **changes,
        )

    def _wanda(self, hf: PreTrainedModel) -> tuple[dict[Any, Any], dict[Any, Any]]:
        tokens = corpus(self.source, hf, self.n, self.length, self.seed, split=half_of_corpus(self.source, "find"))
        return {at: tuple(norm.tolist()) for at, norm in input_norms(hf, tokens, matrices(hf)).items()}, {}

    def _relevance(self, hf: PreTrainedModel) -> tuple[dict[Any, Any], dict[Any, Any]]:
        inputs: dict[Any, Any] = {}
        outputs: dict[Any, Any] = {}
        if self.relevance is None:
            return inputs, outputs
        body, values = anatomy(hf), self.relevance.scores.values
        for layer in body.layers:
            mlp = body.mlp(layer)
            factor = tuple(float(v) for v in abs(values[layer, list(mlp.neurons)]))
            for name, module in body.block(layer).named_modules():
                if module is mlp.output:
                    inputs[layer, name] = factor
                elif name.startswith("mlp.") and (layer, name) in matrices(hf):
                    outputs[layer, name] = factor * (2 if name.endswith("gate_up_proj") else 1)
        return inputs, outputs
