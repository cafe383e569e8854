"""Retrieval heads: needles in haystacks, which heads copy them out, and what happens without those heads."""

from interp.attention.retrieval.masking import ZeroHeads, retrieval_causality
from interp.attention.retrieval.reach import head_reach
from interp.attention.retrieval.score import needle_recall, retrieval_heads
from interp.tasks.needles import NEEDLES, Needle, NeedleSample, needle_samples

__all__ = [
    "NEEDLES",
    "Needle",
    "NeedleSample",
    "ZeroHeads",
    "head_reach",
    "needle_recall",
    "needle_samples",
    "retrieval_causality",
    "retrieval_heads",
]
