"""Deploying what is the same model, and plans in force: taken back in any order, moved, cast and compiled models."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
from caches import cache_of
from families import tiny

from interp.efficiency import deploy, deployment
from interp.efficiency.kv_cache import StreamingCache
from interp.efficiency.pruning import MagnitudePruning
from interp.efficiency.quantization import RTN
from interp.efficiency.sparse_attention import AShape
from interp.errors import UsageError

LENGTH = 40
TOKENS = torch.randint(4, 50, (1, LENGTH), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    return deploy(tiny("llama"))


def compatible(family, dtype=torch.float32):
    bridge = tiny(family, dtype=dtype)
    with contextlib.redirect_stdout(io.StringIO()):
        bridge.enable_compatibility_mode()
    return bridge


class TestDeploy:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("family", ["gpt2", "neox", "gemma2", "gemma3", "qwen2", "phi3"])
    def test_a_bridge_in_compatibility_mode_that_would_be_another_model_is_refused(self, family, dtype):
        with pytest.raises(UsageError, match=r"no longer computes.*differ by up to \d.*compatibility mode"):
            deploy(compatible(family, dtype))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_where_folding_changes_nothing_it_is_deployed(self, dtype):
        bridge = compatible("llama", dtype)
        ours, theirs = deploy(bridge)(TOKENS).logits, bridge(TOKENS)
        atol = 1e-4 if dtype == torch.float32 else 0.5
        torch.testing.assert_close(ours.log_softmax(-1), theirs.log_softmax(-1), atol=atol, rtol=0)

    def test_a_changed_part_is_refused(self):
        bridge = tiny("llama")
        bridge.blocks[1].mlp.original_component.act_fn = torch.nn.Tanh()
        with pytest.raises(UsageError, match=r"no longer computes.*changed since it was loaded"):
            deploy(bridge)

    def test_hooks_that_the_deployed_model_would_not_run_are_refused_by_name(self):
        bridge = tiny("llama")
        bridge.blocks[0].hook_resid_pre.add_hook(lambda x, hook: 2 * x, is_permanent=True)
        with pytest.raises(UsageError, match=r"blocks\.0\.hook_resid_pre.*which the deployed model would not run"):
            deploy(bridge)

    def test_weights_and_modes_are_left_as_they_were(self):
        bridge = tiny("gpt2", dtype=torch.bfloat16)
        bridge.blocks[1].train()
        modes = [module.training for module in bridge.modules()]
        weights = [(weight.data_ptr(), weight.dtype) for weight in bridge.parameters()]
        deploy(bridge)
        assert [module.training for module in bridge.modules()] == modes
        assert [(weight.data_ptr(), weight.dtype) for weight in bridge.parameters()] == weights


def plans_of(model):
    return {
        "cache": StreamingCache(budget=0.5, length=LENGTH).plan(model),
        "prefill": AShape(budget=0.6, length=LENGTH, block=4).plan(model),
        "pruned": MagnitudePruning(budget=0.5).plan(model),
        "coded": RTN(bits=8).plan(model),
    }


class TestOrder:
    @pytest.mark.parametrize("second", ["cache", "prefill", "coded"])
    @pytest.mark.parametrize("first", ["cache", "prefill", "pruned"])
    def test_the_plan_that_is_left_is_in_force_and_the_one_that_is_named(self, model, first, second):
        if first == second:
            pytest.skip("one plan of a kind at a time")
        made = plans_of(model)
        clean = model.generate(TOKENS, max_new_tokens=4, output_logits=True, return_dict_in_generate=True)
        with made[second].applied(model):
            alone = model.generate(TOKENS, max_new_tokens=4, output_logits=True, return_dict_in_generate=True)
        one, two = made[first].applied(model), made[second].applied(model)
        one.__enter__()
        two.__enter__()
        one.__exit__(None, None, None)
        assert deployment(model).plans == [made[second]]
        left = model.generate(TOKENS, max_new_tokens=4, output_logits=True, return_dict_in_generate=True)
        assert all(torch.equal(a, b) for a, b in zip(left.logits, alone.logits, strict=True))
        two.__exit__(None, None, None)
        assert deployment(model).plans == []
        assert deployment(model).groups == [[0, 1]] * 3
        again = model.generate(TOKENS, max_new_tokens=4, output_logits=True, return_dict_in_generate=True)
        assert all(torch.equal(a, b) for a, b in zip(again.logits, clean.logits, strict=True))

    def test_of_three_the_one_in_the_middle_goes(self, model):
        made = plans_of(model)
        blocks = [made[name].applied(model) for name in ("pruned", "coded", "cache")]
        for block in blocks:
            block.__enter__()
        blocks[1].__exit__(None, None, None)
        assert deployment(model).plans == [made["pruned"], made["cache"]]
        assert cache_of(model(TOKENS)).entries() == [[LENGTH // 2]] * 3
        blocks[0].__exit__(None, None, None)
        blocks[2].__exit__(None, None, None)
        assert deployment(model).plans == []


class TestMoved:
    @pytest.mark.parametrize("name", ["cache", "prefill", "pruned", "coded"])
    def test_a_model_that_is_cast_under_a_plan_is_not_run_and_put_back_in_the_end(self, model, name):
        clean, plan = model(TOKENS).logits, plans_of(model)[name]
        with plan.applied(model):
            model.bfloat16()
            for call in (lambda: model(TOKENS), lambda: model.generate(TOKENS, max_new_tokens=2)):
                with pytest.raises(UsageError, match=r"from float32 on cpu to bfloat16 on cpu.*leave the plan first"):
                    call()
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        assert torch.equal(model(TOKENS).logits, clean)
        model.bfloat16()
        with plan.applied(model):
            assert model(TOKENS).logits.dtype == torch.bfloat16

    def test_what_is_trained_under_a_plan_stays_trained(self, model):
        before = model.lm_head.weight.clone()
        with plans_of(model)["pruned"].applied(model), torch.no_grad():
            model.lm_head.weight.mul_(2)
        assert torch.equal(model.lm_head.weight, 2 * before)

    def test_a_permanent_model_is_moved_and_cast_at_will(self, model):
        plan = plans_of(model)["cache"]
        with plans_of(model)["pruned"].applied(model):
            own = plan.made_permanent(model)
        assert own.bfloat16()(TOKENS).logits.dtype == torch.bfloat16
        assert cache_of(own(TOKENS)).entries() == [[LENGTH // 2]] * 3, "one group of heads was pruned"


class TestCompiled:
    @pytest.mark.parametrize("how", ["wrapped", "in place", "a block", "forward"])
    def test_a_compiled_model_takes_no_plan(self, model, how):
        plan = plans_of(model)["cache"]
        if how == "wrapped":
            given = torch.compile(model, backend="eager")
        else:
            given = model
            if how == "forward":
                model.forward = torch.compile(model.forward, backend="eager")
            else:
                (model if how == "in place" else model.model.layers[1]).compile(backend="eager")
        for call in (lambda: plan.made_permanent(given), lambda: plan.applied(given).__enter__()):
            with pytest.raises(UsageError, match=r"was compiled.*compile what made_permanent gives"):
                call()

    def test_what_made_permanent_gives_can_be_compiled(self, model):
        own = plans_of(model)["cache"].made_permanent(model)
        assert cache_of(torch.compile(own, backend="eager")(TOKENS)).entries() == [[LENGTH // 2] * 2] * 3
