"""Half-precision weights computed with in float32: the numbers of the float32 model, and no float32 copy of it."""

from __future__ import annotations

import warnings
import weakref

import pytest
import torch
from families import FAMILIES, MORE, tiny
from prompts import random_task

import interp
from interp.circuits import discover
from interp.engine import compute
from interp.engine.compute import in_compute
from interp.engine.rule_sets import RULE_SETS
from interp.engine.verify import verified
from interp.errors import UsageError
from interp.patching import attribution

MIXTURES = ("mixtral", "qwen2-moe", "qwen3-moe", "olmoe", "gpt-oss")


def pair(family, dtype=torch.bfloat16):
    """A model in half precision, and one in float32 with the same rounded weights."""
    half, whole = tiny(family, dtype=dtype), tiny(family, dtype=dtype)
    whole.original_model.float()
    return half, whole


def close(found, expected):
    size = abs(expected).max()
    assert size > 0
    assert abs(found - expected).max() <= 1e-5 * size


@pytest.mark.parametrize("family", FAMILIES)
def test_estimates_are_those_of_the_float32_model_with_the_same_weights(family):
    half, whole = pair(family)
    task, before = random_task(n=3), {name: weight.data_ptr() for name, weight in half.named_parameters()}
    for options in ({"rules": "gradient"}, {"rules": "relp"}, {"rules": "gradient", "steps": 3}):
        found = attribution(half, task, "heads", compute="float32", **options)
        close(found, attribution(whole, task, "heads", **options))
        assert (found.attrs["dtype"], found.attrs["compute"]) == ("bfloat16", "float32")
        assert "rounding" not in found.attrs
    assert {name: weight.data_ptr() for name, weight in half.named_parameters()} == before
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("family", [name for name in MORE if name not in MIXTURES])
def test_families_that_differ_in_single_parts_do_so_in_float32(family):
    half, whole = pair(family)
    task = random_task(n=2)
    close(attribution(half, task, rules="relp", compute="float32"), attribution(whole, task, rules="relp"))


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_of_experts_says_that_it_must_be_loaded_in_float32(family):
    half, _ = pair(family)
    with pytest.raises(UsageError, match=r"a mixture of experts holds many in one; load the model with"):
        attribution(half, random_task(n=2), compute="float32")


@pytest.mark.parametrize("rules", [name for name in RULE_SETS if name not in ("gradient", "relp")])
def test_every_rule_can_be_taken_in_float32(rules):
    half, whole = pair("gemma2", torch.float16)
    task = random_task(n=2)
    close(
        attribution(half, task, "mlp_out", rules=rules, compute="float32"),
        attribution(whole, task, "mlp_out", rules=rules),
    )


@pytest.mark.parametrize("method", ["eap", "eap-ig", "relp", "exact"])
def test_circuits_are_those_of_the_float32_model(method):
    half, whole = pair("gpt2")
    task = random_task(n=2)
    found, expected = discover(half, task, method, edges=5, compute="float32"), discover(whole, task, method, edges=5)
    assert found.in_edges == expected.in_edges
    assert found.settings["compute"] == "float32"
    close(*(torch.tensor(list(circuit.edges.values())) for circuit in (found, expected)))


def test_no_more_float32_weights_live_at_once_than_one_matrix(monkeypatch):
    model = tiny("llama", dtype=torch.bfloat16)
    largest = max(weight.numel() for weight in model.original_model.parameters())
    live, most = 0, 0

    def gone(numbers: int) -> None:
        nonlocal live
        live -= numbers

    cast = compute.Widened.weight.fget

    def counted(self):
        nonlocal live, most
        weight = cast(self)
        live += weight.numel()
        most = max(most, live)
        weakref.finalize(weight, gone, weight.numel())
        return weight

    monkeypatch.setattr(compute.Widened, "weight", property(counted))
    attribution(model, random_task(n=2), "heads", rules="relp", compute="float32")
    assert 0 < most <= largest
    assert live == 0


def test_weights_that_are_float32_are_left_alone_and_other_precisions_refused():
    model = tiny("llama")
    parts = verified(model)
    assert in_compute(parts, "float32") is parts
    with pytest.raises(UsageError, match="unknown precision to compute in 'bfloat16'"):
        attribution(model, random_task(n=2), compute="bfloat16")


def test_a_slow_backward_pass_is_told_once_with_the_option(monkeypatch):
    compute._warn.cache_clear()
    monkeypatch.setattr(compute, "has_instructions", lambda dtype: False)
    model, task = tiny("llama", dtype=torch.bfloat16), random_task(n=2)
    with pytest.warns(UserWarning, match=r"no instructions for bfloat16.*compute='float32' \(--compute float32\)"):
        attribution(model, task)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        attribution(model, task)
        attribution(model, task, compute="float32")
    assert not any("no instructions" in str(warning.message) for warning in told)
    compute._warn.cache_clear()


@pytest.mark.parametrize(
    ("flags", "bfloat16", "float16"),
    [
        ("fpu avx512f avx512_bf16", True, False),
        ("fpu avx2 amx_bf16 avx512_fp16", True, True),
        ("fpu avx2 f16c", False, False),
        ("fp asimd asimdhp bf16", True, True),
        ("", True, True),
    ],
)
def test_instructions_are_read_off_the_processors_flags(flags, bfloat16, float16, monkeypatch):
    monkeypatch.setattr(compute, "_processor_flags", lambda: set(flags.split()))
    compute.has_instructions.cache_clear()
    assert compute.has_instructions(torch.bfloat16) is bfloat16
    assert compute.has_instructions(torch.float16) is float16
    compute.has_instructions.cache_clear()


def test_the_interp_namespace_offers_it():
    scores = interp.patching.attribution(tiny("llama", dtype=torch.bfloat16), random_task(n=2), compute="float32")
    assert scores.attrs["compute"] == "float32"
