"""Half precision: the architecture is checked in float32, and scores say how large rounding is."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from families import FAMILIES, tiny
from prompts import random_task

import interp
from interp.engine import verify
from interp.engine.forward import run
from interp.engine.parts import parts_of
from interp.engine.precision import in_float32, widened
from interp.engine.verify import verified
from interp.errors import InterpError


def with_large_biases(dtype):
    """A model whose attention scores are in the thousands, as those of Qwen 2.5 are."""
    model = tiny("qwen2", dtype=dtype)
    with torch.no_grad():
        for block in model.original_model.model.layers:
            for projection in (block.attn.q, block.attn.k):
                projection.original_component.bias.mul_(55)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_family_passes_in_half_precision_and_keeps_its_very_weights(family, dtype):
    model = tiny(family, dtype=dtype)
    before = {name: (weight.data_ptr(), weight.dtype) for name, weight in model.named_parameters()}
    tokens = torch.arange(5, 15)[None]
    logits = model(tokens)
    verified(model)
    assert {name: (weight.data_ptr(), weight.dtype) for name, weight in model.named_parameters()} == before
    assert torch.equal(model(tokens), logits)


def test_rounding_of_large_scores_is_not_taken_for_another_architecture():
    model = with_large_biases(torch.bfloat16)
    tokens = torch.arange(5, 13)[None]
    ours = parts_of(model).logits(run(parts_of(model), tokens, set())[1])
    assert (ours - model(tokens)).abs().max() > 0.02 * model(tokens).abs().max()  # twenty times the tolerance
    verified(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_architecture_is_refused_in_any_precision(dtype, monkeypatch):
    model = tiny("llama", dtype=dtype)
    parts = parts_of(model)
    wrong = dataclasses.replace(parts.blocks[1], scale=1.05 * parts.blocks[1].scale)
    blocks = (parts.blocks[0], wrong, *parts.blocks[2:])
    monkeypatch.setattr(verify, "parts_of", lambda model: dataclasses.replace(parts, blocks=blocks))
    with pytest.raises(InterpError, match=r"first differ at blocks\.1\.attn\.hook_pattern"):
        verified(model)


def test_float32_by_blocks_is_the_model_in_float32():
    half, whole = tiny("qwen3", dtype=torch.bfloat16), tiny("qwen3", dtype=torch.bfloat16)
    whole.original_model.float()
    tokens = torch.arange(5, 15)[None]
    with in_float32(half):
        found = half(tokens)
    assert found.dtype == torch.float32
    assert torch.allclose(found, whole(tokens), atol=1e-5)
    assert half(tokens).dtype == torch.bfloat16


def test_weights_come_back_when_something_is_raised_inside():
    model = tiny("llama", dtype=torch.bfloat16)
    with widened(model.blocks[0]):
        assert next(model.blocks[0].parameters()).dtype == torch.float32
    with pytest.raises(IndexError), widened(model.blocks[0]):
        model.blocks[7]
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    with pytest.raises(IndexError), in_float32(model):
        model(torch.tensor([[1000]]))
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model(torch.tensor([[5, 6]])).dtype == torch.bfloat16


def test_scores_say_how_large_rounding_is_on_their_prompts():
    model, task = with_large_biases(torch.bfloat16), random_task(n=3)
    scores = interp.patching.activation(model, task, nodes="heads")
    apart = []
    for tokens in (task.clean, task.corrupted):
        _, final = run(parts_of(model), tokens, set())
        ours, theirs = parts_of(model).logits(final[:, -1]), model(tokens)[:, -1]
        apart.append((logits_of(task, ours) - logits_of(task, theirs)).double())
    expected = torch.cat(apart).square().mean().sqrt()
    assert scores.attrs["rounding"] == pytest.approx(float(expected), rel=1e-6)
    assert scores.attrs["rounding"] > 0
    assert scores.attrs["dtype"] == "bfloat16"
    exact = interp.patching.activation(tiny("qwen2"), task, nodes="heads")
    assert "rounding" not in exact.attrs
    assert exact.attrs["dtype"] == "float32"


def logits_of(task, logits):
    """Each example's difference of logits."""
    logits = logits.detach().float()
    return (logits.gather(1, task.right) - logits.gather(1, task.wrong)).squeeze(1)


def test_effects_below_rounding_are_named():
    model, task = with_large_biases(torch.bfloat16), random_task(n=3)
    with pytest.warns(UserWarning, match=r"the largest effect \(0 logits\) is below what rounding in bfloat16 changes"):
        interp.patching.activation(model, task, nodes="resid_pre", by_position=True, positions=[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="the model does not perform")
        interp.patching.activation(tiny("qwen2"), task, nodes="resid_pre", by_position=True, positions=[0])
