"""Retrieval heads: a planted one is found and a removed one is not; scores are those of a count by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import tiny

import interp
from interp.attention.retrieval.answers import Stops, answers
from interp.attention.retrieval.masking import ZeroHeads, retrieval_causality
from interp.attention.retrieval.score import needle_recall, retrieval_heads
from interp.engine.forward import Walk
from interp.engine.verify import verified
from interp.errors import InterpError, UsageError
from interp.models import fingerprint
from interp.plots.masking import masking_curve
from interp.results import RetrievalHeads, scores
from interp.tasks.needles import NEEDLES, Needle, NeedleSample, needle_samples, rouge_recall
from interp.tasks.tokens import Encoder

PLANTED = (1, 0)
COPY_LENGTH = 5


def induction_samples(n=6, length=60, seed=0):
    """Token-level needles for toy-induction: a cue, the tokens that follow it, and at the end the cue again."""
    rng, samples = np.random.default_rng(seed), []
    for index in range(n):
        words = rng.permutation(np.arange(3, 64))
        cue, needle, hay = words[0], words[1 : 1 + COPY_LENGTH], words[1 + COPY_LENGTH :]
        stack = rng.choice(hay, length - COPY_LENGTH - 2).tolist()
        depth = (0.1, 0.5, 0.9)[index % 3]
        at = int(depth * len(stack))
        tokens = (*stack[:at], int(cue), *map(int, needle), *stack[at:], int(cue))
        samples.append(NeedleSample(tokens, (at + 1, at + 1 + COPY_LENGTH), depth=depth))
    return samples


def projections(model):
    """Weights of layer 1's attention in toy-induction: of q, k and v "d_model d_model" each, and of the output."""
    attention = model.blocks[1].attn
    return [getattr(attention, name).original_component.weight for name in "qkv"], attention.o.original_component.weight


def without_planted_head():
    """toy-induction with the planted head's rows of W_O set to zero."""
    model = interp.load("toy-induction")
    with torch.no_grad():
        projections(model)[1][: model.cfg.d_head] = 0
    return model


class TestGroundTruth:
    def test_the_planted_head_copies_the_whole_needle_and_no_other_head_copies_anything(self):
        finding = retrieval_heads(interp.load("toy-induction"), induction_samples(), steps=COPY_LENGTH)
        expected = np.zeros((2, 2))
        expected[PLANTED] = 1
        for name in ("scores", "low", "high", "activation_rate", "step_scores"):
            np.testing.assert_array_equal(finding.evidence[name].values, expected, err_msg=name)
        assert finding.heads == [PLANTED]
        assert finding.settings["samples"] == finding.settings["samples_used"] == 6
        assert (finding.evidence["recall"] == 1).all()

    def test_without_its_output_no_needle_is_found_and_the_error_says_so(self):
        with pytest.raises(InterpError, match=r"finds 0 of 6 needles \(0% at 60 tokens\).*lengths="):
            retrieval_heads(without_planted_head(), induction_samples(), steps=COPY_LENGTH)

    def test_a_head_moved_elsewhere_is_found_there(self):
        model = interp.load("toy-induction")
        d_head, (inputs, output) = model.cfg.d_head, projections(model)
        with torch.no_grad():
            for weight in inputs:
                halves = weight if weight.shape[0] == 2 * d_head else weight.T
                halves.copy_(halves.roll(d_head, 0).clone())
            output.copy_(output.roll(d_head, 0).clone())
        finding = retrieval_heads(model, induction_samples(), steps=COPY_LENGTH)
        assert finding.heads == [(1, 1)]

    def test_masking_the_planted_head_loses_every_needle_and_masking_others_none(self):
        model, samples = interp.load("toy-induction"), induction_samples()
        finding = retrieval_heads(model, samples, steps=COPY_LENGTH)
        text = torch.tensor([sample.tokens for sample in induction_samples(2, seed=1)])
        effects = retrieval_causality(
            model, finding, samples, ks=(0, 1), draws=2, text=text, texts=2, length=50, steps=COPY_LENGTH
        )
        assert effects.dims == ("kind", "k", "metric", "example")
        recall = effects.sel(metric="recall").mean("example")
        np.testing.assert_array_equal(recall.sel(kind="retrieval").values, [1, 0])
        assert (recall.sel(kind=["random", "same layers"], k=0) == 1).all()
        assert (recall.sel(kind="same layers", k=1) == 1).all()
        divergence = effects.sel(metric="answer_kl").mean("example")
        assert float(divergence.sel(kind="retrieval", k=1)) > 1
        assert float(divergence.sel(kind="same layers", k=1)) == pytest.approx(0, abs=1e-5)
        assert (divergence.sel(k=0) == 0).all()

    @pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen3"])
    def test_scores_are_those_of_a_full_run_for_every_token(self, family):
        model, steps = tiny(family), 6
        generator = torch.Generator().manual_seed(3)
        samples = [
            NeedleSample(tuple(torch.randint(4, 50, (24 + i % 2,), generator=generator).tolist()), (2, 22))
            for i in range(5)
        ]
        copied = 0
        for sample, answer in zip(samples, answers(model, samples, steps), strict=True):
            written, copies = by_hand(model, sample, steps)
            assert list(answer.tokens) == written
            np.testing.assert_array_equal(answer.strongest, copies["strongest"])
            needle = set(sample.needle)
            sets = np.vectorize(lambda tokens: len(tokens & needle) / len(needle))(copies["set"])  # noqa: B023
            np.testing.assert_allclose(answer.score, sets, atol=1e-12)
            np.testing.assert_allclose(answer.step_score, copies["steps"] / len(sample.needle), atol=1e-12)
            copied += copies["steps"].sum()
        assert copied > 0

    @pytest.mark.parametrize("family", ["llama", "gemma2", "neox"])
    def test_zeroing_heads_is_what_a_hook_on_z_does(self, family):
        model, heads = tiny(family), [(0, 1), (2, 0), (2, 3)]
        tokens = torch.arange(4, 16)[None]
        parts = verified(model)
        walk = Walk(parts, tokens.shape[1])
        with torch.no_grad():
            ours = parts.logits(walk(walk.embed(tokens), ZeroHeads(heads)))

        theirs = model.run_with_hooks(tokens, fwd_hooks=zeroing(model, heads))
        torch.testing.assert_close(ours, theirs.detach(), atol=1e-4, rtol=1e-4)

    def test_effects_of_masking_are_those_of_hooks_on_z_in_full_runs(self):
        model, steps = tiny("llama"), 5
        generator = torch.Generator().manual_seed(1)
        prompts = [tuple(torch.randint(4, 50, (18,), generator=generator).tolist()) for _ in range(4)]
        wrote = answers(model, [NeedleSample(prompt, (2, 4)) for prompt in prompts], steps)
        samples = [NeedleSample(p, (2, 4), answer=a.text) for p, a in zip(prompts, wrote, strict=True) if a.tokens]
        values = np.zeros((3, 4))
        values[2, 1], values[1, 3] = 0.9, 0.8
        array = scores(values, ("layer", "head"))
        evidence = {"scores": array, "low": array, "high": array}
        finding = RetrievalHeads(model="tiny", fingerprint=fingerprint(model), evidence=evidence, n_kv_heads=2)
        text = torch.randint(4, 50, (3, 12), generator=generator)
        effects = retrieval_causality(
            model, finding, samples, ks=(0, 1, 2), draws=1, text=text, texts=3, length=12, steps=steps
        )
        for k in (0, 1, 2):
            hooks = zeroing(model, [(2, 1), (1, 3)][:k])
            found, divergences = [], []
            for sample, answer in zip(samples, (a for a in wrote if a.tokens), strict=True):
                whole = torch.tensor([[*sample.tokens, *answer.tokens]])
                plain, masked = (
                    logits[0, len(sample.tokens) - 1 : -1].log_softmax(-1).detach()
                    for logits in (model(whole), model.run_with_hooks(whole, fwd_hooks=hooks))
                )
                divergences.append((plain.exp() * (plain - masked)).sum(-1))
                ids = list(sample.tokens)
                for _ in range(steps):
                    ids.append(int(model.run_with_hooks(torch.tensor([ids]), fwd_hooks=hooks)[0, -1].argmax()))
                new = ids[len(sample.tokens) :]
                new = new[: new.index(2)] if 2 in new else new
                found.append(rouge_recall(sample, new, model.tokenizer.decode(new)) > 0.5)
            logits = model.run_with_hooks(text, fwd_hooks=hooks).detach()
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), text[:, 1:].flatten())
            expected = [np.mean(found), float(torch.cat(divergences).mean()), float(loss)]
            np.testing.assert_allclose(
                effects.sel(kind="retrieval", k=k).values[:, 0], expected, rtol=1e-3, atol=1e-5, err_msg=f"k={k}"
            )
        assert float(effects.sel(kind="retrieval", k=2, metric="answer_kl", example=0)) > 0.01


def zeroing(model, heads):
    """Hooks that set z of some heads to zero."""

    def zero(head):
        def hook(z, hook):
            new = z.clone()
            new.view(*z.shape[:2], model.cfg.n_heads, -1)[:, :, head] = 0
            return new

        return hook

    return [(f"blocks.{layer}.attn.hook_z", zero(head)) for layer, head in heads]


def by_hand(model, sample, steps):
    """Greedy decoding by a full run for each token; which tokens each head copied, and in how many steps."""
    ids, (first, stop) = list(sample.tokens), sample.span
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    count, sets = np.zeros(shape), np.frompyfunc(lambda _: set(), 1, 1)(np.empty(shape))
    written, strongest = [], []
    for _ in range(steps):
        logits, cache = model.run_with_cache(torch.tensor([ids]))
        token = int(logits[0, -1].argmax())
        if token == model.tokenizer.eos_token_id:
            break
        strongest.append(np.zeros(shape, int))
        for layer in range(shape[0]):
            for head in range(shape[1]):
                key = int(cache[f"blocks.{layer}.attn.hook_pattern"][0, head, -1].argmax())
                strongest[-1][layer, head] = key
                if first <= key < stop and sample.tokens[key] == token:
                    count[layer, head] += 1
                    sets[layer, head].add(token)
        written.append(token)
        ids.append(token)
    looked = np.array(strongest, int).reshape(-1, *shape)
    return written, {"set": sets, "steps": count, "strongest": looked}


class TestInvariants:
    def test_the_order_and_the_company_of_samples_change_nothing(self):
        model = tiny("llama")
        generator = torch.Generator().manual_seed(0)
        samples = [
            NeedleSample(tuple(torch.randint(4, 50, (20 + i % 3,), generator=generator).tolist()), (1, 18))
            for i in range(6)
        ]
        forward, backward = answers(model, samples, 5), answers(model, samples[::-1], 5)[::-1]
        for a, b, sample in zip(forward, backward, samples, strict=True):
            (alone,) = answers(model, [sample], 5)
            assert a.sample is b.sample is sample
            assert a.tokens == b.tokens == alone.tokens
            np.testing.assert_array_equal(a.strongest, b.strongest)
            np.testing.assert_array_equal(a.strongest, alone.strongest)

    def test_a_token_copied_twice_counts_once(self):
        sample = NeedleSample((5, 6, 7, 8), (1, 3))
        from interp.attention.retrieval.answers import Answer

        answer = Answer(sample, (6, 6, 9), "", np.array([[[1]], [[1]], [[2]]]), 0.5)
        np.testing.assert_array_equal(answer.score, [[0.5]])
        np.testing.assert_array_equal(answer.step_score, [[1.0]])

    def test_the_same_call_gives_the_same_numbers_and_files_keep_them(self, tmp_path):
        model = interp.load("toy-induction")
        a, b = (retrieval_heads(model, induction_samples(), steps=COPY_LENGTH) for _ in range(2))
        for name, array in a.evidence.items():
            np.testing.assert_array_equal(array.values, b.evidence[name].values)
        loaded = interp.results.load(a.save(tmp_path))
        assert isinstance(loaded, RetrievalHeads)
        assert loaded.heads == a.heads
        assert loaded.settings == a.settings

    def test_an_interval_is_as_wide_as_the_samples_say(self):
        from interp.attention.retrieval.answers import Answer
        from interp.attention.retrieval.score import _head_evidence

        draw, sample = np.random.default_rng(0), NeedleSample((5, 6, 7, 8), (1, 3))
        given = [Answer(sample, (6, 7), "", np.array([[[1 + draw.integers(2)]], [[2]]]), 1.0) for _ in range(400)]
        each = np.array([float(answer.score[0, 0]) for answer in given])
        found = _head_evidence(given, seed=0)
        error = 1.96 * each.std() / 400**0.5
        assert float(found["scores"][0, 0]) == pytest.approx(each.mean())
        assert float(found["low"][0, 0]) == pytest.approx(each.mean() - error, abs=0.15 * error)
        assert float(found["high"][0, 0]) == pytest.approx(each.mean() + error, abs=0.15 * error)

    def test_a_model_without_tokenizer_takes_samples_of_tokens(self):
        model = interp.load("toy-induction")
        model.tokenizer = None
        assert retrieval_heads(model, induction_samples(), steps=COPY_LENGTH).heads == [PLANTED]
        assert float(needle_recall(model, induction_samples(), steps=COPY_LENGTH).mean()) == 1

    def test_rouge_counts_words_of_the_answer_that_were_written(self):
        sample = NeedleSample((1, 2), (0, 1), answer="Smoked eel, smoked ham")
        assert rouge_recall(sample, (), "It is SMOKED eel.") == 0.5
        assert rouge_recall(NeedleSample((4, 5, 5), (0, 3)), (5, 4), "") == pytest.approx(2 / 3)

    def test_an_answer_ends_at_the_first_newline_behind_something(self):
        stops = Stops(Encoder(tiny("llama")))
        stops.newlines = frozenset({9})
        assert stops.at([9, 9, 4, 9, 5]) == 3
        assert stops.at([9, 4]) is None
        assert stops.at([2]) == 0  # the end of the text


class TestPicture:
    def test_the_masking_curve_shows_the_mean_and_the_range_of_the_draws(self, tmp_path):
        values = np.random.default_rng(0).random((3, 4, 3, 2))
        labels = {"kind": ["retrieval", "random", "same layers"], "k": [0, 1, 2, 4]}
        labels["metric"] = ["recall", "answer_kl", "text_loss"]
        effects = scores(values, ("kind", "k", "metric", "example"), labels, model="toy")
        picture = masking_curve(effects)
        lines = [trace for trace in picture.plotly.data if trace.mode == "lines+markers"]
        np.testing.assert_allclose(lines[4].y, values[1, :, 1].mean(-1))
        np.testing.assert_allclose(lines[4].customdata[:, 1].astype(float), values[1, :, 1].min(-1))
        axes = picture.draw().axes
        assert axes[0].get_title(loc="left") == "needle recall"
        np.testing.assert_allclose(axes[2].lines[0].get_ydata(), values[0, :, 2].mean(-1))
        assert interp.plots.save(picture, tmp_path / "curve.png").stat().st_size > 10_000
        with pytest.raises(UsageError, match="dims"):
            masking_curve(effects.mean("example"))


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"depths": (0.5, 1.5)}, r"between 0 .* and 1 .*got 1\.5"),
            ({"n": 0}, "n, the prompts of each length and depth, must be at least 1, got 0"),
            ({"lengths": ()}, "lengths must not be empty"),
        ],
    )
    def test_bad_requests_are_named(self, changes, message):
        with pytest.raises(UsageError, match=message):
            needle_samples(tiny("llama"), ["text"], **changes)

    def test_a_length_without_room_for_the_haystack_says_what_is_needed(self):
        with pytest.raises(UsageError, match=r"a length of 20 tokens has no room.*or more"):
            needle_samples(tiny("llama"), ["some text"], lengths=(20,))

    def test_a_length_beyond_the_model_is_refused(self):
        with pytest.raises(UsageError, match="a length of 65 tokens is more than the 64"):
            needle_samples(tiny("gpt2"), ["some text"], lengths=(65,), needles=[Needle("t7 t8.", "t9", "t8")])

    def test_a_chat_prompt_needs_a_template(self):
        with pytest.raises(UsageError, match="chat template"):
            needle_samples(tiny("llama"), ["some text"], chat=True)

    def test_an_answer_must_stand_in_its_fact(self):
        with pytest.raises(UsageError, match="does not stand in"):
            Needle("The code is 7.", "What is the code?", "8")

    def test_samples_are_checked(self):
        with pytest.raises(UsageError, match="span"):
            NeedleSample((1, 2, 3), (2, 4))
        model = interp.load("toy-induction")
        with pytest.raises(UsageError, match="no sample"):
            retrieval_heads(model, [])
        with pytest.raises(UsageError, match="more than the 128"):
            answers(model, [NeedleSample(tuple([5] * 128), (1, 2))], 5)
        with pytest.raises(UsageError, match="threshold"):
            retrieval_heads(model, induction_samples(), threshold=0)

    def test_masking_refuses_another_model_and_too_many_heads(self):
        model, samples = interp.load("toy-induction"), induction_samples()
        finding = retrieval_heads(model, samples, steps=COPY_LENGTH)
        with pytest.raises(UsageError, match="its weights are others"):
            retrieval_causality(without_planted_head(), finding, samples)
        with pytest.raises(UsageError, match="3 heads can't be compared"):
            retrieval_causality(model, finding, samples, ks=(3,))


@pytest.mark.real_model
class TestSmolLM2:
    def test_samples_have_the_length_the_depth_and_the_needle_asked_for(self, smollm2):
        samples = needle_samples(smollm2, lengths=(150, 300), depths=(0.0, 0.5, 1.0), n=3, seed=1)
        decode = smollm2.tokenizer.decode
        assert {sample.name for sample in samples} == {needle.answer for needle in NEEDLES}
        for sample in samples:
            assert decode(sample.needle).strip() == sample.answer
            assert sample.question in decode(sample.tokens)
            assert sample.question in decode(sample.control)
            assert sample.answer not in decode(sample.control)
        assert [sample.length for sample in samples] == [150] * 9 + [300] * 9
        places = [sample.span[0] / sample.length for sample in samples[9:]]
        assert max(places[:3]) < min(places[3:6]) <= max(places[3:6]) < min(places[6:])
        again = needle_samples(smollm2, lengths=(150, 300), depths=(0.0, 0.5, 1.0), n=3, seed=1)
        assert [a.tokens for a in again] == [a.tokens for a in samples]

    def test_the_heads_that_a_trial_found_are_among_the_strongest(self, smollm2):
        finding = retrieval_heads(smollm2, lengths=(200,), depths=(0.5,), n=4)
        assert (18, 6) in finding.top(3)
        assert ((finding.scores >= 0) & (finding.scores <= 1)).all()
        assert (finding.evidence["low"] <= finding.scores).all()
        assert (finding.scores <= finding.evidence["high"]).all()
        assert 0 < len(finding.heads) < 0.15 * finding.scores.size
        assert finding.settings["samples_used"] >= 2
        assert finding.groups("max").shape == (30, 3)
