"""Estimates against closed forms, finite differences, completeness, and exact patching where it is linear."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import boot, hugging_face_model, tiny
from prompts import random_task

from interp.engine.forward import run
from interp.engine.parts import parts_of
from interp.engine.rules import RULE_SETS, Rules
from interp.errors import UsageError
from interp.patching import activation, atp_star, attribution, intervene

pytestmark = pytest.mark.filterwarnings("ignore:the model does not perform")

NODES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "heads", "q", "k", "v", "pattern", "neurons")


@pytest.fixture(scope="module")
def linear_model():
    """A GPT-2 that is linear: uniform attention, identity activation, and norms whose scale is as good as constant."""
    model = hugging_face_model("gpt2", layer_norm_epsilon=1e12, activation_function="linear", n_layer=2).double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("c_attn.weight"):
                weight[:, : 2 * 32] = 0
            elif name.endswith("c_attn.bias"):
                weight[: 2 * 32] = 0
            elif ".ln_" in name and name.endswith("weight"):
                weight *= 1e6
    return boot(model)


@pytest.mark.parametrize("nodes", ["resid_pre", "resid_mid", "attn_out", "mlp_out", "heads", "v", "neurons"])
@pytest.mark.parametrize("by_position", [True, False])
def test_all_estimates_equal_exact_patching_on_a_linear_model(linear_model, nodes, by_position):
    task = random_task(n=2)
    indices = [0, 17, 127] if nodes == "neurons" else None
    truth = activation(linear_model, task, nodes, by_position, indices=indices)
    found = [
        attribution(linear_model, task, nodes, by_position, rules=name, indices=indices)
        for name in RULE_SETS
        if name != "attnlrp"
    ]  # which sets half aside for queries and keys
    found.append(attribution(linear_model, task, nodes, by_position, steps=3, indices=indices))
    found.append(attribution(linear_model, task, nodes, by_position, steps=2, along="activations", indices=indices))
    found.append(atp_star(linear_model, task, nodes, by_position, grad_drop=False, indices=indices))
    assert np.abs(truth.values).max() > 1e-3
    for scores in found:
        np.testing.assert_allclose(scores.values, truth.values, atol=1e-5 * np.abs(truth.values).max())


@torch.no_grad()
def test_the_last_residual_stream_has_a_closed_form():
    model, task = tiny("llama"), random_task(n=1)
    parts = parts_of(model)
    last = parts.graph.n_layers - 1
    clean, corrupted = (
        run(parts, tokens, {"resid_post"})[0]["resid_post", last][0, -1] for tokens in (task.clean, task.corrupted)
    )
    direction = parts.unembed.weight[int(task.right[0, 0])] - parts.unembed.weight[int(task.wrong[0, 0])]
    scale = torch.rsqrt(corrupted.square().mean() + parts.ln_final.eps)
    expected = float((clean - corrupted) @ (direction * parts.ln_final.weight) * scale)
    scores = attribution(model, task, "resid_post", True, rules=Rules(norm="constant"))
    assert float(scores.sel(layer=last, position=8)) == pytest.approx(expected, rel=1e-4)
    assert not scores.sel(layer=last, position=slice(0, 7)).any()


@pytest.mark.parametrize(
    ("family", "node", "nodes", "index"),
    [
        ("llama", "a1.h1.k", "k", 1),
        ("gemma3", "a1.h0.v", "v", 0),
        ("qwen2", "a1.h2.q", "q", 2),
        ("neox", "m1", "mlp_out", None),
    ],
)
def test_an_estimate_is_the_derivative_towards_the_other_run(family, node, nodes, index):
    model = boot(hugging_face_model(family).double())
    task, parts = random_task(n=1), parts_of(model)
    runs = [run(parts, tokens, {nodes})[0][nodes, 1] for tokens in (task.clean, task.corrupted)]
    change = runs[0] - runs[1]
    change = change if index is None else change[:, :, index]
    step = 1e-4
    ahead, behind = (
        intervene(model, task, {node: lambda x, sign=sign: x + sign * step * change}, on="corrupted").item()
        for sign in (1, -1)
    )
    scores = attribution(model, task, nodes)
    found = float(scores.sel(layer=1) if index is None else scores.sel(layer=1)[index])
    assert found == pytest.approx((ahead - behind) / (2 * step), rel=2e-2, abs=2e-3)
    assert abs(found) > 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_integrated_gradients_along_inputs_are_complete(family):
    model, task = tiny(family), random_task(n=2)
    scores = attribution(model, task, "resid_pre", True, layers=[0], steps=200)
    gap = scores.attrs["clean"] - scores.attrs["corrupted"]
    assert float(scores.sum()) == pytest.approx(gap, rel=1e-2)
    plain = attribution(model, task, "resid_pre", True, layers=[0])
    assert abs(float(plain.sum()) - gap) > 0.05 * abs(gap)


def test_integrated_gradients_are_taken_at_midpoints():
    model, task = tiny("llama"), random_task(n=2)
    embed = model.original_model.get_input_embeddings()
    start, end = (embed(tokens).detach() for tokens in (task.corrupted, task.clean))

    def slope(fraction):
        at = (start + fraction * (end - start)).requires_grad_()
        (back,) = torch.autograd.grad(task.per_example(model.original_model(inputs_embeds=at).logits).sum(), at)
        return ((end - start) * back).sum(-1)

    scores = attribution(model, task, "resid_pre", True, layers=[0], steps=2, per_example=True)
    expected = (slope(0.25) + slope(0.75)) / 2
    np.testing.assert_allclose(scores.sel(layer=0).transpose("example", ...), expected, atol=1e-4)
    assert (slope(0.0) + slope(0.5) - 2 * expected).abs().max() > 1e-2


def test_integrated_gradients_along_activations_are_complete_for_a_layer():
    model, task = tiny("llama"), random_task(n=2)
    scores = attribution(model, task, "resid_pre", steps=200, along="activations")
    gap = scores.attrs["clean"] - scores.attrs["corrupted"]
    np.testing.assert_allclose(scores.values, gap, rtol=1e-2)


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("by_position", [False, True, "named"])
def test_scores_are_laid_out_as_exact_ones(nodes, by_position):
    model, task = tiny("llama"), random_task(n=2)
    indices = [3] if nodes == "neurons" else None
    truth = activation(model, task, nodes, by_position, indices=indices)
    scores = attribution(model, task, nodes, by_position, indices=indices)
    assert scores.dims == truth.dims
    assert scores.shape == truth.shape
    assert all((scores[name] == truth[name]).all() for name in truth.coords)
    assert set(scores.attrs) - set(truth.attrs) == {"method", "rules", "steps", "along"}
    for key in set(truth.attrs) - {"seconds", "interventions", "clean", "corrupted"}:
        assert scores.attrs[key] == truth.attrs[key], key
    for key in ("clean", "corrupted"):
        assert scores.attrs[key] == pytest.approx(truth.attrs[key], abs=1e-5)


def test_positions_add_up_and_named_ones_follow_each_example():
    model, task = tiny("llama"), random_task(n=2)
    task = replace(task, positions={"changed": torch.tensor([3, 5]), "end": task.positions["end"]})
    every = attribution(model, task, "heads", True, per_example=True)
    np.testing.assert_allclose(every.sum("position"), attribution(model, task, "heads", per_example=True), atol=1e-6)
    named = attribution(model, task, "heads", "named", per_example=True)
    for example, position in ((0, 3), (1, 5)):
        np.testing.assert_allclose(
            named.sel(example=example, position=0), every.sel(example=example, position=position)
        )


def test_kinds_and_batches_and_choices_change_nothing():
    model, task = tiny("gemma2"), random_task(n=5)
    together = attribution(model, task, ["resid_pre", "mlp_out"], True, rules="secant", max_memory=1 << 20)
    for kind in ("resid_pre", "mlp_out"):
        alone = attribution(model, task, kind, True, rules="secant")
        np.testing.assert_allclose(together.sel(kind=kind), alone, atol=1e-5)
    some = attribution(model, task, "heads", True, layers=[2], indices=[1, 3], positions=[4, 8])
    whole = attribution(model, task, "heads", True)
    np.testing.assert_allclose(some, whole.sel(layer=[2], head=[1, 3], position=[4, 8]), atol=1e-6)


@pytest.mark.parametrize("rules", ["gradient", "relp", "secant"])
def test_noising_is_denoising_with_the_prompts_swapped(rules):
    model, task = tiny("llama"), random_task(n=2)
    swapped = replace(task, clean=task.corrupted, corrupted=task.clean)
    noising = attribution(model, task, "heads", True, mode="noising", rules=rules)
    np.testing.assert_allclose(noising, attribution(model, swapped, "heads", True, rules=rules), atol=1e-6)


def test_several_metrics_share_an_array():
    model, task = tiny("llama"), random_task(n=2)
    scores = attribution(model, task, "mlp_out", metric=["logit_diff", "kl", "cross_entropy", "prob_diff"])
    assert scores.dims == ("metric", "layer")
    for name in ("logit_diff", "kl"):
        np.testing.assert_allclose(scores.sel(metric=name), attribution(model, task, "mlp_out", metric=name), atol=1e-6)


def test_scores_that_are_zero_for_a_reason_warn_with_it():
    model, task = tiny("llama"), random_task(n=1)
    with pytest.warns(UserWarning, match="attention='constant'"):
        assert not attribution(model, task, "q", rules="relp-frozen-attention").any()
    with pytest.warns(UserWarning, match="kl has its minimum"):
        attribution(model, task, "mlp_out", metric="kl", mode="noising")


def test_what_makes_no_sense_is_refused():
    model, task = tiny("llama"), random_task(n=2)
    mixed = replace(task, lengths=torch.tensor([9, 8]), positions={"end": torch.tensor([8, 7])})
    with pytest.raises(UsageError, match="no gradient"):
        attribution(model, task, metric="rank")
    with pytest.raises(UsageError, match="no gradient"):
        attribution(model, task.with_metric(lambda logits: (logits[:, 3] > 0).float()))
    with pytest.raises(UsageError, match="mixed_lengths"):
        attribution(model, mixed, "heads", True)
    assert attribution(model, mixed, "heads").shape == (3, 4)
    with pytest.raises(UsageError, match="steps=1"):
        attribution(model, task, rules="secant", steps=2)
    with pytest.raises(UsageError, match="inputs"):
        attribution(model, task, steps=2, along="input")
    with pytest.raises(UsageError, match="different dimensions"):
        attribution(model, task, ["heads", "mlp_out"])
    with pytest.raises(UsageError, match="out of range"):
        attribution(model, task, "k", indices=[2])
