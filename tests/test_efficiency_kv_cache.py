"""Compressed caches: what is kept, in how many bytes, and that the model runs on them as on any cache."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from caches import NAME, cache_of, using
from families import FAMILIES, hugging_face_model, tiny
from test_attention_retrieval import COPY_LENGTH, PLANTED, induction_samples
from transformers import DynamicCache, StaticCache

import interp
from interp.attention.retrieval.score import retrieval_heads
from interp.efficiency import Plan, deploy, deployment
from interp.efficiency.deployment import Deployment
from interp.efficiency.kv_cache import (
    ActQKVCache,
    AttendreCache,
    CItruSCache,
    FullCache,
    H2OCache,
    PyramidKVCache,
    QuantizedCache,
    RetrievalCache,
    SnapKVCache,
    StreamingCache,
)
from interp.efficiency.kv_cache.attention import Step, attend
from interp.efficiency.kv_cache.geometry import geometry
from interp.efficiency.kv_cache.pyramidkv import even
from interp.efficiency.kv_cache.quantized_store import Codes, Quantized
from interp.efficiency.kv_cache.rope import rotation
from interp.efficiency.pruning import ActivationNormPruning
from interp.efficiency.registry import METHODS
from interp.efficiency.sparse_attention.observing import views
from interp.errors import UsageError
from interp.results import scores
from interp.results.findings import RetrievalHeads, SinkPositions

LENGTH = 40
GENERATE = {
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_logits": True,
    "pad_token_id": 3,
    "eos_token_id": None,
}
TOKENS = torch.randint(4, 50, (1, LENGTH), generator=torch.Generator().manual_seed(0))


def finding(model, values=None):
    """A finding about a deployed model whose heads have the scores that are given, or random ones."""
    shape, found = geometry(model), deployment(model)
    groups = len(shape.groups[0])
    if values is None:
        values = np.random.default_rng(0).random((len(shape.layers), groups * shape.query_heads))
    each = scores(np.asarray(values, dtype=float), ("layer", "head"), {}, name="retrieval", units="share")
    return RetrievalHeads(
        model=found.name,
        fingerprint=found.fingerprint,
        evidence={"scores": each, "low": each, "high": each},
        n_kv_heads=groups,
    )


def sinks(model, n=2):
    """A finding about a deployed model that says where its sinks are."""
    found = deployment(model)
    attention = scores(np.full((1, n), 0.5), ("layer", "position"), {}, name="attention", units="share")
    return SinkPositions(
        model=found.name, fingerprint=found.fingerprint, evidence={"attention": attention}, positions=range(n)
    )


def methods(model, budget=0.5, length=LENGTH, **options):
    """One method of each kind, for tiny models."""
    common = {"budget": budget, "length": length, **options}
    return {
        "streaming": StreamingCache(sinks=2, **common),
        "retrieval": RetrievalCache(retrieval=finding(model), sinks=2, window=4, **common),
        "h2o": H2OCache(**common),
        "snapkv": SnapKVCache(window=4, **common),
        "pyramidkv": PyramidKVCache(window=4, **common),
        "citrus": CItruSCache(instruction=[5, 6, 7], **{"prefill_chunk": 16, **common}),
        "actqkv": ActQKVCache(window=8, sinks=2, **common),
        "attendre": AttendreCache(wait=4, top=3, sinks=1, **common),
        "attendre lra": AttendreCache(policy="lra", wait=4, top=3, **common),
    }


NAMES = list(methods(deploy(tiny("llama"))))


@pytest.fixture(autouse=True)
def _no_text(monkeypatch):
    """The tiny models' tokenizer reads no text: layers get room by a rule that is known."""
    for module in ("actqkv", "pyramidkv"):
        known = lambda model: {layer: 9.0 - layer for layer in deployment(model).layers}  # noqa: E731
        monkeypatch.setattr(f"interp.efficiency.kv_cache.{module}.attention_spread", known)


@pytest.fixture(scope="module")
def model():
    return deploy(tiny("llama"))


def generated(model, tokens, new=8, **options):
    return model.generate(tokens, max_new_tokens=new, **{**GENERATE, **options})


def logits(found, row=0):
    return torch.stack([step[row] for step in found.logits])


def close(a, b, atol=2e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)


class TestDense:
    @pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mistral"])
    @pytest.mark.parametrize("chunk", [None, 7])
    def test_a_cache_that_keeps_everything_generates_as_the_dense_model_does(self, family, chunk):
        model = deploy(tiny(family))
        dense = generated(model, TOKENS)
        with FullCache(prefill_chunk=chunk).plan(model).applied(model):
            found = generated(model, TOKENS)
        assert torch.equal(found.sequences, dense.sequences)
        close(logits(found), logits(dense))

    @pytest.mark.parametrize("name", NAMES)
    def test_a_budget_of_one_is_the_dense_model(self, model, name):
        dense = generated(model, TOKENS)
        with methods(model, budget=1.0)[name].plan(model).applied(model):
            close(logits(generated(model, TOKENS)), logits(dense))

    def test_calls_that_the_plan_would_be_without_effect_on_are_refused_and_say_what_to_do(self, model):
        dense = model(TOKENS, use_cache=False).logits
        plan = StreamingCache(budget=0.5, length=LENGTH).plan(model)
        dynamic = using(DynamicCache(config=model.config))
        calls = {
            "use_cache=False": [
                lambda: model(TOKENS, use_cache=False),
                lambda: generated(model, TOKENS, use_cache=False),
            ],
            "DynamicCache": [lambda: model(TOKENS, **dynamic), lambda: generated(model, TOKENS, **dynamic)],
            "StaticCache": [
                lambda: generated(model, TOKENS, **using(StaticCache(config=model.config, max_cache_len=64)))
            ],
            "cache_implementation='static'": [lambda: generated(model, TOKENS, cache_implementation="static")],
        }
        with plan.applied(model):
            for message, wrong in calls.items():
                for call in wrong:
                    with pytest.raises(UsageError, match=f"plan for the cache is in force.*{message}.*leave it out"):
                        call()
            own = cache_of(generated(model, TOKENS, **using(plan.new_cache(model))))
            assert own.entries() == cache_of(generated(model, TOKENS)).entries()
        assert torch.equal(model(TOKENS, use_cache=False).logits, dense)
        for wrong in calls.values():
            for call in wrong:
                call()

    def test_what_is_measured_on_whole_texts_is_measured_under_a_plan_as_without(self, model):
        method = ActivationNormPruning(budget=0.5, source=TOKENS, n=1, length=LENGTH)
        scores, seen = method.scores(model), views(model, TOKENS, 4)
        with StreamingCache(budget=0.5, length=LENGTH).plan(model).applied(model):
            np.testing.assert_array_equal(method.scores(model), scores)
            under = views(model, TOKENS, 4)
        assert all(torch.equal(a.query, b.query) for a, b in zip(seen, under, strict=True))

    def test_a_prompt_in_one_go_is_computed_densely_whatever_is_kept_of_it(self, model):
        dense = model(TOKENS, use_cache=False).logits
        for name, method in methods(model, prefill_chunk=None).items():
            with method.plan(model).applied(model):
                close(model(TOKENS).logits, dense), name


class TestWhatIsKept:
    def test_sinks_and_the_most_recent_tokens_are_what_a_hand_made_mask_leaves(self, model):
        plan = StreamingCache(budget=0.25, length=LENGTH, sinks=2).plan(model)
        kept = [0, 1, *range(LENGTH - 8, LENGTH)]
        cache = DynamicCache(config=model.config)
        model(TOKENS, **using(cache))
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
        expected = model(TOKENS[:, :1], **using(trimmed(cache, drop=2)), position_ids=torch.tensor([[LENGTH]])).logits
        with plan.applied(model):
            cache = cache_of(model(TOKENS))
            assert cache.entries() == [[10, 10]] * 3
            close(model(TOKENS[:, :1], **using(cache)).logits, expected)
        assert cache.entries() == [[10, 10]] * 3

    def test_the_planted_retrieval_head_is_the_one_kept_and_the_text_is_found_again_by_it_alone(self):
        bridge = interp.load("toy-induction")
        samples = induction_samples()
        found = retrieval_heads(bridge, samples, steps=COPY_LENGTH)
        model = deploy(bridge)
        method = RetrievalCache(retrieval=found, budget=0.4, sinks=1, window=4, length=60)
        plan = method.plan(model)
        frame = plan.to_frame()
        assert [(row.layer, row.kv_head) for row in frame.itertuples() if row.keeps == "all"] == [PLANTED]

        def recall(plan):
            right = 0
            for sample in samples:
                tokens = torch.tensor([sample.tokens])
                with plan.applied(model):
                    cache = cache_of(model(tokens[:, :-1]))
                    out = model.generate(tokens, **using(cache), max_new_tokens=COPY_LENGTH, do_sample=False)
                right += tuple(out[0, -COPY_LENGTH:].tolist()) == sample.needle
            return right / len(samples)

        assert recall(plan) == 1
        assert recall(method.inverted_plan(model)) < 0.5
        assert recall(StreamingCache(budget=0.4, sinks=1, length=60).plan(model)) < 0.5

    def test_heavy_hitters_are_those_with_the_largest_column_sums_of_attention(self, model):
        model.set_attn_implementation("eager")
        pattern = model(TOKENS, output_attentions=True, use_cache=False).attentions[0]
        model.set_attn_implementation("sdpa")
        plan = H2OCache(budget=0.5, length=LENGTH).plan(model)
        with plan.applied(model):
            cache = cache_of(model(TOKENS))
        store = cache.layers[0].parts[0][1]
        n, window = store.n, store.window
        sums = pattern[0].unflatten(0, (2, 2)).sum((1, 2))
        for head in range(2):
            best = sums[head, : LENGTH - window].topk(n - window).indices.sort().values
            close(store.scores[0, head, : n - window], sums[head, best])

    def test_snapkv_keeps_what_the_last_tokens_attend_to(self, model):
        model.set_attn_implementation("eager")
        pattern = model(TOKENS, output_attentions=True, use_cache=False).attentions[1]
        model.set_attn_implementation("sdpa")
        full = FullCache().plan(model)
        with full.applied(model):
            keys = cache_of(model(TOKENS)).layers[1].parts[0][1].buffer.keys
        with SnapKVCache(budget=0.5, length=LENGTH, window=4, kernel=3).plan(model).applied(model):
            kept = cache_of(model(TOKENS)).layers[1].parts[0][1].buffer.keys
        seen = pattern[0, :, -4:].unflatten(0, (2, 2)).mean(1).sum(1)
        worth = torch.nn.functional.avg_pool1d(seen[None], 3, 1, 1)[0]
        for head in range(2):
            best = worth[head, : LENGTH - 4].topk(16).indices.sort().values
            close(kept[0, head], keys[0, head, [*best.tolist(), *range(LENGTH - 4, LENGTH)]])

    def test_the_pyramid_has_its_budget_and_its_slope(self):
        budgets = even(5, 100, 20, 1000)
        assert budgets == [195, 147, 100, 52, 5]
        assert even(5, 100, 20, 150) == [150, 125, 100, 75, 50]

    def test_codes_are_within_half_a_step_of_the_numbers(self):
        x = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(1))
        for bits in (8, 4):
            codes = Codes(x, bits, 2)
            step = (x.amax(2, keepdim=True) - x.amin(2, keepdim=True)) / (2**bits - 1)
            assert ((codes.decoded() - x).abs() <= 0.5 * step + 1e-6).all()
            assert codes.codes.shape[-1] == (6 if bits == 8 else 3)

    @pytest.mark.parametrize("bits", [8, 4])
    @pytest.mark.parametrize("softcap", [None, 2.0])
    def test_multiplying_codes_is_multiplying_what_they_stand_for(self, bits, softcap):
        draw = torch.Generator().manual_seed(3)
        real = torch.ones(2, 41, dtype=torch.bool)
        real[1, :5] = False
        held = Quantized(bits=bits, group=8, sinks=2, residual=4)
        keys, values = (torch.randn(2, 2, 41, 6, generator=draw) for _ in range(2))
        held.step(torch.randn(2, 4, 41, 6, generator=draw), keys, values, Step(0.4, softcap, real))
        for _ in range(20):  # groups fill up on the way
            query, key, value = (torch.randn(2, n, 1, 6, generator=draw) for n in (4, 2, 2))
            past = held.decoded()
            valid = torch.cat([held.valid, torch.ones(2, 1, dtype=torch.bool)], 1)
            found = held.step(query, key, value, Step(0.4, softcap))
            both = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
            close(found, attend(query, *both, Step(0.4, softcap), valid[:, None, None]), atol=1e-5)
        assert held.coded == 48
        assert len(held.tensors()) == 2 + 1 + 2 * 3

    def test_eight_bits_are_nearer_to_the_dense_model_than_four(self, model):
        dense, far = logits(generated(model, TOKENS, 1)), {}
        tokens = TOKENS[:, :8]
        for bits in (8, 4):
            with QuantizedCache(bits=bits, group=8, residual=0, length=LENGTH).plan(model).applied(model):
                cache = cache_of(model(TOKENS))
                far[bits] = model(tokens, **using(cache)).logits
        expected = model(torch.cat([TOKENS, tokens], 1), use_cache=False).logits[:, -8:]
        error = {bits: (found - expected).abs().mean().item() for bits, found in far.items()}
        assert dense.isfinite().all()
        assert 0 < error[8] < 0.1 * error[4]

    def test_moved_keys_are_the_keys_of_the_moved_tokens(self, model):
        config = model.config
        rope = model.model.rotary_emb
        x = torch.randn(1, 2, 3, 8, generator=torch.Generator().manual_seed(2))

        def rotated(first):
            from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

            cos, sin = rope(x, torch.arange(first, first + 3)[None])
            return apply_rotary_pos_emb(x, x, cos, sin)[1]

        assert config.num_key_value_heads == 2
        close(rotation(model, 0)(rotated(2), 11), rotated(13), atol=1e-5)

    def test_reindexed_positions_are_those_of_a_text_without_what_was_dropped(self):
        """One layer, so that keys depend on their own tokens alone."""
        model = deploy(tiny("llama", num_hidden_layers=1))
        plan = StreamingCache(budget=0.3, length=LENGTH, sinks=2, positions="reindexed").plan(model)
        with plan.applied(model):
            cache = cache_of(model(TOKENS))
            found = model(TOKENS[:, :1], **using(cache)).logits
        held = cache.entries()[0][0]
        text = torch.cat([TOKENS[:, :2], TOKENS[:, LENGTH - (held - 3) :], TOKENS[:, :1]], 1)
        close(found[:, -1], model(text, use_cache=False).logits[:, -1], atol=1e-4)


def trimmed(cache, drop):
    """The oldest entry behind the sinks goes, as it does for a new token in a full window."""
    for layer in cache.layers:
        for name in ("keys", "values"):
            kept = getattr(layer, name)
            setattr(layer, name, torch.cat([kept[:, :, :drop], kept[:, :, drop + 1 :]], 2))
    return cache


class TestBytes:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_cache_has_the_bytes_that_the_ledger_says_and_no_more_than_the_budget(self, model, name):
        plan = methods(model)[name].plan(model)
        with plan.applied(model):
            cache = cache_of(model(TOKENS))
        ledger = plan.ledger(model, LENGTH)
        assert cache.bytes() == ledger.cache_bytes.after
        assert ledger.cache_bytes.share <= 0.5
        dense = DynamicCache(config=model.config)
        model(TOKENS, **using(dense))
        assert ledger.cache_bytes.before == sum(2 * layer.keys.nbytes for layer in dense.layers)

    def test_n_entries_take_the_bytes_of_n_entries_however_long_the_text(self, model):
        plan = StreamingCache(budget=0.25, length=LENGTH, sinks=2).plan(model)
        with plan.applied(model):
            found = cache_of(generated(model, TOKENS, 30))
        assert found.bytes() == 3 * 2 * 10 * geometry(model).entry_bytes
        assert found.seen == LENGTH + 29
        with H2OCache(budget=0.5, length=LENGTH).plan(model).applied(model):
            found = cache_of(generated(model, TOKENS, 30))
        n = found.entries()[0][0]
        assert found.bytes() == 3 * 2 * n * (geometry(model).entry_bytes + 4)

    @pytest.mark.parametrize("bits", [8, 4])
    def test_quantised_bytes_are_those_of_codes_scales_and_what_stays_as_it_is(self, model, bits):
        plan = QuantizedCache(bits=bits, group=8, residual=4, sinks=sinks(model), length=LENGTH).plan(model)
        with plan.applied(model):
            cache = cache_of(model(TOKENS))
        assert cache.bytes() == plan.ledger(model, LENGTH).cache_bytes.after
        coded = 32
        each = 2 * coded * 8 * bits // 8 + 8 * (coded + coded // 8 * 8) + (LENGTH - coded) * 64
        assert cache.bytes() == 3 * 2 * each

    def test_a_prompt_in_chunks_never_stands_in_the_cache_as_a_whole(self, model):
        most = []
        before = model.forward
        plan = StreamingCache(budget=0.25, length=LENGTH, prefill_chunk=6).plan(model)
        with plan.applied(model):
            wrapped = model.forward

            def watched(**given):
                out = before(**given)
                most.append(given[NAME].bytes())
                return out

            wrapped.before = watched
            model(TOKENS)
        assert len(most) == 7
        assert max(most) == 3 * 2 * 10 * geometry(model).entry_bytes


class TestRunning:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
    def test_rows_of_a_left_padded_batch_equal_single_prompts(self, family, name):
        model = deploy(tiny(family))
        short = TOKENS[:, :27]
        batch = torch.cat([TOKENS, torch.cat([torch.full((1, LENGTH - 27), 3), short], 1)])
        mask = torch.ones_like(batch)
        mask[1, : LENGTH - 27] = 0
        with methods(model, budget=0.65)[name].plan(model).applied(model):
            both = generated(model, batch, attention_mask=mask)
            close(logits(both, 0), logits(generated(model, TOKENS)))
            close(logits(both, 1), logits(generated(model, short)))

    def test_prompts_shorter_than_the_sinks_wait_for_theirs(self, model):
        plan = StreamingCache(budget=0.25, length=LENGTH, sinks=4).plan(model)
        batch = torch.cat([TOKENS[:, :20], torch.cat([torch.full((1, 18), 3), TOKENS[:, :2]], 1)])
        mask = torch.ones_like(batch)
        mask[1, :18] = 0
        with plan.applied(model):
            both = generated(model, batch, 20, attention_mask=mask)
            close(logits(both, 1), logits(generated(model, TOKENS[:, :2], 20)))

    @pytest.mark.parametrize("name", NAMES)
    def test_turns_go_on_from_the_cache(self, model, name):
        plan = methods(model)[name].plan(model)
        with plan.applied(model):
            cache = plan.new_cache(model)
            first = generated(model, TOKENS, 4, **using(cache))
            text = torch.cat([first.sequences, TOKENS[:, 5:11]], 1)
            second = generated(model, text, 4, **using(cache))
            by_hand = plan.new_cache(model)
            model(TOKENS, **using(by_hand))
            for token in first.sequences[0, LENGTH:-1]:
                model(token[None, None], **using(by_hand))
            out = model(text[:, LENGTH + 3 :], **using(by_hand))
        assert cache.seen == LENGTH + 13
        close(out.logits[:, -1], logits(second)[:1])

    @pytest.mark.parametrize("name", ["retrieval", "h2o", "snapkv", "streaming"])
    def test_beams_and_samples_run_and_beams_are_reordered(self, model, name):
        with methods(model, budget=1.0)[name].plan(model).applied(model):
            beams = model.generate(TOKENS, num_beams=3, max_new_tokens=6, do_sample=False, pad_token_id=3)
        assert torch.equal(
            beams, model.generate(TOKENS, num_beams=3, max_new_tokens=6, do_sample=False, pad_token_id=3)
        )
        with methods(model)[name].plan(model).applied(model):
            model.generate(TOKENS, num_beams=3, max_new_tokens=6, pad_token_id=3)
            torch.manual_seed(0)
            model.generate(TOKENS, do_sample=True, num_return_sequences=2, max_new_tokens=6, pad_token_id=3)

    @pytest.mark.parametrize("chunk", [1, 5, 39])
    def test_streaming_keeps_the_same_tokens_in_chunks(self, model, chunk):
        def first_layer(chunk):
            plan = StreamingCache(budget=0.25, length=LENGTH, prefill_chunk=chunk).plan(model)
            with plan.applied(model):
                cache = cache_of(model(TOKENS))
            store = cache.layers[0].parts[0][1]
            store._in_order()
            return store.buffer.keys

        close(first_layer(chunk), first_layer(None))

    def test_the_loss_and_all_logits_of_a_prompt_in_chunks_are_given(self, model):
        dense = model(TOKENS, labels=TOKENS, use_cache=False)
        with FullCache(prefill_chunk=9).plan(model).applied(model):
            found = model(TOKENS, labels=TOKENS)
        close(found.logits, dense.logits)
        close(found.loss, dense.loss)

    @pytest.mark.parametrize("name", ["retrieval", "citrus", "quantized"])
    def test_a_permanent_model_generates_the_same_also_from_disk(self, model, name, tmp_path):
        every = {**methods(model), "quantized": QuantizedCache(bits=4, group=8, residual=4, length=LENGTH)}
        plan = every[name].plan(model)
        with plan.applied(model):
            applied = generated(model, TOKENS).sequences
        own = plan.made_permanent(model)
        interp.efficiency.save(own, tmp_path)
        again = interp.efficiency.load(tmp_path)
        assert deployment(again).plans == [plan]
        assert torch.equal(generated(own, TOKENS).sequences, applied)
        assert torch.equal(generated(again, TOKENS).sequences, applied)

    def test_a_copy_of_a_model_with_a_plan_in_force_runs_by_itself(self, model):
        plan = StreamingCache(budget=0.5, length=LENGTH).plan(model)
        own = plan.made_permanent(model)
        assert own.forward.model is own
        assert own.forward.before.__self__ is own
        again = interp.efficiency.plan.copied(own)
        assert again.forward.model is again


class TestPlans:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_plan_reads_back_and_has_a_table_and_a_picture(self, model, name, tmp_path):
        plan = methods(model)[name].plan(model)
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == plan
        assert len(plan.to_frame()) == 6
        assert plan.figure().data[0].z.shape == (2, 3)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_random_plan_has_room_for_as_much_and_is_the_same_twice(self, model, name):
        method = methods(model)[name]
        plan, random = method.plan(model), method.random_plan(model, seed=1)
        less = plan.ledger(model, LENGTH).cache_bytes.after - random.ledger(model, LENGTH).cache_bytes.after
        assert 0 <= less < 6 * geometry(model).entry_bytes  # numbers beside entries are worth some entries more
        if less == 0:
            assert sorted(random.to_frame()["entries"]) == sorted(plan.to_frame()["entries"])
        assert method.random_plan(model, seed=1) == random
        with random.applied(model):
            close(logits(generated(model, TOKENS)), logits(generated(model, TOKENS)))

    def test_the_best_groups_keep_everything_and_the_worst_in_the_inverted_plan(self, model):
        values = [[0.1, 0.2, 0.9, 0.3], [0.5, 0.0, 0.1, 0.1], [0.0, 0.0, 0.0, 0.8]]
        method = RetrievalCache(
            retrieval=finding(model, values), budget=0.6, sinks=2, window=5, how="max", length=LENGTH
        )

        def kept(plan):
            return {(row.layer, row.kv_head) for row in plan.to_frame().itertuples() if row.keeps == "all"}

        assert kept(method.plan(model)) == {(0, 1), (2, 1), (1, 0)}
        assert kept(method.inverted_plan(model)) == {(2, 0), (1, 1), (0, 0)}
        assert method.plan(model).ledger(model, LENGTH).cache_bytes.share <= 0.6

    def test_a_share_of_groups_can_be_asked_for_instead(self, model):
        plan = RetrievalCache(retrieval=finding(model), budget=0.7, groups=0.5, sinks=2, length=LENGTH).plan(model)
        assert (plan.to_frame()["keeps"] == "all").sum() == 3
        assert plan.ledger(model, LENGTH).cache_bytes.share <= 0.7

    def test_heads_that_keep_everything_as_integers_leave_room_for_more(self):
        model = deploy(tiny("llama", max_position_embeddings=1024))
        made = {
            bits: RetrievalCache(retrieval=finding(model), budget=0.5, sinks=2, window=5, bits=bits, length=1000)
            for bits in (None, 4)
        }
        full = {}
        for bits, method in made.items():
            plan = method.plan(model)
            with plan.applied(model):
                cache = cache_of(model(TOKENS))
            assert cache.bytes() == plan.ledger(model, LENGTH).cache_bytes.after
            assert plan.ledger(model, 1000).cache_bytes.share <= 0.5
            full[bits] = int(plan.to_frame()["keeps"].str.startswith("all").sum())
        assert full[4] > full[None]

    def test_layers_with_a_window_of_their_own_keep_it(self):
        model = deploy(tiny("gemma3"))
        plan = StreamingCache(budget=0.25, length=LENGTH, sinks=2).plan(model)
        assert sorted(set(plan.to_frame()["layer"])) == [1, 3]
        with plan.applied(model):
            assert cache_of(model(TOKENS)).entries() == [
                [4],
                [7],
                [4],
                [7],
            ]  # a quarter of all 88 entries, eight of which are windows

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("budget", [0.7, 0.85])
    def test_a_budget_is_a_share_of_the_whole_caches_bytes_windows_of_the_models_own_included(self, name, budget):
        model = deploy(tiny("gemma3", sliding_window=12))
        dense = DynamicCache(config=model.config)
        model(TOKENS, **using(dense))
        whole = sum(2 * layer.keys.nbytes for layer in dense.layers) + 2 * 2 * 8 * 4  # transformers' windows lack one
        plan = methods(model, budget=budget)[name].plan(model)
        with plan.applied(model):
            held = sum(t.numel() * t.itemsize for t in cache_of(model(TOKENS)).tensors())
        assert held <= budget * whole
        assert held > (budget - 0.2) * whole, "as much as whole heads have room"
        assert plan.ledger(model, LENGTH).cache_bytes.before == whole

    def test_a_budget_below_what_windows_of_the_models_own_take_says_which_one_works(self):
        model = deploy(tiny("gemma3", sliding_window=32))
        with pytest.raises(UsageError, match="are 44% of the cache already; the least that works is") as refused:
            StreamingCache(budget=0.3, length=LENGTH).plan(model)
        least = float(str(refused.value).rpartition(" ")[2])
        plan = StreamingCache(budget=least, length=LENGTH).plan(model)
        assert least - 0.002 < plan.ledger(model, LENGTH).cache_bytes.share <= least

    def test_pruned_heads_and_layers_are_left_out_of_the_cache(self, model):
        plan = RetrievalCache(retrieval=finding(model), budget=0.6, sinks=2, window=5, length=LENGTH).plan(model)
        found = deployment(model)
        try:
            model.deployment = Deployment(found.name, found.fingerprint, [0, 2], [[0, 1], [1]])
            assert plan.new_cache(model).heads == [2, 1]
        finally:
            model.deployment = found

    def test_every_method_is_in_the_registry(self):
        names = {name for name, card in METHODS.items() if card.family == "kv_cache"}
        assert names == {m.name for m in methods(deploy(tiny("llama"))).values()} | {"full", "quantized"}


class TestRefusals:
    def test_a_cache_that_is_cropped_reused_or_taken_elsewhere_fails_with_one_message(self, model):
        plan = StreamingCache(budget=0.5, length=LENGTH).plan(model)
        with plan.applied(model):
            cache = cache_of(model(TOKENS))
            for wrong, message in (
                (lambda: cache.crop(-1), "can't be cropped"),
                (lambda: model(TOKENS, **using(cache), attention_mask=torch.ones(1, LENGTH)), "has seen 40"),
                (lambda: generated(model, TOKENS[:, :30], **using(cache)), "start a new cache"),
                (lambda: model(TOKENS.repeat(2, 1), **using(cache)), "holds 1 rows"),
                (lambda: model(TOKENS, attention_mask=torch.ones(1, 1, LENGTH, LENGTH)), "row pos"),
                (lambda: cache.layers[0].offload(), "can't be offloaded"),
            ):
                with pytest.raises(UsageError, match=message):
                    wrong()
        with pytest.raises(UsageError, match="works only in the model that its plan is in force for"):
            model(TOKENS[:, :1], **using(cache))
        other = StreamingCache(budget=0.3, length=LENGTH).plan(model)
        with other.applied(model), pytest.raises(UsageError, match="another plan"):
            model(TOKENS[:, :1], **using(cache))
        with plan.applied(model), pytest.raises(UsageError, match="one at a time"), other.applied(model):
            pass

    def test_models_without_a_cache_to_compress_are_refused_and_the_part_is_named(self):
        with pytest.raises(UsageError, match=r"sliding_window=4 .* no cache to compress"):
            StreamingCache().plan(deploy(tiny("mistral")))
        bloom = hugging_face_model("bloom")
        bloom.deployment = Deployment("bloom", "0" * 16, [0, 1], [[0, 1, 2, 3]] * 2)
        with pytest.raises(UsageError, match="BloomAttention"):
            StreamingCache().plan(bloom)
        gpt2 = deploy(tiny("gpt2"))
        plan = StreamingCache(budget=0.5, positions="reindexed", length=LENGTH).plan(gpt2)
        with pytest.raises(UsageError, match="needs rotary embeddings"), plan.applied(gpt2):
            pass
        with FullCache().plan(gpt2).applied(gpt2), pytest.raises(UsageError, match="more than the 64 positions"):
            gpt2(TOKENS.repeat(1, 2))

    def test_a_budget_without_room_at_a_length_says_which_length_has_it(self, model):
        def plan(length):
            return AttendreCache(budget=0.5, wait=16, length=length).plan(model)

        with pytest.raises(UsageError, match="no budget works at this length") as refused:
            plan(16)
        said = int(re.search(r"this one does from (\d+) tokens on", str(refused.value))[1])
        assert plan(said).ledger(model, said).cache_bytes.share <= 0.5
        with pytest.raises(UsageError, match=r"least that works|no budget works"):
            plan(said - 1)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda m: StreamingCache(budget=0), r"must be in \(0, 1\]"),
            (lambda m: StreamingCache(budget=0.05, length=LENGTH).plan(m), r"the least that works is 0.125"),
            (lambda m: StreamingCache(budget=0.5, length=100).plan(m), "more than the 64 tokens"),
            (lambda m: StreamingCache(positions="new"), "unknown way to number positions"),
            (lambda m: RetrievalCache(budget=0.5), "interp retrieval-heads"),
            (lambda m: RetrievalCache(retrieval=finding(m), window=3, groups=0.5), "window and groups"),
            (lambda m: RetrievalCache(retrieval=finding(m), budget=0.1, length=LENGTH).plan(m), "least that works"),
            (lambda m: SnapKVCache(kernel=4), "odd number"),
            (lambda m: H2OCache(recent=0), "must be a share"),
            (lambda m: QuantizedCache(bits=3), "8 or 4 bits"),
            (lambda m: QuantizedCache(budget=0.1, length=LENGTH).plan(m), "less than 4 bits take"),
            (lambda m: AttendreCache(policy="fifo"), "unknown eviction policy"),
            (lambda m: CItruSCache(instruction=""), "must not be empty"),
            (lambda m: PyramidKVCache(beta=0), "beta must be at least 1"),
            (lambda m: StreamingCache(prefill_chunk=0), "prefill_chunk must be at least 1"),
        ],
    )
    def test_bad_settings_are_refused_with_one_message(self, model, make, message):
        with pytest.raises(UsageError, match=message):
            make(model)

    def test_a_finding_about_another_model_is_refused(self, model):
        other = deploy(tiny("llama", seed=1))
        with pytest.raises(UsageError, match="its weights are others"):
            RetrievalCache(retrieval=finding(model), budget=0.6, length=LENGTH).plan(other)
