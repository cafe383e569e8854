"""Edges: exact effects against hooks and against the whole model, estimates against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import FAMILIES, tiny
from prompts import random_task

from interp.circuits import edge_attribution, exact_edges, patch_edges
from interp.circuits.exact import EdgeExperiment, edge_mask, existing
from interp.engine import verified
from interp.engine.edges import EdgeWalk, Writes, record_writes
from interp.engine.rules import RELP, Rules
from interp.errors import UsageError
from interp.graph import Graph
from interp.patching import activation
from interp.patching.experiment import Experiment

pytestmark = pytest.mark.filterwarnings("ignore:the model does not perform")
POST_NORM = ("gemma2", "gemma3")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ungrouped", [False, True])
@pytest.mark.parametrize("start", [0, 3])
@torch.no_grad()
def test_replacing_no_edge_is_the_base_run_and_replacing_all_is_the_other(family, ungrouped, start):
    model, task = tiny(family), random_task(n=2)
    parts = verified(model)
    base = record_writes(parts, task.clean, ungrouped)
    other = record_writes(parts, task.corrupted, ungrouped).nodes
    walk, known = EdgeWalk(parts, base, other, start, ungrouped), existing(parts.graph, ungrouped)
    for out, tokens in ((torch.zeros_like(known), task.clean), (known, task.corrupted)):
        logits = parts.logits(walk.replaced(out)[0])
        torch.testing.assert_close(logits, model(tokens)[:, start:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in POST_NORM])
@torch.no_grad()
def test_replacing_all_edges_of_a_head_is_patching_the_head(family):
    model, task = tiny(family), random_task(n=2)
    graph, experiment = Graph.of(model), Experiment(model, task)
    heads = activation(model, task, "heads", per_example=True)
    for node in ("a0.h1", "a1.h3", f"a{graph.n_layers - 1}.h0"):
        edges = [(source, port) for source, port in graph.edges() if source == node]
        ours = patch_edges(experiment, edges)
        layer, head = int(node[1]), int(node[-1])
        np.testing.assert_allclose(ours, heads.sel(layer=layer, head=head), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen3"])
@torch.no_grad()
def test_an_edge_into_an_mlp_is_a_change_of_what_its_norm_reads(family):
    model, task = tiny(family), random_task(n=2)
    parts = verified(model)
    clean, corrupted = record_writes(parts, task.clean).nodes, record_writes(parts, task.corrupted).nodes
    effects = exact_edges(Experiment(model, task))
    names, ports = parts.graph.nodes(), parts.graph.ports()
    for node, port in (("input", "m0"), ("a0.h2", "m1"), ("a2.h3", "m2"), ("m0", "m2")):
        change = (clean - corrupted)[names.index(node)]
        hook = (f"blocks.{port[1]}.ln2.hook_in", lambda x, hook, change=change: x + change)
        values = task.per_example(model.run_with_hooks(task.corrupted, fwd_hooks=[hook]))
        expected = values - task.per_example(model(task.corrupted))
        torch.testing.assert_close(effects[:, names.index(node), ports.index(port)], expected, atol=1e-5, rtol=1e-3)
        assert expected.abs().max() > 1e-5


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@torch.no_grad()
def test_an_edge_into_a_head_is_a_change_of_that_heads_own_input(family):
    model, task = tiny(family), random_task(n=2)
    parts = verified(model)
    clean, corrupted = record_writes(parts, task.clean).nodes, record_writes(parts, task.corrupted).nodes
    effects = exact_edges(Experiment(model, task))
    names, ports = parts.graph.nodes(), parts.graph.ports()
    model.set_use_split_qkv_input(True)
    try:
        for node, port in (("input", "a0.h1<q>"), ("a0.h2", "a1.h1<k>"), ("m0", "a2.h0<v>"), ("a1.h3", "a2.h3<q>")):
            change, head = (clean - corrupted)[names.index(node)], int(port[4])

            def patch(x, hook, change=change, head=head):
                x = x.clone()
                x[:, :, head] += change
                return x

            hooks = [(f"blocks.{port[1]}.attn.hook_{port[6]}_input", patch)]
            values = task.per_example(model.run_with_hooks(task.corrupted, fwd_hooks=hooks))
            expected = values - task.per_example(model(task.corrupted))
            ours = effects[:, names.index(node), ports.index(port)]
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-3)
            assert expected.abs().max() > 1e-5
    finally:
        model.set_use_split_qkv_input(False)


@pytest.mark.parametrize("family", [*FAMILIES, "olmo2", "granite", "cohere-qk-norm", "gptj"])
@pytest.mark.parametrize("ungrouped", [False, True])
def test_edge_attribution_is_the_derivative_of_the_exact_effect(family, ungrouped):
    """The slope of the exact effect as a port reads a small step towards the other run's write, or away from it."""
    model, task = tiny(family), random_task(n=1)
    model.original_model.double()
    experiment = Experiment(model, task)
    estimated = edge_attribution(experiment, ungrouped=ungrouped)[0]
    parts, known = experiment.parts, existing(experiment.parts.graph, ungrouped)
    base, other = (record_writes(parts, tokens, ungrouped) for tokens in (task.corrupted, task.clean))
    step, nothing = 1e-4, torch.zeros_like(known)
    sides = []
    for towards in (step, -step):
        sides.append(runs := EdgeExperiment(experiment, ungrouped=ungrouped))
        moved = base.nodes + towards * (other.nodes - base.nodes)
        runs._walk = (slice(0, 1), EdgeWalk(parts, base, moved, 0, ungrouped))
    chosen = torch.randperm(int(known.sum()), generator=torch.Generator().manual_seed(0))[:40]
    for port, node in known.nonzero()[chosen].tolist():
        out = nothing.clone()
        out[port, node] = True
        up, down = (float(side.metric(slice(0, 1), out)[0, 0, 0]) for side in sides)
        assert float(estimated[node, port]) == pytest.approx((up - down) / (2 * step), rel=1e-3, abs=1e-6)
    assert not estimated.T[~known].any()


def test_a_nodes_gradient_is_the_sum_over_its_edges():
    model, task = tiny("llama"), random_task(n=2)
    for rules in (Rules(), RELP, Rules(norm="constant", attention="constant")):
        experiment = Experiment(model, task)
        edges = edge_attribution(experiment, rules=rules).sum(2)
        from interp.engine.gradient import backward

        flow = backward(
            experiment.parts,
            task.corrupted,
            task.positions["end"],
            lambda logits: task.measure(logits, task.right, task.wrong),
            {"mlp_out", "resid_pre"},
            rules=rules,
        )
        clean, corrupted = (record_writes(experiment.parts, t).nodes for t in (task.clean, task.corrupted))
        difference = clean - corrupted
        names = experiment.parts.graph.nodes()
        for node, site, layer in (("input", "resid_pre", 0), ("m0", "mlp_out", 0), ("m1", "mlp_out", 1)):
            index = names.index(node)
            expected = (difference[index] * flow.gradients[site, layer]).sum((1, 2))
            torch.testing.assert_close(edges[:, index], expected, atol=1e-5, rtol=1e-4)


def test_integrated_gradients_of_the_inputs_edges_add_up_to_the_metrics_difference():
    model, task = tiny("llama"), random_task(n=2)
    experiment = Experiment(model, task)
    gap = (experiment.baselines["clean"] - experiment.baselines["corrupted"])[:, 0]
    errors = [float((edge_attribution(experiment, steps=steps)[:, 0].sum(1) - gap).abs().max()) for steps in (2, 8, 64)]
    assert errors[2] < 0.01 * float(gap.abs().max())
    assert errors[2] < errors[0]


def test_the_peers_convention_has_its_signs_and_end_points():
    """What leaves the embedding in all is a derivative that autograd takes of the embedding's model by itself."""
    model, task = tiny("llama"), random_task(n=2)
    denoising, noising = Experiment(model, task), Experiment(model, task, mode="noising")
    theirs = edge_attribution(denoising, convention="eap-ig")
    torch.testing.assert_close(theirs, -edge_attribution(noising))  # gradient on the clean run, clean - corrupted
    embed = model.original_model.get_input_embeddings()

    def slope(fraction):
        """Towards the clean prompt, so far from the corrupted one."""
        start, end = embed(task.corrupted).detach(), embed(task.clean).detach()
        at = (start + fraction * (end - start)).requires_grad_()
        (back,) = torch.autograd.grad(task.per_example(model.original_model(inputs_embeds=at).logits).sum(), at)
        return (back * (end - start)).sum((1, 2))

    def mean(*fractions):
        return torch.stack([slope(fraction) for fraction in fractions]).mean(0)

    for settings, points in (
        ({}, [1.0]),
        ({"steps": 4}, [0, 0.25, 0.5, 0.75]),  # k = 0 .. m-1 from the corrupted prompt
        ({"steps": 4, "along": "activations"}, [0.25, 0.5, 0.75, 1.0]),  # k = 1 .. m
    ):
        found = edge_attribution(denoising, convention="eap-ig", **settings)
        torch.testing.assert_close(found[:, 0].sum(1), mean(*points), atol=1e-5, rtol=1e-4)
        assert (mean(*points) - mean(*(1 - point for point in points))).abs().max() > 1e-3
    ours = edge_attribution(denoising, steps=2)
    torch.testing.assert_close(ours[:, 0].sum(1), mean(0.25, 0.75), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"convention": "mib"}, "eap-ig"),
        ({"along": "weights"}, "activations"),
        ({"steps": 0}, "1 or more"),
        ({"rules": Rules(linear="epsilon")}, "linear='gradient'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        edge_attribution(Experiment(tiny("gpt2"), random_task()), **settings)


def test_edges_that_do_not_exist_are_refused():
    graph = Graph.of(tiny("llama"))
    for edge, message in (
        (("a9.h0", "m1"), "unknown node"),
        (("a0.h0", "m9"), "unknown port"),
        (("m1", "m0"), "does not come before"),
    ):
        with pytest.raises(UsageError, match=message):
            edge_mask(graph, [edge])


def test_writes_of_all_nodes_add_up():
    model = tiny("qwen3")
    writes = record_writes(verified(model), random_task(n=2).clean)
    assert isinstance(writes, Writes)
    torch.testing.assert_close(writes.nodes.sum(0), writes.final, atol=1e-4, rtol=1e-4)
