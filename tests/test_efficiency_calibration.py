"""Calibration at inference: attention moved from sinks to the rest, late outputs scaled, and how sure answers are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from caches import cache_of, using
from families import FAMILIES, tiny
from transformers import DynamicCache

import interp
from interp.efficiency import METHODS, Plan, deploy, deployment, make
from interp.efficiency.calibration import (
    ACT,
    Answers,
    Choices,
    FinalLayer,
    Redistribution,
    answers,
    calibration_error,
    outlying,
    search_heads,
    temperature,
)
from interp.efficiency.calibration.redistribute import redistributed
from interp.efficiency.calibration.rules import ByAttention, rule
from interp.efficiency.kv_cache import StreamingCache
from interp.efficiency.pruning import HeadPruning
from interp.efficiency.pruning.anatomy import anatomy
from interp.errors import UsageError
from interp.results import scores
from interp.results.findings import CalibrationHeads, HeadKinds, MassiveActivations, SinkPositions

TOKENS = torch.randint(4, 50, (1, 14), generator=torch.Generator().manual_seed(0))
ALPHA = 1.2
"""Low enough that random models have sinks."""


def about(model):
    return {"model": deployment(model).name, "fingerprint": deployment(model).fingerprint}


def heads(model, values=None):
    if values is None:
        values = np.random.default_rng(0).uniform(0.1, 1, (len(deployment(model).layers), 4))
    array = scores(np.asarray(values, float), ("layer", "head"))
    return CalibrationHeads(**about(model), evidence={"scores": array}, n_kv_heads=2, target="none", method="exact")


def massive(model, channels=(3,), appears=0, vanishes=2):
    size = scores(np.ones((len(deployment(model).layers), 2)), ("layer", "position"))
    return MassiveActivations(
        **about(model),
        evidence={"size": size},
        channels=channels,
        appears=appears,
        vanishes=vanishes,
        positions=(0,),
        ratio=1e3,
    )


def methods(model, budget=0.4):
    return {
        "act": ACT(heads(model), share=0.5, budget=budget, alpha=ALPHA),
        "redistribution": Redistribution(massive(model), budget=budget, level=1.0, content=0.2),
        "final_layer": FinalLayer(budget=budget),
    }


NAMES = ("act", "redistribution", "final_layer")


@pytest.fixture(scope="module")
def model():
    return deploy(tiny("llama"))


@pytest.fixture(scope="module")
def padded_model():
    found = deploy(tiny("llama"))
    found.generation_config.eos_token_id = None
    found.generation_config.pad_token_id = 3
    return found


@torch.no_grad()
def logits(model, tokens=TOKENS, **options):
    return model(tokens, **options).logits


class TestRedistribution:
    def test_a_row_worked_out_by_hand(self):
        pattern = torch.tensor([0.5, 0.3, 0.2])
        change = redistributed(pattern, torch.tensor([False, True, False]), 0.6)
        expected = torch.tensor([0.5 + 0.18 * 5 / 7, 0.12, 0.2 + 0.18 * 2 / 7])
        torch.testing.assert_close(pattern + change, expected)

    @pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, -0.5, -9.0])
    def test_rows_still_sum_to_one_and_nothing_is_negative(self, strength):
        draw = torch.Generator().manual_seed(1)
        pattern = torch.randn(20, 9, generator=draw).mul(3).softmax(-1)
        sinks = torch.rand(20, 9, generator=draw) < 0.4
        sinks[0], sinks[1] = False, True
        changed = pattern + redistributed(pattern, sinks, strength)
        torch.testing.assert_close(changed.sum(-1), torch.ones(20))
        assert changed.min() >= -1e-6
        assert torch.equal(changed[:2], pattern[:2])
        if strength == 0:
            assert torch.equal(changed, pattern)
        if strength == 1:
            assert float((changed * sinks)[2:].max()) < 1e-6


class TestWhatIsChanged:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_budget_of_one_is_the_dense_model(self, model, name):
        dense = logits(model)
        with methods(model, 1.0)[name].plan(model).applied(model):
            assert torch.equal(logits(model), dense)

    def test_heads_at_strength_zero_are_bit_identical(self, model):
        plan = methods(model)["act"].plan(model)
        none = type(plan)(
            **{**{k: v for k, v in plan.to_dict().items() if k not in ("kind", "version")}, "strength": 0.0}
        )
        dense = logits(model)
        with none.applied(model):
            assert torch.equal(logits(model), dense)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_plan_changes_the_model_and_is_undone_bit_identically(self, model, name):
        dense, plan = logits(model), methods(model)[name].plan(model)
        with plan.applied(model):
            assert not torch.allclose(logits(model), dense, atol=1e-3)
        assert torch.equal(logits(model), dense)
        assert not any("calibration" in vars(module) for module in model.modules())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert model.config._attn_implementation == "sdpa"

    def test_only_the_chosen_heads_change(self, model):
        values = np.zeros((3, 4))
        values[1, 2] = 1
        plan = ACT(heads(model, values), share=1, budget=0.2, alpha=ALPHA).plan(model)
        assert plan.heads == ((1, 2),)
        kept = []
        hook = model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda m, args: kept.append(args[0]))
        logits(model)
        with plan.applied(model):
            logits(model)
        hook.remove()
        same = [torch.equal(*(x[..., h * 8 : h * 8 + 8] for x in kept)) for h in range(4)]
        assert same == [True, True, False, True]

    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_attention_is_that_of_the_formula(self, family):
        """Recomputed from the model's own attention in the first layer, with sinks found in a loop."""
        model = deploy(tiny(family))
        layers = len(deployment(model).layers)
        values = np.zeros((layers, 4))
        values[0, 1] = 1
        found = CalibrationHeads(
            **about(model), evidence={"scores": scores(values, ("layer", "head"))}, n_kv_heads=1, target="", method=""
        )
        plan = ACT(found, share=1, budget=0.3, alpha=ALPHA).plan(model)
        kept = {}

        def watch(name):
            def hook(module, query, key, value, mask, **options):
                kept[name] = (query, key, value, mask, options)

            return hook

        from interp.efficiency.calibration.attention import Spot

        own = Spot.added
        try:
            Spot.added = lambda self, q, k, v, m, o: kept.setdefault(
                "added", (q, k, v, m, o, own(self, q, k, v, m, o))
            )[5]
            with plan.applied(model):
                logits(model, use_cache=False)
        finally:
            Spot.added = own
        query, key, value, _, options, added = kept["added"]
        group = query.shape[1] // key.shape[1]
        q, k, v = query[0, 1], key[0, 1 // group], value[0, 1 // group]
        n = len(q)
        raw = q @ k.T * options["scaling"]
        if options.get("softcap"):
            raw = options["softcap"] * torch.tanh(raw / options["softcap"])
        window = options.get("sliding_window") or n
        see = torch.ones(n, n).tril().bool() & ~torch.ones(n, n).tril(-window).bool()
        pattern = raw.masked_fill(~see, -torch.inf).softmax(-1)
        expected = []
        for i in range(n):
            row, count = pattern[i].clone(), int(see[i].sum())
            mean = [float(pattern[j : i + 1, j][see[j : i + 1, j]].mean()) for j in range(i + 1)]
            sinks = [j for j in range(1, i + 1) if see[i, j] and mean[j] > ALPHA / count]
            others = [j for j in range(i + 1) if see[i, j] and j not in sinks]
            freed = 0.7 * float(row[sinks].sum())
            if sinks and others:
                row[others] += freed * row[others] / row[others].sum()
                row[sinks] *= 0.3
            expected.append((row - pattern[i]) @ v)
        assert torch.stack(expected).abs().max() > 1e-3
        torch.testing.assert_close(added[0, :, 0], torch.stack(expected), atol=1e-5, rtol=1e-4)

    def test_tokens_with_outlying_channels_are_the_sinks(self, model):
        x = torch.zeros(1, 3, 16)
        x[0, :, 0], x[0, 1, 5] = 1, -30
        assert outlying(x, [5, 7]).argmax() == 1
        torch.testing.assert_close(outlying(x, [5])[0, 1], torch.tensor(30 / (901 / 16) ** 0.5))

    def test_the_level_is_half_way_between_what_the_finding_says_of_sinks_and_of_others(self, model):
        found = massive(model)
        size = scores(np.array([[5.0, 2, 1]] * 3), ("layer", "position"))
        norm = scores(np.full((3, 3), 32**0.5), ("layer", "position"))
        told = dataclasses.replace(found, evidence={"size": size, "resid_norm": norm})
        assert rule(Redistribution(told).plan(model).sinks).level == pytest.approx(3.5)
        assert rule(Redistribution(found).plan(model).sinks).level == pytest.approx(20 * (32 / 4096) ** 0.5)

    def test_heads_that_look_at_sinks_alone_are_left_as_they_are(self, model):
        dense = logits(model)
        level = Redistribution(massive(model), budget=0.4, level=1e-9, content=0.2).plan(model)
        with level.applied(model):  # every token is a sink: nothing to give to
            assert torch.equal(logits(model), dense)

    def test_late_outputs_are_scaled(self, model):
        plan = FinalLayer(budget=0.25, parts="mlp").plan(model)
        kept = []
        hook = model.model.layers[2].mlp.register_forward_hook(lambda m, args, out: kept.append(out))
        resid = model.model.norm.register_forward_pre_hook(lambda m, args: kept.append(args[0]))
        logits(model)
        with plan.applied(model):
            logits(model)
        hook.remove()
        resid.remove()
        torch.testing.assert_close(kept[1] - kept[3], 0.75 * kept[0])

    @pytest.mark.parametrize("family", FAMILIES)
    def test_late_outputs_of_every_architecture_are_scaled_as_they_are_added(self, family):
        """Without its attention and its MLP the last block passes on what enters it."""
        model = deploy(tiny(family))
        dense, kept, block = logits(model), [], _last_block(model)
        hook = block.register_forward_hook(lambda m, args, out: kept.append((args[0], out)))
        with FinalLayer(budget=1e-9).plan(model).applied(model):
            logits(model)
        hook.remove()
        before, after = kept[0]
        torch.testing.assert_close(after if isinstance(after, torch.Tensor) else after[0], before, atol=1e-4, rtol=1e-4)
        assert torch.equal(logits(model), dense)


def _last_block(model):
    body = anatomy(model)
    return body.block(body.layers[-1])


class TestUse:
    @pytest.mark.parametrize("name", NAMES)
    def test_token_by_token_and_in_chunks_is_the_same_as_in_one_go(self, model, name):
        with methods(model)[name].plan(model).applied(model), torch.no_grad():
            whole = model(TOKENS, use_cache=False).logits
            for sizes in ([1] * 14, [5, 4, 5]):
                cache, parts = DynamicCache(config=model.config), []
                for part in TOKENS.split(sizes, 1):
                    parts.append(model(part, **using(cache)).logits)
                torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("family", ["gemma3", "mistral", "gemma2"])
    def test_layers_with_windows_too(self, family):
        model = deploy(tiny(family))
        values = np.random.default_rng(0).uniform(0.1, 1, (len(deployment(model).layers), 4))
        with ACT(heads(model, values), share=1, budget=0.2, alpha=ALPHA).plan(model).applied(model), torch.no_grad():
            whole, cache = model(TOKENS, use_cache=False).logits, DynamicCache(config=model.config)
            parts = [model(part, **using(cache)).logits for part in TOKENS.split(1, 1)]
            torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-4, rtol=1e-4)

    @pytest.mark.parametrize("name", NAMES)
    def test_rows_of_a_left_padded_batch_equal_single_prompts(self, padded_model, name):
        model, lengths = padded_model, (6, 14, 9)
        batch = torch.full((3, 14), 3)
        for row, length in enumerate(lengths):
            batch[row, -length:] = TOKENS[0, :length]
        options = {"max_new_tokens": 6, "do_sample": False}
        with methods(model)[name].plan(model).applied(model):
            mask = (torch.arange(14) >= 14 - torch.tensor(lengths)[:, None]).long()
            together = model.generate(batch, attention_mask=mask, **options)
            for row, length in enumerate(lengths):
                prompt = TOKENS[:, :length]
                alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
                assert torch.equal(together[row, 14:], alone[0, length:])

    def test_turns_samples_and_beams(self, padded_model):
        model, plan = padded_model, methods(padded_model)["act"].plan(padded_model)
        with plan.applied(model):
            first = model.generate(TOKENS, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
            further = torch.cat([first.sequences, TOKENS[:, :5]], 1)
            cached = model.generate(further, **using(cache_of(first)), max_new_tokens=4, do_sample=False)
            assert torch.equal(cached, model.generate(further, max_new_tokens=4, do_sample=False))
            torch.manual_seed(0)
            assert model.generate(TOKENS, max_new_tokens=4, do_sample=True).shape == (1, 18)
            beams = {"num_beams": 3, "max_new_tokens": 5, "do_sample": False}
            with_cache = model.generate(TOKENS, **beams)
            assert torch.equal(with_cache, model.generate(TOKENS, use_cache=False, **beams))

    @pytest.mark.parametrize("name", NAMES)
    def test_a_permanent_model_generates_the_same_also_from_disk(self, padded_model, name, tmp_path):
        model, plan = padded_model, methods(padded_model)[name].plan(padded_model)
        options = {"max_new_tokens": 6, "do_sample": False}
        with plan.applied(model):
            applied = model.generate(TOKENS, **options)
        own = plan.made_permanent(model)
        assert torch.equal(own.generate(TOKENS, **options), applied)
        interp.efficiency.save(own, tmp_path)
        assert torch.equal(interp.efficiency.load(tmp_path).generate(TOKENS, **options), applied)
        assert not torch.equal(logits(own), logits(model))

    def test_pruned_heads_are_left_out(self, model):
        importance = interp.results.findings.HeadImportance(
            **about(model),
            evidence={"scores": scores(np.arange(12.0).reshape(3, 4), ("layer", "head"))},
            n_kv_heads=2,
        )
        pruning = HeadPruning(importance=importance, budget=0.5).plan(model)
        both = pruning + methods(model)["act"].plan(model)
        with pruning.applied(model):
            pruned = logits(model)
        with both.applied(model):
            assert not torch.equal(logits(model), pruned)

    def test_it_composes_with_scaled_outputs(self, model):
        both = methods(model)["act"].plan(model) + methods(model)["final_layer"].plan(model)
        with both.applied(model):
            assert torch.isfinite(logits(model)).all()


class TestPlans:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_plan_reads_back_and_has_a_table_and_a_picture(self, model, name, tmp_path):
        method = methods(model)[name]
        for plan in (method.plan(model), method.random_plan(model), method.inverted_plan(model)):
            plan.save(tmp_path / "plan.json")
            again = Plan.load(tmp_path / "plan.json")
            assert again == plan
            with plan.applied(model):
                first = logits(model)
            with again.applied(model):
                assert torch.equal(logits(model), first)
        assert len(plan.to_frame()) > 0
        assert plan.figure().data

    @pytest.mark.parametrize("name", NAMES)
    def test_nothing_is_saved_and_the_ledger_says_so(self, model, name):
        ledger = methods(model)[name].plan(model).ledger(model, 100, 2)
        assert ledger.weight_bytes.share == 1
        assert 1 < ledger.prefill_flops.share < 1.5
        assert 1 < ledger.decode_flops.share < 1.5
        assert ledger.cache_bytes.share >= 1

    def test_the_account_has_the_bytes_that_the_ledger_says(self, model):
        for name in ("act", "redistribution"):
            plan = methods(model)[name].plan(model)
            with plan.applied(model):
                cache = cache_of(model(TOKENS))
            account = cache.calibration_account
            tensors = [account.real, *(t for layer in account.layers.values() for t in layer.values())]
            held = sum(t.numel() * t.itemsize for t in tensors)
            amount = plan.ledger(model, 14).cache_bytes
            assert held == amount.after - amount.before

    def test_the_best_heads_are_chosen_and_the_worst_in_the_inverted_plan(self, model):
        values = np.arange(12.0).reshape(3, 4) - 2
        method = ACT(heads(model, values), share=0.25)
        assert method.plan(model).heads == ((2, 1), (2, 2), (2, 3))
        assert method.inverted_plan(model).heads == ((0, 0), (0, 1), (0, 2))
        assert len(method.random_plan(model).heads) == 3
        assert method.random_plan(model, 1) == method.random_plan(model, 1) != method.random_plan(model, 2)
        assert len(ACT(heads(model, -values), share=1).plan(model).heads) == 2

    def test_the_random_redistribution_moves_as_much_to_where_another_head_looks(self, model):
        method = methods(model)["redistribution"]
        plans = method.plan(model), method.random_plan(model, 1)
        settings = [rule(plan.sinks) for plan in plans]
        assert settings[0].order == ()
        assert all(sorted(order) == [0, 1, 2, 3] for _, order in settings[1].order)
        assert all(head != other for _, order in settings[1].order for head, other in enumerate(order))
        pattern = torch.rand(1, 4, 5, 5, generator=torch.Generator().manual_seed(0)).softmax(-1)
        sinks = torch.arange(5).expand_as(pattern) == 0
        layer, order = settings[1].order[0]
        toward = settings[1].toward(layer, pattern)
        changes = [redistributed(pattern, sinks, 0.4), redistributed(pattern, sinks, 0.4, toward)]
        for change in changes:
            torch.testing.assert_close(change[..., 0], -0.4 * pattern[..., 0])
            torch.testing.assert_close(change.sum(-1), torch.zeros(1, 4, 5))
        other = pattern[:, list(order), :, 1:]
        torch.testing.assert_close(
            changes[1][..., 1:] / changes[1][..., 1:].sum(-1, keepdim=True), other / other.sum(-1, keepdim=True)
        )
        assert method.inverted_plan(model).strength == -plans[0].strength

    def test_a_kind_of_heads_can_choose(self, model):
        array = scores(np.arange(24.0).reshape(2, 3, 4), ("kind", "layer", "head"), {"kind": ["separator", "copying"]})
        kinds = HeadKinds(**about(model), evidence={"scores": array})
        assert ACT(kinds, kind="separator", share=0.1).plan(model).heads == ((2, 3),)
        with pytest.raises(UsageError, match="say which kind of heads: kind= one of separator, copying"):
            ACT(kinds).plan(model)

    def test_tokens_at_the_start_are_left_alone_as_the_finding_says(self, model):
        size = scores(np.ones((3, 4)), ("layer", "position"))
        sinks = SinkPositions(**about(model), evidence={"attention": size}, positions=(0, 2))
        plan = ACT(heads(model), sinks=sinks).plan(model)
        assert rule(plan.sinks) == ByAttention(5.0, 3)
        assert plan.findings == ("CalibrationHeads", "SinkPositions")

    def test_every_method_is_in_the_registry(self, model):
        assert {name for name, card in METHODS.items() if card.family == "calibration"} == set(NAMES)
        assert make("act", [heads(model)], budget=0.5).plan(model).budget == 0.5
        assert make("redistribution", [massive(model)]).plan(model).heads


class TestSearch:
    @staticmethod
    def task(model):
        pairs = [
            interp.tasks.Pair(f"t{a} t{b} t{a} t{b} t9 t{a}", f"t{b} t{b} t{a} t{b} t9 t{a}", [f" t{b}"], [f" t{c}"])
            for a, b, c in ((5, 6, 7), (8, 6, 5), (7, 8, 6))
        ]
        return interp.tasks.from_pairs("copy", pairs, tiny("llama"))

    def test_to_first_order_is_the_slope_of_the_exact_effect(self, model):
        task = self.task(model)
        slope = search_heads(model, task, budget=0.4, alpha=ALPHA)
        little = search_heads(model, task, budget=0.99, alpha=ALPHA, exact=True)
        expected = little.scores.values * 60
        assert np.abs(expected).max() > 0.01
        np.testing.assert_allclose(slope.scores.values, expected, atol=0.05 * np.abs(expected).max())
        assert "accuracy" in little.evidence

    def test_the_model_is_left_as_it_was(self, model):
        dense = logits(model)
        search_heads(model, self.task(model), alpha=ALPHA, exact=[(0, 1)])
        assert torch.equal(logits(model), dense)

    def test_answers_are_those_of_the_whole_prompts(self, model):
        task = self.task(model)
        whole = task.end_logits(logits(model, task.clean)).float()
        with methods(model)["act"].plan(model).applied(model):
            changed = answers(model, task, batch=2)
            expected = task.end_logits(logits(model, task.clean))
        np.testing.assert_allclose(answers(model, task).metric, task.per_example(whole), atol=1e-4)
        np.testing.assert_allclose(changed.metric, task.per_example(expected), atol=1e-4)
        numbers = Choices(task).measure(model)
        assert {name.rpartition(".")[2] for name in numbers} == {"accuracy", "metric", "ece"}

    def test_answers_under_a_plan_for_the_cache_are_those_of_that_plan(self, model):
        task = self.task(model)
        plan = StreamingCache(budget=0.4, sinks=1, length=task.clean.shape[1], prefill_chunk=2).plan(model)
        with plan.applied(model):
            found, expected = answers(model, task), task.per_example(task.end_logits(logits(model, task.clean)))
        np.testing.assert_allclose(found.metric, expected, atol=1e-4)
        assert np.abs(found.metric - answers(model, task).metric).max() > 1e-2


class TestCalibrationError:
    def test_two_bins_worked_out_by_hand(self):
        assert calibration_error([0.95, 0.95, 0.65, 0.65], [1, 0, 1, 1]) == pytest.approx(0.5 * 0.45 + 0.5 * 0.35)

    def test_a_bin_takes_its_upper_edge(self):
        assert calibration_error([0.5, 0.55], [0, 1], bins=2) == pytest.approx(0.475)
        assert calibration_error([0.0, 1.0], [0, 1]) == 0

    def test_draws_from_their_own_confidence_have_almost_none(self):
        draw = np.random.default_rng(0)
        sure = draw.uniform(0.5, 1, 20_000)
        right = draw.uniform(size=20_000) < sure
        assert calibration_error(sure, right) < 0.02
        assert calibration_error(sure, np.zeros(20_000)) == pytest.approx(sure.mean())

    def test_the_temperature_is_found_again(self):
        draw = np.random.default_rng(1)
        true = draw.normal(0, 2, 20_000)
        sign = np.where(draw.uniform(size=20_000) < 1 / (1 + np.exp(-true)), 1, -1)
        found = Answers(3 * true * sign, true)
        assert temperature(found) == pytest.approx(3, rel=0.05)
        assert found.error(temperature(found)) < 0.02 < found.error()

    @pytest.mark.parametrize(("sure", "right"), [([], []), ([0.5], [1, 0]), ([1.5], [1]), ([float("nan")], [1])])
    def test_bad_input_is_refused(self, sure, right):
        with pytest.raises(UsageError):
            calibration_error(sure, right)


class TestErrors:
    @pytest.mark.parametrize(
        ("made", "message"),
        [
            (lambda m: ACT(), "act needs scores of heads"),
            (lambda m: ACT(heads(m), budget=0), r"must be in \(0, 1\], got 0"),
            (lambda m: ACT(heads(m), share=2), "share, of heads"),
            (lambda m: ACT(heads(m), alpha=0), "alpha must be above 0"),
            (lambda m: Redistribution(), "needs a finding of type MassiveActivations"),
            (lambda m: Redistribution(massive(m, channels=())), "no massive activations"),
            (lambda m: Redistribution(massive(m), content=0), "content must be in"),
            (lambda m: FinalLayer(parts="norm"), "unknown part 'norm'"),
            (lambda m: FinalLayer(budget=1.2), "got 1.2"),
            (lambda m: rule({"by": "magic"}), "unknown rule for sinks"),
        ],
    )
    def test_bad_settings_are_refused_with_one_message(self, model, made, message):
        with pytest.raises(UsageError, match=message):
            made(model)

    def test_a_finding_about_another_model_is_refused(self, model):
        other = deploy(tiny("qwen2"))
        for method in (ACT(heads(other)), Redistribution(massive(other))):
            with pytest.raises(UsageError, match="its weights are others"):
                method.plan(model)

    def test_caches_that_were_cut_or_filled_elsewhere_fail_with_one_message(self, model):
        plan, cache = methods(model)["act"].plan(model), cache_of(model(TOKENS))
        with plan.applied(model):
            with pytest.raises(UsageError, match="filled without the plan"):
                model(TOKENS, **using(cache))
            own = cache_of(model(TOKENS))
            own.crop(-3)
            with pytest.raises(UsageError, match="holds 11 tokens and calibration knows of 14"):
                model(TOKENS, **using(own))
            with pytest.raises(UsageError, match="leave cache_implementation"):
                model.generate(TOKENS, max_new_tokens=2, cache_implementation="static")
            with pytest.raises(UsageError, match="call the model itself"):
                model.model(TOKENS)

    def test_one_plan_for_attention_at_a_time(self, model):
        mine, cache = methods(model)["act"].plan(model), StreamingCache(budget=0.5, length=32).plan(model)
        with mine.applied(model):
            with pytest.raises(UsageError, match="one plan for attention at a time"), mine.applied(model):
                pass
            with cache.applied(model), pytest.raises(UsageError, match="no plan for the cache"):
                model(TOKENS)
        with cache.applied(model), pytest.raises(UsageError, match="no plan for the cache"), mine.applied(model):
            pass


@pytest.mark.real_model
def test_the_sinks_of_a_real_model_are_found_by_their_channels(smollm2):
    found = interp.attention.sinks.massive_activations(smollm2, n=2, length=24)
    model = deploy(smollm2)
    plan = Redistribution(found).plan(model)
    tokens = interp.tasks.corpus("prose", smollm2, 1, 24, 0)
    with plan.applied(model), torch.no_grad():
        account = cache_of(model(tokens)).calibration_account
    middle = (found.appears + found.vanishes) // 2
    assert account.layers[middle]["flags"][0].nonzero().flatten().tolist() == list(found.positions)
