"""Heads whose kind is known are found, and no more than that; shares of attention are what they say."""

from __future__ import annotations

import sys

import families
import pytest
import torch

import interp
from interp.attention import DETECTORS, Detector, heads, patterns, stream, survey
from interp.attention.heads import separators
from interp.errors import InterpError, UsageError
from interp.tasks import corpus

ON_PATTERNS = [name for name, detector in DETECTORS.items() if detector.reads in ("text", "repeated")]


@pytest.fixture(scope="module")
def toy():
    return interp.load("toy-induction")


@pytest.fixture(scope="module")
def of_toy(toy):
    return heads(toy)


def test_the_heads_of_a_hand_wired_model_are_found(of_toy):
    assert of_toy.top("previous_token", 1) == [(0, 0)]
    assert of_toy.top("induction", 1) == [(1, 0)]
    assert of_toy.top("copying", 1) == [(1, 0)]
    assert float(of_toy.kind("previous_token")[0, 0]) > 0.99
    assert float(of_toy.kind("induction")[1, 0]) > 0.99
    assert float(of_toy.kind("copying")[1, 0]) == pytest.approx(1)


def test_a_head_that_makes_what_it_attends_to_less_likely_copies_less_than_not_at_all():
    model = interp.load("toy-induction")
    with torch.no_grad():
        model.blocks[1].attn.o.original_component.weight.neg_()
    assert float(heads(model, ["copying"]).kind("copying")[1, 0]) == pytest.approx(-1)


def test_heads_that_look_everywhere_alike_are_of_no_kind(of_toy):
    for kind in ("previous_token", "induction", "duplicate_token", "current_token", "first_token"):
        for head in ((0, 1), (1, 1)):
            assert float(of_toy.kind(kind)[head]) < 0.1, (kind, head)


def test_a_head_is_no_longer_found_once_it_is_taken_out():
    model = interp.load("toy-induction")
    with torch.no_grad():
        attention = model.blocks[1].attn
        for name in ("q", "k"):
            getattr(attention, name).original_component.weight.zero_()
    found = heads(model, ["previous_token", "induction"])
    assert float(found.kind("induction").max()) < 0.1
    assert found.top("previous_token", 1) == [(0, 0)]


def test_what_cannot_be_looked_for_is_left_out_and_said(toy, of_toy):
    assert "name_mover" not in of_toy.kinds
    assert "ioi" in of_toy.settings["left_out"]["name_mover"]
    with pytest.raises(UsageError, match="ioi"):
        heads(toy, ["name_mover"])


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma3", "mistral"])
def test_scores_are_means_over_whole_patterns(family):
    model = families.tiny(family)
    tokens = torch.randint(0, 50, (3, 40), generator=torch.Generator().manual_seed(1))
    tokens[:, 20:] = tokens[:, :20]
    found = heads(
        model, ["previous_token", "current_token", "first_token", "entropy", "distance"], tokens, n=3, length=40
    )
    _, cache = model.run_with_cache(tokens)
    for layer in range(found.scores.sizes["layer"]):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"].double()
        back = torch.arange(40)[:, None] - torch.arange(40)
        expected = {
            "previous_token": pattern.diagonal(-1, 2, 3).mean((0, 2)),
            "current_token": pattern.diagonal(0, 2, 3)[..., 1:].mean((0, 2)),
            "first_token": pattern[:, :, 1:, 0].mean((0, 2)),
            "entropy": torch.special.entr(pattern).sum(-1).mean((0, 2)),
            "distance": (pattern * back).sum(-1).mean((0, 2)),
        }
        for kind, values in expected.items():
            assert torch.tensor(found.kind(kind)[layer].values).double() == pytest.approx(values, abs=2e-5), (
                kind,
                layer,
            )


def test_induction_and_duplicates_are_those_of_the_definition():
    model = families.tiny("llama")
    found = heads(model, ["induction", "duplicate_token"], n=2, length=20)
    length = 96 + len(interp.tasks.tokens.Encoder(model).prefix)
    tokens = corpus("repeated", model, 2, length, 0)
    _, cache = model.run_with_cache(tokens)
    for layer in range(3):
        pattern, sums, counts = cache[f"blocks.{layer}.attn.hook_pattern"], torch.zeros(2, 4), torch.zeros(2)
        for row in range(2):
            for query in range(length):
                same = [key for key in range(query) if tokens[row, key] == tokens[row, query]]
                for which, keys in enumerate((same, [key + 1 for key in same])):
                    if keys:
                        sums[which] += pattern[row, :, query, keys].sum(-1)
                        counts[which] += 1
        for which, kind in enumerate(("duplicate_token", "induction")):
            assert torch.tensor(found.kind(kind)[layer].values) == pytest.approx(sums[which] / counts[which], abs=1e-5)


def test_pieces_are_the_whole_pattern_and_their_rows_sum_to_one(monkeypatch):
    monkeypatch.setattr(sys.modules["interp.attention.patterns"], "queries_at_once", lambda parts, tokens: 7)
    model = families.tiny("gemma3")
    tokens = torch.randint(0, 50, (2, 33), generator=torch.Generator().manual_seed(0))
    _, cache = model.run_with_cache(tokens)
    whole = {layer: torch.zeros(2, 4, 33, 33) for layer in range(4)}

    def see(seen):
        assert seen.pattern.shape[3] == seen.first + seen.pattern.shape[2]
        assert seen.pattern.sum(-1) == pytest.approx(torch.ones(seen.pattern.shape[:3]), abs=1e-5)
        whole[seen.layer][:, :, seen.queries, : seen.pattern.shape[3]] = seen.pattern

    final = stream(model, tokens, see)
    for layer, pattern in whole.items():
        assert torch.allclose(pattern, cache[f"blocks.{layer}.attn.hook_pattern"], atol=1e-6)
    assert torch.allclose(final, cache["blocks.3.hook_resid_post"], atol=1e-5)


def test_the_order_of_texts_does_not_matter():
    model = families.tiny("qwen3")
    tokens = torch.randint(0, 50, (4, 40), generator=torch.Generator().manual_seed(2))
    kinds = [name for name in ON_PATTERNS if name != "separator"]
    there, back = (heads(model, kinds, rows, n=4, length=40).scores for rows in (tokens, tokens.flip(0)))
    assert there.values == pytest.approx(back.values, abs=1e-6)


def test_shares_of_attention_lie_between_0_and_1(of_toy):
    for kind in of_toy.kinds:
        units = of_toy.kind(kind).attrs["units"][kind]
        if units.startswith("share"):
            assert float(of_toy.kind(kind).min()) >= 0
            assert float(of_toy.kind(kind).max()) <= 1 + 1e-6


def test_the_walk_ends_behind_the_last_layer_that_is_asked_for():
    model, seen = families.tiny("llama"), []
    tokens = torch.randint(0, 50, (1, 9))
    final = stream(model, tokens, lambda piece: seen.append(piece.layer), layers=[1])
    _, cache = model.run_with_cache(tokens)
    assert seen == [1]
    assert torch.allclose(final, cache["blocks.1.hook_resid_post"], atol=1e-5)


def test_patterns_of_a_prompt_are_the_models_own(toy):
    model = families.tiny("llama")
    tokens = torch.randint(0, 50, (12,), generator=torch.Generator().manual_seed(3))
    shown = patterns(model, tokens, layers=[2], heads=[1, 3])
    _, cache = model.run_with_cache(tokens[None])
    assert shown.dims == ("layer", "head", "query", "key")
    assert torch.allclose(torch.tensor(shown.values[0]), cache["blocks.2.attn.hook_pattern"][0, [1, 3]], atol=1e-6)


def test_a_detector_of_ones_own_runs_beside_the_shipped_ones(toy):
    mine = Detector("far", "text", lambda seen: seen.back(5), "five back", "mine", "latent reasoning")
    found = heads(toy, ["previous_token", mine], n=2, length=30)
    assert found.kinds == ["previous_token", "far"]
    assert survey(found).loc[1, "definition"] == "five back"


def test_bad_requests_are_named(toy):
    with pytest.raises(UsageError, match=r"'prevoius_token'.*previous_token"):
        heads(toy, ["prevoius_token"])
    with pytest.raises(UsageError, match="each once"):
        heads(toy, ["induction", "induction"])
    with pytest.raises(UsageError, match="positions for 128 tokens"):
        heads(toy, ["previous_token"], length=200)
    with pytest.raises(UsageError, match=r"n=0"):
        heads(toy, ["previous_token"], n=0)
    with pytest.raises(UsageError, match="no query of 20 tokens counts for positional heads"):
        heads(toy, ["positional"], length=20)
    with pytest.raises(UsageError, match="layer 7 is out of range"):
        stream(toy, torch.zeros(1, 4, dtype=torch.long), lambda seen: None, layers=[7])
    with pytest.raises(UsageError, match="head 9 is out of range"):
        patterns(toy, torch.tensor([1, 2, 3]), heads=[9])
    with pytest.raises(UsageError, match="two tokens"):
        patterns(toy, torch.tensor([1]))


def test_attention_that_is_not_finite_is_named():
    model = families.tiny("llama")
    with torch.no_grad():
        model.blocks[1].attn.q.original_component.weight.mul_(float("inf"))
    with pytest.raises(InterpError, match=r"layer 1|blocks\.1"):
        heads(model, ["previous_token"], torch.randint(0, 50, (1, 8)), n=1, length=8)


def test_separators_are_tokens_without_letter_or_digit(toy):
    encoder = interp.tasks.tokens.Encoder(toy)
    words = encoder.decode(tuple(range(toy.cfg.d_vocab)))
    mask = separators(toy, torch.arange(toy.cfg.d_vocab)[None])
    for token in range(1, toy.cfg.d_vocab):
        assert bool(mask[0, token]) == (not any(letter.isalnum() for letter in words[token]))


@pytest.mark.real_model
def test_known_heads_of_smollm2(smollm2):
    found = heads(smollm2, ["induction", "name_mover", "subject_suppressor", "s_inhibition"], n=8)
    assert found.top("induction", 1) == [(18, 6)]
    assert float(found.kind("induction")[18, 6]) > 0.8
    assert found.top("subject_suppressor", 1) == [(23, 3)]
    assert {(20, 0), (19, 2)} <= set(found.top("s_inhibition", 3))
