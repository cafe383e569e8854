"""Redistribution, carried over to text: tokens with massive activations give attention on to the rest of the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from transformers import PreTrainedModel

from interp.efficiency.calibration.method import AttentionMethod, all_heads, head_scores
from interp.efficiency.calibration.plan import CalibrationPlan
from interp.efficiency.calibration.rules import ByChannels
from interp.efficiency.kv_cache.geometry import deployed
from interp.efficiency.pruning.anatomy import anatomy
from interp.efficiency.registry import missing
from interp.errors import UsageError
from interp.results.finding import Finding, Head, HeadScores
from interp.results.findings import HeadKinds, MassiveActivations

__all__ = ["Redistribution"]

_LEVEL, _WIDTH = 20.0, 4096


class Redistribution(AttentionMethod):
    """Sinks by massive activations give a share of their attention, in heads that look at content.

    The paper is about images: sinks among image tokens and text tokens give to the other image tokens, in heads and
    for queries where image tokens get 0.2 of the attention and sinks no more than half of that ("image-centric").
    Carried over to text: all tokens are in the place of the image's, so the sinks (the first token among them) give to
    all others, in heads and for queries where the others get `content` of the attention. The condition of 0.2 is
    always true then. The last layer is left alone, as in the authors' code; layers without massive activations have
    no sinks. What is not carried over: that the tokens that gain are known to be what the question is about.

    Args:
        massive: The channels.
        heads: Scores of heads, to take only the `share` with the largest: `RetrievalHeads` for heads that look into
            the context, `HeadKinds`, ...; all heads where not given.
        kind: The kind of heads, of a `HeadKinds`.
        share: Of all heads, where `heads` is given.
        budget: The share of a sink's attention that is kept: p, 0.6 in the authors' code.
        content: rho: the share of a query's attention that must go to other tokens; the paper has 0.5 to 0.8.
        level: tau: from which phi on a token is a sink; the paper has 20 at 4,096 channels. Where not given it is read
            off the finding: half-way between the least phi of its positions and the largest of others, over the
            layers that have massive activations; and the paper's, scaled by the width, where they don't separate. (In
            SmolLM2 phi is 23 to 24 at the first token and 11 to 19 elsewhere, and sqrt(channels) is 24: the paper's
            number scaled, 7.5, would take every token for a sink.)

    Reference: Kang et al. 2025, "See What You Are Told: Visual Attention Sink in Large Multimodal Models",
    arXiv:2503.03321, sections 3 and 5; numbers from the authors' code (src/logic/logic.py of VisAttnSink).
    """

    name: ClassVar[str] = "redistribution"

    def __init__(
        self,
        massive: MassiveActivations | None = None,
        *,
        heads: HeadScores | HeadKinds | None = None,
        kind: str | None = None,
        share: float = 0.1,
        budget: float = 0.6,
        content: float = 0.5,
        level: float | None = None,
    ) -> None:
        super().__init__(budget=budget)
        if massive is None:
            raise missing(self.name, "MassiveActivations")
        if not massive.channels:
            raise UsageError("redistribution: the finding has no massive activations, so there are no sinks to find")
        for what, value in (("share", share), ("content", content)):
            if not 0 < value <= 1:
                raise UsageError(f"redistribution: {what} must be in (0, 1], got {value}")
        if level is not None and not level > 0:
            raise UsageError(f"redistribution: level must be above 0, got {level}")
        self.massive, self.heads, self.kind = massive, heads, kind
        self.share, self.content, self.level = share, content, level

    def findings(self) -> Sequence[Finding]:
        return [finding for finding in (self.massive, self.heads) if finding is not None]

    def rule(self, model: PreTrainedModel) -> ByChannels:
        width = model.config.get_text_config().hidden_size
        level = self.level or _between(self.massive, width) or _LEVEL * (width / _WIDTH) ** 0.5
        return ByChannels(tuple(self.massive.channels), level, self.content)

    def plan(self, model: Any) -> CalibrationPlan:
        """The heads of all layers where the finding has massive activations at the input, the last layer left out."""
        hf = deployed(model)
        return self.made(hf, self.name, self._candidates(hf), self.rule(hf))

    def random_plan(self, model: Any, seed: int = 0) -> CalibrationPlan:
        """The same heads and queries give the same share, to where another head of the layer looks, at random."""
        hf = deployed(model)
        heads, draw = self._candidates(hf), np.random.default_rng(seed)
        order = []
        for layer in sorted({at for at, _ in heads}):
            count = sum(at == layer for at, _ in heads)
            order.append((layer, _other_heads(count, draw)))
        rule = replace(self.rule(hf), order=tuple(order))
        return self.made(hf, f"{self.name}, random", heads, rule)

    def inverted_plan(self, model: Any) -> CalibrationPlan:
        """The other way round: the sinks take as much more as they gave."""
        hf = deployed(model)
        return self.made(hf, f"{self.name}, inverted", self._candidates(hf), self.rule(hf), sign=-1)

    def _candidates(self, model: PreTrainedModel) -> list[Head]:
        self.about(model, self.name)
        body, last = anatomy(model), self.massive.evidence["size"].sizes["layer"] - 1
        first, stop = self.massive.appears + 1, min(self.massive.vanishes, last - 1)
        heads = [(layer, head) for layer, head in all_heads(body) if first <= layer <= stop]
        if self.heads is None:
            return heads
        scores = head_scores(self.heads, self.kind, model).values
        count = max(1, round(self.share * len(all_heads(body))))
        return sorted(heads, key=lambda head: (-float(scores[head]), head))[:count]


def _other_heads(count: int, draw: np.random.Generator) -> tuple[int, ...]:
    """For each head another one, all of them once."""
    while True:
        found = draw.permutation(count)
        if count == 1 or (found != np.arange(count)).all():
            return tuple(int(head) for head in found)


def _between(massive: MassiveActivations, width: int) -> float | None:
    """Half-way between phi at the massive activations' positions and elsewhere; none if the finding can't tell."""
    if "resid_norm" not in massive.evidence or not massive.positions:
        return None
    layers = slice(massive.appears, massive.vanishes)
    size, norm = (massive.evidence[name].values[layers] for name in ("size", "resid_norm"))
    phi = size / np.maximum(norm / width**0.5, 1e-12)
    mine = np.isin(np.arange(phi.shape[1]), massive.positions)
    if mine.all() or not mine.any() or phi[:, mine].min() <= phi[:, ~mine].max():
        return None
    return float((phi[:, mine].min() + phi[:, ~mine].max()) / 2)
