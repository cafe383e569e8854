"""GGUF files: converted once under their digest, and each kind of damage is one message."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_files import write_gguf
from safetensors.torch import load_file

from interp.errors import InterpError
from interp.models import load
from interp.models.cards import Probe
from interp.models.gguf import convert


@pytest.fixture
def gguf(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    return write_gguf(tmp_path / "tiny.gguf")


def test_conversion_keeps_every_value_and_the_tokenizer(gguf):
    model = load(gguf)
    random = np.random.default_rng(0)
    embedding = torch.from_numpy(random.normal(0, 0.1, (261, 32)).astype(np.float32))
    assert torch.equal(model.W_E, embedding)
    assert model.cfg.model_name == "tiny"
    assert model.to_tokens("ab c").shape == (1, 4)
    assert model.to_str_tokens("ab c")[:2] == ["<bos>", "ab"]
    assert model.to_string(model.to_tokens("ab c", prepend_bos=False)) == ["ab c"]


def test_second_load_takes_the_conversion_from_the_cache(gguf, monkeypatch):
    load(gguf)
    moved = gguf.rename(gguf.parent / "moved.gguf")
    monkeypatch.setattr("interp.models.gguf.convert", lambda *_: pytest.fail("converted twice"))
    assert load(moved).cfg.model_name == "moved"


def test_shards_hold_what_one_file_holds(gguf, tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    convert(gguf, tmp_path / "one")
    monkeypatch.setattr("interp.models._shards.SHARD_BYTES", 20_000)
    convert(gguf, tmp_path / "many")
    one = load_file(tmp_path / "one" / "model.safetensors")
    files = sorted((tmp_path / "many").glob("model-*.safetensors"))
    assert len(files) > 2
    many = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)
    tokens = torch.arange(20)[None]
    assert torch.equal(load(tmp_path / "one")(tokens), load(tmp_path / "many")(tokens))


def test_converted_directory_is_an_ordinary_one(gguf, tmp_path):
    (tmp_path / "out").mkdir()
    convert(gguf, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()
    assert load(tmp_path / "out").cfg.model_name == "out"


def test_digits_are_split_as_the_smollm_pre_tokenizer_does(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    tokenizer = load(write_gguf(tmp_path / "digits.gguf", pre="smollm")).tokenizer
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")
    assert [piece for piece, _ in pieces] == ["a", "ĠĠ", "1", "2"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"junk" + content[4:], "is not a GGUF file"),
        (lambda content: content[:-1000], "is truncated"),
        (lambda content: content[:900], "is truncated or damaged"),
        (lambda content: b"", "is not a GGUF file"),
    ],
    ids=["magic", "tensors", "header", "empty"],
)
def test_damaged_file_is_one_message_that_names_it(gguf, damage, message):
    gguf.write_bytes(damage(gguf.read_bytes()))
    with pytest.raises(InterpError, match=f"tiny.gguf {message}"):
        load(gguf)


def test_file_without_a_tensor_is_refused_rather_than_filled_with_noise(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "part.gguf", leave_out="blk.1.ffn_up")
    with pytest.raises(InterpError, match=r"no tensor for model\.layers\.1\.mlp\.up_proj\.weight"):
        load(path)


def test_conversion_that_fails_its_probe_is_refused(gguf, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(InterpError, match="converts these weights wrongly"):
        convert(gguf, tmp_path / "out", Probe("ab", (1, 2, 3), " Mary"))
    assert not list((tmp_path / "out").iterdir())


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InterpError, match=r"there is no file .*absent\.gguf"):
        load(tmp_path / "absent.gguf")


def test_every_tensor_is_what_transformers_own_loader_gives(gguf, tmp_path):
    from transformers import AutoModelForCausalLM

    (tmp_path / "out").mkdir()
    convert(gguf, tmp_path / "out")
    ours = load_file(tmp_path / "out" / "model.safetensors")
    whole = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    theirs = dict(whole.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
