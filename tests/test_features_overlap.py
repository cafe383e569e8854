"""A dictionary knows the text that it was trained on, and judging says how much of its own text that is."""

from __future__ import annotations

import json
import random
import warnings

import numpy as np
import pytest
import torch
from families import tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from interp.errors import InterpError, UsageError
from interp.features import Dictionary, TopK, crosscoder, dark_matter, finetune, harvest, judge, train
from interp.features.judging.judge import halves
from interp.features.overlap import STRETCH, TextSketch, sketch
from interp.features.place import Place
from interp.tasks import documents

PLACE = Place("resid_post", 1)


def ids(n, length, seed, largest=40):
    return torch.randint(4, largest, (n, length), generator=torch.Generator().manual_seed(seed))


def sketched(tokens, source="a text"):
    rows = np.repeat(np.arange(len(tokens)), tokens.shape[1])
    return sketch([(tokens.numpy().ravel(), rows)], source)


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


TRAINED_ON, OTHER = ids(12, 24, 0), ids(12, 24, 1)


@pytest.fixture
def trained(model, tmp_path):
    """On token ids, from a store on disk."""
    store = harvest(model, PLACE, TRAINED_ON, directory=tmp_path / "activations")
    dictionary = TopK(32, 64, k=4, reads=PLACE)
    train(dictionary, store.batches(32, epochs=None), 4, directory=tmp_path / "sae")
    return dictionary


def test_the_share_of_a_text_that_a_sketch_knows_is_the_share_that_is_there():
    text = sketched(TRAINED_ON)
    assert text.share(TRAINED_ON) == 1
    assert text.share(OTHER) == 0
    assert text.share(torch.cat([TRAINED_ON[:3], OTHER[:9]])) == 0.25
    assert text.share(TRAINED_ON[:, 5:20]) == 1
    assert text.share(TRAINED_ON[:, : STRETCH - 1]) is None


def test_a_stretch_does_not_cross_rows():
    text = sketched(TRAINED_ON)
    joined = torch.cat([TRAINED_ON[:-1, -6:], TRAINED_ON[1:, :7]], 1)  # neighbours end to end
    assert text.share(joined) == 0


def test_one_token_more_or_less_or_in_another_place_is_another_stretch():
    row = torch.arange(4, 4 + STRETCH)[None]
    text = sketched(row)
    for at in range(STRETCH):
        changed = row.clone()
        changed[0, at] += 1
        assert text.share(changed) == 0
    assert text.share(row.flip(1)) == 0


def test_of_a_long_text_a_sample_estimates_the_share():
    long = ids(2000, 256, 2, largest=50_000)
    text = sketched(long)
    assert len(text.hashes) == 1 << 15
    mixed = torch.cat([long[100:140], ids(60, 256, 3, largest=50_000)])
    assert text.share(mixed) == pytest.approx(0.4, abs=0.06)  # three standard errors of 1,700 stretches
    assert text.share(ids(60, 256, 3, largest=50_000)) == 0


def test_a_text_in_pieces_and_a_union_are_the_whole():
    whole = sketched(torch.cat([TRAINED_ON, OTHER]))
    union = sketched(TRAINED_ON, "one") | sketched(OTHER, "other")
    assert np.array_equal(whole.hashes, union.hashes)
    assert union.source == "one + other"
    assert (union | sketched(OTHER, "other")).source == "one + other"


def test_training_writes_model_and_text_into_the_dictionary_and_its_files(model, trained, tmp_path):
    for dictionary in (trained, Dictionary.load(tmp_path / "sae")):
        assert dictionary.model is not None
        assert dictionary.text is not None
        assert dictionary.text.source == "token ids of 12"
        assert dictionary.text.share(TRAINED_ON) == 1
        assert dictionary.text.share(OTHER) == 0
    about = json.loads((tmp_path / "sae" / "cfg.json").read_text())["metadata"]
    assert about["dataset_path"] == "token ids of 12"
    assert set(load_file(tmp_path / "sae" / "sae_weights.safetensors")) == {"W_enc", "W_dec", "b_enc", "b_dec"}


def test_a_stream_and_a_dictionary_of_several_places_know_their_text(model, tmp_path):
    places = [Place("resid_post", layer) for layer in (0, 1)]
    stream = harvest(model, places, TRAINED_ON)
    dictionary = crosscoder(places, 32, 48, architecture="topk", k=4)
    train(dictionary, stream.batches(32, places, epochs=None), 2)
    dictionary.save(tmp_path)
    loaded = Dictionary.load(tmp_path)
    assert loaded.text is not None
    assert loaded.text.share(TRAINED_ON) == 1


def test_judging_on_the_training_text_says_so(model, trained):
    with pytest.warns(UserWarning, match=r"100% of this text stands in the text that the dictionary was trained on"):
        report = judge(model, trained, TRAINED_ON)
    assert report.scores.attrs["overlap"] == 1
    assert "of which 100.0% was trained on" in report.summary()
    with pytest.warns(UserWarning, match=r"100% of this text"):
        assert dark_matter(model, trained, ids(12, 24, 0).repeat(4, 1)).attrs["overlap"] == 1


def test_judging_on_other_text_says_so_without_a_warning(model, trained):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = judge(model, trained, OTHER)
    assert report.scores.attrs["overlap"] == 0
    trained.text = None
    report = judge(model, trained, TRAINED_ON)
    assert report.scores.attrs["overlap"] is None
    assert "of unknown training text" in report.summary()


def test_what_a_dictionary_is_finetuned_on_counts_too(model, trained):
    finetune(model, trained, OTHER, 2)
    assert trained.text.share(torch.cat([TRAINED_ON, OTHER])) == 1


def test_texts_to_judge_on_share_no_document_with_those_to_fit_on(model):
    draw, words = random.Random(0), [f"t{i}" for i in (*range(4, 10), *range(40, 50))]
    texts = ["\n".join(draw.choices(words, k=60)) for _ in range(9)]
    decode = model.tokenizer.decode
    for seed in range(3):
        rows, begin = halves(texts, model, 8, 12, seed, 0.25)
        assert begin == 2
        for split, some in (("find", rows[:begin]), ("score", rows[begin:])):
            there = [" ".join(text.split()) for text in documents(texts, split)]
            assert all(any(decode(row[1:]) in text for text in there) for row in some)
            assert len(some)


def test_what_is_trained_on_one_half_is_judged_on_the_other(model, tmp_path):
    draw, words = random.Random(0), [f"t{i}" for i in (*range(4, 10), *range(40, 50))]
    texts = ["\n".join(draw.choices(words, k=60)) for _ in range(12)]
    dictionary = TopK(32, 64, k=4, reads=PLACE)
    stream = harvest(model, PLACE, texts, 200, 32, split="find")
    train(dictionary, stream.batches(32, epochs=None), 2)
    assert dictionary.text is not None
    assert dictionary.text.source == "list of 12, find"
    report = judge(model, dictionary, texts, 6, 24)
    assert report.scores.attrs["overlap"] == 0
    with pytest.warns(UserWarning, match="stands in the text"):
        judge(model, dictionary, documents(texts, "find"), 6, 24)


@pytest.mark.parametrize("source", [TRAINED_ON, [{"text": "t4 t5"}] * 3, iter(["t4 t5", "t6 t7"])])
def test_only_texts_are_split(model, source):
    with pytest.raises(UsageError, match="takes one half of a corpus, a file or a list of texts, not of"):
        harvest(model, PLACE, source, 4, 8, split="find")


def test_one_document_is_halved_by_rows(model):
    text = "\n".join(" ".join(f"t{4 + (line * 3 + word) % 40}" for word in range(20)) for line in range(30))
    rows, begin = halves([text], model, 6, 12, 0, 0.5)
    assert (len(rows), begin) == (6, 3)


@pytest.mark.parametrize(
    "said", ["", "[]", "{}", '{"source": "a", "hashes": "%%%"}', '{"source": "a", "hashes": "AAAA"}']
)
def test_a_damaged_sketch_is_refused_by_the_name_of_its_file(said, trained, tmp_path):
    path = tmp_path / "sae" / "sae_weights.safetensors"
    save_file(load_file(path), path, {"interp.training_text": said})
    with pytest.raises(InterpError, match=r"sae_weights\.safetensors is cut short, damaged or of another kind"):
        Dictionary.load(tmp_path / "sae")


def test_hashes_out_of_order_are_refused():
    backwards = TextSketch(np.array([3, 2, 1], np.uint64), "a")
    with pytest.raises(InterpError, match="damaged"):
        TextSketch.loaded(backwards.dumped(), "a file")


def test_a_sketch_is_small_and_says_its_source(trained, tmp_path):
    with safe_open(tmp_path / "sae" / "sae_weights.safetensors", framework="pt") as file:
        said = json.loads(file.metadata()["interp.training_text"])
    assert said["source"] == "token ids of 12"
    full = TextSketch(np.arange(1 << 15, dtype=np.uint64), "x")
    assert len(full.dumped()) < 400_000
