"""The demo's pages: made side by side, said when they are ready, and what the last one shows."""

from __future__ import annotations

import multiprocessing
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import interp
from interp.demo import cheapen, demonstrate
from interp.errors import UsageError
from interp.results import RetrievalHeads, SinkPositions, scores


def stub(name, model, directory, say, **_):
    """A page that says who made it and with how many threads."""
    import torch

    say(f"{name} by {'one' if multiprocessing.parent_process() is None else 'two'} with {torch.get_num_threads()}")
    path = Path(directory) / f"{name}.html"
    path.write_text(model)
    return path


def load(fails_elsewhere=False):
    """Puts stubs in place of the pages, in whichever process it runs."""
    if fails_elsewhere and multiprocessing.parent_process() is not None:
        raise UsageError("no model here")
    for name in ("trace_page", "locate", "attend", "cheapen"):
        setattr(interp.demo, name, lambda *args, name=name, **kwargs: stub(name, *args, **kwargs))
    return "model"


@pytest.fixture
def real_pages():
    kept = {name: getattr(interp.demo, name) for name in ("trace_page", "locate", "attend", "cheapen")}
    yield
    for name, page in kept.items():
        setattr(interp.demo, name, page)


def test_pages_are_made_in_turn_and_said_when_they_are_there(tmp_path, real_pages):
    said = []
    demonstrate(load, tmp_path, say=said.append)
    assert [line for line in said if line.startswith("page")] == [
        f"page: {tmp_path / name}.html" for name in ("trace_page", "locate", "attend", "cheapen")
    ]


def test_two_processes_share_the_pages_and_the_threads(tmp_path, real_pages):
    import torch

    said, before = [], torch.get_num_threads()
    demonstrate(load, tmp_path, say=said.append, beside=True)
    assert torch.get_num_threads() == before
    half = max(1, before // 2)
    assert {line for line in said if " by " in line} == {
        f"{name} by {who} with {half}"
        for who, names in {"one": ("trace_page", "locate"), "two": ("attend", "cheapen")}.items()
        for name in names
    }
    for name in ("trace_page", "locate", "attend", "cheapen"):
        assert f"page: {tmp_path / name}.html" in said
        assert (tmp_path / f"{name}.html").read_text() == "model"


def test_what_fails_in_the_other_process_is_raised_here(tmp_path, real_pages):
    with pytest.raises(UsageError, match="no model here"):
        demonstrate(partial(load, fails_elsewhere=True), tmp_path, say=lambda line: None, beside=True)
    assert not multiprocessing.active_children()


@pytest.mark.real_model
def test_the_last_page_has_a_curve_over_budgets_and_the_strongest_heads_first(smollm2, tmp_path):
    layers, heads = smollm2.cfg.n_layers, smollm2.cfg.n_heads
    values = np.random.default_rng(0).random((layers, heads))
    array = scores(values, ("layer", "head"), {}, name="retrieval score", units="share")
    about = {"model": "smollm2", "fingerprint": interp.models.fingerprint(smollm2)}
    evidence = dict.fromkeys(("scores", "low", "high"), array)
    interp.results.save(RetrievalHeads(**about, n_kv_heads=3, evidence=evidence), tmp_path / "retrieval_heads")
    attention = scores(np.zeros((1, 1)), ("layer", "position"), {}, name="attention")
    sinks = SinkPositions(**about, positions=(0,), evidence={"attention": attention})
    interp.results.save(sinks, tmp_path / "sink_positions")
    said = []
    page = cheapen(smollm2, tmp_path, n=2, say=said.append).read_text(encoding="utf-8")
    table = pd.read_csv(tmp_path / "recall.csv")
    assert table["plan"].value_counts().to_dict() == {
        "dense": 1,
        **dict.fromkeys(
            ("retrieval heads", "SnapKV", "sinks and window", "as many random heads", "heads that retrieve least"), 3
        ),
    }
    assert ((table["recall_low"] <= table["recall"]) & (table["recall"] <= table["recall_high"])).all()
    assert (table["recall_low"] < table["recall_high"]).all()
    plan = interp.efficiency.Plan.load(tmp_path / "plan.json")
    first = plan.to_frame().sort_values("score", ascending=False).iloc[0]
    cells = page.split("What each key-value head keeps")[1].split("<td")
    assert cells[1].split(">")[1].split("<")[0] == str(int(first["layer"]))
    assert "of the cache's bytes, chosen by the retrieval heads" in said[-1]
    assert (tmp_path / "recall.png").read_bytes().startswith(b"\x89PNG")
