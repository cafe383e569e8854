"""The graph as a value: files, influence, pruning, paths, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from families import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from interp.errors import InterpError, UsageError
from interp.features.architectures.dictionary import Dictionary
from interp.features.architectures.registry import ARCHITECTURES
from interp.features.architectures.transcoder import transcoder
from interp.features.place import Place
from interp.tracing import AttributionGraph, Residual, Transcoders, trace
from interp.tracing.graph import COLUMNS
from interp.tracing.influence import influence, normalised

TOKENS = [5, 7, 9, 11, 5, 7]


def graph_of(matrix, kinds, weight) -> AttributionGraph:
    """A graph of a dense matrix "target source"."""
    n = len(kinds)
    columns = {name: [""] * n if kind == "str" else np.zeros(n, kind) for name, kind in COLUMNS.items()}
    nodes = pd.DataFrame({**columns, "kind": kinds, "weight": weight, "activation": 1.0})
    nodes.index = pd.Index([f"{kind}{i}" for i, kind in enumerate(kinds)], name="node")
    targets, sources = np.nonzero(matrix)
    return AttributionGraph("", (), (), nodes, targets, sources, np.asarray(matrix)[targets, sources])


KINDS = ["token", "token", "feature", "error", "feature", "error", "logit", "logit"]
WEIGHT = np.array([0, 0, 0, 0, 0, 0, 0.7, 0.2])


def random_graph(seed: int) -> AttributionGraph:
    matrix = np.random.default_rng(seed).normal(size=(8, 8)) * np.tri(8, k=-1)
    matrix[[0, 1, 3, 5]] = 0  # tokens and errors have no inputs
    matrix[:, 6:] = 0
    return graph_of(matrix, KINDS, WEIGHT)


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.fixture(scope="module")
def traced(model):
    return trace(model, TOKENS, max_nodes=40)


def test_influence_is_the_sum_over_all_paths():
    graph = random_graph(0)
    size = np.abs(graph.matrix().toarray())
    shares = size / np.maximum(size.sum(1, keepdims=True), 1e-30)
    expected = WEIGHT @ (np.linalg.inv(np.eye(8) - shares) - np.eye(8))
    assert np.allclose(influence(normalised(graph.matrix()), WEIGHT), expected)


def test_scores_of_a_graph_that_can_be_counted_by_hand():
    # The logit gets 3/4 from the feature, 1/4 from the error; the feature 1/2 from the token, 1/2 from the other error.
    matrix = np.zeros((5, 5))
    matrix[4, [2, 3]], matrix[2, [0, 1]] = [-3, 1], [2, 2]
    graph = graph_of(matrix, ["token", "error", "feature", "error", "logit"], np.array([0, 0, 0, 0, 1.0]))
    scores = graph.scores()
    assert scores["replacement"] == pytest.approx(0.375)
    # Influences: token 3/8, error 3/8, feature 3/4, error 1/4, and the logit's own 1.
    assert scores["completeness"] == pytest.approx((3 / 8 + 3 / 8 + 0.5 * 3 / 4 + 1 / 4 + 3 / 4) / 2.75)
    assert scores["error_share"] == pytest.approx((3 / 8 + 1 / 4) / 1.75)


def dense_pruned(matrix, kinds, weight, nodes, edges):
    """The published procedure, on dense matrices, one node and edge at a time."""

    def total(some):
        size = np.abs(some)
        shares = size / np.maximum(size.sum(1, keepdims=True), 1e-30)
        return shares, weight @ (np.linalg.inv(np.eye(len(weight)) - shares) - np.eye(len(weight)))

    def least(values, share):
        order = np.sort(values)[::-1]
        return order[min(np.searchsorted(np.cumsum(order) / order.sum(), share), len(order) - 1)]

    kinds, found = np.array(kinds), total(matrix)[1]
    fixed = np.isin(kinds, ["token", "logit"])
    keep = (found >= least(found, nodes)) | fixed
    small = matrix * keep[:, None] * keep[None]
    shares, again = total(small)
    scores = shares * (again + weight)[:, None]
    mask = (scores >= least(scores.ravel(), edges)) & (small != 0)
    while True:
        mask = mask & keep[:, None] & keep[None]
        fewer = keep & (fixed | (mask.any(0) & (mask.any(1) | (kinds != "feature"))))
        if (fewer == keep).all():
            return keep, mask
        keep = fewer


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 0.99), st.floats(0.3, 0.999))
def test_pruning_keeps_what_the_published_procedure_keeps(seed, nodes, edges):
    graph = random_graph(seed)
    keep, mask = dense_pruned(graph.matrix().toarray(), KINDS, WEIGHT, nodes, edges)
    small = graph.pruned(nodes, edges)
    assert list(small.nodes.index) == list(graph.nodes.index[keep])
    assert (small.matrix().toarray() != 0).sum() == mask.sum()
    assert np.allclose(small.matrix().toarray(), (graph.matrix().toarray() * mask)[np.ix_(keep, keep)])


def test_pruning_keeps_tokens_and_targets_and_notes_scores_before_and_after(traced):
    small = traced.pruned(0.5, 0.9)
    assert len(small.nodes) < len(traced.nodes)
    assert (small.nodes["kind"] == "token").sum() == len(TOKENS)
    assert small.nodes["weight"].sum() == pytest.approx(traced.nodes["weight"].sum())
    assert {"replacement", "completeness", "error_share"} <= set(small.about["pruned"]["after"])
    with pytest.raises(UsageError, match="0 to 1"):
        traced.pruned(1.2)


def test_the_strongest_paths_are_those_of_enumeration():
    graph = random_graph(3)
    shares, kinds = normalised(graph.matrix()).toarray(), np.array(KINDS)

    def walk(path, share):
        if kinds[path[0]] == "token":
            yield share, tuple(graph.nodes.index[i] for i in path)
        for source in np.flatnonzero(shares[path[0]]):
            yield from walk([source, *path], share * shares[path[0], source])

    expected = sorted((x for i in (6, 7) for x in walk([i], WEIGHT[i])), reverse=True)
    found = graph.paths(5)
    assert [path.nodes for path in found] == [nodes for _, nodes in expected[:5]]
    assert [path.share for path in found] == pytest.approx([share for share, _ in expected[:5]])


def test_inputs_and_outputs_are_the_strongest_first(traced):
    target = traced.nodes.index[-1]
    inputs = traced.inputs(target)
    assert (np.diff(inputs["weight"].abs()) <= 0).all()
    assert inputs["share"].sum() == pytest.approx(1.0)
    assert target in set(traced.outputs(inputs["source"][0])["target"])
    with pytest.raises(UsageError, match="unknown node"):
        traced.inputs("7.1@99")


def test_a_file_gives_the_graph_back(traced, tmp_path):
    again = AttributionGraph.load(traced.save(tmp_path / "graph.safetensors"))
    pd.testing.assert_frame_equal(again.nodes, traced.nodes, check_dtype=False)
    assert (again.matrix() != traced.matrix()).nnz == 0
    assert (again.prompt, again.tokens, again.words, again.about) == (
        traced.prompt,
        traced.tokens,
        traced.words,
        traced.about,
    )


def test_a_file_of_another_version_or_none_is_refused(traced, tmp_path):
    path = traced.save(tmp_path / "graph.safetensors")
    with safe_open(path, "numpy") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors, tmp_path / "old", {**header, "format": "interp.attribution-graph/0"})
    with pytest.raises(InterpError, match=r"attribution-graph/0.*trace the graph anew"):
        AttributionGraph.load(tmp_path / "old")
    save_file(tensors, tmp_path / "cut", {**header, "graph": json.dumps({})})
    with pytest.raises(InterpError, match="damaged"):
        AttributionGraph.load(tmp_path / "cut")
    (tmp_path / "text").write_text("no graph")
    with pytest.raises(InterpError, match="damaged"):
        AttributionGraph.load(tmp_path / "text")
    with pytest.raises(InterpError, match="no file"):
        AttributionGraph.load(tmp_path / "nothing")


def test_a_graph_from_a_file_wants_its_model_and_basis(traced, model, tmp_path):
    again = AttributionGraph.load(traced.save(tmp_path / "graph.safetensors"))
    with pytest.raises(UsageError, match="attached"):
        again.intervene({"token@1": 0.0})
    assert again.attached(model).origin is not None
    with pytest.raises(UsageError, match="fingerprint"):
        again.attached(tiny("llama", seed=1))
    dictionary = transcoder("mlp_in.1", "mlp_out.1", 32, 8, k=2)
    with pytest.raises(UsageError, match="traced in the basis"):
        again.attached(model, Transcoders({1: dictionary}, "neurons"))


def test_a_pickle_leaves_the_model_out_and_copies_share_it(traced, model):
    pickled = pickle.dumps(traced)
    assert abs(len(pickled) - len(pickle.dumps(replace(traced, origin=None)))) < 100
    again = pickle.loads(pickled)
    pd.testing.assert_frame_equal(again.nodes, traced.nodes)
    for run in (lambda: again.intervene({"token@1": 0.0}), lambda: again.validate(2, 1, 2)):
        with pytest.raises(UsageError, match=r"no model with it.*graph.attached\(model, basis\)"):
            run()
    assert again.attached(model).intervene({"token@1": 0.0}).values == {"token@1": 0.0}
    for same in (copy.copy(traced), copy.deepcopy(traced)):
        assert same.traced_in.model is model


def test_tracing_twice_gives_the_same_graph_whatever_the_batch(traced, model):
    for batch in (64, 7):
        again = trace(model, TOKENS, max_nodes=40, batch=batch)
        if batch == 64:
            pd.testing.assert_frame_equal(again.nodes, traced.nodes)
        assert again.nodes.loc["token@2", "influence"] == pytest.approx(
            traced.nodes.loc["token@2", "influence"], rel=0.2
        )


def test_with_all_neurons_as_nodes_no_error_is_left(model):
    graph = trace(model, TOKENS, max_nodes=10_000)
    assert (graph.nodes["kind"] == "feature").sum() > 600  # the last layer's at earlier positions lead nowhere
    assert graph.scores()["replacement"] > 0.999


def test_the_prefix_counts_as_its_token_and_the_graph_stays_exact(model):
    tokens = [1, 7, 9, 11, 5, 7]  # the tokenizer puts token 1 before every text
    folded, kept = (trace(model, tokens, max_nodes=40, fold_prefix=fold) for fold in (True, False))
    inside = folded.nodes[folded.nodes["position"] == 0]
    if folded.about["settings"]["folded"]:
        assert list(inside.index) == ["token@0"]
    assert "error.0@0" in kept.nodes.index
    for graph in (folded, kept):
        nodes = graph.nodes[graph.nodes["expanded"]]
        sums = np.asarray(graph.matrix().sum(1)).ravel()[[graph.row(name) for name in nodes.index]]
        assert np.allclose(sums + nodes["bias"], nodes["value"], rtol=1e-4, atol=1e-5)


def test_targets_are_the_likely_tokens_or_those_that_are_named(model):
    likely = trace(model, TOKENS, max_nodes=5).nodes.query("kind == 'logit'")
    assert len(likely) <= 10
    assert (likely["weight"] == likely["activation"]).all()
    named = trace(model, TOKENS, targets=["t9", ("t4", 5)], max_nodes=5).nodes.query("kind == 'logit'")
    assert set(named.index) == {"logit.9", "logit.4-5"}
    assert list(named["weight"]) == [0.5, 0.5]
    logits = model(torch.tensor([TOKENS]))[0, -1]
    assert named.loc["logit.4-5", "value"] == pytest.approx((logits[4] - logits[5]).item(), abs=1e-5)
    assert named.loc["logit.9", "value"] == pytest.approx((logits[9] - logits.mean()).item(), abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": []}, "at least"),
        ({"prompt": [5, 500]}, "out of range"),
        ({"prompt": [5] * 100}, "100 tokens, and this model reads 64"),
        ({"targets": "t4 t5"}, r"2 tokens long \('t4', 't5'\)"),
        ({"targets": 50}, "out of range"),
        ({"targets": []}, "one target"),
        ({"targets": ("t4", "t4")}, "two different"),
        ({"targets": ["t4", 4]}, "twice"),
        ({"targets": 1.5}, "as text or id"),
        ({"max_nodes": 0}, "at least 1"),
        ({"basis": "neuron"}, "did you mean 'neurons'"),
        ({"basis": {}}, "one dictionary"),
    ],
)
def test_bad_requests_have_one_clear_message(model, change, message):
    with pytest.raises(UsageError, match=message):
        trace(model, **{"prompt": TOKENS, "max_nodes": 5, **change})


def test_dictionaries_that_do_not_fit_are_refused(model):
    made = {layer: transcoder(f"mlp_in.{layer}", f"mlp_out.{layer}", 32, 8, k=2) for layer in range(5)}
    sae = {layer: ARCHITECTURES["topk"](32, 8, k=2, reads=Place("resid_post", layer)) for layer in range(5)}
    wide = {layer: transcoder(f"mlp_in.{layer}", f"mlp_out.{layer}", 64, 8, k=2) for layer in range(3)}
    for basis, message in (
        ({0: made[0]}, "no transcoder for the layers 1, 2"),
        ({0: made[1]}, "layer 0 reads mlp_in.1"),
        (made, "layer 3, and this model has layers 0 to 2"),
        (wide, "another model"),
        ({0: sae[1]}, "resid_post.0"),
        ({4: sae[4]}, "has 3 layers"),
        (7, "not int"),
    ):
        with pytest.raises(UsageError, match=message):
            trace(model, TOKENS, basis)
    with pytest.raises(UsageError, match="unknown way"):
        Transcoders(made, "neuron")


def test_dictionaries_trained_on_other_weights_are_refused(model, tmp_path):
    dictionary = transcoder("mlp_in.0", "mlp_out.0", 32, 8, k=2)
    dictionary.model = ("other", "0123456789abcdef")
    dictionary.save(tmp_path)
    for basis in (
        Transcoders({0: Dictionary.load(tmp_path)}, "errors"),
        Residual({0: _trained_elsewhere()}),
    ):
        with pytest.raises(UsageError, match="trained on other with the fingerprint 0123456789abcdef"):
            trace(model, TOKENS, basis)


def _trained_elsewhere():
    sae = ARCHITECTURES["topk"](32, 8, k=2, reads=Place("resid_post", 0))
    sae.model = ("other", "0123456789abcdef")
    return sae
