"""Our sweeps against TransformerLens's own, and against plain runs with hooks."""

from __future__ import annotations

import itertools

import numpy as np
import pandas
import pytest
import torch
from families import FAMILIES, tiny
from prompts import random_task
from transformer_lens import patching as reference

from interp.graph import Graph
from interp.patching import activation, groups, intervene

pytestmark = pytest.mark.filterwarnings("ignore:the model does not perform")

BY_POSITION = {
    "z": reference.get_act_patch_attn_head_out_by_pos,
    "q": reference.get_act_patch_attn_head_q_by_pos,
    "k": reference.get_act_patch_attn_head_k_by_pos,
    "v": reference.get_act_patch_attn_head_v_by_pos,
    "pattern": reference.get_act_patch_attn_head_pattern_by_pos,
    "resid_pre": reference.get_act_patch_resid_pre,
    "attn_out": reference.get_act_patch_attn_out,
    "mlp_out": reference.get_act_patch_mlp_out,
}
ALL_POSITIONS = {
    "z": reference.get_act_patch_attn_head_out_all_pos,
    "q": reference.get_act_patch_attn_head_q_all_pos,
    "k": reference.get_act_patch_attn_head_k_all_pos,
    "v": reference.get_act_patch_attn_head_v_all_pos,
    "pattern": reference.get_act_patch_attn_head_pattern_all_pos,
}
TOLERANCE = 1e-4


def theirs(model, task, function):
    """TransformerLens's sweep of the same task, as metric values."""
    _, cache = model.run_with_cache(task.clean)
    return torch.as_tensor(function(model, task.corrupted, cache, task.metric)).float()


def assert_same(scores, values):
    """Our effects are their values minus the baseline, to a small part of the metric's range."""
    gap = abs(scores.attrs["clean"] - scores.attrs["corrupted"])
    assert scores.shape == tuple(values.shape)
    assert np.abs(scores.values + scores.attrs["corrupted"] - values.numpy()).max() < TOLERANCE * gap
    assert np.abs(scores.values).max() > 0.01 * gap


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_sweeps_equal_transformer_lens_on_every_family(family):
    model, task = tiny(family), random_task(n=2, length=5, first=2)
    multi_head = Graph.of(model).n_heads == Graph.of(model).n_kv_heads
    for by_position, functions in ((True, BY_POSITION), (False, ALL_POSITIONS)):
        for nodes, function in functions.items():
            if nodes in "kv" and not multi_head:
                continue  # TransformerLens runs these over query heads; see the test with hooks below
            values = theirs(model, task, function)
            if values.dim() == 3 and nodes != "pattern":  # elsewhere it lays heads out as layer, position, head
                values = values.transpose(1, 2)
            assert_same(activation(model, task, nodes, by_position=by_position), values)


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2"])
@pytest.mark.parametrize("nodes", ["k", "v"])
@torch.no_grad()
def test_key_value_heads_equal_runs_with_hooks(family, nodes):
    model, task = tiny(family), random_task(n=1)
    graph = Graph.of(model)
    _, cache = model.run_with_cache(task.clean)
    values = torch.empty(graph.n_layers, graph.n_kv_heads, task.clean.shape[1])
    for layer, head, position in np.ndindex(*values.shape):
        name = graph.hook(nodes, layer)

        def patch(x, hook, name=name, head=head, position=position):
            shape = x.shape
            x = x.reshape(*shape[:2], graph.n_kv_heads, -1).clone()
            x[:, position, head] = cache[name].reshape(x.shape)[:, position, head]
            return x.reshape(shape)

        values[layer, head, position] = task.metric(model.run_with_hooks(task.corrupted, fwd_hooks=[(name, patch)]))
    scores = activation(model, task, nodes, by_position=True)
    assert scores.dims == ("layer", "kv_head", "position")
    assert_same(scores, values)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@torch.no_grad()
def test_resid_mid_is_the_stream_itself_and_not_only_what_the_mlp_reads(family):
    """TransformerLens 4.3's hook_resid_mid sits at the norm's input, so a patch there misses the skip connection."""
    model, task = tiny(family), random_task(n=1)
    graph = Graph.of(model)
    _, clean = model.run_with_cache(task.clean)
    _, corrupted = model.run_with_cache(task.corrupted)
    values = torch.empty(graph.n_layers, task.clean.shape[1])
    for layer, position in np.ndindex(*values.shape):
        wanted = clean[graph.hook("resid_mid", layer)] - corrupted[graph.hook("resid_pre", layer)]

        def patch(x, hook, wanted=wanted, position=position):
            x[:, position] = wanted[:, position]
            return x

        hooks = [(graph.hook("attn_out", layer), patch)]
        values[layer, position] = task.metric(model.run_with_hooks(task.corrupted, fwd_hooks=hooks))
    assert_same(activation(model, task, "resid_mid", by_position=True), values)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
@torch.no_grad()
def test_neurons_equal_runs_with_hooks(family):
    model, task = tiny(family), random_task(n=2)
    graph = Graph.of(model)
    _, cache = model.run_with_cache(task.clean)
    scores = activation(model, task, "neurons", by_position=True, layers=[1], indices=[0, 5, 47], positions=[3, 8])
    for index, position in ((0, 3), (5, 3), (47, 8)):
        name = graph.hook("post", 1)

        def patch(x, hook, name=name, index=index, position=position):
            x[:, position, index] = cache[name][:, position, index]
            return x

        value = task.metric(model.run_with_hooks(task.corrupted, fwd_hooks=[(name, patch)]))
        ours = scores.sel(layer=1, neuron=index, position=position) + scores.attrs["corrupted"]
        assert abs(float(ours) - float(value)) < 1e-5


@pytest.mark.parametrize("family", ["llama", "neox", "gemma3"])
@torch.no_grad()
def test_noising_is_denoising_with_the_prompts_swapped(family):
    from dataclasses import replace

    model, task = tiny(family, dtype=torch.float64), random_task(n=2)
    swapped = replace(task, clean=task.corrupted, corrupted=task.clean)
    noising = activation(model, task, "heads", by_position=True, mode="noising")
    denoising = activation(model, swapped, "heads", by_position=True)
    np.testing.assert_allclose(noising.values, denoising.values, atol=1e-6)
    assert noising.attrs["clean"] == pytest.approx(denoising.attrs["corrupted"])


@pytest.mark.parametrize("family", FAMILIES)
def test_patching_the_whole_stream_restores_the_clean_metric_exactly(family):
    model, task = tiny(family), random_task(n=3)
    gap = None
    for nodes in ("resid_pre", "resid_mid", "resid_post"):
        if nodes == "resid_mid" and Graph.of(model).parallel:
            continue
        scores = activation(model, task, nodes)
        gap = scores.attrs["clean"] - scores.attrs["corrupted"]
        np.testing.assert_allclose(scores.values, gap, atol=2e-5)
    assert abs(gap) > 1e-3


@pytest.mark.parametrize("source", ["zero", "mean", "resampled"])
@torch.no_grad()
def test_ablations_equal_runs_with_hooks(source):
    model, task = tiny("llama"), random_task(n=3)
    graph = Graph.of(model)
    name = graph.hook("z", 1)
    _, cache = model.run_with_cache(task.corrupted)
    recorded = cache[name].reshape(3, 9, graph.n_heads, -1)
    per_example = activation(model, task, "heads", mode="noising", source=source, per_example=True)
    assert per_example.dims == ("example", "layer", "head")

    def value(new):
        def patch(x, hook):
            shape = x.shape
            x = x.reshape(3, 9, graph.n_heads, -1).clone()
            x[:, :, 2] = new
            return x.reshape(shape)

        return task.per_example(model.run_with_hooks(task.clean, fwd_hooks=[(name, patch)]))

    baseline = task.per_example(model(task.clean))
    ours = torch.tensor(per_example.sel(layer=1, head=2).values)
    if source == "zero":
        expected = value(0.0) - baseline
    elif source == "mean":
        expected = value(recorded[:, :, 2].mean(0)) - baseline
    else:  # every example takes another's: one of the two cyclic orders
        options = [value(recorded[order, :, 2]) - baseline for order in ([1, 2, 0], [2, 0, 1])]
        expected = min(options, key=lambda option: (option - ours).abs().max())
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    assert expected.abs().max() > 1e-3


@torch.no_grad()
def test_a_mean_over_a_corpus_leaves_the_first_position_out():
    model, task = tiny("llama"), random_task(n=2)
    corpus = torch.randint(5, 50, (4, 12), generator=torch.Generator().manual_seed(5))
    _, cache = model.run_with_cache(corpus)
    mean = cache["blocks.2.hook_mlp_out"][:, 1:].mean((0, 1))
    value = task.metric(
        model.run_with_hooks(task.clean, fwd_hooks=[("blocks.2.hook_mlp_out", lambda x, hook: mean.expand_as(x))])
    )
    scores = activation(model, task, "mlp_out", mode="noising", source="mean", corpus=corpus)
    assert float(scores.sel(layer=2)) + scores.attrs["clean"] == pytest.approx(float(value), abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma3"])
@torch.no_grad()
def test_groups_across_layers_and_sites_equal_runs_with_hooks(family):
    model, task = tiny(family, dtype=torch.float64), random_task(n=2)
    graph = Graph.of(model)
    _, cache = model.run_with_cache(task.clean)

    def whole(x, hook):
        return cache[hook.name]

    def one_head(x, hook):
        shape = x.shape
        x = x.reshape(2, 9, graph.n_heads, -1).clone()
        x[:, :, 1] = cache[hook.name].reshape(x.shape)[:, :, 1]
        return x.reshape(shape)

    names = {
        site: (lambda layer, site=site: model.hook_dict[graph.hook(site, layer)].name) for site in ("z", "mlp_out")
    }
    hooks = [(names["z"](0), one_head), (names["mlp_out"](1), whole), (names["z"](2), one_head)]
    cache = {**cache, **{name: cache[name] for name, _ in hooks}}
    value = task.metric(model.run_with_hooks(task.corrupted, fwd_hooks=hooks))
    scores = groups(model, task, {"mine": ["a2.h1", "a0.h1", "m1"], "one": ["a0.h1"]})
    assert float(scores.sel(node="mine")) + scores.attrs["corrupted"] == pytest.approx(float(value), abs=1e-5)
    alone = activation(model, task, "heads").sel(layer=0, head=1)
    assert float(scores.sel(node="one")) == pytest.approx(float(alone), abs=1e-6)


@torch.no_grad()
def test_groups_and_named_positions_follow_each_example():
    from dataclasses import replace

    model, task = tiny("llama", dtype=torch.float64), random_task(n=2)
    task = replace(task, positions={"changed": torch.tensor([3, 5]), "end": task.positions["end"]})
    named = activation(model, task, "heads", by_position="named", per_example=True)
    every = activation(model, task, "heads", by_position=True, per_example=True)
    assert list(named.token.values) == ["changed", "end"]
    for example, position in ((0, 3), (1, 5)):
        np.testing.assert_allclose(
            named.sel(example=example, position=0), every.sel(example=example, position=position), atol=1e-6
        )
    one = groups(model, task, [["a0.h1"]], position="changed", per_example=True)
    np.testing.assert_allclose(one.values[:, 0], named.sel(position=0, layer=0, head=1), atol=1e-6)


@torch.no_grad()
def test_a_users_own_intervention_equals_a_run_with_hooks():
    model, task = tiny("gemma3"), random_task(n=2)
    half = intervene(model, task, {"a1.h2": lambda z: 0.5 * z, "m2": lambda x: -x})

    def halve(x, hook):
        shape = x.shape
        x = x.reshape(2, 9, 4, -1).clone()
        x[:, :, 2] *= 0.5
        return x.reshape(shape)

    hooks = [("blocks.1.attn.hook_z", halve), ("blocks.2.hook_mlp_out", lambda x, hook: -x)]
    value = task.metric(model.run_with_hooks(task.clean, fwd_hooks=hooks))
    assert float(half.values[0]) + half.attrs["clean"] == pytest.approx(float(value), abs=1e-5)


@pytest.mark.parametrize("metric", ["prob_diff", "kl", "cross_entropy", "rank"])
@torch.no_grad()
def test_every_metric_is_read_as_the_task_reads_it(metric):
    model, task = tiny("llama"), random_task(n=2, metric=metric)
    task = task.with_reference(model(task.clean))
    values = theirs(model, task, reference.get_act_patch_attn_head_out_all_pos)
    scores = activation(model, task, "heads")
    np.testing.assert_allclose(scores.values + scores.attrs["corrupted"], values, atol=1e-5)
    assert scores.attrs["metric"] == metric


def test_several_metrics_and_kinds_share_one_array():
    model, task = tiny("llama", dtype=torch.float64), random_task(n=2)
    scores = activation(model, task, ["resid_pre", "mlp_out"], by_position=True, metric=["logit_diff", "kl"])
    assert scores.dims == ("kind", "metric", "layer", "position")
    alone = activation(model, task, "mlp_out", by_position=True, metric="kl")
    np.testing.assert_allclose(scores.sel(kind="mlp_out", metric="kl"), alone, atol=1e-6)


@pytest.mark.real_model
@pytest.mark.parametrize("by_position", [False, True])
@torch.no_grad()
def test_the_default_model_equals_transformer_lens(smollm2, by_position):
    import interp

    task = interp.task("ioi", smollm2, n=1, seed=0)
    _, cache = smollm2.run_with_cache(task.clean)
    layers, heads, positions = [0, 11, 23, 29], [3, 8], [int(task.first_difference), task.clean.shape[1] - 1]
    if by_position:
        cells = pandas.DataFrame(itertools.product(layers, positions, heads), columns=["layer", "pos", "head"])
        setter = reference.layer_pos_head_vector_patch_setter
        scores = activation(smollm2, task, "heads", by_position=True, layers=layers, indices=heads, positions=positions)
        scores = scores.transpose("layer", "position", "head")
    else:
        cells = pandas.DataFrame(itertools.product(layers, heads), columns=["layer", "head"])
        setter = reference.layer_head_vector_patch_setter
        scores = activation(smollm2, task, "heads", layers=layers, indices=heads)
    values = reference.generic_activation_patch(
        smollm2, task.corrupted, cache, task.metric, patch_setter=setter, activation_name="z", index_df=cells
    )
    assert_same(scores, torch.as_tensor(values).reshape(scores.shape))
