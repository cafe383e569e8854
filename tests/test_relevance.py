"""Relevance of neurons and redundancy of blocks, against ablation and against models in which both are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import boot, hugging_face_model, tiny

from interp.errors import UsageError
from interp.relevance import layer_redundancy, neuron_relevance
from interp.results.finding_files import load
from interp.results.findings import LayerRedundancy, NeuronRelevance

TOKENS = torch.randint(4, 50, (3, 12), generator=torch.Generator().manual_seed(1))


def loss(model, tokens):
    logits = model(tokens)[:, :-1].double()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))


def calm(family="llama", **changes):
    """Weights small enough for effects to be nearly linear."""
    model = hugging_face_model(family, **changes)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight *= 0.05
    return model


def test_gradient_relevance_is_what_ablating_a_neuron_costs_where_effects_are_linear():
    original = calm()
    model = boot(original)
    found = neuron_relevance(model, TOKENS, "gradient", n=3, length=12)
    before, effect = loss(model, TOKENS), found.evidence["effect"].values
    top = np.dstack(np.unravel_index(np.argsort(-np.abs(effect), axis=None)[:12], effect.shape))[0]
    for layer, neuron in top:
        weight = original.model.layers[layer].mlp.down_proj.weight
        column = weight[:, neuron].clone()
        with torch.no_grad():
            weight[:, neuron] = 0
            rise = loss(model, TOKENS) - before
            weight[:, neuron] = column
        assert rise == pytest.approx(effect[layer, neuron], rel=0.1, abs=2e-5)


@pytest.mark.parametrize("rules", ["relp", "attnlrp", "gradient"])
def test_a_neuron_that_writes_nothing_has_no_relevance(rules):
    original = hugging_face_model("llama")
    with torch.no_grad():
        original.model.layers[1].mlp.down_proj.weight[:, 7] = 0
    found = neuron_relevance(boot(original), TOKENS, rules, n=3, length=12)
    assert found.scores[1, 7] == 0
    assert (found.scores.values > 0).mean() > 0.9
    assert found.scores.shape == (3, 48)


def test_absolute_scores_bound_the_signed_ones_and_calls_repeat():
    model = tiny("gpt2")
    first = neuron_relevance(model, TOKENS, n=3, length=12)
    again = neuron_relevance(model, TOKENS, n=3, length=12)
    signed = neuron_relevance(model, TOKENS, n=3, length=12, absolute=False)
    assert np.array_equal(first.scores, again.scores)
    assert (np.abs(first.evidence["effect"]) <= first.scores + 1e-6).all()
    assert np.array_equal(signed.scores, first.evidence["effect"])


def test_relevance_is_activation_times_what_flows_back_added_up_with_signs_or_without():
    original = hugging_face_model("llama")
    seen, hooks = [], []
    for block in original.model.layers:
        hooks.append(block.mlp.down_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0])))
    total = torch.zeros(2, 3, 48)
    for text in TOKENS:
        seen.clear()
        logits = original(text[None]).logits[0, :-1]
        flows = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, text[1:]), seen)
        each = torch.stack([-(x * flow)[0] for x, flow in zip(seen, flows, strict=True)]).detach()
        total += torch.stack([each.sum(1), each.abs().sum(1)]) / len(TOKENS)
    for hook in hooks:
        hook.remove()
    found = neuron_relevance(boot(original), TOKENS, "gradient", n=len(TOKENS), length=TOKENS.shape[1])
    np.testing.assert_allclose(found.evidence["effect"], total[0], atol=1e-5)
    np.testing.assert_allclose(found.scores, total[1], atol=1e-5)


def test_a_block_that_writes_nothing_is_redundant_by_every_measure():
    original = hugging_face_model("llama")
    with torch.no_grad():
        original.model.layers[1].mlp.down_proj.weight.zero_()
        original.model.layers[1].self_attn.o_proj.weight.zero_()
    found = layer_redundancy(boot(original), TOKENS, n=3, length=12)
    for name in ("influence", "harm"):
        values = np.abs(found.evidence[name].values)
        assert values[1] < 1e-9
        assert (np.delete(values, 1) > 1e-4).all()
    distance = found.evidence["distance"].values
    assert distance[1, 0] < 1e-6
    assert distance[0, 1] == pytest.approx(distance[0, 0], abs=1e-6)
    assert np.isnan(distance[2, 1])
    assert found.to_frame()["layer"].iloc[0] == 1


def test_harm_is_the_rise_of_the_loss_when_a_block_is_passed_over():
    original = hugging_face_model("gpt2")
    model = boot(original)
    found = layer_redundancy(model, TOKENS, n=3, length=12)
    before = loss(model, TOKENS)
    for layer in range(3):
        shorter = hugging_face_model("gpt2")
        del shorter.transformer.h[layer]
        logits = shorter(TOKENS, use_cache=False).logits[:, :-1].double()
        rise = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten())) - before
        assert float(found.evidence["harm"][layer]) == pytest.approx(rise, rel=1e-4, abs=1e-5)


def test_findings_are_kept_on_disk(tmp_path):
    model = tiny("llama")
    for found, kind in (
        (neuron_relevance(model, TOKENS, n=3, length=12), NeuronRelevance),
        (layer_redundancy(model, TOKENS, n=3, length=12), LayerRedundancy),
    ):
        found.save(tmp_path / kind.__name__)
        again = load(tmp_path / kind.__name__, model)
        assert isinstance(again, kind)
        assert again.summary() == found.summary()


def test_rules_that_need_a_pair_are_refused():
    with pytest.raises(UsageError, match="look at both runs"):
        neuron_relevance(tiny("llama"), TOKENS, "secant", n=3, length=12)
