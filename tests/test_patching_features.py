"""Effects of dictionary features: known features on a toy, sums that must hold, and exact patching by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import tiny
from prompts import random_task

import interp
from interp.engine.forward import Recorder, Visitor, Walk
from interp.engine.parts import parts_of
from interp.errors import UsageError
from interp.features.interventions import functions, steer
from interp.features.place import Place
from interp.models import known_circuit
from interp.models._words import VOCABULARY
from interp.patching import activation, attribution, intervene
from interp.patching.features import feature_effects, feature_groups
from interp.results import load, normalised, save
from interp.tasks import task

pytestmark = pytest.mark.filterwarnings("ignore:the model does not perform")

WORDS = len(VOCABULARY)
WIDTH = 3 * WORDS + 128


class Stand:
    """A dictionary with random weights: ReLU, or the k largest of each activation; with a skip connection if asked."""

    def __init__(self, reads, writes=None, size=24, k=None, scale=1.0, scale_out=None, skip=False, width=32, seed=0):
        draw = torch.Generator().manual_seed(seed)
        self.reads, self.writes, self.k = reads, writes or reads, k
        self.scale, self.scale_out = scale, scale if scale_out is None else scale_out
        self.W_enc = torch.randn(width, size, generator=draw, dtype=torch.float64)
        self.W_dec = torch.nn.functional.normalize(torch.randn(size, width, generator=draw, dtype=torch.float64), dim=1)
        self.b_dec = torch.randn(width, generator=draw, dtype=torch.float64)
        self.W_skip = torch.randn(width, width, generator=draw, dtype=torch.float64) if skip else None

    def encode(self, x):
        pre = (x * self.scale @ self.W_enc).relu()
        if self.k is None:
            return pre
        values, at = pre.topk(self.k, -1)
        return torch.zeros_like(pre).scatter(-1, at, values)

    def decode(self, f):
        return (f @ self.W_dec + self.b_dec) / self.scale_out


class Subspaces:
    """A dictionary made by hand: a feature for each direction of the toy's subspaces, so that its error is 0."""

    def __init__(self, layer):
        self.reads = self.writes = Place("resid_post", layer)
        self.W_dec, self.scale_out = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)], 1), 1.0

    def encode(self, x):
        return (x @ self.W_dec.T / 2).relu()

    def decode(self, f):
        return f @ self.W_dec


@pytest.fixture(scope="module")
def model():
    return tiny("llama", dtype=torch.float64)


@pytest.fixture(scope="module")
def prompts():
    return random_task(n=3)


def dictionaries():
    """Autoencoders and transcoders of several layers, one of them with a skip connection and other scales."""
    return [
        Stand(Place("resid_post", 0), k=5, scale=0.5),
        Stand(Place("mlp_in", 1), Place("mlp_out", 1), scale=0.25, scale_out=2.0, skip=True, seed=1),
        Stand(Place("z", 1), seed=2),
        Stand(Place("resid_post", 2), size=40, seed=3),
    ]


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("method", ["exact", "attribution", "ig"])
@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_on_a_toy_the_features_of_the_known_circuit_come_out_on_top(layer, method, mode):
    toy = interp.load("toy-induction")
    assert known_circuit("toy-induction")["nodes"] == ["input", "a0.h0", "a1.h0", "logits"]
    induction = task("induction", toy, n=2)
    effects = feature_effects(toy, induction, Subspaces(layer), method, mode=mode, per_example=True)
    # Before a1.h0 the answers stand in `tok`, from where it copies them to `out`.
    offset = 0 if layer == 0 else WORDS + 128 + WORDS
    words = [word.split()[0] for word in VOCABULARY]
    for example in range(2):
        answers = {induction.right_text[example][0], induction.wrong_text[example][0]}
        known = {f"resid_post.{layer}.f{offset + words.index(word)}" for word in answers}
        ranked = effects.node.values[np.argsort(-np.abs(effects.values[example]))]
        assert set(ranked[:2]) == known
        rest = np.abs(effects.sel(node=ranked[2:]).values[example])
        assert rest.max() < 0.01 * np.abs(effects.sel(node=ranked[:2]).values[example]).min()
    if method == "exact":  # each answer's logit is worth LOGIT_SCALE = 10
        np.testing.assert_allclose(np.sort(np.abs(effects.values), 1)[:, -2:], 10, rtol=0.01)


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_attributions_of_features_and_error_add_up_to_that_of_the_activation(model, prompts, by_position, mode):
    some = dictionaries()
    effects = feature_effects(model, prompts, some, by_position=by_position, mode=mode)
    for one in some:
        kind, layer = one.writes.site, one.writes.layer
        whole = attribution(model, prompts, kind, by_position, mode, layers=[layer])
        whole = whole.sum([dim for dim in whole.dims if dim not in ("position",)])
        of_nodes = effects.sel(node=effects.dictionary == str(one.writes)).sum("node")
        np.testing.assert_allclose(of_nodes, whole, atol=1e-6 * np.abs(effects).max())


def test_integrated_gradients_of_features_and_error_add_up_to_the_whole_effect(model, prompts):
    one = Stand(Place("resid_post", 1), k=5)
    effects = feature_effects(model, prompts, one, "ig", steps=200)
    whole = activation(model, prompts, "resid_post", layers=[1])
    np.testing.assert_allclose(effects.sum(), whole.sum(), rtol=2e-3)
    same = attribution(model, prompts, "resid_post", layers=[1], steps=200, along="activations")
    np.testing.assert_allclose(effects.sum(), same.sum(), rtol=1e-5)


@pytest.mark.parametrize("mode", ["denoising", "noising"])
@pytest.mark.parametrize("number", range(4))
def test_patching_all_features_and_the_error_is_patching_the_node(model, prompts, number, mode):
    one = dictionaries()[number]
    kind, layer = one.writes.site, one.writes.layer
    nodes = feature_effects(model, prompts, one).node.values.tolist()
    found = feature_groups(model, prompts, one, {"all": nodes, "features": nodes[: len(one.W_dec)]}, mode)
    if kind == "z":
        whole = activation(model, prompts, "attn_out", mode=mode, layers=[layer])
    else:
        whole = activation(model, prompts, kind, mode=mode, layers=[layer])
    np.testing.assert_allclose(found.sel(node="all"), whole.values.squeeze(), rtol=1e-6)
    assert abs(float(found.sel(node="features") - found.sel(node="all"))) > 1e-6


@pytest.mark.parametrize("number", range(4))
def test_a_feature_is_patched_by_changing_its_share_of_the_activation(model, prompts, number):
    one = dictionaries()[number]
    place = one.writes
    effects = feature_effects(model, prompts, one, "exact", per_example=True)
    parts = parts_of(model)
    sites = {place.site, "mlp_port"}

    def run(tokens, change=None):
        walk, recorder = Walk(parts, tokens.shape[1]), Recorder(sites)

        class Changed(Visitor):
            def visit(self, layer, site, first, x):
                if change is not None and (site, layer) == (place.site, place.layer):
                    x = x + change.reshape(x.shape)
                return recorder.visit(layer, site, first, x)

        with torch.no_grad():
            final = walk(walk.embed(tokens), Changed())
            logits = parts.logits(final[torch.arange(len(tokens)), prompts.positions["end"]])
        port = recorder.kept["mlp_port", place.layer]
        written = recorder.kept[place.site, place.layer].flatten(2)
        read = parts.blocks[place.layer].ln2(port) if one.reads.site == "mlp_in" else written
        return prompts.per_example(logits), one.encode(read)

    base, before = run(prompts.corrupted)
    _, after = run(prompts.clean)
    for feature in range(0, len(one.W_dec), 7):
        step = (after - before)[..., feature, None] * one.W_dec[feature] / one.scale_out
        patched, _ = run(prompts.corrupted, step)
        found = effects.sel(node=f"{place}.f{feature}")
        np.testing.assert_allclose(found, patched - base, atol=1e-5)


def test_exact_effects_of_single_nodes_are_those_of_groups_of_one(model, prompts):
    one = dictionaries()[1]
    nodes = ["mlp_out.1.f3", "mlp_out.1.error", "mlp_out.1.skip"]
    exact = feature_effects(model, prompts, one, "exact", nodes=nodes)
    groups = feature_groups(model, prompts, one, {node: [node] for node in nodes})
    np.testing.assert_allclose(exact, groups, rtol=1e-5)
    assert exact.node.values.tolist() == nodes
    assert exact.feature.values.tolist() == [3, -1, -1]


def test_one_position_is_patched_by_itself(model, prompts):
    one = dictionaries()[0]
    exact = feature_effects(model, prompts, one, "exact", True, nodes=["resid_post.0.f3", "resid_post.0.error"])
    groups = {f"{node}@{place}": [f"{node}@{place}"] for node in exact.node.values for place in exact.position.values}
    found = feature_groups(model, prompts, one, groups)
    np.testing.assert_allclose(exact.values.ravel(), found, rtol=1e-5, atol=1e-9)
    before = int(prompts.first_difference.min())
    assert not exact.values[:, :before].any()


def test_named_positions_are_patched_where_each_example_has_them(model, prompts):
    one, nodes = dictionaries()[0], ["resid_post.0.f3", "resid_post.0.error"]
    for method in ("exact", "attribution"):
        named = feature_effects(model, prompts, one, method, "named", nodes=nodes, per_example=True)
        each = feature_effects(model, prompts, one, method, True, nodes=nodes, per_example=True)
        for number, where in enumerate(prompts.positions.values()):
            for example, position in enumerate(where.tolist()):
                found = named.isel(example=example, position=number)
                np.testing.assert_allclose(found, each.isel(example=example).sel(position=position), atol=1e-9)


def test_a_small_budget_and_an_interruption_change_nothing(model, prompts, tmp_path, monkeypatch):
    from interp.engine.sweep import Sweep

    one, file = dictionaries()[0], tmp_path / "sweep"
    whole = feature_effects(model, prompts, one, "exact")
    small = feature_effects(model, prompts, one, "exact", max_memory=200_000)
    np.testing.assert_allclose(small, whole, atol=1e-6)
    compute, calls = Sweep.compute, []

    def stops(self, part):
        calls.append(part)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compute(self, part)

    monkeypatch.setattr(Sweep, "compute", stops)
    with pytest.raises(KeyboardInterrupt):
        feature_effects(model, prompts, one, "exact", checkpoint=file)
    assert file.exists()
    np.testing.assert_allclose(feature_effects(model, prompts, one, "exact", checkpoint=file), whole, atol=1e-6)
    assert not file.exists()


def test_estimates_equal_exact_effects_for_small_changes(model, prompts):
    """A node's estimate is its exact effect to first order: halving what it writes quarters the disagreement."""
    gaps = []
    for shrink in (1e-2, 1e-3):
        one = Stand(Place("resid_post", 1), k=5)
        one.W_dec = one.W_dec * shrink
        exact, estimate = (feature_effects(model, prompts, one, method)[:-1] for method in ("exact", "attribution"))
        gaps.append(float(np.abs(exact - estimate).max() / np.abs(exact).max()))
    assert gaps[1] < 0.3 * gaps[0]
    assert gaps[1] < 0.05


def test_effects_keep_the_conventions_of_scores(model, prompts, tmp_path):
    effects = feature_effects(model, prompts, dictionaries(), mode="noising")
    assert effects.attrs["mode"] == "noising"
    assert effects.attrs["method"] == "attribution"
    back = load(save(effects, tmp_path / "effects"))
    assert back.identical(effects)
    np.testing.assert_allclose(
        normalised(effects), 1 + effects / (effects.attrs["clean"] - effects.attrs["corrupted"]), rtol=1e-5
    )
    assert np.array_equal(effects, feature_effects(model, prompts, dictionaries(), mode="noising"))


def test_interventions_on_features_agree_with_patching_them(model, prompts):
    """`intervene` takes edits of dictionaries, which are made while the model runs."""
    one = Stand(Place("mlp_in", 1), Place("mlp_out", 1), scale=0.25)
    steered = intervene(model, prompts, functions(model, steer(one, 3, 2.0)))
    shift = 2.0 * one.W_dec[3] / one.scale_out
    by_hand = intervene(model, prompts, {"m1": lambda x: x + shift})
    np.testing.assert_allclose(steered.values, by_hand.values, rtol=1e-5)


def test_bad_requests_are_named(model, prompts):
    one = dictionaries()[0]
    with pytest.raises(UsageError, match="features 0 to 23"):
        feature_effects(model, prompts, one, nodes=["resid_post.0.f24"])
    with pytest.raises(UsageError, match=r"no dictionary 'resid_post\.1'"):
        feature_effects(model, prompts, one, nodes=["resid_post.1.f2"])
    with pytest.raises(UsageError, match="no skip"):
        feature_effects(model, prompts, one, nodes=["resid_post.0.skip"])
    with pytest.raises(UsageError, match="names no node"):
        feature_effects(model, prompts, one, nodes=["a0.h1"])
    with pytest.raises(UsageError, match="method"):
        feature_effects(model, prompts, one, "magic")
    with pytest.raises(UsageError, match=r"two dictionaries write at resid_post\.0"):
        feature_effects(model, prompts, [one, one])
    with pytest.raises(UsageError, match="one dictionary"):
        feature_effects(model, prompts, [])
    with pytest.raises(UsageError, match="must say at which place"):
        feature_effects(model, prompts, {"mine": object()})
    with pytest.raises(UsageError, match="checkpoint"):
        feature_effects(model, prompts, one, checkpoint="file")
    with pytest.raises(UsageError, match="list of one node"):
        feature_groups(model, prompts, one, {"none": []})
    with pytest.raises(UsageError, match="out of range"):
        feature_groups(model, prompts, one, {"late": ["resid_post.0.f1@99"]})
