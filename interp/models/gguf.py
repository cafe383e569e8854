"""A GGUF file -> an ordinary Hugging Face directory of safetensors in the precision that is asked for."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import InterpError, reason
from interp.models._gguf_header import check_header
from interp.models._quiet import quiet
from interp.models._shards import Shards
from interp.models._sizes import check_layers, check_numbers, empty
from interp.models.cards import Probe
from interp.models.wheels import Progress

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["convert"]

_BLOCK_BYTES = 64 << 10
"""Of quantised data that are dequantised at a time."""


def convert(
    gguf: Path,
    into: Path,
    probe: Probe | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Convert `gguf` to a Hugging Face directory, a tensor at a time; names and layouts are transformers'.

    No more than a shard and the largest tensor are held at once. The dequantised weights are products of
    half-precision scales and small integers: float32 has them as they are, half precision rounds them once more.

    Args:
        gguf: the file.
        into: an existing directory.
        probe: a prompt whose tokens and next token are known, to check the conversion with.
        dtype: of the weights that are written; None means float32.
        progress: called with the stage "convert", bytes of the file done and in all.

    Returns:
        What was converted with what, for the manifest.

    Raises:
        InterpError: the file is no GGUF file, truncated, of an architecture or tensor type that
            transformers can't read, lacks tensors of its architecture, or fails the probe.
    """
    import torch
    import transformers
    from transformers import AutoConfig, AutoTokenizer

    kind = dtype or torch.float32
    reader = _read(gguf)
    architecture, splitting = _text(reader, "general.architecture"), _text(reader, "tokenizer.ggml.pre")
    directory, name = str(gguf.parent), gguf.name
    with tempfile.TemporaryDirectory(prefix="converting-", dir=into) as work:
        made = Path(work)
        try:
            with quiet(), _shared(reader), contextlib.redirect_stderr(io.StringIO()):
                config = AutoConfig.from_pretrained(directory, gguf_file=name, local_files_only=True)
                tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=name, local_files_only=True)
                model = empty(config, len(reader.tensors), gguf)
                check_numbers((*model.parameters(), *model.buffers()), gguf.stat().st_size, gguf)
                written = _convert_tensors(reader, model, made, kind, progress)
        except InterpError:
            raise
        except Exception as error:
            raise InterpError(
                f"transformers can't convert {gguf} (architecture {architecture!r}): {reason(error)}"
            ) from error
        if missing := sorted(_wanted(model) - written):
            raise InterpError(
                f"{gguf} has no tensor for {', '.join(missing[:3])}{' and more' * (len(missing) > 3)}; "
                "the file is incomplete or of an architecture that transformers reads only in part"
            )
        if splitting == "smollm":
            _split_digits(tokenizer)
        _save_config(model, kind, made)
        with quiet():
            tokenizer.save_pretrained(made)
        if probe is not None:
            _check_probe(probe, made, kind)
        for file in sorted(made.iterdir()):
            file.rename(into / file.name)
    return {
        "gguf_architecture": architecture,
        "transformers": transformers.__version__,
        "dtype": str(kind).removeprefix("torch."),
    }


def _wanted(model: Any) -> set[str]:
    """The names of all weights, tied ones once."""
    return {name for name, _ in model.named_parameters()}


def _convert_tensors(reader: Any, model: Any, into: Path, dtype: torch.dtype, progress: Progress | None) -> set[str]:
    """Write each tensor of the file under transformers' name and layout; the names that were written."""
    import mmap

    import torch
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
        load_gguf_checkpoint,
    )

    parsed = load_gguf_checkpoint(str(reader.data.filename), return_tensors=False)
    processor = TENSOR_PROCESSORS.get(str(_text(reader, "general.architecture")), TensorProcessor)(
        config=parsed["config"]
    )
    names = get_gguf_hf_weights_map(model, processor)
    # Experts are gathered here by transformers' processors, several tensors of the file in one.
    gathered: dict[str, Tensor] = {}
    parsed["tensors"] = gathered
    shards, done = Shards(into), 0
    written: set[str] = set()
    total = sum(int(tensor.n_bytes) for tensor in reader.tensors)
    for tensor in reader.tensors:
        found = processor.process(
            weights=_dequantised(tensor), name=tensor.name, tensor_key_mapping=names, parsed_parameters=parsed
        )
        if found.name in names:
            name = names[found.name]
            weights = np.require(found.weights, requirements=["C", "W"])
            shards.add(name, _checked(name, torch.from_numpy(weights), dtype))
            written.add(name)
        reader.data._mmap.madvise(mmap.MADV_DONTNEED)
        done += int(tensor.n_bytes)
        if progress:
            progress("convert", done, total)
    for name, tensor in gathered.items():
        shards.add(name, _checked(name, tensor, dtype))
    shards.close()
    return written | set(gathered)


def _dequantised(tensor: Any) -> NDArray[np.float32]:
    """The tensor in float32, by blocks of rows that stay in the processor's cache: a third of the time."""
    from gguf import dequantize

    data, rows = tensor.data, max(1, _BLOCK_BYTES // max(1, tensor.data[:1].nbytes))
    if data.ndim < 2 or len(data) <= rows:
        return np.asarray(dequantize(data, tensor.tensor_type), dtype=np.float32)
    first = dequantize(data[:rows], tensor.tensor_type)
    out = np.empty((len(data), *first.shape[1:]), dtype=np.float32)
    out[:rows] = first
    for start in range(rows, len(data), rows):
        out[start : start + rows] = dequantize(data[start : start + rows], tensor.tensor_type)
    return out


def _checked(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    import torch

    if not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():  # NaN goes through; no copy of the tensor is made
        raise InterpError(f"the GGUF file is damaged: tensor {name} has values that are not finite")
    return tensor.to(dtype)


def _save_config(model: Any, dtype: torch.dtype, into: Path) -> None:
    """The configuration without the GGUF quantisation entry and the file's own title."""
    config = model.config
    for attribute in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, attribute):
            delattr(config, attribute)
    config._name_or_path = ""
    config.architectures = [type(model).__name__]
    config.dtype = dtype
    config.save_pretrained(into)
    if model.generation_config is not None:
        with quiet():
            model.generation_config.save_pretrained(into)


def _read(gguf: Path) -> Any:
    """The parsed file, after checking that it is a GGUF file and holds all tensors that it lists."""
    from gguf import GGUFReader

    check_header(gguf)
    try:
        reader = GGUFReader(gguf)
        architecture = _text(reader, "general.architecture")
        declared = {name: field.contents() for name, field in reader.fields.items() if name.endswith(".block_count")}
        end = max((int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors), default=0)
    except Exception as error:  # the reader believes what stands there
        raise InterpError(f"{gguf} is truncated or damaged: {reason(error)}; obtain the file again") from error
    if architecture is None or not reader.tensors:
        raise InterpError(f"{gguf} names no architecture or holds no tensors; it is not a model file")
    size = gguf.stat().st_size
    if end > size:
        raise InterpError(f"{gguf} is truncated: {size:,} bytes of {end:,}; obtain the file again")
    check_layers(declared, len(reader.tensors), gguf)
    return reader


def _text(reader: Any, key: str) -> str | None:
    field = reader.get_field(key)
    return None if field is None else str(field.contents())


@contextlib.contextmanager
def _shared(reader: Any) -> Iterator[None]:
    """Give transformers the parsed file; parsing a large vocabulary anew three times takes most of its time."""
    import gguf

    original = gguf.GGUFReader
    gguf.GGUFReader = lambda *_, **__: reader  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        gguf.GGUFReader = original  # type: ignore[misc]


def _split_digits(tokenizer: Any) -> None:
    """Split digits one by one before byte-level BPE, as the pre-tokenizer named "smollm" does.

    transformers builds a plain byte-level pre-tokenizer for it, which differs from the original
    after two or more spaces ("  1" becomes " ", " ", "1" instead of "  ", "1").
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _check_probe(probe: Probe, directory: Path, dtype: torch.dtype) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    tokens = tuple(tokenizer(probe.text, add_special_tokens=False).input_ids)
    before = (tokenizer.bos_token_id,) if probe.bos else ()
    with torch.no_grad():
        logits = model(torch.tensor([[*before, *tokens]])).logits[0, -1]
    found = tokenizer.decode([int(logits.argmax())])
    if tokens != probe.tokens or found != probe.answer:
        raise InterpError(
            f"transformers {transformers.__version__} converts these weights wrongly: {probe.text!r} became "
            f"{len(tokens)} tokens and was continued with {found!r} instead of {probe.answer!r}; "
            "install a release of transformers that the project's bounds allow"
        )
