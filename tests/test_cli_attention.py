"""The commands about attention, as a user meets them."""

from __future__ import annotations

import json

import pytest
from command_line import command

import interp


def test_heads_prints_the_survey_and_writes_the_finding(tmp_path):
    done = command("heads", "--model", "toy-induction", "--out", tmp_path, "--length", 64)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    written = {"finding.json", "finding.safetensors", "scores.csv", "heatmap.html", "heatmap.png", "survey.csv"}
    assert {path.name for path in tmp_path.iterdir()} == written
    found = interp.results.load(tmp_path, interp.load("toy-induction"))
    assert found.top("induction", 1) == [(1, 0)]
    assert "1.0 (1.00)" in done.stdout
    assert "left out: name_mover" in done.stdout


def test_heads_as_json():
    done = command("heads", "--model", "toy-induction", "--kinds", "induction, previous_token", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["coords"]["kind"]["data"] == ["induction", "previous_token"]


@pytest.mark.real_model
def test_sinks_writes_three_findings(tmp_path):
    done = command("sinks", "--text", "prose,code", "-n", 2, "--length", 32, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    kinds = {name: interp.results.load(tmp_path / name) for name in ("sink_heads", "sink_positions")}
    assert kinds["sink_positions"].positions == (0,)
    assert kinds["sink_heads"].evidence["domains"]["domain"].values.tolist() == ["prose", "code"]
    assert interp.results.load(tmp_path / "massive_activations").channels[0] == 507
    assert (tmp_path / "sink_heads" / "heatmap.png").is_file()
    assert "massive activations: channels 507" in done.stdout


@pytest.mark.real_model
def test_retrieval_heads_prints_recall_and_writes_the_finding(tmp_path):
    done = command("retrieval-heads", "--lengths", 256, "--depths", "0.5", "-n", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    found = interp.results.load(tmp_path)
    assert "needle recall by length and depth" in done.stdout
    assert (18, 6) in found.top(3)
    assert f"{found.settings['samples_used']} samples are scored" in done.stdout


@pytest.mark.real_model
def test_retrieval_heads_by_their_reach(tmp_path):
    asked = ["retrieval-heads", "--by", "reach", "--haystack", "noise", "--window", 32]
    done = command(*asked, "--lengths", 112, "-n", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    found = interp.results.load(tmp_path)
    assert found.method == "reach"
    assert (found.settings["haystack"], found.settings["lengths"]) == ("noise", [112])
    assert "sees 4 sinks and the last 32 tokens alone" in done.stdout
    (layer, head), *_ = found.top(1)
    assert f"{found.groups('sum').values[layer, head // 3]:.3f}" in done.stdout


def test_attention_shows_two_prompts_side_by_side(tmp_path):
    arguments = ["attention", "cat dog cat", "--beside", "dog cat dog", "--head", "1.0", "--out", tmp_path]
    done = command(*arguments, "--model", "toy-induction")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"attention.html", "attention.png"}
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention", "a b", "--head", "23"], "as in 23.3"),
        (["attention", "cat dog", "--head", "5.0", "--model", "toy-induction"], "layer 5"),
        (["sinks", "--text", "novels"], "unknown corpus 'novels'"),
        (["sinks", "--model", "toy-induction", "--text", "random", "--threshold", "3"], "a number from 0 up to 1"),
        (["retrieval-heads", "--depths", "high"], "can't read the depths 'high'"),
        (["retrieval-heads", "--model", "toy-induction", "--lengths", "100"], "100 tokens"),
        (["retrieval-heads", "--by", "magic"], "unknown way to find them (--by) 'magic'"),
        (["retrieval-heads", "--by", "reach", "--mask"], "--mask goes with --by copying"),
        (["heads", "--kinds", "oracle"], "unknown kind of head 'oracle'"),
        (["heads", "--model", "toy-induction", "--text", "novels"], "unknown corpus 'novels'"),
        (["heads", "--model", "toy-induction", "--length", "999"], "positions for 128 tokens"),
    ],
)
def test_bad_requests_end_with_one_message_and_code_2(arguments, message):
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
