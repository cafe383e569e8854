"""The commands about dictionaries, as a user meets them."""

from __future__ import annotations

import json

import pytest
import torch
from command_line import command

import interp
from interp.errors import UsageError
from interp.features import Dictionary, load_circuit_tracer, load_transcoders


@pytest.mark.real_model
def test_a_dictionary_is_trained_judged_and_read(tmp_path):
    arguments = ["--hook", "resid_post.2", "--width", 640, "--tokens", 4000, "--text", "prose", "--batch", 500]
    done = command("sae", "train", *arguments, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    dictionary = Dictionary.load(tmp_path)
    assert (dictionary.d_in, dictionary.d_sae, str(dictionary.reads)) == (576, 640, "resid_post.2")
    assert not (tmp_path / "activations").exists()
    done = command("sae", "train", *arguments, "--tokens", 40_000, "--out", tmp_path)
    assert done.returncode == 2
    assert "that is finished, asked for are" in " ".join(done.stderr.split())
    assert not (tmp_path / "activations").exists()  # refused before anything was harvested
    done = command("sae", "eval", tmp_path, "-n", 4, "--length", 48, "--json")
    assert done.returncode == 0, done.stderr
    found = {row["metric"]: row for row in json.loads(done.stdout)}
    assert found["ce_with_error"]["dictionary"] == found["ce_with_error"]["zero"]
    assert found["l0"]["dictionary"] == pytest.approx(32, abs=0.5)
    assert found["r2"]["dictionary"] > found["r2"]["random"]
    done = command("sae", "dashboard", tmp_path, "--tokens", 1000, "--features", 3)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "dashboard" / "index.html").is_file()
    assert interp.results.load(tmp_path / "dashboard").features.tolist() == [0, 1, 2]
    assert torch.equal(interp.results.load(tmp_path).W_enc, dictionary.W_enc)


@pytest.mark.real_model
def test_transcoders_of_several_layers_come_from_one_pass(tmp_path):
    arguments = ["--layers", "1-2", "--width", 640, "--tokens", 4000, "--text", "prose", "--batch", 500]
    done = command("sae", "transcoders", *arguments, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    made = load_transcoders(tmp_path)
    assert {layer: (str(one.reads), str(one.writes)) for layer, one in made.items()} == {
        1: ("mlp_in.1", "mlp_out.1"),
        2: ("mlp_in.2", "mlp_out.2"),
    }
    x = torch.randn(5, 576, generator=torch.Generator().manual_seed(0))
    same = load_circuit_tracer(tmp_path / "layer_2.safetensors", "mlp_in.2", "mlp_out.2")
    assert list(interp.results.load(tmp_path)) == [1, 2]
    assert interp.results.load(tmp_path / "layer_2.safetensors").reads == same.reads
    torch.testing.assert_close(same(x), made[2](x))
    reports = [json.loads(line) for line in (tmp_path / "layer_1" / "metrics.jsonl").read_text().splitlines()]
    assert reports[-1]["l0"] <= 32


def test_transcoders_need_a_folder_that_has_some(tmp_path):
    with pytest.raises(UsageError, match="no transcoders in"):
        load_transcoders(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sae", "train", "--hook", "blocks.1.hook_nothing"], "unknown hook 'blocks.1.hook_nothing'"),
        (["sae", "transcoders", "--layers", "3-x"], "can't read the layers '3-x'"),
        (["sae", "transcoders", "--layers", "9", "--model", "toy-induction"], "layers are numbers from 0 to 1"),
        (["sae", "train", "--arch", "dense"], "unknown architecture 'dense'"),
        (["sae", "train", "--hook", "resid_post.9", "--model", "toy-induction"], "layer 9 is out of range"),
    ],
)
def test_bad_requests_end_with_one_message_and_code_2(arguments, message, tmp_path):
    done = command(*arguments, "--out", tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
