"""What an address of a cluster means, and whether anything answers there: told within seconds, not Ray's minutes."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from interp.errors import InterpError, UsageError

__all__ = ["Address", "imported"]

_WITHIN = 5.0
"""Seconds in which a cluster's port has to answer."""


@dataclass(frozen=True)
class Address:
    """Where workers are.

    Args:
        text: As it was given.
        local: Worker processes of a cluster of one's own on this machine; None for a cluster that is there.
        host: Of a cluster that is there; None for the one that this machine is a node of.
        port: Its port.
        client: Whether this process is not on a node of the cluster (``ray://``).
    """

    text: str
    local: int | None = None
    host: str | None = None
    port: int = 0
    client: bool = False

    @staticmethod
    def parse(text: str) -> Address:
        """Reads ``local:2``, ``ray://host:10001``, ``host:6379`` or ``auto``.

        Raises:
            UsageError: It is none of these.
        """
        if text == "auto":
            return Address(text)
        if found := re.fullmatch(r"local:([1-9]\d*)", text):
            return Address(text, local=int(found[1]))
        found = re.fullmatch(r"(ray://)?\[?([\w.:-]+?)\]?:(\d{1,5})", text)
        if found is None or found[2] == "local" or not 0 < int(found[3]) < 1 << 16:
            raise UsageError(
                f"{text!r} is no address of a cluster; write ray://host:10001, host:6379 from one of its nodes, auto "
                "on one of its nodes, or local:2 for two workers on this machine"
            )
        return Address(text, host=found[2], port=int(found[3]), client=found[1] is not None)

    def check(self) -> None:
        """Refuses an address at which no cluster answers.

        Raises:
            InterpError: Nothing answers, or not as Ray does.
        """
        if self.host is None:
            return
        try:
            socket.create_connection((self.host, self.port), timeout=_WITHIN).close()
        except OSError as error:
            raise self.refused(error.strerror or str(error) or "nothing answers") from None
        if os.environ.get("RAY_USE_TLS", "0") in ("", "0") and find_spec("grpc") is not None:
            import grpc

            with grpc.insecure_channel(f"{self.host}:{self.port}") as channel:
                try:
                    grpc.channel_ready_future(channel).result(timeout=_WITHIN)
                except grpc.FutureTimeoutError:
                    raise self.refused("what answers there is no Ray") from None

    def refused(self, why: str) -> InterpError:
        """The error that there is no cluster, or none that can be used."""
        return InterpError(
            f"there is no Ray cluster at {self.text}: {why}; start one with `ray start --head`, or take local:2 for "
            "two workers on this machine"
        )


def imported() -> Any:
    """The library Ray, told to send no statistics about its use.

    Raises:
        UsageError: It is not installed.
    """
    if find_spec("ray") is None:
        raise UsageError(
            "a cluster takes Ray, which is not installed; install it with: pip install 'interp[ray]' (on every node)"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    return ray
