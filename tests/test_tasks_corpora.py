"""Text to find on and text to score on: never the same documents."""

from __future__ import annotations

import json
import random

import pytest
import torch
from tiny_tokenizer import TokenizerOnly
from transformers import PreTrainedConfig

from interp.errors import UsageError
from interp.tasks import SPLITS, corpora, corpus, documents


class Reader(TokenizerOnly):
    """A tokenizer with a device and a vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.config = PreTrainedConfig(vocab_size=len(self.tokenizer))

    def parameters(self):
        return iter([torch.zeros(1)])


@pytest.fixture(scope="module")
def reader():
    return Reader()


TEXTS = ["".join(f"Document {n} tells of {n * n + line} things.\n" for line in range(40)) for n in range(9)]


def paragraphs(texts):
    lines = {" ".join(line.split()) for text in texts for line in text.splitlines()}
    return {line for line in lines if len(line.split()) >= 20}


@pytest.mark.parametrize("source", ["prose", "code", "dialogue"])
def test_the_halves_of_a_source_are_all_of_it_and_share_no_document(source):
    find, score = (documents(source, split) for split in SPLITS)
    assert find
    assert score
    assert sorted(find + score) == sorted(documents(source))
    assert not set(find) & set(score)
    assert not paragraphs(find) & paragraphs(score)
    assert abs(len(find) - len(score)) <= 1


def test_the_training_text_shares_no_paragraph_with_the_prose_that_ships():
    training, prose = documents("sotu"), documents("prose")
    assert len(training) > 200
    assert not set(training) & set(prose)
    assert not paragraphs(training) & paragraphs(prose)
    assert paragraphs(prose)


def test_a_speech_of_the_package_that_quotes_the_prose_is_left_out(tmp_path, monkeypatch):
    prose = documents("prose")
    quoted = next(line for line in prose[0].splitlines() if len(line.split()) >= 20)
    speeches = {
        "itself.txt": prose[3],
        "quotes.txt": f"Gentlemen:\n  {quoted}  \nThat is all.",
        "greets.txt": f"{prose[0].splitlines()[0]}\n\nWe have other things to say.",
    }
    folder = tmp_path / "texts" / "sotu"
    folder.mkdir(parents=True)
    for name, text in speeches.items():
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    assert documents("sotu") == [speeches["greets.txt"]]


def test_which_half_a_document_is_in_depends_on_no_order():
    turned = TEXTS[:]
    random.Random(1).shuffle(turned)
    for split in SPLITS:
        assert sorted(documents(turned, split)) == sorted(documents(TEXTS, split))


def test_a_document_that_is_there_twice_is_in_one_half():
    find, score = (documents([*TEXTS, *TEXTS[::-1]], split) for split in SPLITS)
    assert not set(find) & set(score)
    assert len(find) + len(score) == 2 * len(TEXTS)


def test_rows_of_one_half_come_from_its_documents_alone(reader, tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    for split, other in (SPLITS, SPLITS[::-1]):
        mine, theirs = "".join(documents(file, split)), "".join(documents(file, other))
        for seed in range(3):
            for row in corpus(file, reader, 8, 24, seed, split=split):
                text = reader.tokenizer.decode(row[1:])
                assert text in mine
                assert text not in theirs


def test_rows_of_token_ids_are_split_as_documents_are(reader):
    ids = torch.randint(100, (7, 12), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([ids, ids[:3]])
    find, score = (corpus(ids, reader, n, 12, split=split) for split, n in zip(SPLITS, (5, 4), strict=True))
    assert not {tuple(row) for row in find.tolist()} & {tuple(row) for row in score.tolist()}
    again = corpus(ids.flip(0), reader, 5, 12, split="find")
    assert sorted(again.tolist()) == sorted(find.tolist())


@pytest.mark.parametrize("kind", ["random", "repeated", "constant"])
def test_drawn_tokens_of_one_seed_differ_between_the_halves(reader, kind):
    rows = [corpus(kind, reader, 4, 32, 0, split=split) for split in (None, *SPLITS)]
    assert not any(torch.equal(a, b) for a, b in ((rows[0], rows[1]), (rows[0], rows[2]), (rows[1], rows[2])))
    assert torch.equal(rows[2], corpus(kind, reader, 4, 32, 0, split="score"))


@pytest.mark.parametrize(
    ("source", "split", "says"),
    [
        ("prose", "test", "unknown split 'test'"),
        ("random", "test", "unknown split 'test'"),
        (["one text only"], "find", "needs two documents, and the list has 1"),
        (["the same", "the same"], "score", "needs two documents, and the list has 1"),
    ],
)
def test_a_split_that_can_not_be_made_is_refused(reader, source, split, says):
    with pytest.raises(UsageError, match=says):
        corpus(source, reader, 1, 8, split=split)


def test_a_file_of_one_text_can_not_be_split(reader, tmp_path):
    file = tmp_path / "one.txt"
    file.write_text(TEXTS[0], encoding="utf-8")
    with pytest.raises(UsageError, match=r"one.txt' has 1; give a .jsonl file"):
        corpus(str(file), reader, 1, 8, split="find")
    assert corpora.documents(file) == [TEXTS[0]]


def test_token_ids_are_taken_whole_unless_fewer_are_asked_for(reader):
    ids = torch.randint(0, len(reader.tokenizer), (19, 33), generator=torch.Generator().manual_seed(0))
    assert torch.equal(corpus(ids, reader), ids)
    assert torch.equal(corpus(ids, reader, 4), ids[:4])
    assert torch.equal(corpus(ids, reader, length=7), ids[:, :7])
    assert len(corpus(ids, reader, split="find")) + len(corpus(ids, reader, split="score")) == 19
    assert corpus("random", reader).shape == (16, 256)


@pytest.mark.parametrize("wrong", [-1, 10_000])
def test_token_ids_that_the_model_does_not_have_are_refused(reader, wrong):
    with pytest.raises(UsageError, match="token ids must be 0 to"):
        corpus(torch.tensor([[5, wrong], [6, 7]]), reader)
