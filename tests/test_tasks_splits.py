"""What findings are made on and what they are tried on: two splits, and nothing in common between them."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import torch
from families import tiny
from test_tasks import Reader, digest
from tiny_tokenizer import TokenizerOnly

import interp
from interp.efficiency import Keys, Tasks, Text
from interp.errors import UsageError
from interp.tasks import TASKS, behaviour, corpus, key_samples, load_jsonl, task
from interp.tasks.needles import NEEDLES, OTHER_NEEDLES, needle_samples
from interp.tasks.splits import SPLITS, Half

UNSPLIT = {
    "tasks": "fd0bcc7f9a51145d",
    "keys": "6be84a4df33ebca5",
    "needles": "4f2546a3f4562d01",
}
"""What was drawn before there were splits."""


@pytest.fixture(scope="module")
def reader(smollm2):
    return Reader(smollm2.tokenizer)


@pytest.fixture
def pools(monkeypatch):
    """What each split of a task leaves of each of its pools, in the order in which they are asked for."""
    kept: dict[str | None, list[list]] = {}

    class Recorded(Half):
        def __call__(self, pool):
            found = super().__call__(pool)
            kept.setdefault(self.split, []).append(list(found))
            return found

    monkeypatch.setattr(behaviour, "Half", Recorded)
    return kept


def sixteen(ids) -> set[tuple[int, ...]]:
    return {tuple(ids[at : at + 16]) for at in range(len(ids) - 15)}


def opening(contexts) -> set[tuple[int, ...]]:
    """The 16-grams of what all contexts begin with."""
    first = contexts[0]
    same = next(at for at in range(len(first)) if len({context[at] for context in contexts}) > 1)
    return sixteen(first[:same])


def test_a_half_is_every_second_item():
    words = ("a", "b", "c", "d", "e")
    assert (Half(None)(words), Half("find")(words), Half("score")(words)) == (words, ("a", "c", "e"), ("b", "d"))
    with pytest.raises(UsageError, match="unknown split 'scored'; did you mean 'score'"):
        Half("scored")


@pytest.mark.real_model
@pytest.mark.parametrize("name", list(TASKS))
def test_the_splits_of_a_task_share_neither_prompts_nor_content(reader, pools, name):
    made = {split: task(name, reader, n=64, seed=seed, split=split, fewer=True) for seed, split in enumerate(SPLITS)}
    find, score = (set(made[split].clean_text) for split in SPLITS)
    assert len(find) == len(made["find"]) >= 5
    assert len(score) == len(made["score"]) >= 5
    assert not (find | set(made["find"].corrupted_text)) & (score | set(made["score"].corrupted_text))
    for ours, theirs in zip(pools["find"], pools["score"], strict=True):
        assert ours
        assert not set(ours) & set(theirs)
        assert abs(len(ours) - len(theirs)) <= 1
    for split, other in (("find", "score"), ("score", "find")):
        held_out = {item for pool in pools[other] for item in pool}
        if isinstance(next(iter(held_out)), int) and name != "greater_than":  # token ids
            shared = set(made["find"].clean.flatten().tolist()) & set(made["score"].clean.flatten().tolist())
            everywhere = set.intersection(*(set(row) for one in made.values() for row in one.clean.tolist()))
            assert shared <= everywhere
            continue
        words = {word for word in held_out if isinstance(word, str)}
        framing = {word for word in words if all(mentions(text, word) for text in find | score)}
        texts = made[split].clean_text + made[split].corrupted_text
        assert not [word for word in words - framing for text in texts if mentions(text, word)]


def mentions(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text) is not None


@pytest.mark.real_model
@pytest.mark.parametrize("split", SPLITS)
def test_the_same_call_gives_the_same_prompts_and_another_seed_others_of_the_same_split(reader, split):
    made, again, other = (task("ioi", reader, n=12, seed=seed, split=split) for seed in (0, 0, 1))
    assert made.clean_text == again.clean_text != other.clean_text
    assert made.split == made[:3].split == made.to("cpu").split == split
    assert f"split {split}" in repr(made)
    keys, same, others = (key_samples(reader, 256, 2, 3, seed=seed, split=split) for seed in (0, 0, 1))
    assert keys == same != others
    assert {sample.split for sample in keys} == {split}


@pytest.mark.real_model
def test_without_a_split_everything_is_drawn_as_before(reader):
    def of(something) -> str:
        return hashlib.sha256(json.dumps(something).encode()).hexdigest()[:16]

    keys = [
        [sample.context, sample.question, sample.answer, sample.control, sample.spans]
        for haystack in ("noise", "prose")
        for sample in key_samples(reader, 300, 3, 3, haystack=haystack, seed=2)
    ]
    needles = [[one.tokens, one.span, one.answer] for one in needle_samples(reader, lengths=(200,), n=1, seed=1)]
    assert {"tasks": of(digest(reader)), "keys": of(keys), "needles": of(needles)} == UNSPLIT
    assert task("ioi", reader, n=4).split is None


@pytest.mark.real_model
def test_a_split_with_too_few_prompts_says_how_many_it_has(reader):
    with pytest.raises(UsageError, match=r"'capitals' has 14 distinct clean prompts .* 'score' of its countries") as no:
        task("capitals", reader, n=64, split="score")
    assert "ask for n=14 or fewer" in str(no.value)
    assert len(task("capitals", reader, n=14, split="score")) == 14
    assert len(task("capitals", reader, n=64, split="score", fewer=True)) == 14


@pytest.mark.real_model
def test_a_request_that_a_split_cannot_meet_is_one_message(reader):
    made = task("ioi", reader, n=2, split="find")
    assert task(made, reader, split="find") is made
    with pytest.raises(UsageError, match="made with split='find' and can't be split again"):
        task(made, reader, split="score")
    with pytest.raises(UsageError, match="'months' is in the other split; this one has days, numbers"):
        task("successor", reader, split="find", kind="months")
    with pytest.raises(UsageError, match="1 to 15 keys in the split 'score'"):
        key_samples(reader, 512, 16, split="score")
    with pytest.raises(UsageError, match="unknown split 'held-out'"):
        task("ioi", reader, split="held-out")
    with pytest.raises(UsageError, match=r"too few argument names .* in the split 'find' of its arguments"):
        task("docstring", TokenizerOnly(), split="find")


def test_a_file_is_split_by_its_clean_prompts_each_counted_once(tmp_path):
    path, model = tmp_path / "mine.jsonl", TokenizerOnly()
    names = ("Mary", "John", "Anna", "Tom")
    lines = [
        {"clean": f"{a} and", "corrupted": f"{b} and", "answer": " the", "wrong_answer": " a"}
        for a in names
        for b in names
        if a != b
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    find, score = (load_jsonl(path, model, split=split) for split in SPLITS)
    assert sorted(find.clean_text + score.clean_text) == sorted(f"{name} and" for name in names)
    assert task(path, model, split="find").clean_text == find.clean_text
    assert len(load_jsonl(path, model)) == len(lines)
    path.write_text(json.dumps(lines[0]))
    with pytest.raises(UsageError, match="has 1 clean prompts, and a split needs two"):
        load_jsonl(path, model, split="find")


@pytest.mark.real_model
def test_noise_of_the_two_splits_shares_nothing_but_how_it_begins(reader):
    def contexts(split, seed):
        return [one.context for keys in (1, 4) for one in key_samples(reader, 512, keys, 4, seed=seed, split=split)]

    find, score = contexts("find", 0), contexts("score", 1)
    known = opening(find + score)
    shared = set().union(*map(sixteen, find)) & set().union(*map(sixteen, score))
    assert shared <= known
    seen = set().union(*map(sixteen, contexts(None, 0)))
    drawn_alike = [len(sixteen(one) & seen) / len(sixteen(one)) for one in contexts(None, 1)]
    assert min(drawn_alike) > 0.3  # what two seeds of one split share


@pytest.mark.real_model
@pytest.mark.parametrize("kind", ["keys", "needles"])
def test_prose_around_keys_and_needles_is_of_other_documents(reader, kind):
    def prompts(split, seed):
        if kind == "keys":
            made = key_samples(reader, 1024, 2, 6, haystack="prose", seed=seed, split=split)
            return [sample.context for sample in made]
        return [one.tokens for one in needle_samples(reader, lengths=(1024,), n=2, seed=seed, split=split)]

    find, score = prompts("find", 0), prompts("score", 1)
    theirs = set().union(*map(sixteen, score)) - opening(find + score)
    shared = theirs & set().union(*map(sixteen, find))
    assert len(shared) < 0.003 * len(theirs)  # formulas of speeches, one quotation, and how a question is asked


@pytest.mark.real_model
def test_keys_and_needles_of_the_splits_are_others(reader):
    things, numbers = {}, {}
    for split in SPLITS:
        made = [one for seed in range(4) for one in key_samples(reader, 256, 1, 16, seed=seed, split=split)]
        things[split], numbers[split] = {one.thing for one in made}, {one.number for one in made}
        asked = {one.question for one in needle_samples(reader, lengths=(256,), n=2, split=split)}
        assert asked == {one.question for one in (NEEDLES if split == "find" else OTHER_NEEDLES)}
    assert len(things["find"]) == len(things["score"]) == 15
    assert not things["find"] & things["score"]
    assert not numbers["find"] & numbers["score"]
    assert not {one.question for one in NEEDLES} & {one.question for one in OTHER_NEEDLES}


@pytest.mark.real_model
def test_what_is_scored_is_of_the_other_split_than_what_is_found(smollm2):
    model = interp.deploy(smollm2)
    keys, text, tasks = Keys(1, 128, 4), Text("prose", 2, 64, 16), Tasks("capitals", "ioi", n=20)
    for one in (keys, text, tasks):
        one.prepare(model)
    assert {sample.split for sample in keys.samples} == {"score"}
    assert torch.equal(text.tokens, corpus("prose", smollm2, 2, 64, split="score"))
    assert [(one.name, len(one), one.split) for one in tasks.tasks] == [("capitals", 14, "score"), ("ioi", 20, "score")]
    found = interp.attention.head_reach(smollm2, length=96, window=16, n=1)
    assert found.settings["split"] == "find"
    given = interp.attention.head_reach(smollm2, keys.samples[:1], window=16)
    assert given.settings["split"] == "score"


def test_findings_on_a_shipped_corpus_are_of_one_split_and_on_given_tokens_of_all():
    model = tiny("llama")
    drawn = interp.attention.head_importance(model, "random", "ablation", n=2, length=8)
    whole = interp.attention.head_importance(model, "random", "ablation", n=2, length=8, split=None)
    assert (drawn.settings["split"], whole.settings["split"]) == ("find", None)
    assert (drawn.scores.values != whole.scores.values).any()
    tokens = corpus("random", model, 2, 8)
    given = interp.attention.head_importance(model, tokens, "ablation", n=2, length=8)
    assert given.settings["split"] is None
    assert (given.scores.values == whole.scores.values).all()
    assert interp.relevance.neuron_relevance(model, "random", n=2, length=8).settings["split"] == "find"
    assert interp.relevance.layer_redundancy(model, "random", n=2, length=8).settings["split"] == "find"
