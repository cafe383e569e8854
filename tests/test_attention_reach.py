"""What a head's reach is worth: the planted head's alone counts, and a cut is what a hook on the pattern does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import tiny
from test_attention_retrieval import COPY_LENGTH, PLANTED, induction_samples, without_planted_head

import interp
from interp.attention import head_reach
from interp.errors import InterpError, UsageError
from interp.tasks.keys import KeySample, key_samples


def as_keys(samples):
    """Needles whose cue is the question, as keys."""
    return [
        KeySample(s.tokens[:-1], s.tokens[-1:], s.needle, s.tokens[-1:], "cue", "needle", 1, (s.span,)) for s in samples
    ]


def random_samples(model, n=3, context=30, question=4, answer=3):
    """Random prompts, with what the model writes as the answer."""
    samples, prompts = [], torch.randint(4, 50, (n, context + question), generator=torch.Generator().manual_seed(0))
    for prompt in prompts:
        tokens = prompt[None]
        for _ in range(answer):
            with torch.no_grad():
                tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
        row = tokens[0].tolist()
        parts = (tuple(part) for part in (row[:context], row[context:-answer], row[-answer:]))
        samples.append(KeySample(*parts, (), "", "", 1, ((0, 1),)))
    return samples


def test_only_the_planted_head_needs_its_reach():
    found = head_reach(interp.load("toy-induction"), as_keys(induction_samples()), sinks=0, window=COPY_LENGTH)
    values = found.scores.values
    assert values[PLANTED] > 1
    others = values.copy()
    others[PLANTED] = 0
    np.testing.assert_allclose(others, 0, atol=1e-4)
    assert found.settings["recall"] == 1
    assert found.method == "reach"
    assert found.settings["haystack"] == "given with the samples"
    assert found.evidence["each"].sizes["example"] == 6


@pytest.mark.parametrize("where", ["answer", "prompt"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "qwen3"])
def test_a_cut_is_what_a_hook_on_the_pattern_does(family, where):
    model, sinks, window = tiny(family), 2, 6
    samples = random_samples(model)
    found = head_reach(model, samples, where=where, sinks=sinks, window=window)
    shared = model.cfg.n_heads // found.n_kv_heads
    layer, group = 1, found.n_kv_heads - 1
    expected = []
    for sample in samples:
        tokens = torch.tensor([[*sample.prompt, *sample.answer[:-1]]])
        start, at = len(sample.context), torch.arange(tokens.shape[1])
        cut_at = at >= start if where == "answer" else at < len(sample.prompt)
        hidden = (at >= sinks) & (at[:, None] - at >= window) & cut_at[:, None]

        def cut(pattern, hook, hidden=hidden):
            mine = pattern[:, group * shared : (group + 1) * shared].masked_fill(hidden, 0)
            pattern[:, group * shared : (group + 1) * shared] = mine / mine.sum(-1, keepdim=True)
            return pattern

        with torch.no_grad():
            plain = loss(model(tokens), sample)
            after = loss(model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_pattern", cut)]), sample)
        expected.append(after - plain)
    assert abs(np.mean(expected)) > 2e-4
    effect = found.groups("sum").values[layer, group]
    np.testing.assert_allclose(effect, np.mean(expected), atol=2e-5)


def loss(logits, sample):
    answer = torch.tensor(sample.answer)
    return float(torch.nn.functional.cross_entropy(logits[0, -len(answer) :].float(), answer))


def test_what_makes_no_sense_is_refused():
    model = interp.load("toy-induction")
    keys = as_keys(induction_samples(2))
    with pytest.raises(UsageError, match=r"window of at least 1, got 4 and 0"):
        head_reach(model, keys, window=0)
    with pytest.raises(UsageError, match=r"59 tokens is covered by 4 sinks and a window of 124"):
        head_reach(model, keys)
    with pytest.raises(UsageError, match=r"unknown place of the cut \(where\) 'context'"):
        head_reach(model, keys, where="context")
    with pytest.raises(UsageError, match="at least one sample"):
        head_reach(model, [])
    with pytest.raises(InterpError, match=r"finds none of the 2 answers"):
        head_reach(without_planted_head(), keys, sinks=0, window=5)


@pytest.mark.real_model
def test_few_heads_of_smollm2_need_their_reach(smollm2):
    found = head_reach(smollm2, length=256, window=32, n=2, seed=3)
    effect = found.groups("sum").values
    assert found.settings["recall"] > 0
    assert found.settings["haystack"] == "noise"
    assert found.settings["lengths"] == [256]
    assert effect.max() > 0.1
    assert (effect > 0.05).sum() < 0.2 * effect.size


def test_keys_are_needles(smollm2):
    sample = key_samples(smollm2, 256, 3, 1, seed=1)[0]
    needle = sample.needle()
    assert needle.needle == sample.answer
    assert needle.tokens == sample.prompt
    assert sample.spans[0][0] < needle.span[0] < sample.spans[0][1]
