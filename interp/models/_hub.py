"""Models by their id on the Hugging Face hub, where one is reachable."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from interp.errors import InterpError, UsageError
from interp.models._local import count_numbers
from interp.models._memory import check_memory
from interp.models._quiet import quiet

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["boot_hub", "official_name"]

_TIMEOUT_S = 5.0


def official_name(name: str) -> str | None:
    """The hub id that TransformerLens lists for `name`, which may be an alias of its; None if it lists none."""
    return official_names().get(name.lower())


@cache
def official_names() -> dict[str, str]:
    """The hub ids that TransformerLens lists, by themselves and by their aliases, in small letters.

    They are read from its files, since importing it takes seconds.
    """
    spec = find_spec("transformer_lens")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    source = ast.parse((package / "supported_models.py").read_text(encoding="utf-8"))
    lists = {ast.unparse(line.target): line.value for line in source.body if isinstance(line, ast.AnnAssign)}
    listed = lists["OFFICIAL_MODEL_NAMES"]
    assert listed is not None
    table = package / "tools" / "model_registry" / "data" / "model_aliases.json"
    aliases = json.loads(table.read_text(encoding="utf-8"))["aliases"]
    names: dict[str, str] = {}
    for name in ast.literal_eval(listed):
        names |= dict.fromkeys([alias.lower() for alias in (*aliases.get(name, ()), name)], name)
    return names


def boot_hub(hub_id: str, device: torch.device, dtype: torch.dtype) -> TransformerBridge:
    """Load a model of the hub, or of the hub's local cache when the hub can't be reached.

    Raises:
        UsageError: the hub has no such model.
        InterpError: the hub can't be reached and the model is not in its cache, its weights are larger than the memory
            that is free, or loading failed.
    """
    from huggingface_hub import try_to_load_from_cache

    reachable, numbers = _asked(hub_id)
    kept = None if reachable else try_to_load_from_cache(hub_id, "config.json")
    if not reachable and not isinstance(kept, str):
        raise InterpError(
            f"can't obtain {hub_id!r}: the Hugging Face hub is not reachable from here; copy the model's "
            f"directory (config.json, safetensors, tokenizer) from elsewhere and give its path instead"
        )
    if isinstance(kept, str) and next(Path(kept).parent.glob("model*.safetensors"), None):
        numbers = count_numbers(Path(kept).parent)
    check_memory(numbers or 0, dtype, device, hub_id)
    from transformer_lens.model_bridge import TransformerBridge

    try:
        with quiet(), _offline(not reachable):
            bridge = TransformerBridge.boot_transformers(hub_id, device=device, dtype=dtype)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InterpError(f"could not load {hub_id!r} from the Hugging Face hub: {reason[0]}") from error
    bridge.eval()
    return bridge


def _asked(hub_id: str) -> tuple[bool, int | None]:
    """Whether the hub can be reached, and how many numbers it says that the model has.

    It is asked once: transformers itself would try six times for every file.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        weights = HfApi().model_info(hub_id, timeout=_TIMEOUT_S).safetensors
    except GatedRepoError as error:
        raise InterpError(
            f"{hub_id!r} is gated on the Hugging Face hub; accept its terms there and run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UsageError(f"the Hugging Face hub has no model {hub_id!r} (or it is private)") from error
    except HfHubHTTPError:
        return True, None
    except Exception:
        return False, None
    return True, None if weights is None else weights.total


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Make the hub's client answer from its cache alone, without trying the network."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
