"""Workers that take the next part when they are done with one; the part of one that dies goes to another."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from interp.engine.identity import versions
from interp.engine.spread import Died, Together
from interp.errors import InterpError, UsageError
from interp.models._origin import origin
from interp.scale.files import Files, Missing, stored
from interp.scale.worker import Job, Wanted, actor, named_weights

__all__ = ["Pool"]

_TRIES = 3
"""How many workers may die of one part before it is given up."""
_PATIENCE = 60.0
"""Seconds for a new worker to come up."""
_FURTHER = 10.0
"""Seconds for others to come up when one has."""
_GRACE = 5.0
"""Seconds in which Ray notices a death that other workers have noticed."""


class Pool:
    """The workers of a cluster.

    Args:
        ray: The library, connected.
        n_workers: How many.
        threads: Of each.
        resources: What Ray keeps for each, such as ``{"num_cpus": 1}``.

    Attributes:
        pids: The process of each worker that is up, on its node.

    Raises:
        InterpError: No worker came up, or one has other versions than this process.
    """

    def __init__(self, ray: Any, n_workers: int, threads: int, resources: dict[str, float]) -> None:
        self.ray, self.n_workers, self.threads = ray, n_workers, threads
        self._class = ray.remote(actor()).options(max_restarts=0, scheduling_strategy="SPREAD", **resources)
        self.idle: list[Any] = []
        self.starting: dict[Any, Any] = {}
        self.running: dict[Any, tuple[Any, int]] = {}
        self.pids: dict[Any, int] = {}
        self._numbers = itertools.count()
        self._sent: dict[str, dict[str, list[Any]]] = {}
        for _ in range(n_workers):
            self._hire()
        self._await()

    def compute(
        self, begin: Callable[..., Callable[[Any], Any]], model: Any, given: tuple, parts: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        """The number of each part, and what came out of it, as it comes out; see `interp.engine.spread.spread`.

        Raises:
            UsageError: A model that workers can't load by themselves.
            InterpError: No worker is left, or several died of one part; and whatever the call raises in a worker.
        """
        job = Job(next(self._numbers), begin, self._wanted(model), given)
        references = [self.ray.put(job)]
        waiting, died = deque(range(len(parts))), Counter[int]()
        self._abandon()
        running: dict[Any, tuple[Any, int]] = {}
        self.running = running
        try:
            while waiting or running:
                while waiting and self.idle:
                    worker, number = self.idle.pop(), waiting.popleft()
                    running[worker.compute.remote(references, job.number, parts[number])] = worker, number
                for done in self._next(list(running)):
                    worker, number = running.pop(done)
                    try:
                        result = self.ray.get(done)
                    except self.ray.exceptions.RayTaskError as error:
                        self.idle.append(worker)
                        cause = error.cause
                        if not isinstance(cause, Missing) or job.wanted is None or job.wanted.sent:
                            raise cause from None
                        job = replace(job, number=next(self._numbers), wanted=self._with_files(job.wanted))
                        references = [self.ray.put(job)]
                        waiting.appendleft(number)
                    except self.ray.exceptions.RayError as error:
                        died[number] += 1
                        if died[number] >= _TRIES:
                            raise InterpError(
                                f"{_TRIES} workers died of the same part, which looks like too little memory: give a "
                                f"smaller max_memory or fewer examples ({_first_line(error)})"
                            ) from None
                        self._replace(worker)
                        waiting.appendleft(number)
                    else:
                        self.idle.append(worker)
                        yield number, result
        except BaseException:
            if self.running is running:
                self._abandon()
            raise

    def _abandon(self) -> None:
        """Stops what still runs for a call that was given up, perhaps without a word, as by Ctrl-C in its caller."""
        for worker, _ in self.running.values():
            self.ray.kill(worker)
            self._replace(worker)
        self.running = {}

    @contextmanager
    def together(self, begin: Callable[..., Callable[[Any], Any]], given: tuple) -> Iterator[Together]:
        """All workers at the same work; see `interp.engine.spread.Elsewhere.together`."""
        self._abandon()
        self._await()
        workers, self.idle = self.idle, []
        busy: dict[Any, Any] = {}
        try:
            address = self.ray.get(workers[0].place.remote())
            jobs = [
                Job(next(self._numbers), begin, None, (*given, rank, len(workers), address))
                for rank in range(len(workers))
            ]
            references = [[self.ray.put(job)] for job in jobs]

            def call(part: Any) -> list[Any]:
                for worker, reference, job in zip(workers, references, jobs, strict=True):
                    busy[worker.compute.remote(reference, job.number, part)] = worker
                return self._all(busy)

            yield call
        except Died:
            busy = dict(enumerate(workers))  # what those who live have of the others is broken
            raise
        finally:
            for worker in workers:
                if worker in busy.values():
                    self.ray.kill(worker)
                    self._replace(worker)
                else:
                    self.idle.append(worker)

    def _all(self, busy: dict[Any, Any]) -> list[Any]:
        """What comes out of every worker's part, none of which is then busy.

        When one fails, the others are waited for only to see whether they fail, too, or one died.
        """
        sent, found = list(busy), {}
        failed: BaseException | None = None
        while busy:
            done, _ = self.ray.wait(list(busy), timeout=None if failed is None else _GRACE)
            if not done:
                break
            try:
                found[done[0]] = self.ray.get(done[0])
            except self.ray.exceptions.RayTaskError as error:
                failed = failed or error.cause
            except self.ray.exceptions.RayError as error:
                raise Died(_first_line(error)) from None
            del busy[done[0]]
        if failed is not None:
            raise failed
        return [found[one] for one in sent]

    def close(self) -> None:
        """Ends the workers."""
        for worker in (*self.idle, *self.starting.values(), *(worker for worker, _ in self.running.values())):
            self.ray.kill(worker)

    def _hire(self) -> None:
        worker = self._class.remote(self.threads)
        self.starting[worker.hello.remote()] = worker

    def _replace(self, worker: Any) -> None:
        self.pids.pop(worker, None)
        self._hire()

    def _next(self, running: list[Any]) -> list[Any]:
        """Of the parts that run, one or more that are done; new workers are let in meanwhile."""
        began = time.monotonic()
        while True:
            done, _ = self.ray.wait([*running, *self.starting], timeout=_PATIENCE)
            for hello in [one for one in done if one in self.starting]:
                self._let_in(hello)
            found = [one for one in done if one in running]
            if found or self.idle:
                return found
            if not running and time.monotonic() - began >= _PATIENCE:
                raise InterpError(
                    f"no worker of the cluster is left, and Ray found no place for a new one within {_PATIENCE:.0f} s"
                )

    def _await(self) -> None:
        """Waits for the first worker, and some more seconds for the others, which can come later."""
        until, first = time.monotonic() + _PATIENCE, bool(self.idle)
        while self.starting and time.monotonic() < until:
            for hello in self.ray.wait(list(self.starting), timeout=1.0)[0]:
                self._let_in(hello)
            if self.idle and not first:
                until, first = time.monotonic() + _FURTHER, True
        if not self.idle:
            free = self.ray.available_resources().get("CPU", 0)
            raise InterpError(
                f"no worker came up within {_PATIENCE:.0f} s: the cluster has {free:g} of "
                f"{self.ray.cluster_resources().get('CPU', 0):g} CPUs free; wait for its other jobs, or ask for fewer "
                "workers"
            )

    def _let_in(self, hello: Any) -> None:
        worker = self.starting.pop(hello)
        try:
            node, self.pids[worker], theirs = self.ray.get(hello)
        except self.ray.exceptions.RayError as error:
            raise InterpError(f"a worker could not start: {_first_line(error)}") from None
        ours = versions()
        if differ := [name for name in ours if theirs.get(name) != ours[name]]:
            there = ", ".join(f"{name} {theirs.get(name, 'none')}" for name in differ)
            here = ", ".join(f"{name} {ours[name]}" for name in differ)
            raise InterpError(
                f"the worker on {node} has {there}, this process has {here}; install the same versions on every node"
            )
        self.idle.append(worker)

    def _wanted(self, model: Any) -> Wanted | None:
        if model is None:
            return None
        how = origin(model)
        if how is None:
            raise UsageError(
                "a cluster's workers load the model by themselves, so it must have been loaded with interp.load from a "
                "name or a folder; this one was not: save it to a folder with save_pretrained and load it from there"
            )
        deployed = getattr(model, "deployment", None)
        if deployed is not None and deployed.plans:
            raise UsageError(
                f"this model has plans in force ({', '.join(plan.method for plan in deployed.plans)}), and the models "
                "that a cluster's workers load have none; give the model as interp.deploy made it"
            )
        found = named_weights(model)
        files = Files.of(how.name) if os.path.isabs(how.name) else None
        return Wanted(how, found, files, self._sent.get(found))

    def _with_files(self, wanted: Wanted) -> Wanted:
        assert wanted.files is not None
        if wanted.weights not in self._sent:
            self._sent = {wanted.weights: stored(wanted.files, self.ray.put)}
        return replace(wanted, sent=self._sent[wanted.weights])


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
