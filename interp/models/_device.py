"""The device that a model is to lie on, by name, and which there are."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from interp.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["device_of", "devices"]


def devices() -> list[str]:
    """The devices of this machine that a model can lie on, as torch names them."""
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ["cpu", *(f"{found.type}:{n}" for n in range(torch.accelerator.device_count()) if found is not None)]


def device_of(device: str | torch.device | None) -> torch.device:
    """A device by its name; None for an accelerator if there is one, else the CPU.

    Raises:
        UsageError: There is no such device; the message names those that there are.
    """
    import torch

    if device is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    reason: str | None = ""
    with suppress(RuntimeError):  # no kind of device has this name
        place = torch.device(device)
        reason = _refused(place)
        if reason is None:
            return place
    raise UsageError(
        f"device {str(device)!r} can't be used{reason}: this machine has {', '.join(devices())}; leave it out to take "
        f"{device_of(None)}"
    )


def _refused(place: torch.device) -> str | None:
    """Why nothing can lie on a device; None where something can."""
    import torch

    if place.type == "meta":
        return " (tensors there have no numbers)"
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without that kind
        return f" ({str(error).splitlines()[0]})"
    return None
