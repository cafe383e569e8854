"""ACT: attention sinks later in the text give attention on, in heads chosen by what that does to held-out examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from transformers import PreTrainedModel

from interp.efficiency.calibration.method import AttentionMethod, all_heads, head_scores
from interp.efficiency.calibration.plan import CalibrationPlan
from interp.efficiency.calibration.rules import ByAttention
from interp.efficiency.kv_cache.geometry import deployed
from interp.efficiency.pruning.anatomy import anatomy
from interp.errors import UsageError
from interp.results.finding import Finding, HeadScores
from interp.results.findings import CalibrationHeads, HeadKinds, SinkPositions, positions_or

__all__ = ["ACT"]


class ACT(AttentionMethod):
    """Calibrates the heads with the largest scores; see `ByAttention` for what a sink is and what differs.

    Args:
        heads: Scores of heads: what `search_heads` found (the paper's way: heads on which calibration does good on
            held-out examples), or as a cheap stand-in `SinkHeads`, `HeadImportance` or `HeadKinds`.
        sinks: How many tokens at the start are left alone; 1 as in the paper where not given.
        kind: The kind of heads, of a `HeadKinds`.
        share: The share of all heads that is calibrated; of `CalibrationHeads` fewer, if fewer do good.
        budget: beta, the share of a sink's attention that is kept; the paper has 0.4.
        alpha: What a sink gets, as a multiple of even attention; the paper has 5.

    Reference: Yu et al. 2024, "Unveiling and Harnessing Hidden Attention Sinks", arXiv:2406.15765, section 4. The
    paper leaves out the first two layers and the last; here all heads are candidates.
    """

    name: ClassVar[str] = "act"

    def __init__(
        self,
        heads: HeadScores | HeadKinds | None = None,
        *,
        sinks: SinkPositions | None = None,
        kind: str | None = None,
        share: float = 0.1,
        budget: float = 0.4,
        alpha: float = 5.0,
    ) -> None:
        super().__init__(budget=budget)
        if heads is None:
            raise UsageError(
                "act needs scores of heads: CalibrationHeads from interp.efficiency.calibration.search_heads(model, "
                "task), or SinkHeads (`interp sinks`), HeadImportance or HeadKinds (`interp heads`)"
            )
        if not 0 < share <= 1:
            raise UsageError(f"act: share, of heads, must be in (0, 1], got {share}")
        if not alpha > 0:
            raise UsageError(f"act: alpha must be above 0, got {alpha}")
        self.heads, self.sinks, self.kind, self.share, self.alpha = heads, sinks, kind, share, alpha

    def findings(self) -> Sequence[Finding]:
        return [finding for finding in (self.heads, self.sinks) if finding is not None]

    def rule(self, model: PreTrainedModel) -> ByAttention:
        return ByAttention(self.alpha, max(positions_or(self.sinks, (0,), self.name)) + 1)

    def plan(self, model: Any) -> CalibrationPlan:
        """The heads with the largest scores."""
        return self._ranked(model, 1, self.name)

    def random_plan(self, model: Any, seed: int = 0) -> CalibrationPlan:
        """As many heads, random ones."""
        hf = deployed(model)
        heads, count = all_heads(anatomy(hf)), len(self._chosen(hf, 1))
        index = np.random.default_rng(seed).choice(len(heads), count, replace=False)
        return self.made(hf, f"{self.name}, random", [heads[int(i)] for i in index], self.rule(hf))

    def inverted_plan(self, model: Any) -> CalibrationPlan:
        """As many heads, those with the smallest scores."""
        return self._ranked(model, -1, f"{self.name}, inverted")

    def _ranked(self, model: Any, sign: int, name: str) -> CalibrationPlan:
        hf = deployed(model)
        self.about(hf, name)
        chosen = self._chosen(hf, sign)
        return self.made(hf, name, chosen, self.rule(hf), scores=head_scores(self.heads, self.kind, hf).values)

    def _chosen(self, model: PreTrainedModel, sign: int) -> list[tuple[int, int]]:
        scores, heads = head_scores(self.heads, self.kind, model).values, all_heads(anatomy(model))
        count = max(1, round(self.share * len(heads)))
        if isinstance(self.heads, CalibrationHeads):
            count = min(count, sum(float(scores[head]) > 0 for head in heads))
        return sorted(heads, key=lambda head: (-sign * float(scores[head]), head))[:count]
