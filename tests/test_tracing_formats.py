"""Attribution graphs in other programs' files, with nodes merged, and in words: nothing is lost or made up."""

from __future__ import annotations

import itertools
import json
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from attribution_graphs import graph_of, hand_made, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InterpError, UsageError
from interp.tracing.formats import circuit_tracer
from interp.tracing.formats.circuit_tracer import cantor, uncantor
from interp.tracing.graph import AttributionGraph
from interp.tracing.supernodes import merged, similar
from interp.tracing.words import summary

FIELDS = {
    "node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str, "token_prob": float,
    "is_target_logit": bool, "run_idx": int, "reverse_ctx_idx": int, "jsNodeId": str, "clerp": str,
}  # fmt: skip
"""Of circuit-tracer's `Node`; ``influence`` and ``activation`` are numbers or null."""


def same(a, b):
    pd.testing.assert_frame_equal(a.nodes, b.nodes, check_names=False)
    for name in ("targets", "sources", "weights"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.prompt, a.tokens, a.words, a.about) == (b.prompt, b.tokens, b.words, b.about)


def written(graph, tmp_path, **options):
    path = graph.to_circuit_tracer(tmp_path / "graph.json", **options)
    return path, json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("graph", [hand_made(), random_graph()], ids=["by hand", "random"])
def test_a_graph_in_circuit_tracers_json_is_read_back_as_it_was(graph, tmp_path):
    path, _ = written(graph, tmp_path, nodes=None, edges=None)
    same(circuit_tracer.read(path), graph)
    path, _ = written(graph.pruned(0.7, 0.9), tmp_path)
    same(circuit_tracer.read(path), graph.pruned(0.7, 0.9))


def test_circuit_tracers_json_has_its_fields_and_ids_that_say_what_they_are_of(tmp_path):
    _, held = written(hand_made(), tmp_path, nodes=None, edges=None)
    assert {"slug", "scan", "transcoder_list", "prompt_tokens", "prompt", "node_threshold"} <= set(held["metadata"])
    assert set(held["qParams"]) == {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"}
    nodes = {node["node_id"]: node for node in held["nodes"]}
    for node in nodes.values():
        assert {key: type(node[key]) for key in FIELDS} == FIELDS
    assert set(nodes) == {
        "E_11_1", "E_12_2", "0_2_1", "1_3_2", "1_4_2", "2_9_3", "2_-1_1", "4_7_3", "4_1000000_3",
    }  # fmt: skip
    assert len({node["jsNodeId"] for node in nodes.values()}) == len(nodes)
    assert nodes["2_9_3"]["feature"] == (2 + 9) * (2 + 9 + 1) // 2 + 9
    assert nodes["0_2_1"]["feature_type"] == "cross layer transcoder"
    assert (nodes["2_-1_1"]["layer"], nodes["2_-1_1"]["ctx_idx"], nodes["2_-1_1"]["feature"]) == ("2", 1, -1)
    weights = {(link["source"], link["target"]): link["weight"] for link in held["links"]}
    assert weights["2_-1_1", "4_7_3"] == -3.0
    assert weights["1_4_2", "4_1000000_3"] == 6.0
    assert len(weights) == 11


def test_an_error_never_has_the_id_of_a_feature(tmp_path):
    graph = random_graph(n=300, layers=8, length=4, seed=3, density=0.05)
    _, held = written(graph, tmp_path, nodes=None, edges=None)
    ids = [node["node_id"] for node in held["nodes"]]
    assert len(set(ids)) == len(ids)
    for node in held["nodes"]:
        layer, number, position = node["node_id"].split("_")
        assert (layer, int(position)) == (node["layer"], node["ctx_idx"])
        if node["feature_type"] == "cross layer transcoder":
            assert uncantor(node["feature"]) == (int(layer), int(number))


def test_influence_is_the_share_of_what_is_stronger_and_itself_as_viewers_prune_by_it(tmp_path):
    graph = random_graph()
    _, held = written(graph, tmp_path, nodes=0.8, edges=0.98)
    small = graph.pruned(0.8, 0.98)
    assert len(held["nodes"]) == len(small.nodes)
    inner = [n for n in held["nodes"] if n["feature_type"] in ("cross layer transcoder", "mlp reconstruction error")]
    total = graph.nodes["influence"].sum()
    for node in inner:
        own = node["interp"]["influence"]
        expected = graph.nodes["influence"][graph.nodes["influence"] >= own].sum() / total
        assert node["influence"] == pytest.approx(expected)
        assert node["influence"] - own / total < 0.8


def test_pairing_counts_along_diagonals():
    assert [cantor(*pair) for pair in ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))] == list(range(6))


@given(st.integers(0, 200), st.integers(0, 10**7))
def test_pairing_is_undone(layer, feature):
    assert uncantor(cantor(layer, feature)) == (layer, feature)


def foreign():
    """As circuit-tracer 0.5 writes it: no field of ours, targets at the number of layers plus one."""

    def node(name, feature, layer, position, kind, js, **more):
        blank = {"token_prob": 0.0, "is_target_logit": False, "run_idx": 0, "reverse_ctx_idx": 0, "clerp": ""}
        return {
            "node_id": name, "feature": feature, "layer": layer, "ctx_idx": position, "feature_type": kind,
            "jsNodeId": js, "influence": 0.5, "activation": None, **blank, **more,
        }  # fmt: skip

    return {
        "metadata": {
            "slug": "x", "scan": "gemma-2-2b", "transcoder_list": [], "prompt_tokens": ["<bos>", "Hi"], "prompt": "Hi",
            "node_threshold": 0.8, "schema_version": 1,
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [
            node("1_5_1", cantor(1, 5), "1", 1, "cross layer transcoder", "1_5-0", activation=2.5),
            node("0_-1_1", -1, "0", 1, "mlp reconstruction error", "0_-1-1"),
            node("E_2_0", 0, "E", 0, "embedding", "E_2-0"),
            node("E_77_1", 1, "E", 1, "embedding", "E_77-1"),
            node("3_9_1", 9, "3", 1, "logit", "L_9-1", token_prob=0.5, clerp='Output " there" (p=0.500)'),
        ],
        "links": [
            {"source": "E_77_1", "target": "1_5_1", "weight": 3.0},
            {"source": "0_-1_1", "target": "1_5_1", "weight": -1.0},
            {"source": "1_5_1", "target": "3_9_1", "weight": 2.0},
            {"source": "E_2_0", "target": "3_9_1", "weight": 2.0},
        ],
    }  # fmt: skip


def test_a_file_of_circuit_tracer_is_read(tmp_path):
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(foreign()))
    graph = circuit_tracer.read(path)
    assert list(graph.nodes.index) == ["token@0", "token@1", "error.0@1", "1.5@1", "logit.9"]
    assert (graph.tokens, graph.words) == ((2, 77), ("<bos>", "Hi"))
    assert graph.nodes.loc["1.5@1", ["layer", "feature", "activation", "value"]].tolist() == [1, 5, 2.5, 2.0]
    assert graph.nodes.loc["logit.9", ["layer", "weight", "label"]].tolist() == [2, 0.5, "' there'"]
    expected = {"token@0": 0.25, "token@1": 0.1875, "error.0@1": 0.0625, "1.5@1": 0.25, "logit.9": 0.0}
    assert graph.nodes["influence"].to_dict() == pytest.approx(expected)
    assert "1. '<bos>' (position 0) -> logit ' there': 50 %" in summary(graph)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f["metadata"].update(schema_version=2), "schema_version 2, and this program reads 1"),
        (lambda f: f["metadata"].update(interp={"format": "interp.attribution-graph/9"}), "graph/9', and this program"),
        (lambda f: f["nodes"][1].update(node_id="1_5_1"), "two nodes with the id '1_5_1'.*can't be told apart"),
        (lambda f: f["nodes"][0].update(feature_type="lorsa"), "feature_type is 'lorsa', one of"),
        (lambda f: f["links"][0].update(source="9_9_9"), "source is '9_9_9'"),
        (lambda f: f.pop("nodes"), "lacks 'nodes'"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused(change, message, tmp_path):
    held = foreign()
    change(held)
    (tmp_path / "bad.json").write_text(json.dumps(held))
    with pytest.raises(InterpError, match=message):
        circuit_tracer.read(tmp_path / "bad.json")


def test_no_file_and_no_json_are_said(tmp_path):
    with pytest.raises(InterpError, match="there is no file"):
        circuit_tracer.read(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InterpError, match="cut short"):
        circuit_tracer.read(tmp_path / "bad.json")


def test_pinned_nodes_and_groups_go_where_the_viewer_looks_for_them(tmp_path):
    graph = hand_made()
    options = {"pinned": ["0.2@1"], "supernodes": {"early": ["0.2@1", "1.3@2"]}, "nodes": None, "edges": None}
    _, held = written(graph, tmp_path, **options)
    assert held["qParams"]["pinnedIds"] == ["0_2_1"]
    assert held["qParams"]["supernodes"] == [["early", "0_2_1", "1_3_2"]]
    with pytest.raises(UsageError, match=r"unknown node '0\.3@1'"):
        graph.to_circuit_tracer(tmp_path / "x.json", pinned=["0.3@1"])
    with pytest.raises(UsageError, match=r"'group\.early' is a merged node; write the graph before merging"):
        merged(graph, {"early": ["0.2@1", "1.3@2"]}).to_circuit_tracer(tmp_path / "x.json")


def test_graphml_holds_every_node_and_edge(tmp_path):
    graph = hand_made()
    graph.nodes.loc["token@1", "label"] = "\x00<&\x1b"
    root = ElementTree.parse(graph.to_graphml(tmp_path / "graph.graphml")).getroot()
    space = {"g": "http://graphml.graphdrawing.org/xmlns"}
    keys = {key.get("id"): key.get("attr.name") for key in root.findall("g:key", space)}
    nodes = {
        node.get("id"): {keys[data.get("key")]: data.text for data in node.findall("g:data", space)}
        for node in root.findall("g:graph/g:node", space)
    }
    assert list(nodes) == list(graph.nodes.index)
    assert nodes["token@1"]["label"] == "\\x00<&\\x1b"
    assert nodes["1.3@2"]["expanded"] == "true"
    assert float(nodes["1.3@2"]["value"]) == graph.nodes.loc["1.3@2", "value"]
    edges = {
        (edge.get("source"), edge.get("target")): float(edge.find("g:data", space).text)
        for edge in root.findall("g:graph/g:edge", space)
    }
    assert edges == {(e.source, e.target): e.weight for e in graph.edges.itertuples()}


def test_networkx_reads_the_graphml(tmp_path):
    networkx = pytest.importorskip("networkx", reason="networkx is not installed")
    graph = random_graph()
    read = networkx.read_graphml(graph.to_graphml(tmp_path / "graph.graphml"))
    assert (read.number_of_nodes(), read.number_of_edges()) == (len(graph.nodes), len(graph.weights))
    node = graph.nodes.index[30]
    assert read.nodes[node]["value"] == graph.nodes.loc[node, "value"]
    assert read.nodes[node]["layer"] == graph.nodes.loc[node, "layer"]


def test_tables_hold_every_node_and_edge(tmp_path):
    graph = random_graph()
    graph.to_csv(tmp_path)
    nodes = pd.read_csv(tmp_path / "nodes.csv", index_col="node", float_precision="round_trip")
    pd.testing.assert_frame_equal(nodes, graph.nodes, check_names=False)
    edges = pd.read_csv(tmp_path / "edges.csv", dtype={"weight": np.float32}, float_precision="round_trip")
    pd.testing.assert_frame_equal(edges, graph.edges)


# Merging


def into(graph):
    return np.bincount(graph.targets, graph.weights.astype(np.float64), len(graph.nodes))


def test_edges_of_a_group_are_the_sums_of_its_members_edges():
    graph = merged(hand_made(), {"both": ["1.3@2", "1.4@2"]})
    edges = {(e.source, e.target): e.weight for e in graph.edges.itertuples()}
    assert edges["0.2@1", "group.both"] == 3 + 1.5
    assert ("token@2", "group.both") not in edges, "-1 and +1"
    assert edges["group.both", "2.9@3"] == 4 - 2
    assert edges["group.both", "logit.7-8"] == 6
    group = graph.nodes.loc["group.both"]
    assert group[["kind", "layer", "position", "bias", "value"]].tolist() == ["group", 1, 2, -1.0, 3.5]
    assert graph.about["groups"] == {"both": ["1.3@2", "1.4@2"]}


def test_what_members_give_each_other_is_handed_on_to_where_they_have_it_from():
    rows = [
        ("token@1", "token", -1, 1, 11, 1.0, 0.0, 0.0),
        ("token@2", "token", -1, 2, 12, 1.0, 0.0, 0.0),
        ("0.1@2", "feature", 0, 2, 1, 1.0, 1.0, 0.0),
        ("1.1@2", "feature", 1, 2, 1, 1.0, 0.0, 0.0),
        ("logit.7", "logit", 3, 3, 7, 1.0, 0.0, 1.0),
    ]
    edges = {
        ("token@1", "0.1@2"): 3.0, ("0.1@2", "1.1@2"): 8.0, ("token@2", "1.1@2"): 1.0, ("1.1@2", "logit.7"): 2.0,
    }  # fmt: skip
    graph = merged(graph_of(rows, edges), {"chain": ["0.1@2", "1.1@2"]})
    found = {(e.source, e.target): e.weight for e in graph.edges.itertuples()}
    assert found == {
        ("token@1", "group.chain"): 3 + 8 * 3 / 4,
        ("token@2", "group.chain"): 1.0,
        ("group.chain", "logit.7"): 2.0,
    }
    assert graph.nodes.loc["group.chain", "bias"] == 1 + 8 * 1 / 4
    assert graph.nodes.loc["group.chain", "value"] == 4 + 9


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.integers(2, 20), st.integers(0, 10**6))
def test_merging_keeps_every_sum(seed, size, draw):
    graph = random_graph(seed=seed)
    rng = np.random.default_rng(draw)
    features = graph.nodes.index[graph.nodes["kind"] == "feature"].to_numpy()
    chosen = rng.choice(features, min(2 * size, len(features)), replace=False).tolist()
    small = merged(graph, {"one": chosen[:size], "two": chosen[size:], "start": ["token@0", "token@1"]})
    assert not (small.targets == small.sources).any(), "no edge from a group to itself"
    alone = small.nodes.index[~small.nodes.index.str.startswith("group.")]
    before, after = (pd.Series(into(g), g.nodes.index) for g in (graph, small))
    np.testing.assert_allclose(after[alone], before[alone], rtol=1e-4, atol=1e-4)
    expanded = small.nodes["expanded"].to_numpy()
    total = (into(small) + small.nodes["bias"])[expanded]
    scale = 1 + np.bincount(small.targets, np.abs(small.weights), len(small.nodes))[expanded]
    assert (np.abs(total - small.nodes["value"][expanded]) / scale).max() < 1e-5
    assert small.nodes["value"].sum() == pytest.approx(graph.nodes["value"].sum(), abs=1e-6)


def test_a_group_of_tokens_or_errors_stays_of_its_kind_and_is_saved(tmp_path):
    graph = merged(random_graph(), {"start": ["token@0", "token@1"], "rest": ["error.1@0", "error.2@0"]})
    assert graph.nodes.loc[["group.start", "group.rest"], "kind"].tolist() == ["token", "error"]
    same(AttributionGraph.load(graph.save(tmp_path / "graph.safetensors")), graph)
    assert graph.pruned().nodes.index.str.startswith("token@").sum() == 3


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": ["0.2@1", "9.9@9"]}, "unknown node '9.9@9'"),
        ({"a": ["0.2@1"], "b": ["0.2@1"]}, "'0.2@1' is named twice, in 'a' and 'b'"),
        ({"a": ["2.9@3", "logit.7"]}, "targets can't be merged"),
        ({"a": ["0.2@1", "error.2@1"]}, "mixes error and feature nodes"),
        ({"a": []}, "needs a name and a list of nodes"),
        ({"a": "0.2@1"}, "needs a name and a list of nodes, got '0.2@1'"),
    ],
)
def test_groups_that_make_no_sense_are_refused(groups, message):
    with pytest.raises(UsageError, match=message):
        merged(hand_made(), groups)


def test_features_with_the_same_edges_are_alike_and_others_are_not():
    graph = random_graph(n=30, seed=2)
    features = graph.nodes.index[graph.nodes["kind"] == "feature"]
    twin = next(n for n in features if len(graph.inputs(n)) > 3 and len(graph.outputs(n)) > 3)
    row = graph.row(twin)
    rows = [
        (name, r["kind"], r["layer"], r["position"], r["feature"], r["activation"], r["bias"], r["weight"])
        for name, r in graph.nodes.iterrows()
    ]
    at = graph.nodes.loc[twin]
    rows.insert(row + 1, ("twin", "feature", at["layer"], at["position"], 5000, 1.0, 0.0, 0.0))
    edges = {(e.source, e.target): e.weight for e in graph.edges.itertuples()}
    edges |= {("twin" if s == twin else s, "twin" if t == twin else t): 2 * w
              for (s, t), w in edges.items() if twin in (s, t)}  # fmt: skip
    both = graph_of(rows, edges, graph.words)
    assert list(map(set, similar(both, 0.99).values())) == [{twin, "twin"}]
    assert similar(graph, 0.99) == {}
    for group in similar(both, 0.3).values():
        assert len(group) > 1
    for threshold in (0, 1.5):
        with pytest.raises(UsageError, match="a cosine above 0 and up to 1"):
            similar(graph, threshold)


# In words


def test_the_strongest_paths_are_told_with_their_shares_and_signs():
    graph = hand_made()
    strength = {(e.source, e.target): e.share for e in graph.edges.itertuples()}
    nodes = list(graph.nodes.index)
    found = []
    for length in range(2, 6):
        for path in itertools.combinations(nodes, length):
            steps = list(itertools.pairwise(path))
            if path[0].startswith("token") and path[-1].startswith("logit") and all(s in strength for s in steps):
                found.append((0.5 * np.prod([strength[step] for step in steps]), path))
    found.sort(reverse=True)
    lines = summary(graph, 3).splitlines()
    told = ["1. ' cat' (position 1)", "neuron 0.2 at ' cat'", "neuron 1.4 at '</script><img src=x>'", "logit logit: 2"]
    assert lines[-3].startswith(" -> ".join(told))
    for line, (share, path) in zip(lines[-3:], found[:3], strict=True):
        assert line.count("->") == len(path) - 1
        assert float(line.rsplit(": ", 1)[1].split(" %")[0]) == pytest.approx(100 * share, abs=0.51)
    negative = graph_of(
        [
            ("token@1", "token", -1, 1, 11, 1.0, 0.0, 0.0),
            ("0.2@1", "feature", 0, 1, 2, 1.5, 0.0, 0.0),
            ("logit.7", "logit", 3, 3, 7, 0.75, 1.0, 1.0),
        ],
        {("token@1", "0.2@1"): -2.0, ("0.2@1", "logit.7"): -3.0},
    )
    assert summary(negative).endswith("100 %, lowers it"), "all of the feature's value, which lowers the target"


def test_more_paths_than_there_are_or_none_wanted():
    assert len(summary(hand_made(), 50).splitlines()) == 3 + 7
    with pytest.raises(UsageError, match="n must be at least 1"):
        summary(hand_made(), 0)
