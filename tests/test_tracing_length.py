"""Long prompts: the strongest edges of every node, without the dense matrix and without whole attention patterns."""

from __future__ import annotations

import numpy as np
import pytest
from families import tiny
from test_tracing_intervening import bases
from test_tracing_linear import random_weights

from interp.errors import UsageError
from interp.features.architectures.registry import ARCHITECTURES
from interp.features.place import Place
from interp.tracing import AttributionGraph, explore, frozen, trace
from interp.tracing.influence import influence, normalised
from interp.tracing.influence import scores as scores_of
from interp.tracing.trace import assembled
from interp.tracing.words import summary

TOKENS = [5, 7, 9, 11, 5, 7, 12, 3, 9, 9, 4, 2, 17, 5, 8, 21]
BASES = ("neurons", "transcoders", "residual", "cross-layer")


def dense(graph):
    """By target and source name the weights of the whole matrix of effects, nothing dropped."""
    found = assembled(graph)
    effects, _ = found.local.effects(found.reads, found.writes, found.n_sources)
    targets = [*found.names[: found.n_units], *graph.nodes.index[graph.nodes["kind"] == "logit"]]
    row, column = np.nonzero(effects.numpy())
    return {(found.names[s], str(targets[t])): float(effects[t, s]) for t, s in zip(row, column, strict=True)}


def again_words(graph) -> str:
    return summary(graph, 1).replace(" %", "%")


def strongest(edges, n=100):
    return sorted(edges.items(), key=lambda item: -abs(item[1]))[:n]


def test_dictionaries_that_cut_the_stream_twice_are_ranked_though_targets_see_only_the_last():
    model = tiny("llama")
    made = {
        layer: ARCHITECTURES["topk"](model.cfg.d_model, 64, k=6, reads=Place("resid_post", layer)) for layer in (0, 1)
    }
    graph = trace(
        model, TOKENS, {layer: random_weights(sae, layer) for layer, sae in made.items()}, max_nodes=60, batch=10
    )
    assert set(graph.nodes["layer"][graph.nodes["kind"] == "feature"]) == {0, 1}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("name", BASES)
def test_the_hundred_strongest_edges_are_those_of_the_dense_matrix(family, name):
    model = tiny(family)
    graph = trace(model, TOKENS, bases(model)[name], max_nodes=30, max_edges=25)
    edges, expected = graph.edges, dense(graph)
    found = dict(zip(zip(edges["source"], edges["target"], strict=True), edges["weight"], strict=True))
    assert len(found) < len(expected)
    for (edge, weight), (other, size) in zip(strongest(found), strongest(expected), strict=True):
        assert edge == other
        assert weight == pytest.approx(size, rel=1e-4)


@pytest.mark.parametrize("name", BASES)
def test_influence_and_scores_are_of_all_edges_whatever_is_kept(name):
    model = tiny("llama")
    basis = bases(model)[name]
    whole, few = (trace(model, TOKENS, basis, max_nodes=30, max_edges=most) for most in (None, 4))
    assert np.allclose(whole.nodes["influence"], influence(normalised(whole.matrix()), whole.nodes["weight"]))
    assert whole.about["scores"] == pytest.approx(scores_of(whole))
    assert few.about["scores"] == pytest.approx(whole.about["scores"])
    assert np.allclose(few.nodes["influence"], whole.nodes["influence"])
    assert np.bincount(few.targets).max() == 4
    told = few.about["strongest"]
    assert told["dropped"] == len(whole.weights) - len(few.weights)
    size = np.bincount(whole.targets, np.abs(whole.weights), len(whole.nodes))
    kept = np.bincount(few.targets, np.abs(few.weights), len(whole.nodes))
    assert told["least_kept"] == pytest.approx((kept / np.where(size, size, 1))[size > 0].min(), rel=1e-5)
    assert "strongest" not in whole.about


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma2", "gemma3", "qwen3", "olmo2", "gptj"])
def test_patterns_that_are_made_again_piece_by_piece_give_the_same_graph(family, monkeypatch):
    model = tiny(family)
    kept = trace(model, TOKENS, max_nodes=20)
    monkeypatch.setattr(frozen, "_KEPT", 0)
    monkeypatch.setattr(frozen, "_PIECE", 5 * 4 * model.cfg.n_heads * len(TOKENS))
    monkeypatch.setattr(explore, "_BYTES", 1)
    run = frozen.FrozenRun(assembled(kept).local.parts, assembled(kept).local.run.tokens)
    assert run.queries_at_once == 5
    assert not any(site == "pattern" for site, _ in run.kept)
    again = trace(model, TOKENS, max_nodes=20)
    assert list(again.nodes.index) == list(kept.nodes.index)
    assert np.allclose(again.matrix().toarray(), kept.matrix().toarray(), atol=1e-5)
    setting = {again.nodes.index[again.nodes["kind"] == "feature"][0]: 0.0}
    for attention in ("frozen", "free"):
        a, b = (graph.intervene(setting, attention).targets["measured"] for graph in (again, kept))
        assert np.allclose(a, b, atol=1e-4)


def test_edges_do_not_grow_with_the_prompt():
    model = tiny("llama")
    long, short = (trace(model, (TOKENS * 4)[:n], max_nodes=20, max_edges=10) for n in (64, 16))
    for graph in (long, short):
        assert len(graph.weights) <= 10 * graph.nodes["expanded"].sum()
    assert long.about["strongest"]["dropped"] > 3 * short.about["strongest"]["dropped"]


def test_what_was_dropped_is_told_in_words_and_kept_in_files(tmp_path):
    graph = trace(tiny("llama"), TOKENS, max_nodes=20, max_edges=5)
    again = AttributionGraph.load(graph.save(tmp_path / "graph.safetensors"))
    told = again.about["strongest"]
    assert told == graph.about["strongest"]
    assert f"strongest 5 edges into each node, {told['least_kept']:.0%} of its inputs at least" in again_words(again)
    with pytest.raises(UsageError, match="max_edges must be at least 1, got 0"):
        trace(tiny("llama"), TOKENS, max_edges=0)
