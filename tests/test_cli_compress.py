"""`interp compress`, `methods` and `tradeoff`, as a user meets them."""

from __future__ import annotations

import json

import pytest
from command_line import command

import interp
from interp.efficiency import METHODS, Plan
from interp.efficiency.making import arguments


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Retrieval heads of the hand-wired model, made by the command that makes them."""
    from interp.engine.identity import identity
    from interp.results import scores
    from interp.results.findings import RetrievalHeads

    model = interp.load("toy-induction")
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    values = [[float(layer == n_layers - 1 and head == 0) for head in range(n_heads)] for layer in range(n_layers)]
    array = scores(values, ("layer", "head"), {}, name="retrieval score", units="share")
    evidence = dict.fromkeys(("scores", "low", "high"), array)
    about = {"model": "toy-induction", "fingerprint": identity(model), "n_kv_heads": n_heads}
    finding = RetrievalHeads(**about, evidence=evidence)
    path = tmp_path_factory.mktemp("heads")
    interp.results.save(finding, path)
    return path


def test_every_method_is_listed_and_can_be_loaded():
    done = command("methods")
    assert done.returncode == 0, done.stderr
    for name, card in METHODS.items():
        assert name in done.stdout
        assert hasattr(card.load(), "plan")


@pytest.mark.real_model
def test_a_plan_is_made_and_its_trade_off_measured(tmp_path):
    done = command("compress", "--method", "streaming", "--budget", 0.5, "--length", 128, "--out", tmp_path / "half")
    assert done.returncode == 0, done.stderr
    assert Plan.load(tmp_path / "half" / "plan.json").budget == 0.5
    assert interp.results.load(tmp_path / "half") == Plan.load(tmp_path / "half" / "plan.json")
    assert "streaming at 50%" in done.stdout
    assert not (tmp_path / "half" / "model").exists()
    sizes = ["--length", 160, "-n", 1, "--steps", 2, "--repetitions", 1]
    done = command("tradeoff", "--plan", tmp_path / "half", *sizes, "--out", tmp_path / "measured")
    assert done.returncode == 0, done.stderr
    rows = {row["row"]: row for row in json.loads((tmp_path / "measured" / "tradeoff.json").read_text())["rows"]}
    assert interp.results.load(tmp_path / "measured").rows[2].plan == interp.results.load(tmp_path / "half")
    assert rows["half"]["cache_bytes"] < rows["dense"]["cache_bytes"]
    assert rows["half"]["control"] == "random"
    assert rows["half, random"]["cache_bytes"] == rows["half"]["cache_bytes"]
    assert (tmp_path / "measured" / "tradeoff.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "magic"], "unknown method 'magic'"),
        (["--method", "retrieval"], "needs a finding of type RetrievalHeads; make one with `interp retrieval-heads`"),
        (["--method", "streaming", "--budget", 1.5], "must be in (0, 1], got 1.5"),
        (["--method", "streaming", "--set", "colour"], "written as name=value, got 'colour'"),
        (["--method", "streaming", "--set", "colour=3"], "streaming has no option 'colour'"),
        (["--method", "streaming", "--finding", "nowhere"], "nowhere"),
    ],
)
def test_bad_requests_end_with_one_message(arguments, message, tmp_path):
    done = command("compress", *arguments, "--out", tmp_path)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.real_model
def test_a_finding_of_another_model_or_without_use_is_refused(heads, tmp_path):
    done = command("compress", "--method", "retrieval", "--finding", heads, "--out", tmp_path)
    assert done.returncode == 2
    assert "toy-induction" in done.stderr
    done = command("compress", "--method", "streaming", "--finding", heads, "--out", tmp_path)
    assert done.returncode == 2
    assert "streaming has no use for a finding of type RetrievalHeads; it takes SinkPositions" in done.stderr


def test_options_that_a_method_hands_on_are_known():
    assert {"budget", "length", "kernel"} <= set(arguments(METHODS["pyramidkv"].load()))
    assert "options" not in arguments(METHODS["pyramidkv"].load())
