"""What is read of transformers' calls, under the names of older and of newer releases."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from caches import cache_of
from families import tiny

import interp
from interp.efficiency import deploy
from interp.efficiency.kv_cache import FullCache, StreamingCache
from interp.efficiency.sparse_attention import AShape
from interp.errors import UsageError
from interp.upstream import arguments, cached, real_tokens, scoring, take_cache, tokens_in
from interp.upstream import cache_of as read_cache

TOKENS = torch.randint(4, 50, (1, 48), generator=torch.Generator().manual_seed(0))
NAMES = ["cache", "past_key_values"]


def newer(input_ids=None, attention_mask=None, cache=None, **kwargs):
    return SimpleNamespace(cache=cache)


def older(input_ids=None, attention_mask=None, past_key_values=None, **kwargs):
    return SimpleNamespace(past_key_values=past_key_values)


def attention(hidden_states, layer_past=None):
    return SimpleNamespace(layer_past=layer_past)


@pytest.mark.parametrize("callee", [newer, older, attention])
def test_a_cache_reaches_the_callee_under_its_own_name_and_is_read_from_what_it_returns(callee):
    held = object()
    out = callee(**cached(callee, held, **({"hidden_states": 1} if callee is attention else {"input_ids": 1})))
    assert read_cache(out) is held


def test_a_callee_without_a_name_for_it_gets_the_name_that_this_release_uses():
    given = cached(lambda **kwargs: None, 1)
    assert list(given) == [name for name in NAMES if hasattr(deploy(tiny("llama"))(TOKENS), name)][:1]
    assert cached(lambda **kwargs: None, None) == {}


@pytest.mark.parametrize("callee", [newer, older])
@pytest.mark.parametrize("name", [*NAMES, "layer_past", "cache_params"])
def test_a_cache_is_taken_out_under_whichever_name_it_was_given(callee, name):
    given = arguments(callee, (TOKENS,), {name: "held", "other": 2})
    assert take_cache(given) == "held"
    assert set(given) == {"input_ids", "other"}
    assert take_cache(given) is None


def test_positional_arguments_get_their_names():
    assert take_cache(arguments(newer, (1, None, "held"), {})) == "held"
    assert take_cache(arguments(partial(older, 1), (None, "held"), {})) == "held"


def test_two_caches_are_refused():
    with pytest.raises(UsageError, match="one cache, got cache and past_key_values"):
        take_cache({"cache": 1, "past_key_values": 2})
    assert take_cache({"cache": 1, "past_key_values": None}) == 1


def test_tokens_come_as_ids_or_as_embeddings():
    assert tokens_in({"input_ids": None, "inputs_embeds": 1}) == ("inputs_embeds", 1)
    with pytest.raises(UsageError, match="no tokens to run"):
        tokens_in({"attention_mask": 1})


@pytest.mark.parametrize("name", ["s_aux", "sinks", "position_bias", "indices", "block_indices"])
def test_attention_that_is_more_than_products_is_refused_by_name(name):
    with pytest.raises(UsageError, match=f"not supported by calibration.* {name}"):
        scoring(TOKENS, {"scaling": 1.0, name: 1}, "calibration")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("plan", ["none", "full", "streaming", "prefill"])
def test_under_a_plan_a_second_turn_goes_on_from_the_cache_under_either_name(name, plan):
    model = deploy(tiny("llama"))
    made = {
        "full": FullCache(length=48),
        "streaming": StreamingCache(budget=0.9, length=48),
        "prefill": AShape(budget=0.75, length=48, block=4),
    }
    with torch.no_grad(), made[plan].plan(model).applied(model) if plan != "none" else torch.no_grad():
        whole = model(TOKENS).logits[:, -1]
        first = model(TOKENS[:, :40])
        if plan == "none":
            name = NAMES[1] if hasattr(first, "past_key_values") and not hasattr(first, "cache") else name
        second = model(TOKENS[:, 40:], **{name: cache_of(first)}).logits[:, -1]
        alone = model(TOKENS[:, 40:]).logits[:, -1]
    assert (whole - second).abs().max() < 1e-4 < (alone - second).abs().max()


def test_names_that_change_between_releases_are_spelt_in_one_module():
    spelt = re.compile(
        r"past_key_values|layer_past|cache_params|\._attn_impl|_supports_\w+|import Attention\w*Interface"
    )
    root = Path(interp.__file__).parent
    found = [p.relative_to(root).as_posix() for p in root.rglob("*.py") if spelt.search(p.read_text())]
    assert found == ["upstream.py"]


class TestRealTokens:
    MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    REAL = MASK.bool()

    def seen(self, past=0, room=2):
        at = torch.arange(6 + room)
        wide = torch.nn.functional.pad(self.REAL, (0, room))
        return (wide[:, None] & (at <= at[past:6, None]))[:, None]

    @pytest.mark.parametrize("past", [0, 3])
    def test_a_mask_made_for_a_static_cache_says_the_same_as_that_of_the_tokens(self, past):
        seen = self.seen(past)
        added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        for mask in (self.MASK, seen, added, {"full_attention": seen, "sliding_attention": None}):
            assert torch.equal(real_tokens(mask, past, 6 - past), self.REAL)

    def test_where_nothing_is_padding_there_is_no_mask(self):
        assert real_tokens(None, 0, 6) is None
        assert real_tokens(self.MASK[1:], 0, 6) is None
        assert real_tokens(self.seen()[1:], 0, 6) is None

    def test_a_mask_that_hides_more_than_padding_is_refused(self):
        other = self.seen()
        other[0, 0, 5, 3] = False
        for mask in (other, self.MASK[:, :5], torch.ones(2, 1, 6, 6), self.seen()[:, :, :3]):
            with pytest.raises(UsageError, match="'row pos' of all 6 tokens"):
                real_tokens(mask, 0, 6)
