"""What runs in a worker: it loads the model by itself, makes each call's work of it once, and computes parts."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from interp.engine.identity import exactly, identity
from interp.errors import InterpError
from interp.models._origin import Origin
from interp.scale.files import Files

__all__ = ["Job", "Wanted", "actor", "compute", "named_weights"]


@dataclass(frozen=True)
class Wanted:
    """A model that a worker is to load.

    Args:
        origin: How it is loaded.
        weights: Which weights it has then, to the last bit; see `named_weights`.
        files: The files of a folder or file; None for what is loaded by its name.
        sent: References to their pieces, if a node had not the files.
    """

    origin: Origin
    weights: str
    files: Files | None = None
    sent: dict[str, list[Any]] | None = None


@dataclass(frozen=True)
class Job:
    """One call: ``begin(model, *given)`` gives what computes its parts."""

    number: int
    begin: Callable[..., Callable[[Any], Any]]
    wanted: Wanted | None
    given: tuple


class _Held:
    """What this process has loaded and begun."""

    loaded: tuple[Origin, str] | None = None
    model: Any = None
    job: int | None = None
    work: Callable[[Any], Any] | None = None


def compute(references: list[Any], number: int, part: Any, get: Callable[[Any], Any]) -> Any:
    """One part of a call.

    Args:
        references: One reference, to the call's `Job`; in a list, which keeps Ray from fetching it every time.
        number: The job's.
        part: The part.
        get: Gives what a reference stands for.

    Raises:
        Missing: This node has not the files of the model.
        InterpError: The model can't be loaded here, or has other weights; and whatever the call raises.
    """
    if _Held.job != number:
        job: Job = get(references[0])
        _Held.job = _Held.work = None
        model = None if job.wanted is None else _model(job.wanted, get)
        _Held.work, _Held.job = job.begin(model, *job.given), number
    assert _Held.work is not None
    return _Held.work(part)


def _model(wanted: Wanted, get: Callable[[Any], Any]) -> Any:
    import torch

    from interp.models import load

    if _Held.loaded != (wanted.origin, wanted.weights):
        _Held.model = _Held.loaded = None
        how = wanted.origin
        name = how.name if wanted.files is None else wanted.files.found(wanted.sent, get)
        try:
            model = load(name, device=how.device, dtype=getattr(torch, how.dtype), accept_license=how.accept_license)
        except InterpError as error:
            raise InterpError(f"the worker on {platform.node()} could not load {how.name}: {error}") from error
        deployed = wanted.weights.startswith("deployed")
        found = f"deployed {identity(model)}" if deployed else named_weights(model)
        if found != wanted.weights:
            raise InterpError(
                f"the model that the worker on {platform.node()} loaded from {how.name} has other weights than the one "
                f"here (their digests are {found} and {wanted.weights}): they were changed after it was loaded, or "
                "differ there; save it to a folder and load it from there"
            )
        _Held.model, _Held.loaded = model, (wanted.origin, wanted.weights)
    return _Held.model


def named_weights(model: Any) -> str:
    """A short name of a bridge's weights, to the last bit; of a deployed model that of what it was deployed from."""
    deployed = getattr(model, "deployment", None)
    if deployed is not None:
        return f"deployed {deployed.fingerprint}"
    return hashlib.sha256(exactly(model).encode()).hexdigest()[:16]


def actor() -> type:
    """The class of the workers, which is sent by value: it says what is installed where even `interp` is not."""

    class Worker:
        def __init__(self, threads: int) -> None:
            self.threads = threads

        def hello(self) -> tuple[str, int, dict[str, str]]:
            """The node's name, the process, and the versions of the libraries that numbers may depend on."""
            import importlib.metadata
            import os
            import platform

            found = {}
            for name in ("interp", "transformer-lens", "transformers", "torch"):
                try:
                    found[name] = importlib.metadata.version(name)
                except importlib.metadata.PackageNotFoundError:
                    found[name] = "none"
            return platform.node(), os.getpid(), found

        def place(self) -> str:
            """An address at which others can meet this process."""
            import socket

            import ray

            with socket.socket() as free:
                free.bind(("", 0))
                return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

        def compute(self, references: list, number: int, part: Any) -> Any:
            import ray
            import torch

            from interp.scale.worker import compute

            if torch.get_num_threads() != self.threads:
                torch.set_num_threads(self.threads)
            return compute(references, number, part, ray.get)

    return Worker
