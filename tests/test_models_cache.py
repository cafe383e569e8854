"""The cache holds complete models or none, whoever else writes and whatever is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from killing import killed_at

from interp.errors import InterpError
from interp.models.cache import cache_root, is_complete, model_directory, obtain, verify


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(into: Path) -> dict[str, str]:
    (into / "config.json").write_text("{}")
    (into / "model.safetensors").write_bytes(b"0123456789")
    return {"model": "m"}


def start(body: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(body)], env=os.environ.copy())


def test_environment_variable_names_the_cache(cache):
    assert cache_root() == cache
    assert model_directory("m") == cache / "models" / "m"


def test_second_use_does_not_build_again():
    directory = obtain("m", build)
    assert (directory / "model.safetensors").read_bytes() == b"0123456789"
    assert obtain("m", lambda into: pytest.fail("built twice")) == directory


def test_force_replaces_what_is_there():
    directory = obtain("m", build)
    (directory / "config.json").write_text("damaged")
    assert obtain("m", build, force=True) == directory
    assert (directory / "config.json").read_text() == "{}"
    assert [path.name for path in directory.parent.iterdir() if ".partial" in path.name] == []


def test_failed_build_leaves_nothing_and_the_next_one_succeeds():
    def broken(into: Path) -> dict[str, str]:
        (into / "model.safetensors").write_bytes(b"01234")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        obtain("m", broken)
    assert not model_directory("m").exists()
    assert not list(model_directory("m").parent.glob(".m.partial-*"))
    assert is_complete(obtain("m", build))


def test_failed_forced_build_keeps_the_old_model():
    directory = obtain("m", build)

    def broken(into: Path) -> dict[str, str]:
        raise InterpError("no network")

    with pytest.raises(InterpError, match="no network"):
        obtain("m", broken, force=True)
    verify(directory, "fix")


def test_killed_conversion_is_redone_and_its_remains_removed(cache, tmp_path):
    process = start(f"""
        import time
        from pathlib import Path
        from interp.models.cache import obtain
        def build(into):
            (into / "model.safetensors").write_bytes(b"half")
            Path({str(tmp_path / "begun")!r}).touch()
            time.sleep(60)
        obtain("m", build)
    """)
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((cache / "models").glob(".m.partial-*"))
    assert not is_complete(model_directory("m"))

    directory = obtain("m", build)

    assert (directory / "model.safetensors").read_bytes() == b"0123456789"
    assert not list((cache / "models").glob(".m.partial-*"))


def test_killed_while_a_model_is_replaced_the_old_or_the_new_one_is_there(cache):
    def built(text):
        return lambda into: (into / "config.json").write_text(text) and {"model": text}

    step, seen = 1, []
    obtain("m", built("old"))
    while killed_at(step, lambda: obtain("m", built("new"), force=True), cache):
        directory = obtain("m", lambda into: pytest.fail("both were lost"))
        verify(directory, "")
        seen.append((directory / "config.json").read_text())
        obtain("m", built("old"), force=True)
        assert not list(directory.parent.glob(".m.partial-*"))
        step += 1
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {"old", "new"}


def test_two_processes_on_a_first_use_build_once_and_see_the_same_files(tmp_path):
    log = tmp_path / "log"
    body = f"""
        import os, time
        from interp.models.cache import obtain, verify
        def build(into):
            with open({str(log)!r}, "a") as file:
                file.write("built\\n")
            (into / "model.safetensors").write_bytes(b"01234")
            time.sleep(0.5)
            with open(into / "model.safetensors", "ab") as file:
                file.write(b"56789")
            return {{}}
        directory = obtain("m", build)
        verify(directory, "fix")
        assert (directory / "model.safetensors").read_bytes() == b"0123456789"
    """
    processes = [start(body) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert log.read_text() == "built\n"


def test_directory_without_a_manifest_is_never_used():
    model_directory("m").mkdir(parents=True)
    (model_directory("m") / "model.safetensors").write_bytes(b"half")
    assert (obtain("m", build) / "model.safetensors").read_bytes() == b"0123456789"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "model.safetensors is missing; run FIX"),
        (lambda path: path.write_bytes(b"01234"), "model.safetensors is damaged: 5 bytes where 10 .*; run FIX"),
        (lambda path: path.write_bytes(b"0123x56789"), "model.safetensors is damaged: its SHA-256 .*; run FIX"),
    ],
    ids=["missing", "truncated", "changed"],
)
def test_damaged_file_is_named_with_the_fix(damage, message):
    directory = obtain("m", build)
    verify(directory, "run FIX")
    damage(directory / "model.safetensors")
    with pytest.raises(InterpError, match=message):
        verify(directory, "run FIX")


def test_unwritable_cache_is_one_message(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "file"))
    with pytest.raises(InterpError, match="set INTERP_CACHE"):
        obtain("m", build)
