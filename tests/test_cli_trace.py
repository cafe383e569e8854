"""``interp trace`` as a user meets it."""

from __future__ import annotations

import json

import pytest
from attribution_graphs import random_graph
from command_line import command
from safetensors.numpy import save_file
from typer.testing import CliRunner

import interp
from interp.cli import app
from interp.tracing import AttributionGraph
from interp.tracing.formats import circuit_tracer

PROMPT = "When Mary and John went to the store, John gave a drink to"


def run(*arguments):
    return CliRunner().invoke(app, ["trace", *map(str, arguments)])


@pytest.mark.real_model
def test_a_prompt_becomes_a_page_graph_files_and_words(tmp_path):
    done = command("trace", PROMPT, "--target", " Mary| John", "--max-nodes", 40, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    graph = AttributionGraph.load(tmp_path / "graph.safetensors")
    assert (graph.nodes["kind"] == "feature").sum() == 40
    assert graph.nodes.index[-1].startswith("logit.")
    assert circuit_tracer.read(tmp_path / "graph.json").about["pruned"]["nodes"] == 0.8
    page = (tmp_path / "graph.html").read_text(encoding="utf-8")
    assert '"promoted":' in page
    words = (tmp_path / "summary.txt").read_text(encoding="utf-8")
    assert words.strip() in done.stdout
    assert "logit ' Mary' − ' John'" in words
    assert "replacement 0." in words
    assert words.count("\n3. ") == 2
    for name in ("graph.safetensors", "graph.json", "graph.html", "summary.txt"):
        assert str(tmp_path / name) in done.stdout


def test_a_graph_file_is_shown_again_without_its_model(tmp_path):
    path = random_graph().save(tmp_path / "kept.safetensors")
    done = run(path, "--out", tmp_path / "again", "--nodes", 0.5, "--paths", 2)
    assert done.exit_code == 0, done.output
    small = circuit_tracer.read(tmp_path / "again" / "graph.json")
    assert list(interp.results.load(tmp_path / "again").nodes.index) == list(random_graph().nodes.index)
    assert list(small.nodes.index) == list(random_graph().pruned(0.5).nodes.index)
    assert json.loads((tmp_path / "again" / "graph.json").read_text())["metadata"]["node_threshold"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["  "], "the prompt is empty"),
        (["x", "--nodes", 1.5], "--nodes is 1.5, a number from 0 up to 1 is needed"),
        (["x", "--paths", 0], "--paths is 0, a whole number from 1 up to"),
        (["x", "--target", "a|"], "can't read the target 'a|'"),
        (["x", "--basis", "nothing-there"], "unknown basis 'nothing-there'"),
        (["x", "--model", "toy-count", "--max-nodes", 0], "--max-nodes is 0, a whole number from 1 up to"),
    ],
)
def test_bad_requests_end_with_one_message_and_code_2(arguments, message, tmp_path):
    done = run(*arguments, "--out", tmp_path)
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.stderr.split())
    assert done.stderr.count("error:") == 1


@pytest.mark.real_model
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Hi", "--target", " antidisestablishmentarianism"], "tokens long"),
        (["word " * 9000], "the prompt has 9002 tokens"),
    ],
)
def test_targets_of_several_tokens_and_prompts_over_the_context_are_refused(arguments, message, tmp_path):
    done = run(*arguments, "--max-nodes", 10, "--out", tmp_path)
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.stderr.split())


def test_a_folder_without_dictionaries_is_no_basis(tmp_path):
    done = run("x", "--basis", tmp_path, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "holds no dictionary" in done.stderr


def test_graph_files_of_another_version_or_damaged_are_refused(tmp_path):
    graph = random_graph()
    whole = graph.save(tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "new.safetensors").write_bytes(whole.replace(b"attribution-graph/1", b"attribution-graph/7"))
    save_file({"x": graph.weights}, tmp_path / "other.safetensors")
    for name, message in (
        ("new", "'interp.attribution-graph/7', and this program reads 'interp.attribution-graph/1'"),
        ("cut", "is cut short"),
        ("other", "'no format at all'"),
        ("missing", "there is no graph at"),
    ):
        done = run(tmp_path / f"{name}.safetensors", "--out", tmp_path / "out")
        assert done.exit_code == 1, name
        assert message in " ".join(done.stderr.split()), done.stderr
        assert done.stderr.count("error:") == 1
