"""Loading by name or path, and what is said when that can't be done."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import time

import huggingface_hub
import pytest
import torch

from interp.errors import InterpError, UsageError
from interp.models import load
from interp.models._data import data_path


@pytest.fixture
def directory(tmp_path):
    """A Hugging Face directory of one's own."""
    return shutil.copytree(data_path("toy-induction-trained"), tmp_path / "mine")


def test_local_directory_loads_under_its_name(directory):
    model = load(directory)
    assert model.cfg.model_name == "mine"
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert load(str(directory) + "/").cfg.model_name == "mine"


def test_bridge_computes_what_the_hugging_face_model_does(directory):
    from transformers import AutoModelForCausalLM

    tokens = torch.randint(3, 64, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(directory).eval()(tokens).logits
        assert torch.allclose(load(directory, device="cpu")(tokens), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_are_not_rounded_in_half_precision(directory, dtype):
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="eager").eval()
    model = load(directory, dtype=dtype, device="cpu")
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    assert model.original_model.model.rotary_emb.inv_freq.dtype == torch.float32
    tokens = torch.randint(3, 64, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain(tokens).logits
        assert torch.equal(model.original_model(tokens).logits, expected)
        assert torch.allclose(model(tokens), expected, atol=0.02 * expected.abs().max())


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def cut_header(path):
    path.write_bytes(path.read_bytes()[:100])


def spoil_header(path):
    content = bytearray(path.read_bytes())
    content[8:40] = b"x" * 32
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("config.json", lambda path: path.unlink(), r"config\.json is missing"),
        ("config.json", lambda path: path.write_text("{"), r"config\.json is cut short.*no JSON"),
        ("config.json", lambda path: path.write_text("[]"), r"config\.json .*an object is needed"),
        ("tokenizer.json", lambda path: path.unlink(), r"tokenizer\.json is missing"),
        ("model.safetensors", lambda path: path.unlink(), r"model\.safetensors is missing"),
        ("model.safetensors", lambda path: path.write_bytes(b""), r"model\.safetensors is cut short"),
        ("model.safetensors", truncate, r"model\.safetensors is cut short.*bytes where its header needs"),
        ("model.safetensors", cut_header, r"model\.safetensors is cut short.*don't hold its header"),
        ("model.safetensors", spoil_header, r"model\.safetensors is cut short, damaged.*no JSON"),
    ],
)
def test_damaged_directory_is_one_message_that_names_the_file(directory, file, damage, message):
    damage(directory / file)
    with pytest.raises(InterpError, match=message) as caught:
        load(directory)
    assert "\n" not in str(caught.value)


def test_missing_shard_is_named(directory):
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InterpError, match=r"model-00001-of-00002\.safetensors is missing"):
        load(directory)


def test_weights_that_do_not_fit_the_config_are_refused(directory):
    config = json.loads((directory / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(InterpError, match=r"lack model\.layers\.2\."):
        load(directory)


def test_architecture_that_is_no_language_model_is_one_message(directory):
    (directory / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
    with pytest.raises(InterpError, match="could not load the model in"):
        load(directory)


def test_unknown_name_lists_the_nearest():
    with pytest.raises(UsageError, match="unknown model 'gema3-270m'; did you mean 'gemma3-270m'"):
        load("gema3-270m")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/no-such-model-directory"])
def test_path_that_does_not_exist_is_not_looked_up_on_the_hub(name):
    with pytest.raises(InterpError, match="there is no model directory"):
        load(name)


def test_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"neither a model directory nor a \.gguf file"):
        load(tmp_path / "model.bin")


@pytest.mark.parametrize("name", ["some-org/some-model", "gpt2", "gpt2-small"])
def test_unreachable_hub_is_said_at_once(name, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    begun = time.monotonic()
    with pytest.raises(InterpError, match=r"hub is not reachable from here.* give its path instead"):
        load(name)
    assert time.monotonic() - begun < 15


def test_unknown_device_is_a_usage_error():
    with pytest.raises(UsageError, match="device 'warp' can't be used"):
        load("toy-induction", device="warp")


def test_loading_prints_nothing_and_leaves_logging_as_it_was():
    import transformers.utils.logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    load("toy-induction-trained")
    assert (hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()) == (level, bars)
    assert logging.getLogger().level == logging.WARNING
    program = "from interp.models import load; load('toy-induction-trained')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_listing_models_does_not_import_the_libraries():
    program = (
        "import sys; from interp.models import models, state; [state(card.name) for card in models()]; "
        "assert not {'torch', 'transformers', 'transformer_lens'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_data_file_that_is_missing_is_named():
    with pytest.raises(InterpError, match=r"data file 'no/such' is missing"):
        data_path("no", "such")
