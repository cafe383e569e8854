"""A finding that names no position is read as no finding, with a warning: not as "none needed"."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import VOCABULARY, tiny

from interp.efficiency import METHODS, deploy, deployment
from interp.results import scores
from interp.results.findings import MassiveActivations, RetrievalHeads, SinkHeads, SinkPositions
from interp.statistics import activation_statistics

IDS = torch.randint(5, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(0))
OPTIONS = {
    "streaming": {"budget": 0.5, "length": 32},
    "retrieval": {"budget": 0.6, "length": 32},
    "attendre": {"budget": 0.9, "length": 48, "wait": 4, "top": 2},
    "quantized": {"bits": 8, "group": 8},
    "a_shape": {"budget": 0.8, "length": 64, "block": 8},
    "head_patterns": {"budget": 0.9, "length": 64, "block": 8},
    "gptq": {"source": IDS, "bits": 8},
    "w8a8": {},
    "act": {},
}


@pytest.fixture(scope="module")
def model():
    return deploy(tiny("llama"))


def about(model):
    found = deployment(model)
    return {"model": found.name, "fingerprint": found.fingerprint}


def sinks(model, positions=()):
    rate = scores(np.full(8, 0.2), ("position",))
    attention = scores(np.zeros((3, 8)), ("layer", "position"))
    return SinkPositions(**about(model), positions=positions, evidence={"attention": attention, "rate": rate})


def massive(model):
    size = scores(np.ones((3, 8)), ("layer", "position"))
    some = {"channels": (3,), "appears": 1, "vanishes": 2, "positions": (), "ratio": 2000.0}
    return MassiveActivations(**about(model), **some, evidence={"size": size})


def needed(name, model):
    """What the method can't do without."""
    each = scores(np.arange(12.0).reshape(3, 4) / 12, ("layer", "head"))
    shared = {**about(model), "evidence": {"scores": each, "low": each, "high": each}, "n_kv_heads": 2}
    if "retrieval" in METHODS[name].needs:
        return {"retrieval": RetrievalHeads(**shared)}
    return {"heads": SinkHeads(**shared)} if name == "act" else {}


def test_all_methods_that_take_sinks_are_tried():
    assert set(OPTIONS) == {name for name, card in METHODS.items() if "sinks" in card.takes}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_plan_from_an_empty_finding_is_the_plan_without_one(model, name):
    make, options = METHODS[name].load(), {**OPTIONS[name], **needed(name, model)}
    plain = make(**options).plan(model).decided()
    kinds = [sinks(model)] + [massive(model)] * ("Massive" in METHODS[name].takes["sinks"])
    for empty in kinds:
        with pytest.warns(UserWarning, match=f"{name}: the {type(empty).__name__} given names no position"):
            assert make(sinks=empty, **options).plan(model).decided() == plain
    assert make(sinks=sinks(model, (0, 1)), **options).plan(model).decided() != plain


def test_statistics_leave_the_first_position_out_then(model):
    bridge = tiny("llama")
    plain = activation_statistics(bridge, IDS)
    with pytest.warns(UserWarning, match="activation_statistics: the SinkPositions given names no position"):
        found = activation_statistics(bridge, IDS, sinks=sinks(model))
    assert found.positions == plain.positions == (0,)
    assert found.evidence["down"].equals(plain.evidence["down"])
