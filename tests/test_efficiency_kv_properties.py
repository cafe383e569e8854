"""Compressed caches at any length, budget, chunk size and number of groups: what holds for all of them."""

from __future__ import annotations

import functools

import pytest
import torch
from caches import cache_of, using
from families import tiny
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_efficiency_kv_cache import close, finding, generated, logits, methods
from transformers import DynamicCache

from interp.efficiency import deploy
from interp.efficiency.kv_cache import FullCache, QuantizedCache, RetrievalCache, StreamingCache
from interp.efficiency.kv_cache.attention import Step
from interp.efficiency.kv_cache.spread import shared_out
from interp.efficiency.kv_cache.stores import Window
from interp.errors import UsageError

FEW = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
NAMES = ["streaming", "retrieval", "h2o", "snapkv", "attendre"]


@functools.cache
def llama(groups):
    return deploy(tiny("llama", num_hidden_layers=2, num_key_value_heads=groups))


def tokens_of(length, seed=0):
    return torch.randint(4, 50, (1, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
@FEW
@given(st.sampled_from([1, 2, 4]), st.floats(0.2, 1), st.integers(10, 64), st.integers(1, 20), st.data())
def test_no_plan_takes_more_than_its_budget_or_other_bytes_than_it_says(name, groups, budget, length, chunk, data):
    model = llama(groups)
    try:
        plan = methods(model, budget=budget, length=length, prefill_chunk=chunk)[name].plan(model)
    except UsageError as error:
        assume("least that works" not in str(error) and "no budget works at this length" not in str(error))
        raise
    prompt = data.draw(st.integers(2, 64))
    with torch.no_grad(), plan.applied(model):
        cache = cache_of(model(tokens_of(prompt)))
    assert plan.ledger(model, length).cache_bytes.share <= budget + 1e-9
    allocated = max(plan.prefill_chunk or 1, 64)  # a cache that grows has room ahead
    said = plan.ledger(model, prompt).cache_bytes.after
    assert said <= cache.bytes() <= said + allocated * 2 * groups * 64
    dense = DynamicCache(config=model.config)
    with torch.no_grad():
        model(tokens_of(prompt), **using(dense))
    assert plan.ledger(model, prompt).cache_bytes.before == sum(2 * layer.keys.nbytes for layer in dense.layers)


@FEW
@given(st.sampled_from([1, 2, 4]), st.integers(2, 50), st.integers(1, 60))
def test_a_whole_cache_is_the_dense_model_for_every_length_and_chunk(groups, length, chunk):
    model, tokens = llama(groups), tokens_of(length)
    with FullCache(prefill_chunk=chunk).plan(model).applied(model):
        found = generated(model, tokens, 3)
    close(logits(found), logits(generated(model, tokens, 3)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("length", "padding", "chunk"), [(20, 19, None), (20, 7, 3), (32, 2, 3), (40, 16, 8)])
def test_padding_is_nowhere(name, length, padding, chunk):
    """The rows of a padded batch equal single prompts: one token alone, entries of equal worth, worth pooled over
    neighbours, and padding of whole chunks."""
    model, short = llama(2), tokens_of(length - padding, 1)
    batch = torch.cat([tokens_of(length), torch.cat([torch.full((1, padding), 3), short], 1)])
    mask = torch.ones_like(batch)
    mask[1, :padding] = 0
    plan = methods(model, budget=0.65, length=30, prefill_chunk=chunk)[name].plan(model)
    with plan.applied(model):
        both = generated(model, batch, 4, attention_mask=mask)
        close(logits(both, 1), logits(generated(model, short, 4)))


@FEW
@given(st.integers(0, 4), st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=9), st.integers(0, 10**6))
def test_a_window_holds_the_first_and_the_last_tokens_however_they_come(sinks, window, pieces, seed):
    generator = torch.Generator().manual_seed(seed)
    total = sum(pieces)
    keys = torch.randn(2, 3, total, 4, generator=generator)
    store, at = Window(sinks, window), 0
    for piece in pieces:
        part = keys[:, :, at : at + piece]
        store.step(part.repeat_interleave(2, 1), part, part, Step(0.5))
        at += piece
    store._in_order()
    places = list(range(total)) if total <= sinks + window else [*range(sinks), *range(total - window, total)]
    assert torch.equal(store.buffer.keys, keys[:, :, places])
    assert torch.equal(store.buffer.values, keys[:, :, places])
    assert sum(t.nbytes for t in store.tensors()) == 2 * 4 * 2 * 3 * 4 * len(places) or total < sinks + window


@FEW
@given(st.floats(0.05, 1), st.integers(30, 4096), st.sampled_from([None, 8, 4]), st.one_of(st.none(), st.floats(0, 1)))
def test_retrieval_plans_are_within_budget_and_use_most_of_it(budget, length, bits, share):
    model = deploy_long()
    try:
        plan = RetrievalCache(
            retrieval=finding(model), budget=budget, bits=bits, groups=share, length=length, sinks=2
        ).plan(model)
    except UsageError as error:
        assume("least that works" not in str(error) and "no budget works at this length" not in str(error))
        raise
    ledger = plan.ledger(model, length)
    assert ledger.cache_bytes.share <= budget + 1e-9
    if share is None and bits is None:
        assert ledger.cache_bytes.share > budget - 1.01 / 6


@functools.cache
def deploy_long():
    return deploy(tiny("llama", max_position_embeddings=4096))


@FEW
@given(st.sampled_from([8, 4]), st.integers(1, 9), st.integers(0, 9), st.lists(st.integers(1, 12), min_size=1))
def test_quantised_entries_are_all_there_however_they_come(bits, group, residual, pieces):
    model, pieces = llama(2), pieces[:6]
    plan = QuantizedCache(bits=bits, group=group, residual=residual, sinks=1, length=64).plan(model)
    tokens, at = tokens_of(sum(pieces)), 0
    with torch.no_grad(), plan.applied(model):
        cache = plan.new_cache(model)
        for piece in pieces:
            model(tokens[:, at : at + piece], **using(cache))
            at += piece
    assert cache.entries() == [[at, at]] * 2
    assert cache.layers[0].parts[0][1].decoded()[0].shape[2] == at


@FEW
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), st.integers(1, 500), st.integers(1, 2000))
def test_shared_out_room_is_what_there_is(weights, mean, most):
    found = shared_out(weights, mean, most)
    assert all(1 <= each <= max(most, 1) for each in found)
    assert sum(found) <= max(mean * len(weights), len(weights))


@FEW
@given(st.floats(0.3, 0.9), st.integers(20, 40))
def test_the_same_call_twice_gives_the_same(budget, length):
    model = llama(2)
    plan = StreamingCache(budget=budget, length=length).plan(model)
    with plan.applied(model):
        assert torch.equal(
            logits(generated(model, tokens_of(length), 3)), logits(generated(model, tokens_of(length), 3))
        )
