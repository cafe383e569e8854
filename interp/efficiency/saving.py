"""Models with plans made permanent, on disk: weights as they are, the config, the tokenizer, and the plans."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel

from interp.checking import checked, damaged, read_json, read_tensors, tensor_shapes
from interp.efficiency.deployment import Deployment, deployment, skeleton
from interp.efficiency.plan import Plan, Undo
from interp.errors import InterpError, UsageError, reason
from interp.models._sizes import at_most, check_layers, check_numbers
from interp.results.files import write_text
from interp.results.folders import settle, together
from interp.upstream import key_value_heads

__all__ = ["load", "save"]

_FORMAT, _WEIGHTS, _ABOUT, _CONFIG = 1, "model.safetensors", "plans.json", "config.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_MARK = "interp.saved"
_SPARSEST = 1000
"""Numbers of a model before its plans to a byte of what they left of it."""


def save(model: PreTrainedModel, directory: str | os.PathLike[str]) -> None:
    """Writes a deployed model, as small as its plans made it.

    Args:
        model: What `Plan.made_permanent` gave.
        directory: Where; made if it is not there.

    Raises:
        UsageError: The model was not deployed.
        InterpError: The files can't be written.
    """
    found, folder = deployment(model), Path(directory)
    tokenizer: Any = getattr(model, "tokenizer", None)
    record = {**asdict(Deployment(found.name, found.fingerprint, found.layers, found.groups)), "format": _FORMAT}
    record["plans"] = [plan.to_dict() for plan in found.plans]
    record["class"] = type(model).__name__
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    tensors, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if name in tied and tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        tensors[name] = tensor.detach().contiguous()
    with together(folder, instead_of=_written_before(folder)) as aside:
        for part in (model.config, model.generation_config, tokenizer):
            if part is not None:
                part.save_pretrained(aside)
        record["config_sha256"] = _sha256((aside / _CONFIG).read_bytes())
        record["saved"] = _sha256(json.dumps(record).encode())[:16]
        record["files"] = sorted([_ABOUT, _WEIGHTS, *(path.name for path in aside.iterdir())])
        save_file(tensors, aside / _WEIGHTS, metadata={"format": "pt", _MARK: record["saved"]})
        write_text(aside / _ABOUT, json.dumps(record, indent=1) + "\n")


def load(directory: str | os.PathLike[str]) -> PreTrainedModel:
    """Loads a model that `save` wrote, with its plans in force; nothing else is needed.

    Raises:
        InterpError: Files that are missing or damaged.
        UsageError: Another format or an unknown kind of plan.
    """
    folder = Path(directory)
    settle(folder)
    path, weights, declared = folder / _ABOUT, folder / _WEIGHTS, folder / _CONFIG
    record = read_json(path)
    if record.get("format") != _FORMAT:
        raise UsageError(f"{folder} has format {record.get('format')!r}, this library reads {_FORMAT}; save it again")
    kind = checked(record, "class", str, path)
    if kind not in causal_models():
        raise UsageError(f"{path} is of the class {kind!r}, which is no causal language model of transformers")
    plans = [Plan.from_dict(stored, path) for stored in checked(record, "plans", list[dict], path)]
    there = len(tensor_shapes(weights))
    check_layers(read_json(declared), there, declared)
    _of_one(folder, record)
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"), at_most(there, declared):
            whole = skeleton(config, getattr(transformers, kind))
        check_numbers(whole.buffers(), weights.stat().st_size, declared)
        check_numbers(whole.parameters(), weights.stat().st_size, declared, _SPARSEST)
        model: Any = skeleton(config, getattr(transformers, kind))
        model.deployment = _whole(record, model, path)
        for plan in plans:
            undo = Undo()
            plan.shape(model, undo)
            undo.pop_all()
            deployment(model).plans.append(plan)
        model.load_state_dict(read_tensors(weights)[0], strict=False, assign=True)
        model.tie_weights()
        if empty := [name for name, weight in model.named_parameters() if weight.is_meta]:
            raise InterpError(f"{weights} lacks {empty[0]}; save the model again")
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        listed = checked(record, "files", list[str], path, default=list(_TOKENIZER))
        if any((folder / name).is_file() for name in _TOKENIZER if name in listed):
            model.tokenizer = AutoTokenizer.from_pretrained(folder)
    except InterpError:
        raise
    except Exception as error:  # transformers believes what stands there
        raise InterpError(f"could not load a model from {folder}: {reason(error)}") from error
    return model.eval()


def causal_models() -> set[str]:
    """The names of transformers' causal language models: the only classes that a file can ask for."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    return {name for held in NAMES.values() for name in ((held,) if isinstance(held, str) else held)}


def _whole(record: dict[str, Any], model: PreTrainedModel, path: Path) -> Deployment:
    """Where the model came from, before any plan; a config that is saved says how many blocks are left."""
    config = model.config.get_text_config()
    kv_heads = key_value_heads(config)
    layers = checked(record, "layers", list[int], path)
    if len(layers) != config.num_hidden_layers:
        raise damaged(path, f"it has {len(layers)} layers, and config.json {config.num_hidden_layers}")
    groups = [list(range(kv_heads)) for _ in layers]
    return Deployment(checked(record, "name", str, path), checked(record, "fingerprint", str, path), layers, groups)


def _written_before(folder: Path) -> list[str]:
    """The files of the model that stands there, by what it says; none if it says nothing."""
    try:
        files = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))["files"]
        return [name for name in files if name == Path(name).name]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _of_one(folder: Path, record: dict[str, Any]) -> None:
    """Refuses weights and a configuration that were saved with other plans, as far as they say so.

    Raises:
        InterpError: They say so.
    """
    with safe_open(folder / _WEIGHTS, framework="pt") as file:
        mark = (file.metadata() or {}).get(_MARK)
    config = _sha256((folder / _CONFIG).read_bytes())
    wrong = _WEIGHTS if mark != record.get("saved", mark) else _CONFIG
    if wrong == _WEIGHTS or config != record.get("config_sha256", config):
        raise InterpError(
            f"{folder / wrong} is not the one that {folder / _ABOUT} was saved with: one of them was replaced without "
            "the other; save the model again, or copy all its files anew"
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
