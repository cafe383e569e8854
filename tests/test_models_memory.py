"""Weights larger than memory are refused before anything of them is read, with the precision that would fit."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from model_files import write_gguf
from safetensors.torch import load_file

from interp.engine.memory import available_bytes
from interp.errors import InterpError
from interp.models import _memory, load
from interp.models._data import data_path
from interp.models._gguf_header import check_header
from interp.models._local import count_numbers
from interp.models._memory import check_memory, free_bytes

CPU = torch.device("cpu")


@pytest.fixture
def free(monkeypatch):
    """A machine that has as much memory as is said."""

    def set_to(size: int) -> None:
        monkeypatch.setattr(_memory, "free_bytes", lambda: size)

    return set_to


@pytest.fixture
def directory(tmp_path):
    """A Hugging Face directory of one's own."""
    return shutil.copytree(data_path("toy-induction-trained"), tmp_path / "mine")


def test_numbers_are_counted_from_headers_alone(directory, tmp_path):
    weights = load_file(directory / "model.safetensors")
    assert count_numbers(directory) == sum(tensor.numel() for tensor in weights.values())
    gguf = write_gguf(tmp_path / "tiny.gguf")
    from gguf import GGUFReader

    assert check_header(gguf) == sum(int(tensor.n_elements) for tensor in GGUFReader(gguf).tensors)


@pytest.mark.parametrize(
    ("share", "dtype", "fix"),
    [
        (3, torch.float32, r"in float32.*load it with dtype=torch\.bfloat16 \(--dtype bfloat16\)"),
        (5, torch.float64, r"in float64.*load it with dtype=torch\.float32 \(--dtype float32\)"),
        (1, torch.float32, r"it takes .* in bfloat16 too; free some memory"),
        (1, torch.bfloat16, r"on cpu: free some memory, or take a smaller model"),
    ],
)
def test_a_model_larger_than_memory_names_the_precision_that_fits(directory, free, monkeypatch, share, dtype, fix):
    import transformers

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    free(share * count_numbers(directory))
    with pytest.raises(InterpError, match=rf"mine has [\d,]+ numbers, .*{fix}"):
        load(directory, dtype=dtype, device="cpu")


def test_a_model_that_fits_exactly_is_loaded(directory, free):
    free(4 * count_numbers(directory))
    assert load(directory, device="cpu").cfg.model_name == "mine"


def test_a_gguf_file_is_refused_before_it_is_converted(tmp_path, free, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    gguf = write_gguf(tmp_path / "tiny.gguf")
    free(3 * check_header(gguf))
    with pytest.raises(InterpError, match=r"tiny\.gguf has .*dtype=torch\.bfloat16"):
        load(gguf, device="cpu")
    assert not (tmp_path / "cache").exists()


def test_a_model_of_the_hub_is_refused_by_what_the_hub_says_of_its_size(free, monkeypatch):
    said = SimpleNamespace(safetensors=SimpleNamespace(total=70_000_000_000))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: said)
    free(150 * 10**9)
    with pytest.raises(
        InterpError, match=r"some/large has 70,000,000,000 numbers, 280\.0 GB in float32, and 150\.0 GB"
    ):
        load("some/large", device="cpu")


def test_an_accelerator_is_asked_too(free, monkeypatch):
    free(1 << 40)
    module = SimpleNamespace(mem_get_info=lambda device: (1000, 2000))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    with pytest.raises(InterpError, match=r"free on cuda:0"):
        check_memory(300, torch.float32, torch.device("cuda:0"), "it")
    check_memory(250, torch.float32, torch.device("cuda:0"), "it")
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace())
    check_memory(10**12 // 8, torch.float32, torch.device("mps"), "it")  # it does not tell


def test_free_memory_is_what_can_be_had_within_the_containers_limit(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemFree: 100 kB\nMemAvailable:   500 kB\n")
    monkeypatch.setattr(_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(_memory, "_CGROUP", tmp_path)
    assert free_bytes() == available_bytes(CPU) == 500 << 10
    for name, text in {"memory.max": "max", "memory.current": "7000"}.items():
        (tmp_path / name).write_text(text + "\n")
    assert free_bytes() == 500 << 10
    (tmp_path / "memory.max").write_text("100000\n")
    (tmp_path / "memory.stat").write_text("anon 5000\ninactive_file 2000\n")
    assert free_bytes() == 100_000 - 7000 + 2000
    (tmp_path / "meminfo").unlink()
    (tmp_path / "memory.max").unlink()
    assert free_bytes() == _memory._free_in_system() > 0
