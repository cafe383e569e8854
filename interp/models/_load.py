"""`load`: a name, a directory, a GGUF file or a hub id -> a `TransformerBridge`."""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError, UsageError, unknown_name
from interp.models._device import device_of
from interp.models._fetch import fetch, in_precision, stored
from interp.models._gguf_header import check_header
from interp.models._hub import boot_hub, official_name
from interp.models._local import boot, boot_directory, check_directory
from interp.models._memory import check_memory
from interp.models._origin import Origin, remember
from interp.models._toys import SET_BY_HAND, set_by_hand, trained_directory
from interp.models.cache import obtain, verify
from interp.models.cards import ModelCard, card, models

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["load", "named"]


def load(
    name: str | Path = "smollm2",
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    accept_license: bool = False,
) -> TransformerBridge:
    """Load a model as a TransformerLens bridge with raw weights (nothing folded or centred).

    A model of the catalogue is obtained on its first use and loads offline ever after. The bridge's
    `cfg.model_name` is the short name.

    Args:
        name: a name of `models()`, a Hugging Face directory, a `.gguf` file, or the id of a model on
            the hub that TransformerLens supports.
        device: None takes the accelerator if there is one, else the CPU.
        dtype: None means float32.
        accept_license: the user accepts the model's licence, where one needs acceptance; needed once,
            to obtain it.

    Returns:
        The bridge, in evaluation mode.

    Raises:
        UsageError: unknown name, unknown device, or a licence that is not accepted.
        InterpError: no network on a first use; a file that is missing, truncated or damaged; weights that are larger
            than the memory that is free; an architecture that can't be converted or bridged.

    Examples:
        >>> model = interp.load("smollm2")
        >>> model(model.to_tokens("Paris is the capital of")).shape
        torch.Size([1, 6, 49152])
    """
    meant = named(name)
    import torch

    place, kind = device_of(device), dtype or torch.float32
    with torch.inference_mode(False):  # no gradient would go through weights made in it
        if isinstance(meant, ModelCard):
            model = _load_known(meant, place, kind, accept_license)
        elif isinstance(meant, str):
            model = boot_hub(meant, place, kind)
        elif meant.is_dir():
            model = boot_directory(meant, meant.resolve().name, place, kind)
        else:
            model = _load_gguf(meant, place, kind)
    where = str(meant.resolve()) if isinstance(meant, Path) else str(name)
    remember(model, Origin(where, place.type, str(kind).removeprefix("torch."), accept_license))
    return model


def named(name: str | Path) -> ModelCard | Path | str:
    """What `load` takes a name for, told at once: a known model, a directory or GGUF file, or the id of the hub.

    Raises:
        UsageError: unknown name.
        InterpError: a file that is missing, truncated or damaged.
    """
    name = str(name)
    known = card(name)
    if known is not None:
        return known
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise InterpError(f"there is no file {path}")
        return path
    if path.is_dir():
        check_directory(path)
        return path
    if path.exists():
        raise UsageError(f"{path} is neither a model directory nor a .gguf file")
    if name.startswith((".", "/", "~")) or "\\" in name:
        raise InterpError(f"there is no model directory or .gguf file at {path}")
    hub_id = official_name(name) or (name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None)
    if hub_id is not None:
        return hub_id
    raise unknown_name("model", name, [c.name for c in models()])


def _load_known(known: ModelCard, device: torch.device, dtype: torch.dtype, accept_license: bool) -> TransformerBridge:
    if known.name in SET_BY_HAND:
        return boot(*set_by_hand(known.name), known.name, device, dtype)
    if known.kind == "toy":
        directory = trained_directory(known.name)
        check_directory(directory)
        return boot_directory(directory, known.name, device, dtype)
    directory = fetch(known.name, dtype=dtype, accept_license=accept_license)
    precision = str(stored(dtype)).removeprefix("torch.")
    option = "" if precision == "float32" else f" --dtype {precision}"
    again = f"run `interp models fetch {known.name}{option} --force`"
    return _load_cached(directory, known.name, device, dtype, again)


def _load_gguf(path: Path, device: torch.device, dtype: torch.dtype) -> TransformerBridge:
    """Convert a user's GGUF file once for each precision, kept under its digest, and load the conversion."""
    check_memory(check_header(path), dtype, device, path.name)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()

    def build(into: Path) -> dict[str, Any]:
        from interp.models.gguf import convert

        return {"file": path.name, "gguf_sha256": digest, **convert(path, into, dtype=stored(dtype))}

    directory = obtain(in_precision(f"gguf-{digest[:16]}", dtype), build)
    return _load_cached(directory, path.stem, device, dtype, f"delete {directory} and load {path} again")


def _load_cached(directory: Path, name: str, device: torch.device, dtype: torch.dtype, fix: str) -> TransformerBridge:
    # Checking the digests takes no more time than importing the libraries, and goes on beside it.
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(verify, directory, fix)
        import transformer_lens.model_bridge  # noqa: F401

        checked.result()
    return boot_directory(directory, name, device, dtype)
