"""Controls: what every plan has to beat decides otherwise, costs the same, and can be made again from a file."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from families import tiny

from interp.efficiency import METHODS, Composed, Plan, deploy, deployment, make, tradeoff
from interp.efficiency.controls import control
from interp.efficiency.cost import Cost
from interp.efficiency.decoding import Decoder, storage_bytes
from interp.efficiency.kv_cache.geometry import geometry
from interp.efficiency.quality import Text
from interp.errors import UsageError
from interp.results import scores
from interp.results.findings import (
    ActivationStatistics,
    HeadImportance,
    LayerRedundancy,
    MassiveActivations,
    NeuronRelevance,
    RetrievalHeads,
    SinkPositions,
)

LENGTH = 40
TOKENS = torch.randint(4, 50, (2, LENGTH), generator=torch.Generator().manual_seed(5))
TEXT = {"source": "random", "n": 2, "length": 20}
CACHE = {"budget": 0.5, "length": LENGTH}
BLOCKS = {"budget": 0.7, "length": LENGTH, "block": 4}
LAYERS, HEADS, GROUPS, NEURONS = 5, 8, 4, 48

OPTIONS = {
    "full": {},
    "streaming": {"sinks": 2, **CACHE},
    "retrieval": {"sinks": 2, "window": 4, **CACHE},
    "h2o": CACHE,
    "snapkv": {"window": 4, **CACHE},
    "pyramidkv": {"window": 4, **CACHE},
    "citrus": {"instruction": [5, 6, 7], "prefill_chunk": 16, **CACHE},
    "actqkv": {"window": 8, "sinks": 2, **CACHE},
    "attendre": {"wait": 4, "top": 3, "sinks": 1, **CACHE},
    "quantized": {"bits": 4, "group": 8, "residual": 4, "length": LENGTH},
    "a_shape": BLOCKS,
    "head_patterns": BLOCKS,
    "flexprefill": {"least": 0, "source": "random", **BLOCKS},
    "anchor": {"step": 2, "source": "random", **BLOCKS},
    "moba": BLOCKS,
    "sparge": {"similarity": 0.0, "source": "random", **BLOCKS},
    "star": {"query": 4, **BLOCKS},
    "heads": {"budget": 0.6},
    "greedy_heads": {"budget": 0.6, "step": 1.0},
    "neurons": {"budget": 0.6},
    "activation_norm": {"budget": 0.6, **TEXT},
    "blocks": {"budget": 0.6},
    "multipruner": {"budget": 0.8, "channels": 8, **TEXT},
    "magnitude": {"budget": 0.6},
    "random_units": {"budget": 0.6},
    "sparse": {"budget": 0.6},
    "rtn": {"group": 16},
    "awq": {"group": 16, "steps": 4},
    "gptq": {"group": 16, **TEXT},
    "adadim": {"group": 16},
    "lorc": {"group": 16},
    "llm-fp4": {"group": 16},
    "w8a8": {},
    "act": {"share": 0.3, "alpha": 1.2},
    "redistribution": {"level": 1.0, "content": 0.2},
    "final_layer": {},
}
"""Of each method in the registry, sizes for a tiny model."""

WITHOUT = {"full", "quantized", "rtn", "lorc", "llm-fp4"}
"""Methods that treat everything alike, so that nothing could be chosen at random."""
SIZES = {
    "h2o": "as many entries as its scores would have room for, rounded down",
    "attendre": "as many entries as its scores and waiting queries would have room for, rounded down",
    "awq": "layers that are best left unscaled store no scales",
    "multipruner": "heads or neurons go until the budget of parameters is met, and heads take cache with them",
}
"""Why a control has not the very same bytes; it has them to one entry a head, or to a tenth."""


@pytest.fixture(scope="module")
def model():
    return deploy(
        tiny("llama", num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=GROUPS, head_dim=8)
    )


@pytest.fixture(autouse=True)
def _no_text(monkeypatch):
    """The tiny models' tokenizer reads no text: layers get room by a rule that is known."""
    for module in ("actqkv", "pyramidkv"):
        known = lambda model: {layer: 9.0 - layer for layer in deployment(model).layers}  # noqa: E731
        monkeypatch.setattr(f"interp.efficiency.kv_cache.{module}.attention_spread", known)


def findings(model, seed=0):
    """A finding of each type, with numbers that tell all units apart."""
    rng = np.random.default_rng(100 + seed)
    about = {"model": deployment(model).name, "fingerprint": deployment(model).fingerprint}
    width = model.config.hidden_size
    heads = scores(rng.permutation(LAYERS * HEADS).reshape(LAYERS, HEADS) / 40.0, ("layer", "head"))
    each = {"scores": heads, "low": heads, "high": heads}
    influence = rng.permutation(LAYERS) + 1.0
    distance = np.where(np.add.outer(range(LAYERS), range(LAYERS)) < LAYERS, rng.random((LAYERS, LAYERS)), np.nan)
    sizes = {"qkv": width, "o": HEADS * 8, "mlp": width, "down": NEURONS}
    about_inputs = {
        name: scores(
            np.broadcast_to(np.exp(2 * rng.standard_normal((1, 1, LAYERS, n))), (2, 3, LAYERS, n)).astype("float32"),
            ("kind", "metric", "layer", "channel"),
            {"kind": ["all", "without sinks"], "metric": ["mean", "square", "max"]},
        )
        for name, n in sizes.items()
    }
    attention = scores(np.full((1, 2), 0.5), ("layer", "position"))
    massive = {"channels": (3,), "appears": 0, "vanishes": LAYERS - 2, "positions": (0,), "ratio": 1e3}
    return {
        "RetrievalHeads": RetrievalHeads(**about, evidence=each, n_kv_heads=GROUPS),
        "HeadImportance": HeadImportance(**about, evidence={"scores": heads}, n_kv_heads=GROUPS),
        "SinkPositions": SinkPositions(**about, evidence={"attention": attention}, positions=(0, 1)),
        "NeuronRelevance": NeuronRelevance(
            **about, evidence={"scores": scores(rng.random((LAYERS, NEURONS)), ("layer", "neuron"))}
        ),
        "LayerRedundancy": LayerRedundancy(
            **about,
            evidence={
                "influence": scores(influence, ("layer",)),
                "distance": scores(distance, ("layer", "length"), allow_nan=True),
            },
        ),
        "ActivationStatistics": ActivationStatistics(**about, evidence=about_inputs, positions=(0,), tokens=()),
        "MassiveActivations": MassiveActivations(
            **about, evidence={"size": scores(np.ones((LAYERS, 2)), ("layer", "position"))}, **massive
        ),
    }


def made(name, model, seed=0, **options):
    """A method of the registry on planted findings."""
    card, there = METHODS[name], findings(model, seed)
    wanted = {**card.needs, **({} if name == "multipruner" else card.takes)}
    given = {
        argument: there[next(kind for kind in kinds.split(" or ") if kind in there)]
        for argument, kinds in wanted.items()
        if argument not in OPTIONS[name] and (name, argument) != ("redistribution", "heads")
    }
    return card.load()(**given, **{**OPTIONS[name], **options})


@functools.cache
def plans(name, model):
    method = made(name, model)
    return method, method.plan(model)


@functools.cache
def controls(name, model):
    """A method's controls, by kind."""
    method = plans(name, model)[0]
    found = {"random": method.random_plan(model)}
    return {**found, "inverted": method.inverted_plan(model)} if hasattr(method, "inverted_plan") else found


@torch.no_grad()
def ran(model, plan):
    """What a model says of a prompt and of what comes behind it, its weights' bytes, and those of its cache.

    Of plans that set single weights to zero, how many are left instead of bytes.
    """
    with plan.applied(model):
        decoder = Decoder(model)
        said = [decoder.feed(TOKENS[:, :-4], 8)]
        size = storage_bytes(decoder.cache)
        said += [decoder.feed(TOKENS[:, at : at + 1]) for at in range(LENGTH - 4, LENGTH)]
        zeros = plan.kind == "sparse"
        weights = sum(int((w != 0).sum()) for w in model.parameters()) if zeros else storage_bytes(model)
        return torch.cat(said, 1), weights, size


def test_every_method_of_the_registry_is_looked_at():
    assert set(OPTIONS) == set(METHODS)


@pytest.mark.parametrize("name", sorted(set(METHODS) - WITHOUT))
class TestEveryMethod:
    def test_its_controls_decide_otherwise_and_the_model_says_something_else(self, model, name):
        _, plan = plans(name, model)
        said, *_ = ran(model, plan)
        for kind, beside in controls(name, model).items():
            assert beside.method.endswith(f", {kind}")
            assert beside.decided() != plan.decided()
            assert (ran(model, beside)[0] - said).abs().max() > 1e-4, kind
            assert beside.budget == pytest.approx(plan.budget, abs=1e-4)

    def test_its_controls_cost_the_same_in_real_bytes(self, model, name):
        _, *sizes = ran(model, plans(name, model)[1])
        for kind, other in controls(name, model).items():
            _, *beside = ran(model, other)
            if name not in SIZES:
                assert beside == sizes, kind
            elif METHODS[name].family == "kv_cache":
                shape = geometry(model)
                assert 0 <= sizes[1] - beside[1] < 2 * LAYERS * GROUPS * shape.entry_bytes
            else:
                assert sum(beside) == pytest.approx(sum(sizes), rel=0.1), kind

    def test_another_seed_is_another_draw_and_the_same_seed_the_same(self, model, name):
        method, first = plans(name, model)[0], controls(name, model)["random"]
        assert method.random_plan(model) == first
        assert any(method.random_plan(model, seed=seed).decided() != first.decided() for seed in (1, 2, 3, 4))

    def test_a_plan_from_a_file_has_the_controls_of_its_method(self, model, name, tmp_path):
        _, plan = plans(name, model)
        plan.save(tmp_path / "plan.json")
        read = Plan.load(tmp_path / "plan.json")
        assert read == plan
        for kind in ("random", "inverted"):
            assert control(read, kind, model) == controls(name, model).get(kind)


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_what_treats_everything_alike_has_no_control(model, name):
    _, plan = plans(name, model)
    assert control(plan, "random", model) is control(plan, "inverted", model) is None


@pytest.mark.parametrize("name", ["retrieval", "head_patterns", "heads", "neurons", "blocks", "act"])
def test_a_random_plan_does_not_look_at_the_finding_and_the_inverted_one_looks_the_other_way(model, name):
    one, other = (made(name, model, seed) for seed in (0, 1))
    assert one.plan(model).decided() != other.plan(model).decided()
    assert one.random_plan(model, seed=2).decided() == other.random_plan(model, seed=2).decided()
    assert one.inverted_plan(model).decided() != other.inverted_plan(model).decided()


def test_gptqs_control_is_calibrated_on_random_tokens_instead_of_a_text(model):
    method = made("gptq", model, source=TOKENS)
    assert set(method.plan(model).calibration) <= {tuple(row[:20]) for row in TOKENS.tolist()}
    assert not set(method.random_plan(model).calibration) & set(method.plan(model).calibration)


class TestComposed:
    def test_its_control_is_its_parts_controls_composed_and_what_has_none_stays(self, model, tmp_path):
        (retrieval, kept), (_, rounded) = plans("retrieval", model), plans("rtn", model)
        (kept + rounded).save(tmp_path / "plan.json")
        both = Plan.load(tmp_path / "plan.json")
        drawn, inverted = control(both, "random", model, 3), control(both, "inverted", model)
        assert isinstance(drawn, Composed)
        assert drawn.plans == (retrieval.random_plan(model, seed=3), rounded)
        assert inverted.plans == (retrieval.inverted_plan(model), rounded)
        assert drawn.method == "retrieval, random + rtn"
        assert control(rounded + rounded, "random", model) is None

    def test_a_part_made_behind_another_is_made_behind_the_others_control(self, model, tmp_path):
        pruning, method = made("heads", model), made("retrieval", model)
        first = pruning.plan(model)
        with first.applied(model):
            second = method.plan(model)
        assert second.made["behind"] == 1
        (first + second).save(tmp_path / "plan.json")
        found = control(Plan.load(tmp_path / "plan.json"), "random", model, 2)
        with pruning.random_plan(model, seed=2).applied(model):
            assert found.plans[1] == method.random_plan(model, seed=2)
            left = deployment(model).groups
        assert {(layer, head) for layer, head, _ in found.plans[1].heads} == {
            (layer, head) for layer, heads in enumerate(left) for head in heads
        }
        ran(model, found)

    def test_a_part_that_does_not_say_how_it_was_made_leaves_none(self, model):
        _, plan = plans("retrieval", model)
        other = Plan.from_dict({**plans("neurons", model)[1].to_dict(), "version": 1})
        with pytest.raises(UsageError, match="saved by an earlier version"):
            control(other + plan, "random", model)


def small():
    return [Text(TOKENS, n=2, length=30, scored=10, piece=3)], Cost(16, 3, source=TOKENS, peak=False)


class TestTradeoff:
    def test_a_saved_plan_stands_beside_the_controls_that_its_method_would_have(self, model, tmp_path):
        method, plan = plans("retrieval", model)
        plan.save(tmp_path / "plan.json")
        wanted = tradeoff(model, {"a": method}, *small(), repetitions=1, draws=2, seed=5)
        found = tradeoff(model, {"a": Plan.load(tmp_path / "plan.json")}, *small(), repetitions=1, draws=2, seed=5)
        names = ["dense", "dense, static cache", "a", "a, random 1", "a, random 2", "a, inverted"]
        assert [row.name for row in found.rows] == [row.name for row in wanted.rows] == names
        assert [row.plan for row in found.rows] == [row.plan for row in wanted.rows]
        assert [row.plan for row in found.rows[3:]] == [
            method.random_plan(model, seed=5),
            method.random_plan(model, seed=6),
            method.inverted_plan(model),
        ]
        frame = found.to_frame()
        assert frame.loc["a", "control"] == "random, inverted"
        assert set(frame["control"].drop("a")) == {""}
        assert len(set(frame["text.loss"].drop("dense, static cache"))) == 5
        assert len(set(frame.loc[names[2:], "cache_bytes"])) == 1

    def test_where_there_is_no_control_the_table_says_why(self, model):
        _, plan = plans("retrieval", model)
        by_hand = type(plan)(**{**vars(plan), "made": {}})
        early = Plan.from_dict({**plan.to_dict(), "version": 1})
        tokens = make("gptq", source=TOKENS, n=2, length=20, group=16).plan(model)
        given = {
            "round": plans("rtn", model)[1],
            "everything": plans("full", model)[0],
            "early": early,
            "by hand": by_hand,
            "drawn": plans("retrieval", model)[0].random_plan(model),
            "tokens": tokens,
        }
        found = tradeoff(model, given, *small(), repetitions=1)
        assert [row.kind for row in found.rows[2:]] == ["plan"] * 6
        assert dict(found.to_frame()["control"].drop(["dense", "dense, static cache"])) == {
            "round": "none, because no plan of rtn decides otherwise",
            "everything": "none, because no plan of full decides otherwise",
            "early": "none, because it was saved by an earlier version, which did not say how plans are made; make it "
            "again",
            "by hand": "none, because it does not say how it was made",
            "drawn": "none, because it is a control itself",
            "tokens": "none, because source is or has a Tensor, which a plan can't hold; give the method instead",
        }
        found = tradeoff(model, {"a": plan}, *small(), repetitions=1, controls=False)
        assert found.to_frame().loc["a", "control"] == "none, not asked for"
        assert len(found.rows) == 3
        found = tradeoff(model, {"a": plan, "b": plan}, *small(), repetitions=1, controls=["b"])
        assert [row.name for row in found.rows[2:]] == ["a", "b", "b, random", "b, inverted"]


class TestFiles:
    def test_a_plan_of_the_version_before_loads_and_its_next_file_is_of_this_one(self, model, tmp_path):
        _, plan = plans("heads", model)
        stored = {name: value for name, value in plan.to_dict().items() if name != "made"}
        (tmp_path / "plan.json").write_text(json.dumps({**stored, "version": 1}))
        read = Plan.load(tmp_path / "plan.json")
        assert read.decided() == plan.decided()
        read.save(tmp_path / "again.json")
        assert Plan.load(tmp_path / "again.json") == read
        assert json.loads((tmp_path / "again.json").read_text())["version"] == 2

    @pytest.mark.parametrize(
        ("made", "message"),
        [
            ({"method": "magic", "options": {}, "findings": {}}, "unknown method 'magic'"),
            ({"method": "heads"}, "makes no sense"),
            ({"method": "heads", "options": {"colour": 3}, "findings": {}}, "makes no sense"),
            ({"method": "heads", "options": {}, "findings": {"importance": "{}"}}, "lacks 'arrays'"),
            ({"method": "heads", "options": {}, "findings": {}}, "needs a finding of type HeadImportance"),
            ({"method": 3, "options": {}, "findings": {}}, "makes no sense"),
            ({}, "does not say how it was made"),
            ([1, 2], r"made is \(1, 2\), an object is needed"),
        ],
    )
    def test_what_a_file_says_of_how_a_plan_was_made_is_not_believed(self, model, made, message):
        stored = {**plans("heads", model)[1].to_dict(), "made": made}
        with pytest.raises(UsageError, match=message):
            control(Plan.from_dict(stored), "random", model)
