"""Balanced across granularities: first sub-blocks go, then channels of MLPs, then heads, each by the loss of a text.

Muñoz et al. 2025, MultiPruner (arXiv 2501.09949): three stages share what is to be removed, 44 : 52 : 4 by default. At
every step the candidate without which the text's loss is lowest goes: the attention or the MLP of a block (as in
BlockPruner, Zhong et al. 2024, arXiv 2406.10594), then a number of a layer's neurons, then a key-value head with its
query heads. Within a layer, neurons and heads go in the order of their weights' size, or, and this is where findings
come in, of a `NeuronRelevance` or of any scores of heads. The budget counts the parameters of the blocks, the paper's
those of the whole model: a small model has many of the others in its embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from interp.efficiency.kv_cache.running import uncached
from interp.efficiency.plan import Undo
from interp.efficiency.pruning.anatomy import Anatomy, anatomy
from interp.efficiency.pruning.choosing import Choice
from interp.efficiency.pruning.magnitude import MagnitudePruning
from interp.efficiency.pruning.method import PruningMethod, inverted, random_scores
from interp.efficiency.pruning.plan import PruningPlan, Reason
from interp.efficiency.pruning.removing import Removal, remove
from interp.engine.progress import track
from interp.errors import UsageError
from interp.results.finding import Finding, HeadScores
from interp.results.findings import NeuronRelevance
from interp.tasks import corpus, sized
from interp.tasks.splits import half_of_corpus

__all__ = ["MultiPruner", "block_parameters"]


class MultiPruner(PruningMethod):
    """Removes sub-blocks, then neurons, then heads, greedily by a text's loss.

    Args:
        budget: The share of the blocks' parameters that is kept, at most.
        relevance: The order in which a layer's neurons go; by the size of their weights unless given.
        importance: The order in which a layer's key-value heads go; by the size of their weights unless given.
        shares: What sub-blocks, neurons and heads contribute to what is removed.
        channels: Neurons that go in one step.
        source: Text, see `interp.tasks.corpus`.
        n: Stretches of it; 2, or all rows of token ids.
        length: Tokens of each; 64, or all of the token ids.
        seed: Of the choice of stretches.

    Example:
        >>> MultiPruner(budget=0.8, relevance=neuron_relevance(model, "prose")).plan(model)
    """

    name = "multipruner"

    def __init__(
        self,
        *,
        budget: float = 0.8,
        relevance: NeuronRelevance | None = None,
        importance: HeadScores | None = None,
        shares: tuple[float, float, float] = (0.44, 0.52, 0.04),
        channels: int = 128,
        source: str | Path | Sequence[str] | Int[Tensor, "text pos"] = "prose",
        n: int | None = None,
        length: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(budget=budget)
        if len(shares) != 3 or min(shares) < 0 or sum(shares) <= 0:
            raise UsageError(f"{self.name}: shares must be three numbers of at least 0, got {shares}")
        if channels < 1:
            raise UsageError(f"{self.name}: channels must be at least 1, got {channels}")
        self.relevance, self.importance, self.channels = relevance, importance, channels
        self.shares = tuple(share / sum(shares) for share in shares)
        n, length = sized(source, n, length, 2, 64)
        self.source, self.n, self.length, self.seed = source, n, length, seed

    def findings(self) -> Sequence[Finding]:
        return [finding for finding in (self.relevance, self.importance) if finding is not None]

    def _order(self, model: PreTrainedModel) -> np.ndarray:
        """What neurons of a layer are ordered by."""
        if self.relevance is not None:
            return self.relevance.scores.values
        return MagnitudePruning(unit="neuron").scores(model)

    def random_plan(self, model: Any, seed: int = 0) -> PruningPlan:
        """Random candidates, in the same three stages."""
        rng = np.random.default_rng(seed)
        return self._search(model, random_scores(seed), lambda *_: float(rng.random()), f"{self.name}, random")

    def inverted_plan(self, model: Any) -> PruningPlan:
        """At every step the candidate goes without which the loss is highest."""
        return self._search(model, inverted, lambda hf, tokens: -_loss(hf, tokens), f"{self.name}, inverted")

    def plan(self, model: Any) -> PruningPlan:
        return self._search(model, lambda scores: scores, _loss, self.name)

    def _search(
        self,
        model: Any,
        change: Callable[[np.ndarray], np.ndarray],
        cost: Callable[[PreTrainedModel, Tensor], float],
        name: str,
    ) -> PruningPlan:
        hf = self.ready(model)
        if self.budget == 1:
            return self.made(hf, Choice(Removal()), name)
        tokens = corpus(self.source, hf, self.n, self.length, self.seed, split=half_of_corpus(self.source, "find")).to(
            hf.device
        )
        neurons = change(self._order(hf))
        heads = MagnitudePruning().scores(hf) if self.importance is None else self.importance.scores.values
        heads, whole, gone = change(heads), block_parameters(hf), Removal()
        costs: dict[tuple[str, int], float] = {}
        stages = (_sub_blocks, self._channels(neurons), _groups(heads))
        with Undo() as undo, track((1 - self.budget) * whole, name) as advance:
            target, before = 1.0, whole
            for share, candidates in zip(self.shares, stages, strict=True):
                target -= share * (1 - self.budget)
                while block_parameters(hf) > target * whole + 1e-6:
                    options = list(candidates(anatomy(hf)))
                    if not options:
                        break  # the next stage takes over what is left to remove
                    tried = [self._without(hf, one, tokens, cost) for one in options]
                    best = options[int(np.argmin(tried))]
                    remove(hf, best, undo)
                    gone |= best
                    costs |= {("attention", layer): min(tried) for layer in best.heads}
                    costs |= {("neurons", layer): min(tried) for layer in best.neurons}
                    advance(before - (before := block_parameters(hf)))
            left = before
            reasons = _reasons(anatomy(hf), costs)
        if left > self.budget * whole + 1e-6:
            least = np.ceil(1e6 * left / whole) / 1e6
            raise UsageError(f"{name}: a budget of {self.budget:.3g} is too small; the least that works is {least:.3g}")
        return self.made(hf, Choice(_whole_blocks(anatomy(hf), gone), reasons), name)

    def _without(self, hf: PreTrainedModel, removal: Removal, tokens: Tensor, cost: Any) -> float:
        with Undo() as undo:
            remove(hf, removal, undo)
            return cost(hf, tokens)

    def _channels(self, scores: np.ndarray) -> Callable[[Anatomy], Iterator[Removal]]:
        def candidates(body: Anatomy) -> Iterator[Removal]:
            for layer in body.layers:
                left = np.array(body.mlp(layer).neurons, dtype=int)
                if len(left) > self.channels:
                    lowest = left[np.argsort(scores[layer, left], kind="stable")][: self.channels]
                    yield Removal(neurons={layer: tuple(lowest.tolist())})

        return candidates


def block_parameters(model: PreTrainedModel) -> int:
    """Parameters of the blocks that are left."""
    return sum(p.numel() for block in anatomy(model).blocks for p in block.parameters())


def _sub_blocks(body: Anatomy) -> Iterator[Removal]:
    """All attentions and MLPs; the last two of them stay, so that something is left."""
    found = [Removal(heads={at: body.attention(at).heads}) for at in body.layers if body.attention(at).heads]
    found += [Removal(neurons={at: body.mlp(at).neurons}) for at in body.layers if body.mlp(at).neurons]
    if len(found) > 2:
        yield from found


def _groups(scores: np.ndarray) -> Callable[[Anatomy], Iterator[Removal]]:
    """The lowest key-value head of each layer that has more than one."""

    def candidates(body: Anatomy) -> Iterator[Removal]:
        for layer in body.layers:
            part = body.attention(layer)
            if len(part.groups) > 1:
                lots = [[h for h in part.heads if h // part.per_group == group] for group in part.groups]
                sums = [float(scores[layer, lot].sum()) for lot in lots]
                yield Removal(heads={layer: tuple(lots[int(np.argmin(sums))])})

    return candidates


def _whole_blocks(body: Anatomy, gone: Removal) -> Removal:
    """Blocks of which neither attention nor MLP is left go as a whole."""
    empty = [
        layer
        for layer in body.layers
        if set(body.attention(layer).heads) <= set(gone.heads.get(layer, ()))
        and set(body.mlp(layer).neurons) <= set(gone.neurons.get(layer, ()))
    ]
    return Removal(
        tuple(empty),
        {layer: heads for layer, heads in gone.heads.items() if layer not in empty},
        {layer: neurons for layer, neurons in gone.neurons.items() if layer not in empty},
    )


def _reasons(body: Anatomy, costs: dict[tuple[str, int], float]) -> tuple[Reason, ...]:
    """The shares of heads and neurons that are left of each layer, with what the text's loss was when the last of them
    went; 0 where none did."""
    width = max(max(body.mlp(layer).neurons, default=0) for layer in body.layers) + 1
    rows: list[Reason] = []
    for layer in body.layers:
        heads, neurons = len(body.attention(layer).heads), len(body.mlp(layer).neurons)
        rows.append(("attention", layer, -1, heads / body.heads, costs.get(("attention", layer), 0.0)))
        rows.append(("neurons", layer, -1, neurons / width, costs.get(("neurons", layer), 0.0)))
    return tuple(rows)


@torch.no_grad()
def _loss(model: PreTrainedModel, tokens: Int[Tensor, "text pos"]) -> float:
    run = uncached(model)
    return float(run(input_ids=tokens, labels=tokens).loss)
