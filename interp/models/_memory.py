"""Whether a model fits into memory, told before anything of it is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from interp.errors import InterpError

if TYPE_CHECKING:
    import torch

__all__ = ["check_memory", "free_bytes", "free_on"]

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_SMALLER = ("float32", "bfloat16")


def free_bytes() -> int | None:
    """Main memory that a process can have, in bytes: what is free or can be freed, within its container's limit.

    None where the system does not tell.
    """
    known = [found for found in (_free_in_system(), _free_in_container()) if found is not None]
    return min(known, default=None)


def free_on(device: torch.device) -> int | None:
    """Free memory of a device, in bytes; None where it does not tell."""
    import torch

    if device.type == "cpu":
        return free_bytes()
    module = torch.get_device_module(device)
    return int(module.mem_get_info(device)[0]) if hasattr(module, "mem_get_info") else None


def check_memory(numbers: int, dtype: torch.dtype, device: torch.device, what: str) -> None:
    """Refuse a model whose weights are larger than the memory that is free.

    Args:
        numbers: How many the model has.
        dtype: The precision that they are wanted in.
        device: Where; on the way there they are in main memory.
        what: The model, for the message.

    Raises:
        InterpError: They don't fit; the message names a precision in which they would.
    """
    import torch

    for place in dict.fromkeys((torch.device("cpu"), device)):
        free = free_on(place)
        if free is None or numbers * dtype.itemsize <= free:
            continue
        named = str(dtype).removeprefix("torch.")
        smaller = [kind for kind in _SMALLER if getattr(torch, kind).itemsize < dtype.itemsize]
        sizes = {kind: numbers * getattr(torch, kind).itemsize for kind in smaller}
        fits = [kind for kind, size in sizes.items() if size <= free]
        if fits:
            fix = f"load it with dtype=torch.{fits[0]} (--dtype {fits[0]}), {_gb(sizes[fits[0]])}"
        else:
            least = f"it takes {_gb(sizes[smaller[-1]])} in {smaller[-1]} too; " if smaller else ""
            fix = f"{least}free some memory, or take a smaller model or another device"
        raise InterpError(
            f"{what} has {numbers:,} numbers, {_gb(numbers * dtype.itemsize)} in {named}, and {_gb(free)} are free on "
            f"{place}: {fix}"
        )


def _free_in_system() -> int | None:
    found = _numbers_in(_MEMINFO, ("MemAvailable:",))
    if found:
        return found[0] << 10
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _free_in_container() -> int | None:
    """Of a control group (version 2): its limit less what is used and can't be freed."""
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    if not limit.isdigit():
        return None
    return max(0, int(limit) - int(used) + sum(_numbers_in(_CGROUP / "memory.stat", ("inactive_file",))))


def _numbers_in(path: Path, names: Iterable[str]) -> list[int]:
    """The numbers that stand behind names in a file of lines."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return []
    return [int(row[1]) for row in rows if len(row) > 1 and row[0] in names]


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
