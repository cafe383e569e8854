"""The command line as a user meets it: in a process of its own where that is the point, in this one where not."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import pytest
from command_line import command

import interp


def process(*arguments, code="from interp.cli import main; main()"):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1"},
    )


def test_patch_writes_its_files_and_prints_the_strongest(tmp_path):
    done = command("patch", "induction", "--model", "toy-induction", "-n", 4, "--out", tmp_path / "o", "--by-position")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    written = tmp_path / "o"
    assert {p.name for p in written.iterdir()} == {"scores.json", "scores.csv", "heatmap.html", "heatmap.png"}
    scores = interp.results.load(written / "scores.json")
    assert interp.results.load(written).identical(scores)
    strongest = interp.results.top(scores, 1).iloc[0]
    assert (int(strongest["layer"]), int(strongest["head"])) == (1, 0)
    assert f"{strongest['value']:+.4f}" in done.stdout
    assert "accuracy 100%" in done.stdout
    assert (written / "heatmap.png").read_bytes().startswith(b"\x89PNG")


def test_circuit_writes_what_it_found_and_tests_it(tmp_path):
    arguments = ["circuit", "induction", "--model", "toy-induction", "--method", "exact", "--ablation", "zero"]
    done = command(*arguments, "--edges", 7, "-n", 8, "--evaluate", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    written = {"circuit.json", "eap-ig.json", "scores.csv", "circuit.html", "circuit.png", "faithfulness.png"}
    assert {path.name for path in tmp_path.iterdir()} == written
    circuit = interp.results.load(tmp_path)
    assert circuit.edges == interp.results.Circuit.load(tmp_path / "circuit.json").edges
    truth = {tuple(edge) for edge in interp.models.known_circuit("toy-induction")["edges"]}
    assert circuit.in_edges == truth
    again = interp.results.Circuit.from_eap_ig(tmp_path / "eap-ig.json")
    assert again.in_edges == truth
    assert "faithfulness" in done.stdout
    assert "random" in done.stdout


def test_circuit_as_json():
    arguments = [
        "circuit",
        "count",
        "--model",
        "toy-count",
        "--method",
        "acdc",
        "--threshold",
        "0.01",
        "-n",
        8,
        "--json",
    ]
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {(edge["node"], edge["port"]) for edge in found["edges"]} == {
        tuple(edge) for edge in interp.models.known_circuit("toy-count")["edges"]
    }
    assert found["settings"]["runs"] > 50


def test_json_is_all_that_stands_on_standard_output():
    done = process("patch", "induction", "--model", "toy-induction", "-n", 2, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    direct = interp.patching.activation(
        model := interp.load("toy-induction"), interp.task("induction", model, n=2, seed=0), "heads"
    )
    assert found["attrs"]["task"] == "induction"
    assert found["attrs"]["fingerprint"] == direct.attrs["fingerprint"]


@pytest.mark.parametrize("split", ["find", "score"])
def test_a_split_is_asked_for_and_said(split):
    done = command("patch", "induction", "--model", "toy-induction", "-n", 2, "--split", split, "--json")
    assert done.returncode == 0, done.stderr
    model = interp.load("toy-induction")
    found, task = json.loads(done.stdout), interp.task("induction", model, n=2, split=split)
    direct = interp.patching.activation(model, task, "heads")
    assert found["attrs"]["split"] == split
    assert found["attrs"]["clean"] == pytest.approx(direct.attrs["clean"], abs=1e-6)


def test_models_are_listed_with_size_licence_and_state():
    done = command("models", INTERP_CACHE="/nonexistent")
    assert done.returncode == 0, done.stderr
    for text in ("smollm2", "92.9 MB", "Apache-2.0", "not fetched", "Gemma Terms of Use", "built in"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["patch", "ioo"], "did you mean 'ioi'"),
        (["patch", "ioi", "--model", "smolm2"], "did you mean 'smollm2'"),
        (["patch", "induction", "--model", "toy-induction", "--nodes", "haeds"], "did you mean 'heads'"),
        (["patch", "induction", "--model", "toy-induction", "--layers", "2"], "layers 0 to 1"),
        (["patch", "induction", "--model", "toy-induction", "--layers", "x"], "0,3,10-15"),
        (["patch", "induction", "--model", "toy-induction", "--metric", "logits"], "logit_diff"),
        (["patch", "induction", "--model", "toy-induction", "--mode", "noise"], "noising"),
        (["patch", "induction", "--model", "toy-induction", "-n", "0"], "0"),
        (["patch", "induction", "--model", "toy-induction", "--split", "scored"], "did you mean 'score'"),
        (
            ["patch", "induction", "--model", "toy-induction", "--compute", "bfloat16"],
            "unknown precision to compute in",
        ),
        (["patch", "induction", "--model", "toy-induction", "--compute", "float32"], "--compute is for --method"),
        (["patch", "missing.jsonl", "--model", "toy-induction"], "missing.jsonl"),
        (["circuit", "induction", "--model", "toy-induction", "--method", "eap_ig"], "did you mean 'eap-ig'"),
        (["circuit", "induction", "--model", "toy-induction", "--edges", "100000"], "100000"),
        (["circuit", "induction", "--model", "toy-induction", "--method", "acdc"], "threshold"),
        (["circuit", "inductoin", "--model", "toy-induction"], "did you mean 'induction'"),
        (["models", "fetch", "gemma3-270m"], "ai.google.dev/gemma/terms"),
        (["models", "fetch", "gemma"], "gemma3-270m"),
    ],
)
def test_a_bad_request_is_one_message_and_exit_code_2(arguments, message, tmp_path):
    with contextlib.chdir(tmp_path):
        done = command(*arguments, INTERP_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_bad_request_ends_the_process_with_code_2_and_one_message():
    done = process("patch", "ioo")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_directory_that_cannot_be_written_is_found_out_before_the_sweep(tmp_path):
    (tmp_path / "file").write_text("")
    done = command("patch", "induction", "--model", "toy-induction", "--out", tmp_path / "file" / "o")
    assert done.returncode == 1
    assert "can't write" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unexpected_failure_is_one_line_unless_asked(tmp_path):
    (tmp_path / "pairs.jsonl").write_bytes(b"\xff\xfe\x00")
    done = command("patch", tmp_path / "pairs.jsonl", "--model", "toy-induction")
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("error:")
    assert "Traceback" not in done.stderr


INTERRUPTED = """
import os, signal
from interp.cli import main
from interp.engine.sweep import Sweep
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
original, calls = Sweep._run_chunk, []
def run_chunk(self, *arguments):
    calls.append(arguments)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return original(self, *arguments)
Sweep._run_chunk = run_chunk
main()
"""


def test_control_c_leaves_only_a_checkpoint_from_which_the_same_command_goes_on(tmp_path):
    arguments = ["patch", "induction", "--model", "toy-induction-trained", "-n", 4, "--nodes", "resid_pre"]
    arguments += ["--by-position", "--out", tmp_path]
    done = process(*arguments, code=INTERRUPTED)
    assert done.returncode == 1
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".sweep.safetensors"]
    again = command(*arguments)
    assert again.returncode == 0, again.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"scores.json", "scores.csv", "heatmap.html", "heatmap.png"}
