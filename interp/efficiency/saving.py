"""Models with plans made permanent, on disk: weights as they are, the config, the tokenizer, and the plans."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel

from interp.checking import checked, damaged, read_json, read_tensors, tensor_shapes
from interp.efficiency.deployment import Deployment, deployment, skeleton
from interp.efficiency.plan import Plan, Undo
from interp.errors import InterpError, UsageError
from interp.models._sizes import check_layers, check_numbers
from interp.results.files import replacing, write_text

__all__ = ["load", "save"]

_FORMAT, _WEIGHTS, _ABOUT = 1, "model.safetensors", "plans.json"


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / _WEIGHTS) as aside:
            save_file(tensors, aside, metadata={"format": "pt"})
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        write_text(folder / _ABOUT, json.dumps(record, indent=1) + "\n")
    except (OSError, SafetensorError) as error:
        raise InterpError(f"could not write the model to {folder}: {error}") from error


def load(directory: str | os.PathLike[str]) -> PreTrainedModel:
    """Loads a model that `save` wrote, with its plans in force; nothing else is needed.

    Raises:
        InterpError: Files that are missing or damaged.
        UsageError: Another format or an unknown kind of plan.
    """
    folder = Path(directory)
    path, weights, declared = folder / _ABOUT, folder / _WEIGHTS, folder / "config.json"
    record = read_json(path)
    if record.get("format") != _FORMAT:
        raise UsageError(f"{folder} has format {record.get('format')!r}, this library reads {_FORMAT}; save it again")
    kind = checked(record, "class", str, path)
    if kind not in causal_models():
        raise UsageError(f"{path} is of the class {kind!r}, which is no causal language model of transformers")
    plans = [Plan.from_dict(stored, path) for stored in checked(record, "plans", list[dict], path)]
    check_layers(read_json(declared), len(tensor_shapes(weights)), declared)
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            beside = list(skeleton(config, getattr(transformers, kind)).buffers())
        check_numbers(beside, weights.stat().st_size, declared)
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
        if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
            model.tokenizer = AutoTokenizer.from_pretrained(folder)
    except InterpError:
        raise
    except Exception as error:  # transformers believes what stands there
        raise InterpError(f"could not load a model from {folder}: {error}") from error
    return model.eval()


def causal_models() -> set[str]:
    """The names of transformers' causal language models: the only classes that a file can ask for."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    return {name for held in NAMES.values() for name in ((held,) if isinstance(held, str) else held)}


def _whole(record: dict[str, Any], model: PreTrainedModel, path: Path) -> Deployment:
    """Where the model came from, before any plan; a config that is saved says how many blocks are left."""
    config = model.config.get_text_config()
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    layers = checked(record, "layers", list[int], path)
    if len(layers) != config.num_hidden_layers:
        raise damaged(path, f"it has {len(layers)} layers, and config.json {config.num_hidden_layers}")
    groups = [list(range(kv_heads)) for _ in layers]
    return Deployment(checked(record, "name", str, path), checked(record, "fingerprint", str, path), layers, groups)
