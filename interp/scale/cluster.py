"""`over`: calls inside it are split over the workers of a cluster."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from interp.engine.spread import Together, used
from interp.errors import InterpError, UsageError
from interp.scale.address import Address, imported
from interp.scale.pool import Pool

__all__ = ["Cluster", "over"]


class Cluster:
    """Workers in force, as `over` gives them.

    Attributes:
        address: Where they are.
        n_workers: How many.
        threads: Of each.
    """

    def __init__(self, address: str, pool: Pool) -> None:
        self.address, self.pool = address, pool
        self.n_workers, self.threads = pool.n_workers, pool.threads

    def compute(
        self, begin: Callable[..., Callable[[Any], Any]], model: Any, given: tuple, parts: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        """See `interp.scale.pool.Pool.compute`."""
        return self.pool.compute(begin, model, given, parts)

    def together(self, begin: Callable[..., Callable[[Any], Any]], given: tuple) -> AbstractContextManager[Together]:
        """See `interp.engine.spread.Elsewhere.together`."""
        return self.pool.together(begin, given)

    def __repr__(self) -> str:
        return f"Cluster({self.address}, {self.n_workers} workers of {self.threads} threads)"


@contextmanager
def over(address: str, workers: int | None = None) -> Iterator[Cluster]:
    """The calls inside are split over the workers of a cluster; what they give is the same.

    Split are pairs, layers and indices (`interp.patching.activation`, `groups`), pairs (`attribution`, `atp_star`),
    rows of text (`interp.features.harvest` to a directory), layers (`train_transcoders`), batches (`features.train`),
    plans' quality (`interp.efficiency.tradeoff`) and samples (`interp.attention.head_reach`). Everything else runs
    here, as it does without a cluster.

    Where the split leaves batches as they are, results are the same to the last bit on processors of one kind and with
    as many threads; otherwise to about 1e-5. A worker that dies is replaced, and its part computed again.

    Args:
        address: ``ray://host:10001`` from anywhere, ``host:6379`` or ``auto`` from a node of the cluster, or
            ``local:2``: two worker processes on this machine.
        workers: How many; by default those of ``local:``, one a GPU where there are any, else one a node.

    Yields:
        The cluster.

    Raises:
        UsageError: Ray is not installed, or what is no address.
        InterpError: There is no cluster at the address, no worker came up, or one has other versions of the libraries.

    Example:
        >>> with interp.scale.over("local:2"):                                   # doctest: +SKIP
        ...     scores = interp.patching.activation(model, task, "heads")
    """
    where, ray = Address.parse(address), imported()
    if workers is not None and workers < 1:
        raise UsageError(f"a cluster needs one worker at least, got {workers}")
    with _connected(ray, where):
        n_workers, threads, resources = _shape(ray, where, workers)
        pool = Pool(ray, n_workers, threads, resources)
        try:
            with used(cluster := Cluster(address, pool)):
                yield cluster
        finally:
            with contextlib.suppress(Exception):  # of a cluster that is gone
                pool.close()


@contextmanager
def _connected(ray: Any, where: Address) -> Iterator[None]:
    where.check()
    if ray.is_initialized():
        raise UsageError(
            "this process is connected to a Ray cluster already; end that connection first with ray.shutdown(), or "
            "leave the block of the other cluster"
        )
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if where.local is not None:
        target: dict[str, Any] = {"address": "local", "num_cpus": where.local, "include_dashboard": False}
    else:
        target = {"address": where.text}
    try:
        ray.init(**target, **quiet)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise where.refused(lines[0] if lines else type(error).__name__) from error
    try:
        yield
    finally:
        ray.shutdown()


def _shape(ray: Any, where: Address, workers: int | None) -> tuple[int, int, dict[str, float]]:
    """How many workers, how many threads each has, and what Ray keeps for each."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if not cpus:
        raise InterpError(f"the cluster at {where.text} has no CPU for a worker")
    if where.local is not None:
        import torch

        n_workers = min(workers or where.local, where.local)
        share = {"num_gpus": 1} if gpus >= n_workers else {}
        return n_workers, max(1, torch.get_num_threads() // n_workers), {"num_cpus": 1, **share}
    if gpus:
        n_workers = min(workers or gpus, gpus)
        each = max(1, min(cpus) * len(cpus) // gpus)
        return n_workers, each, {"num_cpus": each, "num_gpus": 1}
    each = min(cpus) if workers is None else max(1, sum(cpus) // workers)
    n_workers = sum(here // each for here in cpus)
    if workers is not None and n_workers < workers:
        raise UsageError(f"the cluster at {where.text} has {sum(cpus)} CPUs, too few for {workers} workers")
    return (n_workers if workers is None else workers), each, {"num_cpus": each}
