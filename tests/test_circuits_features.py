"""Feature circuits: known features on a toy, exact limits of ablation, edges that add up, and files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import tiny
from prompts import random_task
from test_patching_features import WORDS, Stand, Subspaces, dictionaries

import interp
from interp.circuits.features import (
    FeatureCircuit,
    evaluate_features,
    feature_circuit,
    feature_curve,
    feature_edges,
)
from interp.errors import InterpError, UsageError
from interp.features.place import Place
from interp.models._words import VOCABULARY
from interp.patching.features import feature_effects, feature_groups
from interp.tasks import task

pytestmark = pytest.mark.filterwarnings("ignore:the model does not perform")


@pytest.fixture(scope="module")
def model():
    return tiny("llama", dtype=torch.float64)


@pytest.fixture(scope="module")
def prompts():
    return random_task(n=3)


@pytest.fixture(scope="module")
def toy():
    model = interp.load("toy-induction")
    return model, task("induction", model, n=4)


def test_on_a_toy_the_answers_features_are_a_faithful_and_complete_circuit(toy):
    model, induction = toy
    answers = {text for texts in (*induction.right_text, *induction.wrong_text) for text in texts}
    words = [word.split()[0] for word in VOCABULARY]
    both = [Subspaces(0), Subspaces(1)]
    circuit = feature_circuit(model, induction, both, threshold=0.1)
    outs = 2 * WORDS + 128
    known = {f"resid_post.0.f{words.index(a)}" for a in answers}
    known |= {f"resid_post.1.f{outs + words.index(a)}" for a in answers}
    assert circuit.in_nodes == known
    found = evaluate_features(model, circuit, induction, both, ablation="corrupted", random=1)
    assert abs(found.faithfulness.value - 1) < 0.01
    assert abs(found.complement.value) < 0.01


def test_on_a_toy_edges_go_from_a_words_token_to_its_output(toy):
    model, induction = toy
    both = [Subspaces(0), Subspaces(1)]
    circuit = feature_circuit(model, induction[[0]], both, threshold=0.1, edges=True, edge_threshold=0.1)
    words = [word.split()[0] for word in VOCABULARY]
    right = words.index(induction.right_text[0][0])
    outs = 2 * WORDS + 128
    token, out = f"resid_post.0.f{right}", f"resid_post.1.f{outs + right}"
    assert (token, out) in circuit.in_edges
    assert (out, "logits") in circuit.in_edges
    assert not any(source.startswith("resid_post.0") and target == "logits" for source, target in circuit.in_edges)
    strongest = circuit.to_frame("edges")
    assert strongest[strongest.source == token].iloc[0].target == out


@pytest.mark.parametrize("mode", ["noising", "denoising"])
@pytest.mark.parametrize("by_position", [False, True])
def test_a_nodes_edges_add_up_to_its_attribution(model, prompts, mode, by_position):
    """Over all downstream nodes, errors and logits included, nothing is lost: the cut model's chain rule."""
    some = [
        Stand(Place("resid_post", 0), size=3, k=2),
        Stand(Place("mlp_in", 1), Place("mlp_out", 1), size=4, skip=True, seed=1),
        Stand(Place("resid_post", 1), size=3, seed=2),
        Stand(Place("resid_post", 2), size=4, seed=3),
    ]
    effects = feature_effects(model, prompts, some, by_position=by_position, mode=mode)
    names = effects.node.values.tolist()
    nodes = [f"{name}@{p}" for name in names for p in effects.position.values] if by_position else names
    edges = feature_edges(model, prompts, some, nodes, mode)
    sums = {node: sum(score for (source, _), score in edges.items() if source == node) for node in nodes}
    np.testing.assert_allclose(list(sums.values()), effects.values.ravel(), atol=1e-6 * np.abs(effects).max())
    assert not any(s.startswith("resid_post.0") and t.startswith("resid_post.2") for s, t in edges)


@pytest.mark.parametrize("ablation", ["mean", "zero", "corrupted"])
def test_all_nodes_are_the_whole_model_and_none_is_the_ablated_one(model, prompts, ablation):
    some = dictionaries()
    effects = feature_effects(model, prompts, some, mode="noising")
    everything = feature_circuit(model, prompts, some, n=10**6, effects=effects)
    everything = replace(everything, in_nodes=frozenset(effects.node.values.tolist()))
    found = evaluate_features(model, everything, prompts, some, ablation=ablation, random=0)
    # in float64, but summed beside other rows than the whole model's are, so to its last bits only
    np.testing.assert_allclose(found.faithfulness.metric, found.faithfulness.full, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(found.complement.metric, found.complement.empty, rtol=1e-13, atol=1e-13)
    assert found.faithfulness.value == pytest.approx(1, abs=1e-12)
    assert found.complement.value == pytest.approx(0, abs=1e-12)


def test_corrupted_ablation_is_patching_what_is_outside(model, prompts):
    some = dictionaries()
    circuit = feature_circuit(model, prompts, some, n=10, method="attribution")
    found = evaluate_features(model, circuit, prompts, some, ablation="corrupted", random=0)
    every = feature_effects(model, prompts, some).node.values.tolist()
    outside = [node for node in every if node not in circuit.in_nodes]
    patched = feature_groups(model, prompts, some, {"out": outside}, "noising", per_example=True)
    measured = found.faithfulness.metric - found.faithfulness.full
    np.testing.assert_allclose(measured, patched.values[:, 0], atol=1e-5)


def test_mean_ablation_of_everything_on_the_last_residual_stream_has_a_closed_form(model, prompts):
    from interp.engine.forward import run
    from interp.engine.parts import parts_of

    one = Stand(Place("resid_post", 2), k=5)
    circuit = feature_circuit(model, prompts, one, n=5, method="attribution")
    found = evaluate_features(model, circuit, prompts, one, random=0)
    parts = parts_of(model)
    _, final = run(parts, prompts.corrupted, set())
    at_end = final.mean(0)[prompts.positions["end"]]
    with torch.no_grad():
        expected = prompts.per_example(parts.logits(at_end))
    np.testing.assert_allclose(found.faithfulness.empty, expected, rtol=1e-9)


def test_errors_are_kept_ablated_or_nodes_as_asked(model, prompts):
    one = Stand(Place("resid_post", 1), k=5)
    circuit = feature_circuit(model, prompts, one, n=8, method="attribution", errors=False)
    assert circuit.features == len(circuit.in_nodes) == 8
    with_error = replace(circuit, in_nodes=circuit.in_nodes | {"resid_post.1.error"})
    kept = evaluate_features(model, circuit, prompts, one, errors="kept", random=0).faithfulness
    scored = evaluate_features(model, with_error, prompts, one, errors="scored", random=0).faithfulness
    ablated = evaluate_features(model, with_error, prompts, one, errors="ablated", random=0).faithfulness
    plain = evaluate_features(model, circuit, prompts, one, random=0).faithfulness
    np.testing.assert_array_equal(kept.metric, scored.metric)
    np.testing.assert_array_equal(ablated.metric, plain.metric)
    assert not np.allclose(kept.metric, plain.metric)
    assert not np.allclose(kept.empty, plain.empty)


def test_the_curve_has_random_features_of_the_same_size_beside(model, prompts):
    some = dictionaries()
    circuit = feature_circuit(model, prompts, some, n=5, method="attribution")
    curve = feature_curve(model, circuit, prompts, some, (1, 5, 20), random=2, ablation="corrupted")
    assert curve.nodes.tolist() == [1, 5, 20]
    at_five = evaluate_features(model, circuit, prompts, some, random=2, ablation="corrupted")
    np.testing.assert_allclose(curve.faithfulness[1], at_five.faithfulness.value)
    np.testing.assert_allclose(curve.random[1], np.mean([one.value for one in at_five.random]))
    again = feature_curve(model, circuit, prompts, some, (1, 5, 20), random=2, ablation="corrupted")
    assert curve.equals(again)


def test_nodes_at_single_positions_make_a_circuit(model, prompts):
    some = dictionaries()[:1]
    circuit = feature_circuit(model, prompts, some, n=6, by_position=True, method="attribution")
    assert all("@" in node for node in circuit.in_nodes)
    found = evaluate_features(model, circuit, prompts, some, ablation="corrupted", random=1)
    assert np.isfinite(found.faithfulness.value)
    assert "features" in str(found)


def test_a_circuit_survives_its_file_and_knows_its_overlap(model, prompts, tmp_path):
    some = dictionaries()
    circuit = feature_circuit(model, prompts, some, n=10, method="attribution", edges=True)
    back = FeatureCircuit.load(circuit.save(tmp_path / "circuit.json"))
    assert back.nodes == circuit.nodes
    assert back.in_nodes == circuit.in_nodes
    assert back.edges == circuit.edges
    assert back.in_edges == circuit.in_edges
    assert back.dictionaries == circuit.dictionaries
    assert back.settings == circuit.settings
    other = feature_circuit(model, prompts, some, n=10, method="ig")
    shared = back.overlap(other)["nodes"]
    assert shared["intersection"] == len(back.in_nodes & other.in_nodes)
    assert shared["size"] == shared["other_size"] == 10
    assert back.overlap(circuit)["edges"]["jaccard"] == 1
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(InterpError, match="no feature circuit"):
        FeatureCircuit.load(tmp_path / "bad.json")


def test_bad_requests_are_named(model, prompts):
    some = dictionaries()
    with pytest.raises(UsageError, match="either n or a threshold"):
        feature_circuit(model, prompts, some)
    circuit = feature_circuit(model, prompts, some, n=3, method="attribution")
    with pytest.raises(UsageError, match="weights differ"):
        evaluate_features(model, circuit, prompts, [Stand(Place("resid_post", 0), seed=9), *some[1:]])
    with pytest.raises(UsageError, match=r"has nodes of mlp_out\.1"):
        evaluate_features(model, circuit, prompts, [some[0], some[2], some[3]])
    with pytest.raises(UsageError, match="belongs to"):
        evaluate_features(tiny("llama", seed=1, dtype=torch.float64), circuit, prompts, some)
    with pytest.raises(UsageError, match="ablation"):
        evaluate_features(model, circuit, prompts, some, ablation="gone")
    with pytest.raises(UsageError, match="errors"):
        evaluate_features(model, circuit, prompts, some, errors="gone")
    with pytest.raises(UsageError, match="per_example"):
        feature_circuit(model, prompts, some, n=3, effects=feature_effects(model, prompts, some, per_example=True))
    with pytest.raises(UsageError, match="names no node"):
        FeatureCircuit({"a0.h1": 1.0}, frozenset())


def test_trained_classes_of_dictionaries_are_taken_as_they_are(model, prompts):
    from interp.features import TopK, transcoder

    coder = transcoder("mlp_in.1", "mlp_out.1", 32, 24, k=4, skip=True, scale=0.5, scale_out=2.0)
    torch.nn.init.normal_(coder.W_skip, generator=torch.Generator().manual_seed(0))
    some = [TopK(32, 24, k=4, reads=Place("resid_post", 0), scale=0.5).double(), coder.double()]
    circuit = feature_circuit(model, prompts, some, n=8, edges=True)
    assert {node.rsplit(".", 1)[0] for node in circuit.nodes} == {"resid_post.0", "mlp_out.1"}
    assert circuit.edges
    assert np.isfinite(evaluate_features(model, circuit, prompts, some, random=1).faithfulness.value)
    exact = feature_effects(model, prompts, some, "exact", nodes=sorted(circuit.in_nodes))
    assert np.abs(exact).min() > 0


@pytest.mark.real_model
def test_on_smollm2_features_and_error_carry_what_the_residual_stream_does(smollm2):
    """With a random dictionary the sums hold as with any other; the error then carries most."""
    ioi = task("ioi", smollm2, n=2)
    one = Stand(Place("resid_post", 20), size=64, k=8, width=576)
    one.W_enc, one.W_dec, one.b_dec = one.W_enc.float(), one.W_dec.float(), one.b_dec.float()
    from interp.patching import attribution

    effects = feature_effects(smollm2, ioi, one)
    whole = attribution(smollm2, ioi, "resid_post", layers=[20])
    np.testing.assert_allclose(effects.sum(), whole.sum(), rtol=1e-3)
    groups = feature_groups(smollm2, ioi, one, {"all": effects.node.values.tolist()})
    np.testing.assert_allclose(groups[0], effects.attrs["clean"] - effects.attrs["corrupted"], rtol=1e-3)
