"""A Hugging Face directory -> a `TransformerBridge`, and the checks before its weights are read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.checking import checked, inside, read_json, tensor_shapes
from interp.errors import InterpError, reason
from interp.models._memory import check_memory
from interp.models._quiet import quiet
from interp.models._sizes import check_layers, check_numbers, empty

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["boot", "boot_directory", "check_directory", "count_numbers"]


def check_directory(directory: Path) -> None:
    """Check that the files of a Hugging Face directory are there, whole and of one size, reading only headers.

    Raises:
        InterpError: naming the file that is missing, unreadable, truncated or of another size.
    """
    config = directory / "config.json"
    if not config.is_file():
        raise InterpError(f"{directory} is not a Hugging Face model directory: {config} is missing")
    declared = read_json(config)
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise InterpError(
            f"{directory} has no tokenizer: tokenizer.json is missing; save it with "
            "tokenizer.save_pretrained(directory)"
        )
    tensors, size = 0, 0
    for path in _weight_files(directory):
        if not path.is_file():
            raise InterpError(f"weight file {path} is missing; obtain the directory again")
        tensors, size = tensors + len(tensor_shapes(path)), size + path.stat().st_size
    check_layers(declared, tensors, config)
    try:
        with quiet():
            from transformers import AutoConfig

            model = empty(AutoConfig.from_pretrained(directory, local_files_only=True), tensors, config)
    except InterpError:
        raise
    except Exception as error:
        raise InterpError(f"could not load the model in {directory}: {reason(error)}") from error
    check_numbers((*model.parameters(), *model.buffers()), size, config)


def boot_directory(directory: Path, name: str, device: str | torch.device, dtype: torch.dtype) -> TransformerBridge:
    """Load a causal language model from `directory` as a bridge with raw weights, called `name`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = str(directory)
    check_memory(count_numbers(directory), dtype, torch.device(device), name)
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
            # The bridge wants BOS in front; a tokenizer loaded without it would be read a second time.
            try:
                tokenizer = AutoTokenizer.from_pretrained(source, add_bos_token=True, local_files_only=True)
            except ValueError:
                tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    except InterpError:
        raise
    except Exception as error:
        raise InterpError(f"could not load the model in {directory}: {reason(error)}") from error
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise InterpError(
            f"the weights in {directory} lack {', '.join(missing[:3])}{' and more' * (len(missing) > 3)}; "
            "they do not fit its config.json"
        )
    return boot(model, tokenizer, name, device, dtype)


def count_numbers(directory: Path) -> int:
    """How many numbers the weights of a Hugging Face directory have, by the headers of its files."""
    shapes = (shape for path in _weight_files(directory) for shape in tensor_shapes(path).values())
    return sum(math.prod(shape) for shape in shapes)


def boot(model: Any, tokenizer: Any, name: str, device: str | torch.device, dtype: torch.dtype) -> TransformerBridge:
    """Wrap a Hugging Face model as a bridge on `device` in `dtype`, in evaluation mode."""
    from transformer_lens.model_bridge import TransformerBridge

    try:
        with quiet():
            model = model.to(device)
            for weight in model.parameters():  # buffers stay in float32: in bfloat16 the rotary frequencies are wrong
                weight.data = weight.data.to(dtype)
            bridge = TransformerBridge.boot_transformers(
                name, hf_model=model, tokenizer=tokenizer, device=device, dtype=dtype
            )
    except Exception as error:
        raise InterpError(f"TransformerLens can't bridge {name!r} ({type(model).__name__}): {reason(error)}") from error
    bridge.eval()
    return bridge


def _weight_files(directory: Path) -> list[Path]:
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        weight_map = checked(read_json(index), "weight_map", dict[str, str], index)
        if not weight_map:
            raise InterpError(f"{index} names no weight files; obtain the directory again")
        return [inside(directory, name, index) for name in sorted(set(weight_map.values()))]
    raise InterpError(
        f"weight file {single} is missing (only safetensors are read); "
        "save the model with save_pretrained(directory) or obtain the directory again"
    )
