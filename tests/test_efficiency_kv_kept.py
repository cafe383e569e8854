"""What scores of cache entries are: each method's, worked out from the model's own attention or from its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import tiny
from test_efficiency_kv_cache import LENGTH, TOKENS, _no_text, close  # noqa: F401

from interp.efficiency import deploy
from interp.efficiency.kv_cache import ActQKVCache, CItruSCache, FullCache, H2OCache
from interp.efficiency.kv_cache.actqkv import ProbeQuery, probe_query
from interp.efficiency.kv_cache.attention import Step
from interp.efficiency.kv_cache.quantized_store import Quantized
from interp.efficiency.kv_cache.top import View

INSTRUCTION = [5, 6, 7]


@pytest.fixture(scope="module")
def model():
    return deploy(tiny("llama"))


def kept_of(model, method, layer):
    """The keys that a layer's first store holds behind the prompt."""
    with method.plan(model).applied(model):
        return model(TOKENS).past_key_values.layers[layer].parts[0][1].buffer.keys


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_citrus_keeps_what_the_instruction_attends_to(model, layer):
    text = torch.cat([TOKENS, torch.tensor([INSTRUCTION])], 1)
    model.set_attn_implementation("eager")
    pattern = model(text, output_attentions=True, use_cache=False).attentions[layer][0]
    model.set_attn_implementation("sdpa")
    keys = kept_of(model, FullCache(), layer)
    kept = kept_of(model, CItruSCache(budget=0.5, instruction=INSTRUCTION, window=4, length=LENGTH), layer)
    worth = pattern[:, LENGTH:, :LENGTH].mean((0, 1))  # over all heads of the layer and the instruction's tokens
    best = worth[: LENGTH - 4].topk(16).indices.sort().values
    for head in range(2):
        close(kept[0, head], keys[0, head, [*best.tolist(), *range(LENGTH - 4, LENGTH)]])


@torch.no_grad()
def test_heavy_hitters_count_what_earlier_turns_looked_at(model):
    """In two turns and a decoded token, with room for all of them, so that nothing goes."""
    model.set_attn_implementation("eager")
    pattern = model(TOKENS[:, :31], output_attentions=True, use_cache=False).attentions[1][0]
    model.set_attn_implementation("sdpa")
    plan = H2OCache(budget=0.95, length=LENGTH).plan(model)
    with plan.applied(model):
        cache = plan.new_cache(model)
        for piece in (TOKENS[:, :20], TOKENS[:, 20:30], TOKENS[:, 30:31]):
            model(piece, past_key_values=cache)
    store = cache.layers[1].parts[0][1]
    assert store.n > 31
    close(store.scores[0], pattern.unflatten(0, (2, 2)).sum((1, 2)))


def by_hand(query):
    """The probe of some queries "new d", by the formula: phi = (q - mean)^2 / variance, the mean over channels."""
    mean = query.mean(0)
    bias = ((query - mean) ** 2 / ((query - mean) ** 2).mean()).mean(1)
    return (bias[:, None] * query).sum(0) / bias.sum()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_probe_leans_to_the_queries_that_stand_out():
    query = draw(1, 2, 9, 6)
    query[0, :, 4] += 5
    found = probe_query(query)
    for head in range(2):
        mine = query[0, head].numpy().astype(np.float64)
        close(found[0, head, 0], torch.tensor(by_hand(mine), dtype=torch.float32))
        outlier, mean = mine[4], mine.mean(0)
        assert np.linalg.norm(found[0, head, 0].numpy() - outlier) < 0.5 * np.linalg.norm(mean - outlier)
    real = torch.tensor([[False, False, True, True, True, True, True, True, True]])
    close(probe_query(query, real), probe_query(query[:, :, 2:]))


def test_an_entry_is_worth_the_attention_of_the_window_that_wants_it_most():
    query, keys = draw(1, 4, 10, 6, seed=1), draw(1, 2, 13, 6, seed=2)
    view = View(query, keys, keys, 3, Step(0.4), None, None, 3)
    found = ProbeQuery(window=4).score(view)
    wanted = np.zeros((2, 13))
    for start, stop in ((6, 10), (2, 6), (0, 2)):  # windows are counted from the end
        attention = []
        for head in range(4):
            probe = by_hand(query[0, head, start:stop].numpy().astype(np.float64))
            scores = 0.4 * keys[0, head // 2].numpy() @ probe
            attention.append(np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum())
        wanted = np.maximum(wanted, np.reshape(attention, (2, 2, 13)).mean(1))
    close(found[0], torch.tensor(wanted, dtype=torch.float32))


@torch.no_grad()
def test_actqkv_keeps_what_its_probes_attend_to(model):
    keys = kept_of(model, FullCache(), 0)
    module = model.model.layers[0].self_attn
    seen = {}
    handle = module.q_proj.register_forward_hook(lambda _, args, out: seen.update(query=out, x=args[0]))
    method = ActQKVCache(budget=0.5, window=8, sinks=2, length=LENGTH)
    kept = kept_of(model, method, 0)
    handle.remove()
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    query = seen["query"].unflatten(2, (4, 8)).transpose(1, 2)
    turned, _ = apply_rotary_pos_emb(query, query, *model.model.rotary_emb(query, torch.arange(LENGTH)[None]))
    worth = ProbeQuery(8).score(View(turned, keys, keys, 0, Step(module.scaling), None, None, 0))
    n = kept.shape[2]
    for head in range(2):
        scores = worth[0, head, : LENGTH - 8].clone()
        scores[:2] = torch.inf
        best = scores.topk(n - 8).indices.sort().values
        close(kept[0, head], keys[0, head, [*best.tolist(), *range(LENGTH - 8, LENGTH)]])


def test_a_large_channel_of_keys_and_a_large_token_of_values_spoil_nothing_but_themselves():
    """Keys have their scales by channel, values by token."""
    keys, values = draw(1, 2, 24, 6, seed=1), draw(1, 2, 24, 8, seed=2)
    large_keys, large_values = keys.clone(), values.clone()
    large_keys[..., 3] *= 1000
    large_values[:, :, 5] *= 1000
    error = {}
    for name, k, v in (("plain", keys, values), ("large", large_keys, large_values)):
        held = Quantized(bits=4, group=8, sinks=0, residual=0)
        held.step(draw(1, 2, 24, 6, seed=3), k, v[..., :6], Step(0.4))
        found = held.decoded()
        error[name] = (found[0] - k).abs(), (found[1] - v[..., :6]).abs()
    channels = [channel for channel in range(6) if channel != 3]
    tokens = [token for token in range(24) if token != 5]
    close(error["large"][0][..., channels], error["plain"][0][..., channels])
    close(error["large"][1][:, :, tokens], error["plain"][1][:, :, tokens])
    assert error["plain"][0].max() < 0.5
