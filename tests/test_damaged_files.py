"""Two hundred damaged files for each reader: each loads something that can be used, or is refused in one message."""

from __future__ import annotations

import functools
import resource
import shutil
import time
from pathlib import Path

import pytest
from damage import damages
from hypothesis import HealthCheck, given, settings
from readers import READERS

from interp.errors import InterpError

SECONDS, MIB = 5, 256
"""What a file of a few kilobytes may take."""


@functools.cache
def intact(name: str, folder: Path) -> dict[str, bytes]:
    """The files of a reader's intact example, by their names below `folder`."""
    folder.mkdir()
    READERS[name][0](folder / "it")
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", READERS)
def test_an_intact_file_is_read(name, tmp_path):
    intact(name, tmp_path / "intact")
    READERS[name][1](tmp_path / "intact" / "it")


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_refused_in_one_message_or_read(name, tmp_path):
    files = intact(name, tmp_path / "intact")

    @settings(
        max_examples=200,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damages)
    def check(changes):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        now = files
        for change in changes:
            now = change.apply(now)
        for at, data in now.items():
            (folder / at).parent.mkdir(exist_ok=True)
            (folder / at).write_bytes(data)
        began, most = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            READERS[name][1](folder / "it")
        except InterpError as error:
            message = str(error)
            assert 10 < len(message) < 2000
            assert "Error:" not in message
        assert time.process_time() - began < SECONDS
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < MIB * 1024

    check()
