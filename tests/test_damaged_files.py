"""Two hundred damaged files for each reader: each loads something that can be used, or is refused in one message."""

from __future__ import annotations

import functools
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import damages
from hypothesis import HealthCheck, given, settings
from test_results_findings import heads, one_of_each

from interp.errors import InterpError
from interp.features import (
    Dictionary,
    Gated,
    JumpReLU,
    Standard,
    TopK,
    cross_layer_transcoder,
    crosscoder,
    load_circuit_tracer,
    load_cross_layer,
    save_circuit_tracer,
    save_cross_layer,
    transcoder,
)
from interp.results import load, save, to_frame

SECONDS, MIB = 5, 256
"""What a file of a few kilobytes may take."""

Writer, Reader = Callable[[Path], Any], Callable[[Path], Any]
READERS: dict[str, tuple[Writer, Reader]] = {}
"""What writes an intact file or folder to a path, and what reads it and uses what it has read."""


def reads(name: str, write: Writer) -> Callable[[Reader], Reader]:
    def add(read: Reader) -> Reader:
        READERS[name] = write, read
        return read

    return add


# Dictionaries


def encoded(dictionary: Dictionary) -> None:
    assert dictionary(torch.ones(2, dictionary.d_in)).shape == (2, dictionary.d_out)


SAELENS = {
    "standard": Standard(3, 5),
    "topk": TopK(3, 5, k=2),
    "jumprelu": JumpReLU(3, 5, reads=None),
    "gated": Gated(3, 5),
    "transcoder": transcoder("mlp_in.0", "mlp_out.0", 3, 5, architecture="topk", k=2, skip=True),
    "crosscoder": crosscoder(["resid_post.0", "resid_post.1"], 3, 4, architecture="batch_topk", k=2),
    "cross-layer transcoder": cross_layer_transcoder(range(2), 3, 4),
}
for kind, made in SAELENS.items():
    write = functools.partial(Dictionary.save, made, model_name="toy", model_fingerprint="f" * 16)
    reads(f"{kind}, SAELens", write)(lambda path: encoded(Dictionary.load(path)))


for kind in ("topk", "jumprelu"):
    options = {"k": 2} if kind == "topk" else {}
    made = transcoder("mlp_in.0", "mlp_out.0", 3, 5, architecture=kind, skip=True, **options)
    reads(f"{kind}, circuit-tracer", functools.partial(save_circuit_tracer, made))(
        lambda path: encoded(load_circuit_tracer(path, "mlp_in.0", "mlp_out.0"))
    )


@reads("cross-layer transcoder, circuit-tracer", lambda path: save_cross_layer(SAELENS["cross-layer transcoder"], path))
def _(path):
    encoded(load_cross_layer(path))


# Results


def used(found: Any) -> None:
    """Looks at what was read as a user would, and writes it again."""
    assert str(found)
    found.to_frame()


for suffix in (".safetensors", ".json", ".nc"):
    reads(f"scores{suffix}", lambda path, suffix=suffix: save(heads(), path.with_suffix(suffix)))(
        lambda path, suffix=suffix: to_frame(load(path.with_suffix(suffix)))
    )
for finding in one_of_each():
    reads(type(finding).__name__, finding.save)(lambda path: used(load(path)))


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
