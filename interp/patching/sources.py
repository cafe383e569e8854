"""What a patch puts in: the other prompt's activations, zeros, a mean, or those of another example."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from interp.engine.forward import run
from interp.engine.parts import Parts
from interp.errors import UsageError
from interp.graph import Node

__all__ = ["Source", "derangement"]


class Source:
    """Values to patch in, recorded batch by batch as they are asked for.

    Args:
        parts: The model.
        kind: ``corrupted``: the prompts in `tokens`, example by example; ``zero``; ``mean``: the mean over the
            examples of `tokens` at each position, or over all positions but the first of a `corpus`;
            ``resampled``: the prompts in `tokens`, with each example taking another example's.
        tokens: Prompts "batch pos" to record.
        sites: The sites that are patched.
        corpus: Token ids "batch pos" for a mean over text in general. The first position is left out of it: it is
            an attention sink whose residual can be a hundred times larger than all others (Xiao et al. 2023).
        seed: Of the draw of other examples.

    Raises:
        UsageError: Unknown kind, or a kind that these prompts don't allow.
    """

    def __init__(
        self,
        parts: Parts,
        kind: str,
        tokens: Int[Tensor, "batch pos"],
        sites: set[str],
        corpus: Int[Tensor, "text pos"] | None = None,
        seed: int = 0,
    ) -> None:
        self.parts, self.kind, self.tokens, self.sites = parts, kind, tokens, sites
        self.corpus = corpus
        self.recorded: tuple[slice, dict[tuple[str, int], Tensor]] | None = None
        self.means: dict[tuple[str, int], Tensor] | None = None
        if kind == "resampled":
            if len(tokens) < 2:
                raise UsageError("source='resampled' takes another example's activation: it needs two examples or more")
            self.tokens = tokens[derangement(len(tokens), seed)]
        if corpus is not None and kind != "mean":
            raise UsageError(f"a corpus is for source='mean', not source={kind!r}")
        if corpus is not None and "pattern" in sites:
            raise UsageError("the mean of attention patterns over a corpus has no meaning for prompts of other lengths")
        if corpus is not None and corpus.shape[1] < 2:
            raise UsageError("a corpus for source='mean' needs two positions or more: the first is left out")

    @torch.no_grad()
    def __call__(self, node: Node, examples: slice) -> Tensor:
        """The values of a node: "batch pos ..."; of one head or neuron if the node has an index."""
        count = examples.stop - examples.start
        if self.kind == "mean":
            whole = self._mean(node).expand(count, *self._mean(node).shape)
        else:
            if self.recorded is None or self.recorded[0] != examples:
                self.recorded = (examples, run(self.parts, self.tokens[examples], self.sites)[0])
            whole = self.recorded[1][node.site, node.layer]
        if self.kind == "zero":
            whole = torch.zeros_like(whole)
        if node.index is None:
            return whole
        return whole.select(1 if node.site == "pattern" else 2, node.index)

    def _mean(self, node: Node) -> Tensor:
        if self.means is None:
            texts = self.tokens if self.corpus is None else self.corpus
            sums: dict[tuple[str, int], Tensor] = {}
            for begin in range(0, len(texts), 8):
                for at, x in run(self.parts, texts[begin : begin + 8], self.sites)[0].items():
                    part = x.sum(0) if self.corpus is None else x[:, 1:].sum((0, 1))
                    sums[at] = sums[at] + part if at in sums else part
            scale = len(texts) * (1 if self.corpus is None else texts.shape[1] - 1)
            length = self.tokens.shape[1]
            self.means = {
                at: total / scale if self.corpus is None else (total / scale).expand(length, *total.shape)
                for at, total in sums.items()
            }
        return self.means[node.site, node.layer]


def derangement(n: int, seed: int) -> Int[Tensor, " batch"]:
    """A random order in which no example stays where it is (a random cycle)."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    target = torch.empty(n, dtype=torch.long)
    target[order] = order.roll(1)
    return target
