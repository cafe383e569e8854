"""ACDC: walk the edges from the logits backwards and drop each one whose removal hardly changes the output.

Whether an edge may go depends on what has been dropped before, so the search is sequential; but most edges do go.
Hence a batch asks for whole runs of candidates at once: row i has the first i of them removed. As long as each step
changes the output by less than the threshold, the next row's question was the right one; at the first edge that must
stay, the rows behind it are thrown away and the batch begins anew behind it. The result is that of the sequential
search, edge for edge.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.circuits.exact import EdgeExperiment
from interp.circuits.search import pruned
from interp.engine.progress import track
from interp.errors import UsageError

__all__ = ["Acdc", "acdc"]


@dataclass(frozen=True, eq=False)
class Acdc:
    """What the search found.

    Attributes:
        mask: The edges kept, on paths from the input to the logits.
        change: For every edge, by how much its removal changed the metric when it was tried ("port node").
        runs: Forward passes of all prompts (a batch of k rows counts as k).
        seconds: Wall time.
    """

    mask: Bool[Tensor, "port node"]
    change: Tensor
    runs: int
    seconds: float


@torch.no_grad()
def acdc(
    edges: EdgeExperiment,
    threshold: float,
    *,
    candidates: Bool[Tensor, "port node"] | None = None,
    at_once: int = 32,
) -> Acdc:
    """Finds a circuit by exact removal of edges.

    Args:
        edges: The runs; the base run should be the clean prompts (mode ``noising``).
        threshold: An edge goes if its removal changes the metric, averaged over the prompts, by less than this (in
            the metric's units; for ``kl``, raises the divergence by less than this).
        candidates: Only these edges are tried and the others are removed from the beginning; None for all.
        at_once: Rows per batch; the number changes the time and not the result.

    Raises:
        UsageError: The threshold is negative.

    Reference: Conmy et al. 2023, "Towards Automated Circuit Discovery for Mechanistic Interpretability",
    arXiv 2304.14997, algorithm 1.
    """
    if threshold < 0:
        raise UsageError(f"the threshold must not be negative, got {threshold}")
    began, runs = time.perf_counter(), 0
    tried = edges.known if candidates is None else candidates.cpu() & edges.known
    rows = slice(0, len(edges.experiment.task))
    divergence = not edges.experiment.metrics[0].higher_is_clean
    out = edges.known & ~tried
    current = edges.metric(rows, out)[0, :, 0].mean().cpu()
    change = torch.zeros(edges.known.shape)
    with track(int(tried.sum()), "acdc") as advance:
        for port in reversed(range(len(tried))):
            queue = tried[port].nonzero().flatten().flip(0).tolist()
            while queue:
                batch = queue[:at_once]
                also = torch.zeros(len(batch), tried.shape[1], dtype=torch.bool)
                for i, node in enumerate(batch):
                    also[i:, node] = True
                values = edges.metric(rows, out, port, also)[:, :, 0].mean(1).cpu()
                runs += len(batch)
                for i, node in enumerate(batch):
                    step = values[i] - current
                    change[port, node] = step
                    queue.pop(0)
                    advance(1)
                    if (step if divergence else step.abs()) >= threshold:
                        break
                    out[port, node] = True
                    current = values[i]
    mask = pruned(edges.known & ~out, edges.parts.graph, edges.ungrouped)
    return Acdc(mask, change, runs, time.perf_counter() - began)
