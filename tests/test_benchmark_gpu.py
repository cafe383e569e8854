"""The benchmark for accelerators, tried on the processor: rows that fail are told and not raised."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch

_path = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
_spec = importlib.util.spec_from_file_location("benchmark_gpu", _path)
gpu = importlib.util.module_from_spec(_spec)


@pytest.fixture(scope="module", autouse=True)
def _loaded():
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(sys.modules, "benchmark_gpu", gpu)
        _spec.loader.exec_module(gpu)
        yield


@pytest.mark.filterwarnings("ignore")
def test_every_row_is_measured(tmp_path, capsys):
    told = gpu.main(["small", "--device", "cpu", "--out", str(tmp_path / "gpu.json")])
    assert not {name: row for name, row in told.items() if "failed" in row or "left out" in row}
    assert {re.split(r"[ ,]", name)[0] for name in told} >= {"patching", "attribution", "eap-ig", "topk", "weights"}
    printed = capsys.readouterr().out
    assert all(f"{name} " in printed for name in told)
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == told


def test_a_row_that_fails_says_why_and_the_next_ones_are_measured(monkeypatch, capsys):
    lab = gpu.Lab(gpu.SIZES["small"], torch.device("cpu"))

    def fails():
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "rows", lambda lab: {"first": fails, "second": lambda: "fine"})
    told = gpu.measured(lab, [], minutes=1)
    assert told["first"].startswith("failed: RuntimeError: out of memory (test_benchmark_gpu.py:")
    assert told["second"] == "fine"
    assert gpu.measured(lab, ["sec"], minutes=-1) == {"second": "left out, the time is up"}
    assert capsys.readouterr().out.count("first") == 1
