"""From scores to a circuit: the strongest edges, growth from the logits, a threshold; what is unreachable is pruned."""

from __future__ import annotations

import re
from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.circuits.exact import existing
from interp.errors import UsageError
from interp.graph import Graph

__all__ = ["above", "greedy", "of_nodes", "pruned", "strongest", "wiring"]


def strongest(
    scores: Float[Tensor, "node port"], graph: Graph, n: int, *, absolute: bool = True, ungrouped: bool = False
) -> Bool[Tensor, "port node"]:
    """The n edges with the largest scores (in absolute value, or signed), without those that lead nowhere.

    Raises:
        UsageError: n is negative or more than there are edges.
    """
    known = existing(graph, ungrouped)
    total = int(known.sum())
    if not 0 <= n <= total:
        raise UsageError(f"can't take {n} edges: the graph has {total}")
    ranks = (scores.abs() if absolute else scores).T[known]
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[ranks.argsort(descending=True, stable=True)[:n].cpu()] = True
    mask = torch.zeros_like(known)
    mask[known] = chosen
    return pruned(mask, graph, ungrouped)


def above(
    scores: Float[Tensor, "node port"], graph: Graph, threshold: float, *, ungrouped: bool = False
) -> Bool[Tensor, "port node"]:
    """The edges whose absolute score exceeds a threshold, without those that lead nowhere."""
    return pruned((threshold < scores.abs().T).cpu() & existing(graph, ungrouped), graph, ungrouped)


def greedy(
    scores: Float[Tensor, "node port"], graph: Graph, n: int, *, absolute: bool = True, ungrouped: bool = False
) -> Bool[Tensor, "port node"]:
    """Grows from the logits: n times, the strongest edge into a port of a node that is already part of the circuit.

    Raises:
        UsageError: n is negative or more than there are edges.

    Reference: Hanna et al. 2024, arXiv 2403.17806, section 3.
    """
    known = existing(graph, ungrouped)
    if not 0 <= n <= int(known.sum()):
        raise UsageError(f"can't take {n} edges: the graph has {int(known.sum())}")
    owners = wiring(graph, ungrouped)
    ranks = (scores.abs() if absolute else scores).T.cpu().clone()
    ranks[~known] = -torch.inf
    open_ports = torch.zeros(len(known), dtype=torch.bool)
    open_ports[-1] = True
    best = ranks.max(1).values
    mask = torch.zeros_like(known)
    for _ in range(n):
        port = int(best.masked_fill(~open_ports, -torch.inf).argmax())
        if best[port] == -torch.inf:
            break
        node = int(ranks[port].argmax())
        mask[port, node] = True
        ranks[port, node] = -torch.inf
        best[port] = ranks[port].max()
        open_ports |= owners[:, node]
    return pruned(mask, graph, ungrouped)


def of_nodes(
    scores: Float[Tensor, " node"], graph: Graph, n: int, *, absolute: bool = True, ungrouped: bool = False
) -> Bool[Tensor, "port node"]:
    """All edges among the n strongest nodes, the input and the logits.

    Args:
        scores: Of the nodes in the order of `Graph.nodes`, without the logits.
    """
    ranks = (scores.abs() if absolute else scores).cpu().clone()
    ranks[0] = torch.inf
    kept = torch.zeros(len(ranks), dtype=torch.bool)
    kept[ranks.argsort(descending=True, stable=True)[: n + 1]] = True
    reads = (wiring(graph, ungrouped) & kept).any(1)
    reads[-1] = True
    return pruned(existing(graph, ungrouped) & kept & reads[:, None], graph, ungrouped)


def pruned(mask: Bool[Tensor, "port node"], graph: Graph, ungrouped: bool = False) -> Bool[Tensor, "port node"]:
    """The edges that lie on a path from the input to the logits."""
    mask, owners = mask.cpu(), wiring(graph, ungrouped)
    reached = torch.zeros(mask.shape[1], dtype=torch.bool)
    reached[0] = True
    while not torch.equal(more := reached | owners[(mask & reached).any(1)].any(0), reached):
        reached = more
    mask = mask & reached
    wanted = torch.zeros(len(mask), dtype=torch.bool)
    wanted[-1] = True
    while not torch.equal(more := wanted | owners[:, mask[wanted].any(0)].any(1), wanted):
        wanted = more
    return mask & wanted[:, None]


@cache
def wiring(graph: Graph, ungrouped: bool = False) -> Bool[Tensor, "port node"]:
    """Which nodes each port feeds: its head or MLP; under grouped-query attention all heads of a key-value group."""
    number = {name: i for i, name in enumerate(graph.nodes())}
    ports = graph.ports(ungrouped)
    size = 1 if ungrouped else graph.n_heads // graph.n_kv_heads
    feeds = torch.zeros(len(ports), len(number) - 1, dtype=torch.bool)
    for i, port in enumerate(ports[:-1]):
        if match := re.fullmatch(r"a(\d{1,9})\.h(\d{1,9})<([qkv])>", port):
            head = int(match[2])
            heads = [head] if match[3] == "q" else range(head * size, (head + 1) * size)
            for one in heads:
                feeds[i, number[f"a{match[1]}.h{one}"]] = True
        else:
            feeds[i, number[port]] = True
    return feeds
