"""Attendre: entries go by when or how often they were attended to, and queries wait before they say so.

Yang and Hua 2024 (arXiv 2401.04881). A memory of keys and values evicts the least recently attended (LRA) or least
frequently attended (LFA) entry; queries are kept in a memory of their own and look things up when they leave it, so
that they see what came after them.

Known here: the abstract alone. Our reading of it: an entry counts as attended to where a query that leaves the memory
of queries has it among its `top` most attended entries, later ones among them. The paper's layer also computes its
output from the waiting queries, which needs a model trained for it: here the output is the model's own, causal, and
only the choice of what goes is made by the queries that waited.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.efficiency.kv_cache.attention import Step, probabilities
from interp.efficiency.kv_cache.geometry import Geometry
from interp.efficiency.kv_cache.method import CacheMethod, sinks_of
from interp.efficiency.kv_cache.top import Scorer, View
from interp.errors import UsageError, unknown_name
from interp.results.findings import SinkPositions

__all__ = ["Attended", "AttendreCache"]


class Attended(Scorer):
    """Worth is when (LRA) or how often (LFA) waiting queries attended to an entry.

    Args:
        policy: "lra" or "lfa".
        wait: Queries that wait; 0: they look things up at once.
        top: Entries that each query attends to, in this sense.
    """

    numbers = 1
    evicts = True

    def __init__(self, policy: Literal["lra", "lfa"] = "lfa", wait: int = 64, top: int = 16) -> None:
        self.policy, self.wait, self.top = policy, wait, top
        self.waiting: Tensor | None = None
        self.real: Tensor | None = None
        self.clock = 0

    def tensors(self) -> list[Tensor]:
        return [] if self.waiting is None else [self.waiting]

    def bytes_beside(self, length: int, shape: Geometry) -> int:
        return min(self.wait, length) * shape.query_heads * shape.head_dim * shape.itemsize

    def rows(self, index: Tensor) -> None:
        self.waiting = None if self.waiting is None else self.waiting.index_select(0, index)
        self.real = None if self.real is None else self.real.index_select(0, index)

    def score(self, view: View) -> Float[Tensor, "row kv_head entry"]:
        scores = torch.zeros(view.keys.shape[:3], device=view.keys.device)
        if view.earlier is not None:
            scores = view.padded(view.earlier)
        real = view.step.real
        if real is None:
            real = torch.ones(view.query.shape[0], view.new, dtype=torch.bool, device=view.keys.device)
        valid = view.valid
        if valid is None:
            valid = torch.ones(len(real), view.held, dtype=torch.bool, device=view.keys.device)
        known = torch.cat([valid, real], 1)
        for start in range(0, view.new, 128):
            ready, theirs = self._leave(view.query[:, :, start : start + 128], real[:, start : start + 128])
            scores = self._attended(scores, ready, theirs, view.keys, view.step, known[:, None, None])
        return scores

    def decoded(
        self, scores: Tensor, found: Tensor, query: Tensor, keys: Tensor, step: Step, mask: Tensor | None
    ) -> Tensor:
        ready, theirs = self._leave(query, torch.ones(query.shape[0], 1, dtype=torch.bool, device=query.device))
        return self._attended(scores, ready, theirs, keys, step, mask)

    def _leave(self, query: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """New queries come in to wait; those that no longer have room leave."""
        if self.waiting is not None and self.real is not None:
            query, real = torch.cat([self.waiting, query], 2), torch.cat([self.real, real], 1)
        out = max(query.shape[2] - self.wait, 0)
        self.waiting, self.real = query[:, :, out:].clone(), real[:, out:].clone()
        return query[:, :, :out], real[:, :out]

    def _attended(
        self, scores: Tensor, query: Tensor, real: Tensor, keys: Tensor, step: Step, mask: Tensor | None
    ) -> Tensor:
        if query.shape[2] == 0:
            return scores
        found = probabilities(query, keys, step, mask)
        best = found.topk(min(self.top, keys.shape[2]), -1)
        hit = torch.zeros_like(found).scatter_(-1, best.indices, 1.0) * real[:, None, None, :, None]
        if self.policy == "lfa":
            return scores + hit.sum((2, 3))
        when = self.clock + 1.0 + torch.arange(query.shape[2], device=keys.device)
        self.clock += query.shape[2]
        return torch.maximum(scores, (hit * when[:, None]).amax((2, 3)))


class AttendreCache(CacheMethod):
    """Keeps what queries that waited attended to last, or most often.

    Args:
        budget: The share of the cache's bytes that is kept at `length` tokens, scores and waiting queries included.
        policy: "lra", least recently attended goes first, or "lfa", least frequently attended.
        wait: Queries that wait.
        top: Entries that each query attends to, in this sense.
        sinks: Where the sinks are, or how many tokens at the start are kept; none unless given.
        recent: Share of the entries that are the most recent ones.
        length: The prompt's length that the budget is for.
        prefill_chunk: Tokens of a prompt that are processed at once.
    """

    name = "attendre"

    def __init__(
        self,
        *,
        budget: float = 0.2,
        policy: Literal["lra", "lfa"] = "lfa",
        wait: int = 64,
        top: int = 16,
        sinks: SinkPositions | int = 0,
        recent: float = 0.25,
        length: int | None = None,
        prefill_chunk: int | None = None,
    ) -> None:
        super().__init__(budget=budget, length=length, prefill_chunk=prefill_chunk)
        if policy not in ("lra", "lfa"):
            raise unknown_name("eviction policy", policy, ("lra", "lfa"))
        if wait < 0 or top < 1:
            raise UsageError(f"attendre: wait must be at least 0 and top at least 1, got {wait} and {top}")
        self.options: dict[str, Any] = {"policy": policy, "wait": wait, "top": top}
        self.sinks, self.recent = sinks, self.share("recent", recent)

    def findings(self) -> list[SinkPositions]:
        return [self.sinks] if isinstance(self.sinks, SinkPositions) else []

    def policies(self, shape: Geometry, length: int) -> dict[tuple[int, int], dict[str, Any]]:
        sinks = sinks_of(self.sinks, self.name, 0)

        def waiting(length: int) -> float:
            return min(int(self.options["wait"]), length) * shape.query_heads / 2

        n = self.entries(shape, length, sinks + 2, 1 + 4 / shape.entry_bytes, waiting)
        window = min(max(int(self.recent * n), 1), n - sinks)
        kept = {"keep": "top", "score": "attendre", "n": n, "window": window, "sinks": sinks, "options": self.options}
        return dict.fromkeys(shape.compressible, kept)
