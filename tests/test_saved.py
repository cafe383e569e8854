"""Everything that is saved comes back through one load, whole or not at all, and by name when it can't."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from families import tiny
from killing import assert_old_or_new
from saved import KINDS, content

import interp
from interp.errors import InterpError, UsageError
from interp.features import harvest
from interp.results.files import write_text
from interp.results.loading import READERS

OF_SEVERAL_FILES = [
    "finding", "model", "trade-off", "dictionary", "crosscoder", "readings",
    "circuit-tracer's cross-layer transcoder",
]  # fmt: skip


def read(path):
    return content(interp.results.load(path))


@pytest.mark.parametrize("name", KINDS)
def test_what_was_saved_comes_back_through_the_one_load(tmp_path, name):
    kind = KINDS[name]
    made = kind.make(0)
    path = kind.save(made, tmp_path / "out")
    found = interp.results.load(path)
    assert type(found) is type(made)
    assert content(kind.keeps(found)) == content(kind.keeps(made))
    assert content(kind.keeps(kind.make(1))) != content(kind.keeps(made)), "else the comparison compares nothing"
    again = interp.results.load(tmp_path / "out")
    assert content(again) == content(found), "the folder is read as what it holds"


def test_a_store_of_activations_comes_back(tmp_path):
    model, tokens = tiny("llama"), torch.randint(4, 40, (4, 8), generator=torch.Generator().manual_seed(0))
    made = harvest(model, "resid_post.1", tokens, length=8, directory=tmp_path / "acts", shard_tokens=16)
    assert content(interp.results.load(tmp_path / "acts", model)) == content(made)
    with pytest.raises(UsageError, match="its weights are others"):
        interp.results.load(tmp_path / "acts", "f" * 16)


def test_there_is_one_of_everything_that_can_be_read():
    assert {kind.reader for kind in KINDS.values()} | {"interp.activations/1"} == set(READERS)


@pytest.fixture
def _small_pictures(monkeypatch):
    """Pictures that take no time to draw, where they are written again and again."""
    monkeypatch.setattr(interp.efficiency.Tradeoff, "picture", lambda *_: None)
    monkeypatch.setattr(interp.plots, "save", lambda picture, path: write_text(path, "picture"))


@pytest.mark.usefixtures("_small_pictures")
@pytest.mark.parametrize("name", OF_SEVERAL_FILES)
def test_a_folder_is_old_or_new_whenever_its_writer_is_killed(tmp_path, name):
    kind, folder = KINDS[name], tmp_path / "out"
    old, new = kind.make(0), kind.make(1)
    assert_old_or_new(folder, lambda: kind.save(old, folder), lambda: kind.save(new, folder), lambda: read(folder))


@pytest.mark.usefixtures("_small_pictures")
@pytest.mark.parametrize("name", OF_SEVERAL_FILES)
def test_a_mixture_is_refused_by_name(tmp_path, name):
    """Whichever of the files that are read is another one's, what is loaded is the one, the other, or nothing."""
    kind = KINDS[name]
    for at, folder in enumerate(("old", "new")):
        kind.save(kind.make(at), tmp_path / folder)
    whole = [read(tmp_path / folder) for folder in ("old", "new")]
    refused = 0
    for file in sorted(path.name for path in (tmp_path / "old").iterdir()):
        if not (tmp_path / "new" / file).exists():
            continue
        shutil.rmtree(tmp_path / "mixed", ignore_errors=True)
        shutil.copytree(tmp_path / "old", tmp_path / "mixed")
        shutil.copy(tmp_path / "new" / file, tmp_path / "mixed" / file)
        found, error = _tried(tmp_path / "mixed")
        assert found in whole or str(tmp_path / "mixed") in error, f"a mixture with the new {file}"
        refused += bool(error)
    assert refused >= (0 if name == "trade-off" else 2)


def test_transcoders_of_two_models_are_no_set(tmp_path):
    for layer, dictionary in KINDS["transcoders"].make(0).items():
        dictionary.model = ("small", str(layer) * 16)
        dictionary.save(tmp_path / f"layer_{layer}")
    with pytest.raises(InterpError, match=r"two models: layer_0 is of small with the fingerprint 0{16}, layer_2"):
        interp.results.load(tmp_path)


def _tried(path):
    try:
        return read(path), ""
    except InterpError as error:
        return None, str(error)


def _written(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, dict) and path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file({name: np.zeros(2) for name in data["names"]}, path, data.get("about"))
    else:
        path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


REFUSED = {
    "x.json": ({"a": 1}, "does not say what it is, and is nothing that this program has written: it has a"),
    "list.json": ([1, 2], "list.json is cut short, damaged or of another kind: .* an object is needed"),
    "cut.json": ('{"a": 1', "cut.json is cut short, damaged or of another kind: no JSON"),
    "newer.json": ({"format": "interp.circuit/9"}, "format 'interp.circuit/9', this version reads 'interp.circuit/1'"),
    "theirs.json": ({"format": "other/1"}, "is of the format 'other/1', which this program does not write"),
    "number.json": ({"format": 3}, "does not say what it is"),
    "cut.safetensors": ("abc", "cut.safetensors is cut short, damaged or not of this program"),
    "x.safetensors": ({"names": ["b", "a"]}, "does not say what it is: it has a, b"),
    "W.safetensors": ({"names": ["W_enc"]}, r"load_circuit_tracer\(path, reads, writes\)"),
    "run.safetensors": ({"names": ["a"], "about": {"checkpoint": "{}"}}, "checkpoint of a training run"),
    "sweep.safetensors": ({"names": ["values"], "about": {"identity": "1"}}, "the same sweep goes on from it"),
    "odd.safetensors": ({"names": ["values"], "about": {"interp": "[]"}}, "is cut short, damaged or not of this"),
    "x.csv": ("a,b", "neither the attributes nor the types"),
    "x.png": ("", "it is a picture"),
    "x.html": ("", "it is a page"),
    "x.pt": ("", "a pickle, which this program never opens"),
    "x.graphml": ("", "GraphML is for other programs"),
    "x.gguf": ("", r"interp\.load\(path, \.\.\.\)"),
    "x.jsonl": ("", r"interp\.task\(path, model\)"),
    "x.jsn": ("", "unknown file format '.jsn'; did you mean '.json'"),
    "model/config.json": ({"model_type": "llama"}, r"a model without plans; interp\.load\(path\)"),
    "notes/x.txt": ("", "holds nothing that this program has written"),
    "many/finding.json": ({"format": "interp.finding/1"}, "damaged"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_named_with_the_reason(tmp_path, name):
    data, says = REFUSED[name]
    path = _written(tmp_path / name, data)
    with pytest.raises(InterpError, match=says) as caught:
        interp.results.load(path.parent if "/" in name else path)
    assert str(tmp_path / name.partition("/")[0]) in str(caught.value) or "unknown" in says


def test_a_folder_with_several_things_names_them(tmp_path):
    for name in ("circuit", "plan"):
        KINDS[name].save(KINDS[name].make(0), tmp_path)
    with pytest.raises(UsageError, match=r"holds several things; load one of them: circuit\.json, plan\.json"):
        interp.results.load(tmp_path)
    for name in ("finding", "readings"):
        KINDS[name].save(KINDS[name].make(0), tmp_path / name)
    shutil.move(tmp_path / "circuit.json", tmp_path / "one.json")
    shutil.move(tmp_path / "plan.json", tmp_path / "other.json")
    with pytest.raises(UsageError, match=r"nothing that this program writes; load one of: one\.json, other\.json"):
        interp.results.load(tmp_path)
    (tmp_path / "one.json").unlink()
    (tmp_path / "other.json").unlink()
    with pytest.raises(UsageError, match="load one of: finding, readings"):
        interp.results.load(tmp_path)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(InterpError, match=r"gone\.json does not exist"):
        interp.results.load(tmp_path / "gone.json")
    with pytest.raises(InterpError, match=r"gone\.safetensors does not exist"):
        interp.results.load(tmp_path / "gone")


@pytest.mark.parametrize("name", ["scores", "finding", "circuit", "plan", "model", "trade-off", "dictionary"])
def test_what_is_about_another_model_is_refused_unless_asked_for(tmp_path, name):
    kind = KINDS[name]
    path = kind.save(kind.make(0), tmp_path / "out")
    with pytest.raises(UsageError, match=r"its weights are others.*any_model=True"):
        interp.results.load(path, "0" * 16)
    assert content(interp.results.load(path, "0" * 16, any_model=True)) == read(path)
    model = tiny("llama")
    if name in ("plan", "model", "trade-off"):
        assert content(interp.results.load(path, interp.deploy(model))) == read(path)
        assert content(interp.results.load(path, model)) == read(path)
    else:
        assert content(interp.results.load(path, "f" * 16)) == read(path)
