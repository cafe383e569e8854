"""Choosing edges, and the measures of a circuit, on cases that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import tiny
from prompts import random_task

import interp
from interp.circuits import discover, evaluate
from interp.circuits.discover import scores_of
from interp.circuits.exact import EdgeExperiment, edge_mask, existing
from interp.circuits.faithfulness import area, curve, faithfulness, minimality, share
from interp.circuits.search import above, greedy, of_nodes, pruned, strongest, wiring
from interp.errors import UsageError
from interp.graph import Graph
from interp.patching.experiment import Experiment

pytestmark = pytest.mark.filterwarnings("ignore:the model does not perform")


@pytest.fixture(scope="module")
def graph():
    return Graph.of(tiny("llama"))  # 4 heads in 2 key-value groups


def names(mask, graph):
    return {(graph.nodes()[node], graph.ports()[port]) for port, node in mask.nonzero().tolist()}


def test_pruning_keeps_exactly_what_lies_on_a_path(graph):
    path = [("input", "a0.h0<v>"), ("a0.h1", "a1.h2<q>"), ("a1.h2", "m2"), ("m2", "logits")]  # h0 and h1 share values
    dead = [("input", "m1"), ("a2.h0", "logits"), ("a0.h3", "m1")]
    assert names(pruned(edge_mask(graph, path + dead), graph), graph) == set(path)
    assert not pruned(edge_mask(graph, dead), graph).any()
    assert names(pruned(edge_mask(graph, [("input", "logits")]), graph), graph) == {("input", "logits")}


def test_a_key_value_port_feeds_all_heads_of_its_group(graph):
    feeds, ports, nodes = wiring(graph), graph.ports(), graph.nodes()
    fed = {ports[p]: {nodes[n] for n in row.nonzero().flatten().tolist()} for p, row in enumerate(feeds)}
    assert fed["a1.h1<k>"] == {"a1.h2", "a1.h3"}
    assert fed["a1.h1<q>"] == {"a1.h1"}
    assert fed["m1"] == {"m1"}
    assert fed["logits"] == set()


def test_the_strongest_edges_are_taken_by_size_or_by_sign(graph):
    scores = torch.zeros(len(graph.nodes()) - 1, len(graph.ports()))
    index = {edge: (graph.nodes().index(edge[0]), graph.ports().index(edge[1])) for edge in graph.edges()}
    scores[index["input", "logits"]] = -3.0
    scores[index["input", "m0"]] = 2.0
    scores[index["m0", "logits"]] = 1.0
    assert names(strongest(scores, graph, 1), graph) == {("input", "logits")}
    assert names(strongest(scores, graph, 2, absolute=False), graph) == {("input", "m0"), ("m0", "logits")}
    assert names(above(scores, graph, 0.5), graph) == {("input", "logits"), ("input", "m0"), ("m0", "logits")}
    assert names(above(scores, graph, 1.5), graph) == {("input", "logits")}  # m0 then leads nowhere
    assert names(greedy(scores, graph, 3), graph) == {("input", "logits"), ("input", "m0"), ("m0", "logits")}
    for n in (-1, graph.n_edges() + 1):
        with pytest.raises(UsageError, match="edges"):
            strongest(scores, graph, n)
    assert int(strongest(torch.rand(scores.shape), graph, graph.n_edges()).sum()) == graph.n_edges()


def test_a_circuit_of_nodes_has_all_edges_among_them(graph):
    scores = torch.zeros(len(graph.nodes()) - 1)
    scores[graph.nodes().index("a1.h0")], scores[graph.nodes().index("m2")] = -2.0, 1.0
    found = names(of_nodes(scores, graph, 2), graph)
    assert {node for node, _ in found} == {"input", "a1.h0", "m2"}
    assert ("a1.h0", "m2") in found
    assert ("input", "a1.h0<q>") in found
    assert ("input", "a1.h1<q>") not in found


def test_the_areas_are_those_of_the_benchmarks_code():
    """Trapezoids over the requested fractions, from the first on: a hand computation."""
    cpr, cmd = area([0.001, 0.5, 1.0], [0.0, 0.8, 1.2])
    assert cpr == pytest.approx(0.499 * 0.4 + 0.5 * 1.0)
    assert cmd == pytest.approx(0.499 * 0.6 + 0.5 * 0.2)


def test_the_whole_graph_is_faithful_and_the_empty_one_is_not():
    model, task = tiny("llama"), random_task(n=3)
    edges = EdgeExperiment(Experiment(model, task, mode="noising"))
    assert faithfulness(edges, edges.known).value == pytest.approx(1.0, abs=1e-4)
    assert faithfulness(edges, torch.zeros_like(edges.known)).value == pytest.approx(0.0, abs=1e-4)


def test_the_curve_ends_at_one_and_random_circuits_have_the_circuits_size():
    model, task = tiny("llama"), random_task(n=3)
    edges = EdgeExperiment(Experiment(model, task, mode="noising"))
    scores = interp.circuits.score_edges(model, task, "exact")
    frame = curve(edges, scores, fractions=(0.05, 0.2, 0.5, 1.0))
    assert frame["faithfulness"].iloc[-1] == pytest.approx(1.0, abs=1e-4)
    assert frame["random"].iloc[-1] == pytest.approx(1.0, abs=1e-4)
    assert (frame["low"] <= frame["faithfulness"] + 1e-9).all()
    assert (frame["high"] >= frame["faithfulness"] - 1e-9).all()
    assert list(frame["edges"]) == sorted(frame["edges"])
    assert frame.attrs["cpr"] == pytest.approx(area(frame["fraction"], frame["faithfulness"])[0])
    assert abs(frame["faithfulness"][1] - 1) < abs(frame["random"][1] - 1)


def test_an_interval_is_as_wide_as_the_prompts_say():
    """Against nothing the share is a mean over prompts: 1.96 standard errors to each side."""
    draw = np.random.default_rng(1)
    one, none = np.ones(400), np.zeros(400)
    for spread in (0.1, 1.0):
        metric = 0.5 + spread * draw.standard_normal(400)
        found = share(metric, one, none, seed=3)
        error = 1.96 * metric.std() / 400**0.5
        assert found.value == pytest.approx(metric.mean())
        assert found.low == pytest.approx(metric.mean() - error, abs=0.15 * error)
        assert found.high == pytest.approx(metric.mean() + error, abs=0.15 * error)


def test_an_interval_holds_what_all_prompts_would_give_as_often_as_it_says():
    draw, held = np.random.default_rng(0), 0
    for seed in range(200):
        full = draw.gamma(4.0, 1.0, 50)
        metric = full * (0.6 + 0.3 * draw.standard_normal(50))
        found = share(metric, full, np.zeros(50), seed)
        held += found.low <= 0.6 <= found.high
    assert 0.88 <= held / 200 <= 0.99


def test_cpr_follows_the_sign_of_scores_and_cmd_their_size():
    """Scores whose largest is negative: by size its edges come first, by sign last."""
    model, task = tiny("llama"), random_task(n=3)
    everything = discover(model, task, "eap", edges=Graph.of(model).n_edges())
    found = evaluate(model, everything, task, with_curve=True, random=0)
    edges = EdgeExperiment(Experiment(model, task, mode="noising"))
    scores = scores_of(everything, edges.parts.graph)
    assert float(scores.min()) < 0
    signed, sized = (curve(edges, scores, absolute=absolute, random=0) for absolute in (False, True))
    assert signed.attrs["cpr"] != pytest.approx(sized.attrs["cpr"], abs=1e-3)
    assert found.curve.attrs["cpr"] == pytest.approx(signed.attrs["cpr"])
    assert found.curve.attrs["cmd"] == pytest.approx(sized.attrs["cmd"])
    assert list(found.curve["signed"]) == pytest.approx(list(signed["faithfulness"]))
    assert list(found.curve["faithfulness"]) == pytest.approx(list(sized["faithfulness"]))


@torch.no_grad()
def test_what_an_edge_is_worth_is_what_its_removal_costs():
    model, task = tiny("gpt2"), random_task(n=2)
    edges = EdgeExperiment(Experiment(model, task, mode="noising"))
    kept = strongest(interp.circuits.score_edges(model, task, "exact"), edges.parts.graph, 30)
    worth = minimality(edges, kept)
    assert torch.equal(~worth.isnan(), kept)
    whole = faithfulness(edges, kept).value
    for port, node in kept.nonzero()[::7].tolist():
        without = kept.clone()
        without[port, node] = False
        assert float(worth[port, node]) == pytest.approx(whole - faithfulness(edges, without).value, abs=1e-4)


@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean", "resampled"])
def test_every_ablation_leaves_the_whole_model_whole(ablation):
    model, task = tiny("llama"), random_task(n=3)
    everything = discover(model, task, "eap", edges=Graph.of(model).n_edges())
    found = evaluate(model, everything, task, ablation=ablation)
    assert found.faithfulness.value == pytest.approx(1.0, abs=1e-3)
    assert found.complement.value == pytest.approx(0.0, abs=1e-3)


def test_bad_requests_name_the_value():
    model, task = tiny("llama"), random_task(n=2)
    circuit = discover(model, task, "eap", edges=20)
    for call, message in (
        (lambda: discover(model, task, "eapig"), "eap-ig"),
        (lambda: discover(model, task, "eap", edges=3, threshold=0.1), "one of edges"),
        (lambda: discover(model, task, "acdc"), "threshold"),
        (lambda: discover(model, task, "eap", search="best"), "strongest"),
        (lambda: discover(model, task, "eap", ablation="none"), "zero"),
        (lambda: discover(model, task, "eap", candidates=circuit), "acdc"),
        (lambda: evaluate(model, circuit, task, ablation="nothing"), "resampled"),
        (lambda: evaluate(tiny("llama", seed=3), circuit, task), "fingerprint"),
    ):
        with pytest.raises(UsageError, match=message):
            call()


def test_scores_that_are_all_zero_are_pointed_out():
    from dataclasses import replace

    model, task = tiny("llama"), random_task(n=2)
    with pytest.warns(UserWarning, match="all edges score zero"):
        interp.circuits.score_edges(model, replace(task, corrupted=task.clean), "eap")


def test_acdc_keeps_to_its_candidates():
    model, task = tiny("llama"), random_task(n=2)
    some = discover(model, task, "eap", edges=40)
    found = discover(model, task, "acdc", threshold=1e-3, candidates=some)
    assert found.in_edges <= some.in_edges
    assert found.settings["runs"] >= len(some.in_edges)
    assert np.isfinite(found.settings["seconds"])
    assert existing(Graph.of(model)).sum() == len(found.edges)
