"""What is asked of a model under plans: when the cache is compressed, and what counts as found."""

from __future__ import annotations

import pytest
import torch
from families import tiny

from interp.efficiency import deploy
from interp.efficiency.decoding import Decoder
from interp.efficiency.kv_cache import SnapKVCache
from interp.efficiency.quality import Keys
from interp.tasks.keys import KeySample

CONTEXT, QUESTION, ANSWER = 40, 7, 3


@pytest.fixture(scope="module")
def model():
    return deploy(tiny("llama"))


@pytest.fixture
def keys():
    """Two prompts of random tokens, as `Keys` would have drawn them."""
    draw = torch.Generator().manual_seed(0)
    found = Keys(1, CONTEXT + QUESTION, 2)
    found.samples = []
    for _ in range(2):
        context, question, answer = (
            tuple(torch.randint(4, 50, (n,), generator=draw).tolist()) for n in (CONTEXT, QUESTION, ANSWER)
        )
        found.samples.append(KeySample(context, question, answer, question, "thing", "123", 1, ((3, 6),)))
    return found


def loss_in_pieces(model, sample, *pieces):
    """The loss of the answer behind a prompt that is fed in pieces, each token of the answer by itself."""
    decoder, right = Decoder(model), torch.tensor(sample.answer)
    for piece in pieces:
        logits = decoder.feed(torch.tensor([piece]))
    found = [logits, *(decoder.feed(token[None, None]) for token in right[:-1])]
    return float(torch.nn.functional.cross_entropy(torch.cat(found, 1)[0], right))


def test_the_cache_is_compressed_before_the_question_is_known(model, keys):
    """SnapKV keeps what the last tokens it has seen look at: the context's end, not the question."""
    with SnapKVCache(budget=0.3, window=4, length=CONTEXT).plan(model).applied(model):
        found = keys.measure(model)
        apart = [loss_in_pieces(model, s, s.context, s.question) for s in keys.samples]
        at_once = [loss_in_pieces(model, s, s.context + s.question) for s in keys.samples]
        guessed = [loss_in_pieces(model, s, s.control) for s in keys.samples]
    assert found["answer_loss"] == pytest.approx(sum(apart) / 2, abs=1e-5)
    assert found["guess_loss"] == pytest.approx(sum(guessed) / 2, abs=1e-5)
    assert abs(sum(apart) - sum(at_once)) > 1e-3


@pytest.mark.parametrize("right", range(ANSWER + 1))
@pytest.mark.parametrize("where", ["first", "last"])
def test_a_number_is_found_only_if_every_token_of_it_is(model, keys, monkeypatch, right, where):
    def answered(model, parts, answer):
        """Logits that have some of the answer's tokens right."""
        hits = torch.arange(ANSWER) < right if where == "first" else torch.arange(ANSWER) >= ANSWER - right
        said = torch.where(hits, answer, (answer + 1) % 50)
        return torch.nn.functional.one_hot(said, 50).float()

    monkeypatch.setattr(Keys, "_answer", staticmethod(answered))
    assert keys.measure(model)["recall"] == float(right == ANSWER)
