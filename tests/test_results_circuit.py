"""Circuits: validated, pruned, compared with each other and with chance, saved, and exchanged with EAP-IG."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from math import comb

import numpy as np
import pytest

from interp.errors import InterpError, UsageError
from interp.graph import Graph
from interp.models import known_circuit
from interp.results import Circuit, composition

EDGES = known_circuit("toy-count")["edges"]


def shape(n_heads=4, n_kv_heads=2, n_layers=2, parallel=False):
    """The graph of a model with grouped-query attention, without the model."""
    return Graph(
        n_layers=n_layers, n_heads=n_heads, n_kv_heads=n_kv_heads, d_model=8, d_head=2, d_mlp=16, d_vocab=32,
        norm="rmsnorm", gated_mlp=True, parallel=parallel, qk_norm=False, attn_post_norm=False,
        mlp_post_norm=False, positional="rotary", windows=(None,) * n_layers,
    )  # fmt: skip


def scored(graph, seed=0, n=20, **more):
    """Random scores for everything, and the `n` strongest edges."""
    rng = np.random.default_rng(seed)
    edges = dict(zip(graph.edges(), rng.normal(size=graph.n_edges()), strict=True))
    nodes = dict(zip(graph.nodes()[:-1], rng.normal(size=len(graph.nodes()) - 1), strict=True))
    strongest = sorted(edges, key=lambda edge: -abs(edges[edge]))[:n]
    more = {"heads_per_kv": graph.n_heads // graph.n_kv_heads, "task": "ioi", "model": "toy", **more}
    return Circuit(nodes, edges, in_edges=frozenset(strongest), **more)


def same(a, b):
    return (a.nodes, a.in_nodes, a.in_edges, a.task, a.model, a.fingerprint, a.method, a.settings, a.versions) == (
        b.nodes, b.in_nodes, b.in_edges, b.task, b.model, b.fingerprint, b.method, b.settings, b.versions
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": {"a0.0": 1.0}}, "'a0.0' names no node"),
        ({"in_nodes": frozenset(["m"])}, "'m' names no node"),
        ({"edges": {("input", "a0.h0"): 1.0}}, r"'a0.h0' names no port"),
        ({"edges": {("input", "input"): 1.0}}, "'input' names no port"),
        ({"in_edges": frozenset([("m0", "a0.h0<q>")])}, "from m0 to a0.h0<q>: it would run backwards"),
        ({"edges": {("m0", "m0"): 1.0}}, "run backwards"),
        ({"edges": {("logits", "logits"): 1.0}}, "run backwards"),
        ({"edges": {("input", "m0"): float("nan")}}, "input->m0 is nan"),
        ({"nodes": {"m0": float("inf")}}, "m0 is inf"),
        ({"heads_per_kv": 0}, "heads_per_kv"),
    ],
)
def test_a_circuit_that_no_model_can_have_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        Circuit(**{"nodes": {}, "edges": {}, **change})


def test_nodes_are_those_that_the_edges_touch():
    assert Circuit.of(EDGES).in_nodes == {"input", "a0.h0", "m0", "a1.h0", "logits"}
    grouped = Circuit.of([("input", "a0.h1<k>"), ("a0.h3", "logits")], heads_per_kv=2)
    assert grouped.in_nodes == {"input", "a0.h3", "logits"}


def test_pruning_keeps_exactly_what_lies_on_a_path():
    known = {tuple(edge) for edge in EDGES}
    loose = {
        ("a0.h1", "m0"),  # nothing enters a0.h1
        ("input", "a1.h2<v>"),  # nothing leaves a1.h2
        ("a1.h1", "m1"),  # neither
        ("a0.h2", "a1.h1<q>"),  # leads only to a dead end that has no input
    }
    pruned = Circuit.of(known | loose).pruned()
    assert pruned.in_edges == known
    assert pruned.in_nodes == set(known_circuit("toy-count")["nodes"])
    assert pruned.pruned().in_edges == known
    assert set(pruned.edges) == known | loose, "scores stay"
    assert Circuit.of(loose).pruned().in_edges == set()
    assert Circuit.of(loose).pruned().in_nodes == set()


def on_paths(steps, node, path):
    """The edges of all paths from a node to the logits, walked one by one."""
    if node == "logits":
        return set(path)
    return set().union(*(on_paths(steps, to, [*path, edge]) for to, edge in steps.get(node, ())), set())


def test_pruning_agrees_with_all_paths_written_out():
    graph = shape(n_heads=2, n_kv_heads=2)
    for seed in range(30):
        circuit = scored(graph, seed, n=14)
        steps = {}
        for node, port in circuit.in_edges:
            steps.setdefault(node, set()).add((port.split("<")[0], (node, port)))

        assert circuit.pruned().in_edges == on_paths(steps, "input", [])


def test_a_shared_key_leads_to_every_head_of_its_group_that_is_in_the_circuit():
    edges = [("input", "a0.h1<k>"), ("a0.h2", "logits"), ("a0.h0", "logits")]
    pruned = Circuit.of(edges, heads_per_kv=2).pruned()
    assert pruned.in_edges == {("input", "a0.h1<k>"), ("a0.h2", "logits")}
    without = replace(Circuit.of(edges, heads_per_kv=2), in_nodes=frozenset(["input", "a0.h0", "logits"]))
    assert without.pruned().in_edges == set()


def test_saved_and_loaded_it_is_the_same(tmp_path):
    circuit = scored(
        shape(), fingerprint="0123abcd", method="eap-ig", settings={"steps": 5, "on": ["q", "k"]}, versions={"a": "1"}
    )
    path = circuit.save(tmp_path / "deep" / "circuit.json")
    loaded = Circuit.load(path)
    assert same(loaded, circuit)
    assert loaded.edges == circuit.edges
    assert loaded.heads_per_kv == 2
    assert [p.name for p in path.parent.iterdir()] == ["circuit.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cut short"),
        ("[1]", "an object is needed"),
        ("{}", "no format"),
        ('{"cfg": {}, "nodes": {}, "edges": {}}', "from_eap_ig"),
        ('{"format": "interp.circuit/1", "nodes": {}}', "damaged"),
    ],
)
def test_a_foreign_file_is_one_error(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InterpError, match=message) as caught:
        Circuit.load(path)
    assert str(path) in str(caught.value)
    assert not isinstance(caught.value, UsageError)


def test_a_truncated_or_changed_file_is_one_error(tmp_path):
    path = scored(shape()).save(tmp_path / "circuit.json")
    text = path.read_text()
    for broken in (
        text[: len(text) // 2],
        text.replace('"m1"', '"x1"', 1),
        text.replace('"in_nodes": [', '"in_nodes": [3,'),
    ):
        path.write_text(broken)
        with pytest.raises(InterpError, match=str(path)):
            Circuit.load(path)
    with pytest.raises(InterpError, match="there is no file"):
        Circuit.load(tmp_path / "missing.json")


def test_settings_that_json_cannot_hold_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match="settings"):
        scored(shape(), settings={"f": print}).save(tmp_path / "c.json")
    assert not list(tmp_path.iterdir())


def test_another_models_circuit_is_refused_with_both_fingerprints():
    circuit = Circuit.of(EDGES, model="toy-count", fingerprint="aaaa1111")
    circuit.check("aaaa1111")
    Circuit.of(EDGES).check("anything")
    with pytest.raises(UsageError, match=r"toy-count with fingerprint aaaa1111.*bbbb2222"):
        circuit.check("bbbb2222")


def test_overlap_counts_what_is_shared():
    a = Circuit.of([("input", "m0"), ("m0", "m1"), ("m1", "logits")])
    b = Circuit.of([("input", "m0"), ("m0", "logits")])
    result = a.overlap(b, shape())
    edges, nodes = result["edges"], result["nodes"]
    assert (edges["size"], edges["other_size"], edges["intersection"], edges["union"]) == (3, 2, 1, 4)
    assert (edges["jaccard"], edges["precision"], edges["recall"]) == (1 / 4, 1 / 3, 1 / 2)
    assert (nodes["size"], nodes["other_size"], nodes["intersection"]) == (2, 1, 1), "input and logits don't count"
    assert nodes["universe"] == 10
    assert edges["universe"] == shape().n_edges()


def test_chance_overlap_equals_enumeration():
    nodes = [f"m{i}" for i in range(6)]
    edges = [("input", node) for node in nodes]
    a = Circuit({}, dict.fromkeys(edges, 1.0), in_edges=frozenset(edges[:3]))
    b = Circuit({}, dict.fromkeys(edges, 1.0), in_edges=frozenset(edges[1:3]))
    result = a.overlap(b)["edges"]
    draws = [len(set(edges[:3]) & set(drawn)) for drawn in combinations(edges, 2)]
    assert len(draws) == comb(6, 2)
    assert result["expected"] == pytest.approx(np.mean(draws))
    assert result["p_value"] == pytest.approx(np.mean([n >= 2 for n in draws]))


def test_chance_is_unknown_where_only_the_chosen_are_known():
    a, b = Circuit.of([("input", "m0")]), Circuit.of([("input", "m1")])
    result = a.overlap(b)["edges"]
    assert np.isnan(result["p_value"])
    assert np.isnan(result["expected"])
    assert result["jaccard"] == 0
    assert np.isnan(Circuit.of([]).overlap(Circuit.of([]))["edges"]["jaccard"])


def test_composition_lists_what_circuits_share():
    a = Circuit({"a0.h1": 2.0, "m0": 1.0}, {}, in_nodes=frozenset(["input", "a0.h1", "m0", "logits"]))
    b = Circuit({"a0.h1": -3.0}, {}, in_nodes=frozenset(["input", "a0.h1", "a1.h0", "logits"]))
    c = Circuit({"a0.h1": 1.0, "m0": 4.0}, {}, in_nodes=frozenset(["m0"]))
    frame = composition({"ioi": a, "induction": b, "other": c})
    assert frame["node"].tolist() == ["a0.h1", "m0"]
    assert frame["kind"].tolist() == ["head", "mlp"]
    assert frame["shared"].tolist() == [2, 2]
    assert frame.loc[0, ["ioi", "induction"]].tolist() == [2.0, -3.0]
    assert np.isnan(frame.loc[0, "other"]), "scored, but not in the circuit"
    assert len(composition({"ioi": a, "induction": b, "other": c}, least=1)) == 3
    edges = composition({"x": Circuit.of(EDGES), "y": Circuit.of(EDGES[:2])}, of="edges")
    assert list(zip(edges["node"], edges["port"], strict=True)) == sorted(map(tuple, EDGES[:2]), key=lambda e: e[1])
    with pytest.raises(UsageError, match="two circuits or more"):
        composition({"ioi": a})
    with pytest.raises(UsageError, match="'heads'"):
        composition({"ioi": a, "b": b}, of="heads")


def test_eap_ig_files_have_the_keys_and_names_of_its_code(tmp_path):
    graph = shape(n_heads=2, n_kv_heads=2, n_layers=1)
    circuit = Circuit({"m0": 2.0}, {("input", "a0.h1<k>"): 3.0}, in_edges=frozenset([("input", "a0.h1<k>")]))
    document = json.loads(circuit.to_eap_ig(tmp_path / "g.json", graph).read_text())
    assert set(document) == {"cfg", "nodes", "edges"}
    assert {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"} <= set(document["cfg"])
    assert list(document["nodes"]) == ["input", "a0.h0", "a0.h1", "m0", "logits"]
    assert document["nodes"]["logits"] == {"in_graph": True}
    assert document["nodes"]["m0"] == {"in_graph": False, "score": 2.0}
    assert document["edges"]["input->a0.h1<k>"] == {"score": 3.0, "in_graph": True}
    assert {"input->a0.h0<q>", "a0.h1->m0", "m0->logits", "input->m0", "input->logits"} <= set(document["edges"])
    assert len(document["edges"]) == 6 + 3 + 4


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
def test_eap_ig_round_trip_keeps_scores_and_members(tmp_path, n_kv_heads, parallel):
    graph = shape(n_kv_heads=n_kv_heads, parallel=parallel)
    circuit = scored(graph)
    path = circuit.to_eap_ig(tmp_path / "g.json", graph)
    assert len(json.loads(path.read_text())["edges"]) == graph.n_edges(ungrouped=True)
    back = Circuit.from_eap_ig(path, task="ioi", model="toy")
    assert back.in_edges == circuit.in_edges
    assert back.heads_per_kv == circuit.heads_per_kv
    assert back.nodes == circuit.nodes
    assert back.edges == pytest.approx(circuit.edges)
    assert set(back.edges) == set(graph.edges())


def test_eap_ig_edges_of_one_group_sum_to_ours(tmp_path):
    graph = shape()
    path = Circuit({}, {}).to_eap_ig(tmp_path / "g.json", graph)
    document = json.loads(path.read_text())
    del document["cfg"]["n_key_value_heads"]
    document["edges"]["input->a1.h2<v>"] = {"score": 0.5, "in_graph": False}
    document["edges"]["input->a1.h3<v>"] = {"score": -2.0, "in_graph": True}
    path.write_text(json.dumps(document))
    circuit = Circuit.from_eap_ig(path, graph)
    assert circuit.edges["input", "a1.h1<v>"] == -1.5
    assert circuit.in_edges == {("input", "a1.h1<v>")}
    assert Circuit.from_eap_ig(path).edges["input", "a1.h3<v>"] == -2.0, "without the graph, one head is one head"


def test_eap_ig_refuses_what_does_not_fit(tmp_path):
    graph = shape()
    with pytest.raises(UsageError, match=r"no m7->logits"):
        Circuit.of([("m7", "logits")], in_nodes=frozenset()).to_eap_ig(tmp_path / "g.json", graph)
    path = Circuit({}, {}).to_eap_ig(tmp_path / "g.json", graph)
    with pytest.raises(UsageError, match="2 layers of 4 heads, the model 3 of 4"):
        Circuit.from_eap_ig(path, shape(n_layers=3))
    text = path.read_text()
    for broken in (
        text[:200],
        text.replace("->", "=>"),
        text.replace('"in_graph"', '"in"'),
        text.replace('"cfg"', '"c"'),
    ):
        path.write_text(broken)
        with pytest.raises(InterpError, match=str(path)) as caught:
            Circuit.from_eap_ig(path)
        assert not isinstance(caught.value, UsageError)


def test_it_shows_itself():
    circuit = scored(shape(), method="eap-ig")
    assert repr(circuit).startswith("Circuit(ioi, on toy, eap-ig, 20 of ")
    page = circuit._repr_html_()
    strongest = circuit.to_frame().iloc[0]
    assert f"<td>{strongest.node}</td>" in page
    assert "and 10 more" in page
    frame = circuit.to_frame()
    assert frame["in_circuit"].tolist() == [True] * 20 + [False] * (len(frame) - 20)
    assert circuit.to_frame("nodes")["score"].abs().is_monotonic_decreasing
    with pytest.raises(UsageError, match="'heads'"):
        circuit.to_frame("heads")


def test_a_graph_as_large_as_smollm2s_is_saved_and_loaded_quickly(tmp_path):
    graph = shape(n_heads=9, n_kv_heads=3, n_layers=30)
    circuit = scored(graph, n=500)
    assert Circuit.load(circuit.save(tmp_path / "c.json")).edges == circuit.edges
    assert circuit.pruned().in_edges <= circuit.in_edges
