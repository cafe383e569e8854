"""Sinks, massive activations and active-dormant heads: planted ones are found, others are not; blocking is exact."""

from __future__ import annotations

import functools
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

from interp.attention.heads import heads
from interp.attention.sinks import evidence as sink_evidence
from interp.attention.sinks.blocking import WithoutKey, block_sink, blocking_table
from interp.attention.sinks.census import census
from interp.attention.sinks.dormant import active_dormant, dormant_ablation, head_costs
from interp.attention.sinks.losses import interval, text_losses
from interp.attention.sinks.massive import massive_activations
from interp.attention.sinks.survey import extreme_tokens, sink_heads, sink_metric, sink_positions, survey_sinks
from interp.engine.forward import Recorder, Visitor, Walk
from interp.engine.verify import verified
from interp.errors import InterpError, UsageError
from interp.results import load
from interp.results.findings import SinkHeads
from interp.tasks.corpora import corpus, documents
from interp.tasks.tokens import Encoder
from tests.families import VOCABULARY, boot, hugging_face_model, tiny

MARK, ASK = 3, 5
"""Channels: what is written in the first makes a key a sink, what is written in the second makes a query go there.

The channel behind each has the opposite sign and is read so, so that LayerNorm's mean does not show.
"""
HEAD = (0, 2)
SINK_TOKEN = 9


def _tokens(rows: int = 4, length: int = 24, seed: int = 0, low: int = 10, high: int = VOCABULARY) -> torch.Tensor:
    return torch.randint(low, high, (rows, length), generator=torch.Generator().manual_seed(seed))


def _planted(first: float = 40.0, token: float = 0.0, askers: slice = slice(None)):
    """A GPT-2 whose head 0.2 looks at the first position, and at `SINK_TOKEN`, from the tokens in `askers`.

    All other heads of that layer look everywhere alike.
    """
    model = hugging_face_model("gpt2")
    with torch.no_grad():
        words, places, block = model.transformer.wte.weight, model.transformer.wpe.weight, model.transformer.h[0]
        words[:], places[:] = words.clamp(-0.5, 0.5), places.clamp(-0.5, 0.5)
        words[:, MARK : ASK + 2] = places[:, MARK : ASK + 2] = 0
        for sign, at in ((1, 0), (-1, 1)):
            places[0, MARK + at], words[SINK_TOKEN, MARK + at] = sign * first, sign * token
            words[askers, ASK + at] = sign * 20.0
        block.ln_1.weight.fill_(1)
        block.ln_1.bias.zero_()
        queries, keys = block.attn.c_attn.weight[:, :32], block.attn.c_attn.weight[:, 32:64]
        queries.zero_(), keys.zero_()
        block.attn.c_attn.bias[:64] = 0
        where = HEAD[1] * 8
        for sign, at in ((1, 0), (-1, 1)):
            queries[ASK + at, where], keys[MARK + at, where] = sign * 4.0, sign * 4.0
    return boot(model)


@functools.cache
def _with_massive(position: int = 0, without: int | None = None):
    """A GPT-2 of three layers; neuron 5 of MLP 1 writes 20,000 into channel 7 at one position, MLP 2 takes it away.

    It does not where the token `without` stands there.
    """
    model = hugging_face_model("gpt2")
    with torch.no_grad():
        places, one, two = model.transformer.wpe.weight, model.transformer.h[1], model.transformer.h[2]
        model.transformer.wte.weight[:, MARK] = places[:, MARK] = 0
        for block in model.transformer.h[:2]:
            block.attn.c_proj.weight[:, MARK] = block.attn.c_proj.bias[MARK] = 0
        model.transformer.h[0].mlp.c_proj.weight[:, MARK] = model.transformer.h[0].mlp.c_proj.bias[MARK] = 0
        places[position, MARK] = 50.0
        if without is not None:
            model.transformer.wte.weight[without, MARK] = -50.0
        for block, channel, low in ((one, MARK, -30.0), (two, 7, -30.0)):
            norm, fc = block.ln_2, block.mlp.c_fc
            norm.weight.fill_(1), norm.bias.zero_()
            fc.weight[:, 5], fc.bias[5] = 0, low
            fc.weight[channel, 5] = 10.0
            block.mlp.c_proj.weight[5] = 0
        one.mlp.c_proj.weight[5, 7] = 1e3
        parts = verified(boot(model))
        walk, recorder = Walk(parts, 24), Recorder({"resid_mid", "post"})
        walk(walk.embed(_tokens()), recorder)
        held = recorder.kept["resid_mid", 2][:, position, 7] / recorder.kept["post", 2][:, position, 5]
        two.mlp.c_proj.weight[5, 7] = -held.mean()
    return boot(model)


def _patterns(model, tokens):
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    return torch.stack([cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(model.cfg.n_layers)])


def _finding(**domains: list[float]) -> SinkHeads:
    """A finding about one layer of two heads, from rates by domain."""
    from interp.results import scores

    rates, labels = np.array([[rates] for rates in domains.values()]), {"domain": list(domains)}
    evidence = {
        name: scores(values, ("domain", "layer", "head"), labels)
        for name, values in (("domains", rates), ("domain_attention", rates / 2), ("domain_error", rates * 0 + 0.1))
    }
    evidence["scores"] = scores(rates.mean(0), ("layer", "head"))
    return SinkHeads(model="m", fingerprint="f", evidence=evidence, n_kv_heads=1)


# What the metric is


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma3", "qwen3"])
def test_the_metric_is_that_of_the_paper_computed_from_whole_patterns(family):
    model, tokens = tiny(family), _tokens(5, 20)
    whole = _patterns(model, tokens)
    for position in (0, 4):
        expected = torch.zeros(whole.shape[0], whole.shape[2])
        for text in range(5):
            alpha = sum(whole[:, text, :, i, position] for i in range(position, 20)) / (20 - position)
            expected += (alpha > 0.2).float() / 5
        found = sink_metric(model, tokens, 0.2, position)
        assert found.dims == ("layer", "head")
        assert np.allclose(found.values, expected)


def test_a_planted_sink_is_found_and_gone_when_taken_away():
    tokens = _tokens()
    planted, without = (sink_metric(_planted(first), tokens) for first in (40.0, 0.0))
    assert float(planted[HEAD]) == 1
    assert float(planted.sel(layer=0).sum()) == 1
    assert float(without.sel(layer=0).sum()) == 0


def test_sink_heads_name_the_planted_head_first_and_count_by_domain():
    askers = slice(10, 30)
    model = _planted(askers=askers)
    texts = {"asking": _tokens(high=30), "silent": _tokens(low=30)}
    found = sink_heads(model, texts, n=4, length=24)
    assert found.evidence["domains"].dims == ("domain", "layer", "head")
    assert found.evidence["domains"].values[:, HEAD[0], HEAD[1]].tolist() == [1, 0]
    assert float(found.scores[HEAD]) == 0.5
    assert found.evidence["domain_attention"].values[0, 0, 2] > 0.9
    assert found.evidence["domain_top"].values[0, 0, 2] == 1
    table = active_dormant(found)
    first = table[(table.layer == 0) & (table["head"] == 2)].iloc[0]
    assert (first.dormant_on, first.active_on, first.difference) == ("asking", "silent", 1.0)
    assert len(active_dormant(found, least=1.0)) < len(table) == 12


def test_the_first_tokens_own_query_counts_in_the_published_metric_and_not_in_ours():
    model, tokens = _planted(0.0), _tokens(length=10)
    whole = _patterns(model, tokens)
    found = census(model, tokens)
    assert torch.allclose(found.importance[..., 0], whole[..., 0].mean(-1), atol=1e-6)
    assert torch.allclose(found.from_others[..., 0], whole[..., 1:, 0].mean(-1), atol=1e-6)
    assert (found.from_others[..., -1] == 0).all()


@pytest.mark.parametrize(("first", "token", "positions", "tokens"), [(0.0, 60.0, (), (9,)), (60.0, 0.0, (0,), ())])
def test_positions_and_tokens_that_are_sinks_are_found(monkeypatch, first, token, positions, tokens):
    monkeypatch.setattr(sink_evidence, "_SHARE", 1.0)  # of the layer's heads that are left below
    texts = _tokens(6, 40)
    for row in range(4):
        texts[row, [8 + row, 16 + row]] = SINK_TOKEN
    whole = census(_planted(first, token), texts)
    names = ("received", "own")
    alone = replace(whole, **{name: getattr(whole, name)[:1, :, 2:3] for name in names})
    about = {"model": "m", "fingerprint": "f"}
    found = sink_evidence.positions_finding(about, Encoder(_planted()), alone, 0.3, {})
    assert found.positions == positions
    assert found.tokens == tokens
    if tokens:
        rate = found.evidence["token_rate"]
        assert rate["token"].values.tolist() == [SINK_TOKEN]
        assert rate["texts"].values.tolist() == [4]
        assert float(rate[0]) == 1


def test_a_text_whose_first_token_leaves_the_sink_to_others_does_not_take_it_from_the_model(monkeypatch):
    monkeypatch.setattr(sink_evidence, "_SHARE", 1 / 12)  # one head has the sink
    model, plain = _planted(60.0, -60.0), _planted(0.0)
    texts = _tokens(6, 40)
    texts[2, 0] = SINK_TOKEN  # takes away what position 0 writes
    found = sink_positions(model, texts)
    assert found.positions == (0,)
    assert float(found.evidence["rate"][0]) == pytest.approx(5 / 6)
    assert found.summary() == "sinks at position 0 (83% of the texts)"
    assert found.to_frame().loc[0, ["position", "sink"]].tolist() == [0, True]
    assert found.to_frame()["rate"].tolist()[0] == pytest.approx(5 / 6)
    texts[:4, 0] = SINK_TOKEN
    assert sink_positions(model, texts).positions == ()
    assert sink_positions(plain, texts).positions == ()


def test_massive_activations_of_most_texts_have_a_position_and_those_of_few_have_none():
    texts = _tokens(6, 24)
    for rows, positions in ((1, (0,)), (4, ())):
        texts[:rows, 0] = SINK_TOKEN
        found = massive_activations(_with_massive(0, SINK_TOKEN), texts)
        assert (found.channels, found.appears, found.positions) == ((7,), 1, positions)


def test_one_survey_is_what_the_single_findings_are():
    model, tokens = tiny("llama"), _tokens(3, 20)
    whole = survey_sinks(model, {"texts": tokens}, n=3, length=20)
    heads = sink_heads(model, {"texts": tokens}, n=3, length=20)
    positions = sink_positions(model, {"texts": tokens}, n=3, length=20)
    massive = massive_activations(model, tokens, n=3, length=20)
    assert np.array_equal(whole.heads.scores, heads.scores)
    assert np.array_equal(whole.positions.evidence["attention"], positions.evidence["attention"])
    assert np.array_equal(whole.massive.evidence["size"], massive.evidence["size"])


# Invariants


def test_one_token_repeated_has_no_sink_where_positions_are_rotary():
    model = tiny("llama")
    tokens = torch.full((2, 48), 7)
    assert float(sink_metric(model, tokens).sum()) == 0
    norms = census(model, tokens).resid_norm
    assert torch.allclose(norms, norms[..., :1].expand_as(norms), rtol=1e-4)


def test_attention_that_is_received_sums_to_the_number_of_queries():
    found = census(tiny("qwen2"), _tokens(3, 20))
    assert torch.allclose(found.received.sum(-1), torch.tensor(20.0), atol=1e-4)
    assert ((found.importance >= 0) & (found.importance <= 1 + 1e-5)).all()


def test_the_order_of_texts_the_batches_and_the_pieces_of_a_pattern_do_not_matter(monkeypatch):
    model, tokens = tiny("llama"), _tokens(5, 40)
    whole = census(model, tokens)
    turned = census(model, tokens.flip(0))
    monkeypatch.setattr(import_module("interp.attention.sinks.census"), "_TOKENS_AT_ONCE", 80)
    monkeypatch.setattr(import_module("interp.attention.patterns"), "_PIECE", 1)
    pieces = census(model, tokens)
    for name in ("received", "own", "value_norm", "resid_norm", "size", "median"):
        assert torch.allclose(getattr(whole, name), getattr(turned, name).flip(1), atol=1e-5)
        assert torch.allclose(getattr(whole, name), getattr(pieces, name), atol=1e-5)


def test_massive_activations_know_their_text_however_texts_are_batched(monkeypatch):
    whole = census(_with_massive(5), _tokens())
    assert sorted(set(whole.massive[:, 1].tolist())) == list(range(len(_tokens())))
    monkeypatch.setattr(import_module("interp.attention.sinks.census"), "_TOKENS_AT_ONCE", 24)
    pieces = census(_with_massive(5), _tokens())
    assert sorted(map(tuple, pieces.massive.tolist())) == sorted(map(tuple, whole.massive.tolist()))


@pytest.mark.parametrize(("length", "dtype"), [(7, torch.float32), (8, torch.float64)])
def test_the_median_of_a_census_is_torchs(length, dtype):
    model = tiny("llama", dtype=dtype)
    texts = torch.randint(3, VOCABULARY, (5, length), generator=torch.Generator().manual_seed(0))
    recorder, walk = Recorder({"resid_post"}), Walk(verified(model), length)
    with torch.no_grad():
        walk(walk.embed(texts), recorder)
    for layer, median in enumerate(census(model, texts).median):
        assert torch.equal(median, recorder.kept["resid_post", layer].abs().flatten(1).median(1).values)


def test_the_signs_of_extreme_tokens_are_means_of_what_the_model_holds():
    model, tokens = tiny("llama"), _tokens(2, 12)
    found = extreme_tokens(model, tokens)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    assert np.allclose(found["resid_norm"][1], cache["blocks.1.hook_resid_post"].norm(dim=-1).mean(0), rtol=1e-4)
    value = cache["blocks.1.attn.v.hook_out"].reshape(2, 12, 2, -1).norm(dim=-1)
    assert np.allclose(found["value_norm"][1], value.mean(0).T, rtol=1e-4)
    assert np.allclose(found["attention"].values, (_patterns(model, tokens).sum(3) / torch.arange(12, 0, -1)).mean(1))


# Massive activations


def test_a_planted_massive_activation_is_found_at_its_channel_position_layers_and_neuron():
    found = massive_activations(_with_massive(), _tokens(), n=4, length=24)
    assert found.channels == (7,)
    assert (found.appears, found.vanishes, found.positions) == (1, 2, (0,))
    assert found.ratio > 1000
    assert abs(found.evidence["neurons"].sel(channel=7)).argmax() == 5
    written = found.evidence["written"].sel(channel=7)
    total = float(found.evidence["values"].sel(channel=7, layer=1))
    assert float(written.sum()) == pytest.approx(total, rel=1e-4)
    assert float(written.sel(kind="mlp", layer=1)) == pytest.approx(total, rel=1e-2)
    assert found.evidence["count"].values.tolist() == [0, 1, 0]


def test_a_massive_activation_further_on_is_found_there():
    found = massive_activations(_with_massive(5), _tokens(), n=4, length=24)
    assert (found.channels, found.positions, found.appears) == ((7,), (5,), 1)


def test_a_model_without_massive_activations_has_none():
    found = massive_activations(tiny("llama"), _tokens(), n=4, length=24)
    assert found.channels == ()
    assert "no massive" in found.summary()


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "neox"])
def test_what_is_written_into_a_channel_adds_up_whatever_the_family(family, monkeypatch):
    monkeypatch.setattr("interp.attention.sinks.census.LARGE", 0.0)
    monkeypatch.setattr("interp.attention.sinks.census.MANY_TIMES", 3.0)
    found = massive_activations(tiny(family), _tokens(), n=4, length=24)
    channel = found.channels[0]
    written = found.evidence["written"].sel(channel=channel).sum()
    assert float(written) == pytest.approx(
        float(found.evidence["values"].sel(channel=channel, layer=found.appears)), rel=1e-3
    )
    if family in ("llama", "gemma2"):  # no bias that no neuron writes
        mlp = found.evidence["written"].sel(channel=channel, kind="mlp", layer=found.appears)
        assert float(found.evidence["neurons"].sel(channel=channel).sum()) == pytest.approx(float(mlp), rel=1e-3)


# Blocking


def _hooked_losses(model, tokens, name, change, skip):
    def hook(x, hook):
        return change(x)

    hooks = [(f"blocks.{layer}.attn.{name}", hook) for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks)[:, skip:-1]
    targets = tokens[:, skip + 1 :]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)


def _minus_infinity(x):
    x = x.clone()
    x[:, :, 1:, 0] = -torch.inf
    return x


def _zero(x):
    x = x.clone()
    x[:, :, 1:, 0] = 0
    return x


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_masking_the_key_is_a_score_of_minus_infinity_and_zeroing_the_value_loses_its_attention(family):
    model, tokens = tiny(family), _tokens(3, 20)
    losses = block_sink(model, tokens, ("key", "value"), skip=4)
    key = _hooked_losses(model, tokens, "hook_attn_scores", _minus_infinity, 4)
    value = _hooked_losses(model, tokens, "hook_pattern", _zero, 4)
    clean = _hooked_losses(model, tokens, "hook_pattern", lambda x: x, 4)
    assert np.allclose(losses.loc[{"method": "key", "kind": "sink"}], key, atol=1e-4)
    assert np.allclose(losses.loc[{"method": "value", "kind": "sink"}], value, atol=1e-4)
    assert np.allclose(losses.loc[{"method": "key", "kind": "clean"}], clean, atol=1e-4)
    assert not np.allclose(key, clean, atol=1e-3)


def test_only_the_layers_that_are_asked_for_are_blocked():
    model, tokens = tiny("llama"), _tokens(3, 20)
    parts = verified(model)
    some = block_sink(model, tokens, "key", skip=4, layers=[1]).loc[{"method": "key", "kind": "sink"}]
    expected = text_losses(parts, tokens, WithoutKey(0, layers=[1]), 4)
    everywhere = text_losses(parts, tokens, WithoutKey(0), 4)
    assert np.allclose(some, expected)
    assert not np.allclose(some, everywhere)
    assert np.allclose(
        text_losses(parts, tokens, WithoutKey(0, layers=[]), 4), text_losses(parts, tokens, Visitor(), 4)
    )


def test_the_pattern_still_sums_to_one_without_a_key_and_its_own_query_is_left_alone():
    pattern = torch.rand(2, 3, 6, 6).tril()
    pattern /= pattern.sum(-1, keepdim=True)
    left = WithoutKey(torch.tensor([0, 2])).visit(0, "pattern", 0, pattern)
    assert torch.allclose(left.sum(-1), torch.ones(2, 3, 6))
    assert torch.equal(left[1, :, :3], pattern[1, :, :3])
    assert (left[1, :, 3:, 2] == 0).all()
    assert (left[0, :, 1:, 0] == 0).all()
    assert torch.equal(left[0, :, 0], pattern[0, :, 0])
    piece = WithoutKey(torch.tensor([0, 2])).visit(0, "pattern", 4, pattern[:, :, 4:])
    assert torch.equal(piece, left[:, :, 4:])


def test_a_query_that_sees_nothing_but_the_sink_is_said():
    pattern = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    with pytest.raises(InterpError, match="nothing but the sink"):
        WithoutKey(0).visit(2, "pattern", 0, pattern)


def test_removing_a_massive_activation_changes_the_loss_and_its_mean_changes_nothing():
    model, tokens = _with_massive(), _tokens()
    losses = block_sink(model, tokens, ("activation", "constant"), skip=8)
    assert losses.attrs["channels"] == [7]
    assert losses.attrs["appears"] == 1
    rises = blocking_table(losses).set_index(["method", "kind"])["increase"]
    assert abs(rises["activation", "sink"]) > 1e-3
    assert abs(rises["constant", "sink"]) < 1e-4


def test_controls_are_neither_the_sink_nor_behind_the_first_prediction_and_follow_the_seed():
    model, tokens = tiny("llama"), _tokens(6, 24)
    found = [block_sink(model, tokens, "value", skip=8, seed=seed).attrs["controls"] for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert all(0 < control < 8 for control in found[0])


def test_the_table_pairs_texts():
    losses = block_sink(tiny("llama"), _tokens(5, 24), ("key", "value"), skip=8)
    table = blocking_table(losses)
    assert table["kind"].tolist() == ["clean", "sink", "control", "sink", "control"]
    rise = losses.loc[{"method": "key", "kind": "sink"}] - losses.loc[{"method": "key", "kind": "clean"}]
    assert table["increase"][1] == pytest.approx(float(rise.mean()))
    mean, low, high = interval(rise.values)
    assert (table["low"][1], table["high"][1]) == (low, high)
    assert low < mean < high


def test_an_interval_is_students():
    mean, _, high = interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2
    assert high - mean == pytest.approx(4.302653 / 3**0.5)
    assert np.isnan(interval(np.array([1.0]))[1])


# Heads left out


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_a_head_costs_is_the_loss_without_its_output(family):
    model, texts = tiny(family), {"one": _tokens(3, 20), "two": _tokens(3, 20, seed=1)}
    found = head_costs(model, {"1.2": [(1, 2)], "both": [(0, 1), (2, 3)]}, texts, n=3, length=20, skip=4)
    for name, cut in (("1.2", [(1, 2)]), ("both", [(0, 1), (2, 3)])):
        for domain, tokens in texts.items():

            def zero(x, hook, heads=cut):
                x = x.clone().reshape(*x.shape[:2], 4, -1)
                for layer, head in heads:
                    if f"blocks.{layer}." in hook.name:
                        x[:, :, head] = 0
                return x.flatten(-2) if hook.name.endswith("hook_in") else x

            hooks: list[Any] = [(f"blocks.{layer}.attn.o.hook_in", zero) for layer in range(3)]
            with torch.no_grad():
                runs = [model.run_with_hooks(tokens, fwd_hooks=each) for each in (hooks, [])]
            after, before = (
                torch.nn.functional.cross_entropy(run[:, 4:-1].transpose(1, 2), tokens[:, 5:], reduction="none").mean(1)
                for run in runs
            )
            assert np.allclose(found.sel(node=name, domain=domain), after - before, atol=1e-4)


def test_the_state_of_a_head_follows_its_sink_rates():
    model = _planted(askers=slice(10, 30))
    texts = {"asking": _tokens(high=30), "silent": _tokens(low=30)}
    found = sink_heads(model, texts, n=4, length=24)
    table = dormant_ablation(model, found, k=12, n=4, length=24, domains=texts)
    states = table[(table.layer == 0) & (table["head"] == 2)].set_index("domain")
    assert states["state"].to_dict() == {"asking": "dormant", "silent": "active"}
    assert states["sink_rate"].to_dict() == {"asking": 1.0, "silent": 0.0}
    assert len(table) == 24
    assert np.isfinite(table["increase"]).all()


def test_active_dormant_heads_are_ranked_by_the_difference_of_their_rates():
    table = active_dormant(_finding(prose=[1.0, 0.5], code=[0.0, 0.4]))
    assert table["head"].tolist() == [0, 1]
    first = table.iloc[0].to_dict()
    assert (first["dormant_on"], first["active_on"], first["difference"]) == ("prose", "code", 1.0)
    assert first["z"] == pytest.approx(0.5 / 0.02**0.5)


def test_findings_are_saved_and_loaded_whole(tmp_path):
    model = tiny("llama")
    whole = survey_sinks(model, {"a": _tokens(3, 24), "b": _tokens(3, 24, seed=1)}, n=3, length=24)
    for name in ("heads", "positions", "massive"):
        finding = getattr(whole, name)
        finding.save(tmp_path / name)
        again = load(tmp_path / name, model)
        assert again.statement == finding.statement
        for key, array in finding.evidence.items():
            assert np.array_equal(again.evidence[key], array, equal_nan=True)


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: sink_metric(m, _tokens(), 0.0), "between 0 and 1, got 0.0"),
        (lambda m: sink_metric(m, _tokens(), 1.0), "between 0 and 1, got 1.0"),
        (lambda m: sink_metric(m, _tokens(), position=24), "position 24"),
        (lambda m: sink_metric(m, _tokens(length=1)), "at least one text of 2 tokens"),
        (lambda m: sink_metric(m, _tokens().float()), "float32"),
        (lambda m: sink_heads(m, ("prose",), n=0), "n=0"),
        (lambda m: sink_heads(m, {"a": _tokens()}, n=1, length=1), "1 and 0"),
        (lambda m: sink_heads(m, ("poems",)), "poems"),
        (lambda m: sink_heads(m, ()), "at least one kind of text"),
        (lambda m: sink_heads(m, {"a": _tokens()}, n=2, length=20, top=20), "got 20"),
        (lambda m: massive_activations(m, "poems"), "poems"),
        (lambda m: block_sink(m, _tokens(), "everything"), "everything"),
        (lambda m: block_sink(m, _tokens(), "key", skip=23), "skip=23"),
        (lambda m: block_sink(m, _tokens(), "key", position=8, skip=8), "position 8"),
        (lambda m: block_sink(m, _tokens(), "key", skip=8, layers=[3]), "layer 3"),
        (lambda m: block_sink(m, _tokens(), "activation", skip=8), "no massive activations"),
        (lambda m: head_costs(m, [(0, 4)]), "no head 0.4"),
        (lambda m: head_costs(m, []), "no heads"),
        (lambda m: head_costs(m, [(0, 1)], length=8, skip=8), "got 8"),
        (lambda m: active_dormant(_finding(prose=[1.0, 0.0])), "two domains"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_value(make, message):
    with pytest.raises(UsageError, match=message):
        make(tiny("llama"))


# SmolLM2


@pytest.mark.real_model
def test_smollm2_has_its_sink_its_massive_channels_and_none_on_one_token_repeated(smollm2):
    found = survey_sinks(smollm2, ("prose",), n=16)
    assert 0.6 < float(found.heads.scores.mean()) < 0.8
    assert found.positions.positions == (0,)
    assert set(found.massive.channels) == {247, 507}
    assert (found.massive.appears, found.massive.vanishes) == (11, 28)
    neurons = abs(found.massive.evidence["neurons"].sel(channel=507)).argsort()
    assert set(neurons.values[-2:].tolist()) == {1229, 1487}
    constant = torch.full((1, 64), 1000)
    assert float(sink_metric(smollm2, constant).sum()) == 0


@pytest.mark.real_model
def test_smollm2_needs_its_massive_activations_as_constants(smollm2):
    losses = block_sink(smollm2, corpus("prose", smollm2, 2, 48), ("activation", "constant"))
    rises = blocking_table(losses).set_index(["method", "kind"])["increase"]
    assert rises["activation", "sink"] > 5
    assert abs(rises["activation", "control"]) < 0.2
    assert abs(rises["constant", "sink"]) < 0.01


@pytest.mark.real_model
def test_findings_are_made_on_half_of_the_documents_and_say_which(smollm2):
    tokens = {split: corpus("prose", smollm2, 4, 64, split=split) for split in ("find", "score")}
    for split, other in (("find", "score"), ("score", "find")):
        found = survey_sinks(smollm2, ("prose",), n=4, split=split)
        assert found.heads.settings["split"] == split
        same, others = (survey_sinks(smollm2, {"prose": tokens[name]}) for name in (split, other))
        assert found.heads.evidence["attention"].equals(same.heads.evidence["attention"])
        assert not found.heads.evidence["attention"].equals(others.heads.evidence["attention"])
        kinds = heads(smollm2, ["previous_token"], "prose", n=2, length=32, split=split)
        assert kinds.settings["split"] == split
        by_hand = heads(smollm2, ["previous_token"], corpus("prose", smollm2, 2, 32, split=split))
        assert np.array_equal(kinds.scores.values, by_hand.scores.values)
    assert survey_sinks(smollm2, ("prose",), n=4).heads.settings["split"] == "find"
    with pytest.raises(UsageError, match="unknown split 'test'"):
        survey_sinks(smollm2, ("prose",), n=4, split="test")


def test_there_is_dialogue_to_measure_on():
    texts = documents("dialogue")
    assert len(texts) >= 3
    assert sum(map(len, texts)) > 12_000
