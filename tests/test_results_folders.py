"""Several files are replaced together or not at all, whenever the process is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from killing import assert_old_or_new, files, killed_at

from interp.errors import InterpError
from interp.results.files import replacing, staging, write_text
from interp.results.folders import settle, together

NAMES = ("a.json", "b.bin", "deep/c.txt")


def write(folder, text, names=NAMES, instead_of=()):
    with together(folder, instead_of) as aside:
        for name in names:
            write_text(aside / name, f"{text} {name}")


def read(folder, names=NAMES):
    settle(folder)
    return {name: (folder / name).read_text() if (folder / name).exists() else None for name in names}


def test_killed_before_any_change_all_files_are_old_or_all_are_new(tmp_path):
    folder = tmp_path / "out"
    kills = assert_old_or_new(folder, lambda: write(folder, "old"), lambda: write(folder, "new"), lambda: read(folder))
    assert kills > 8


def test_a_file_that_the_new_set_does_not_have_goes_with_the_old_one(tmp_path):
    folder = tmp_path / "out"

    def new():
        write(folder, "new", NAMES[:1], instead_of=NAMES)

    assert_old_or_new(folder, lambda: write(folder, "old"), new, lambda: read(folder))
    assert files(folder) == ["a.json", "deep"]


def test_one_file_is_old_or_new(tmp_path):
    path = tmp_path / "out" / "x.json"
    assert_old_or_new(
        path.parent, lambda: write_text(path, "old"), lambda: write_text(path, "new"), lambda: path.read_text()
    )


def test_a_first_set_is_there_whole_or_not_at_all(tmp_path):
    step, seen, folder = 1, set(), tmp_path / "out"
    while killed_at(step, lambda: write(folder, "new"), tmp_path):
        found = read(folder)
        assert len({value is None for value in found.values()}) == 1, "half a set"
        seen.add(found["a.json"] is None)
        shutil.rmtree(folder, ignore_errors=True)
        step += 1
    assert seen == {True, False}


def test_other_files_in_the_folder_stay(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "deep" / "mine.txt").write_text("mine")
    write(tmp_path, "new", instead_of=[*NAMES, "gone.txt"])
    assert files(tmp_path) == ["a.json", "b.bin", "deep", "deep/c.txt", "deep/mine.txt", "mine.txt"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError, OSError])
def test_a_block_that_raises_changes_nothing(tmp_path, stop):
    def stopped():
        with together(tmp_path) as aside:
            (aside / "a.json").write_text("new")
            raise stop("stopped")

    write(tmp_path, "old")
    with pytest.raises(InterpError if stop is OSError else stop):
        stopped()
    assert read(tmp_path)["a.json"] == "old a.json"
    assert files(tmp_path) == ["a.json", "b.bin", "deep", "deep/c.txt"]


def test_a_set_inside_a_set_is_part_of_it(tmp_path):
    def stopped():
        with together(tmp_path) as aside:
            write(aside, "new")
            with replacing(aside / "d.txt") as inner:
                inner.write_text("new")
            raise RuntimeError

    write(tmp_path, "old")
    with pytest.raises(RuntimeError):
        stopped()
    assert read(tmp_path, (*NAMES, "d.txt")) == {**{name: f"old {name}" for name in NAMES}, "d.txt": None}


def test_what_a_killed_process_left_is_cleared_and_what_a_living_one_writes_is_not(tmp_path):
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom interp.results.files import staging\n"
        f"with staging(Path({str(tmp_path)!r})) as aside:\n"
        "    (aside / 'part').write_text('x' * 1000)\n    print(aside.name, flush=True)\n    time.sleep(60)\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    dead, living = (child.stdout.readline().strip() for child in children)
    try:
        children[0].kill()
        children[0].wait()
        write_text(tmp_path / "x.txt", "x")
        assert files(tmp_path) == [living, f"{living}/part", "x.txt"]
        assert dead != living
    finally:
        children[1].send_signal(signal.SIGINT)
        children[1].wait()
    assert files(tmp_path) == ["x.txt"]


def _again_and_again(folder, text, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        write(folder, text)


def test_two_that_write_at_once_leave_the_files_of_one(tmp_path):
    context = multiprocessing.get_context("fork")
    many = [context.Process(target=_again_and_again, args=(tmp_path, f"{n}", 2.0)) for n in range(3)]
    for one in many:
        one.start()
    for one in many:
        one.join(60)
        assert one.exitcode == 0
    found = read(tmp_path)
    assert len({text.split()[0] for text in found.values()}) == 1, found
    assert files(tmp_path) == ["a.json", "b.bin", "deep", "deep/c.txt"]


def test_new_files_that_cannot_be_put_in_place_are_refused_by_name(tmp_path, monkeypatch):
    write(tmp_path, "old")
    real = os.replace

    def once(source, target):
        if str(target).endswith("b.bin"):
            raise PermissionError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(InterpError, match=r"Permission denied"):
        write(tmp_path, "new")
    with pytest.raises(InterpError, match=r"was being replaced when that was interrupted.*Permission denied"):
        settle(tmp_path)
    monkeypatch.undo()
    assert read(tmp_path) == {name: f"new {name}" for name in NAMES}


def test_nothing_leads_out_of_the_folder(tmp_path):
    folder, outside = tmp_path / "obtained", tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.txt").write_text("mine")
    whole = folder / ".interp-whole"
    whole.mkdir(parents=True)
    for names in (["../outside/mine.txt"], [str(outside / "mine.txt")], [".."], [1], 1):
        (whole / ".gone.json").write_text(json.dumps(names))
        with pytest.raises(InterpError):
            settle(folder)
    (whole / ".gone.json").unlink()
    (whole / "link").mkdir()
    (whole / "link" / "mine.txt").write_text("theirs")
    (folder / "link").symlink_to(outside)
    with pytest.raises(InterpError, match="leads out of"):
        settle(folder)
    (whole / "link" / "mine.txt").unlink()
    (whole / "link").rmdir()
    whole.rmdir()
    whole.symlink_to(outside)
    with pytest.raises(InterpError, match="is a link"):
        settle(folder)
    assert files(outside) == ["mine.txt"]
    assert (outside / "mine.txt").read_text() == "mine"


def test_a_folder_in_the_place_of_a_file_is_named_and_nothing_is_changed(tmp_path):
    write(tmp_path, "old")
    (tmp_path / "d.txt").mkdir()
    with pytest.raises(InterpError, match=r"d\.txt: it is a folder"):
        write(tmp_path, "new", (*NAMES, "d.txt"))
    assert read(tmp_path)["a.json"] == "old a.json"


def test_a_folder_left_empty_is_not_cleared_while_it_is_in_use(tmp_path):
    with staging(tmp_path) as one, staging(tmp_path) as other:
        assert one.is_dir()
        assert other.is_dir()
        assert one != other
    assert files(tmp_path) == []
