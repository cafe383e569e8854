"""Would the tests notice? Small wrong changes of the package, one at a time, each with the test that must fail.

``python tests/mutants.py`` makes every change of ``mutants.toml`` in a copy of the package and runs its test there;
``python tests/mutants.py kv_cache faithfulness`` those whose file, text or test has one of the words. It exits with 1
if a test passes in spite of its change, if a change's text no longer stands in the source exactly once, or if a test
can't be run or fails without any change.

What tests import besides the package is imported once; every test runs in a fork of that process.
"""

from __future__ import annotations

import compileall
import importlib
import os
import py_compile
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SEEN = ("interp", "tests", "data", "pyproject.toml")
"""What tests see of the repository."""
WARM = (
    *("pytest", "hypothesis", "torch", "transformers", "transformer_lens.model_bridge", "xarray", "pandas"),
    *("scipy.stats", "scipy.optimize", "plotly.graph_objects", "matplotlib.backends.backend_agg", "safetensors.torch"),
    *("transformers.models.llama.modeling_llama", "transformers.models.gpt2.modeling_gpt2", "typer", "rich", "tqdm"),
)
AT_ONCE, SECONDS = 2, 90
"""Tests at once, and what the test of one change may take."""


@dataclass(frozen=True)
class Mutant:
    """A change, and the test that must fail because of it.

    Args:
        file: Below the repository.
        old: What stands there, exactly once.
        new: What is put in its place.
        test: Its node id.
    """

    file: str
    old: str
    new: str
    test: str

    @property
    def source(self) -> str:
        """The file as it is."""
        return (ROOT / self.file).read_text(encoding="utf-8")

    def __str__(self) -> str:
        return f"{self.file}: {self.old.strip()!r} -> {self.new.strip()!r} ({self.test})"


@dataclass(frozen=True)
class Run:
    """Tests under way or done, with a change or without any.

    Args:
        mutant: The change.
        tests: Their node ids.
        place: The copy of the repository that they run in.
        began: When.
    """

    mutant: Mutant | None
    tests: Sequence[str]
    place: Path
    began: float


def main(words: Sequence[str]) -> int:
    listed = tomllib.loads((ROOT / "tests" / "mutants.toml").read_text(encoding="utf-8"))["mutant"]
    mutants = [one for one in (Mutant(**given) for given in listed) if not words or any(w in str(one) for w in words)]
    lost = [one for one in mutants if one.source.count(one.old) != 1]
    for one in lost:
        print(f"LOST, does not stand in the source exactly once: {one}")
    began = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in WARM:
        importlib.import_module(name)
    assert "interp" not in sys.modules, "every fork imports its own copy"
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        killed, healthy = run([one for one in mutants if one not in lost], Path(folder))
    print(f"killed {killed} of {len(mutants)} in {time.monotonic() - began:.0f} s")
    return 0 if healthy and killed == len(mutants) else 1


def run(mutants: Sequence[Mutant], folder: Path) -> tuple[int, bool]:
    """How many changes their tests notice, and whether all these tests pass without any."""
    first = copied(folder / "0")
    free = [first, *(Path(shutil.copytree(first, folder / str(number))) for number in range(1, AT_ONCE))]
    waiting: list[tuple[Mutant | None, Sequence[str]]] = [(one, [one.test]) for one in reversed(mutants)]
    waiting.append((None, sorted({one.test for one in mutants})))
    busy: dict[int, Run] = {}
    killed, healthy = 0, True
    while waiting or busy:
        while waiting and free:
            under_way = Run(*waiting.pop(), free.pop(), time.monotonic())
            if one := under_way.mutant:
                (under_way.place / one.file).write_text(one.source.replace(one.old, one.new), encoding="utf-8")
            busy[forked(under_way)] = under_way
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            done, code = busy.pop(pid), os.waitstatus_to_exitcode(status)
            free.append(done.place)
            said = done.place.with_suffix(".log").read_text(encoding="utf-8")
            if one := done.mutant:
                (done.place / one.file).write_text(one.source, encoding="utf-8")
                killed += code == 1
                if code != 1:
                    print(said, f"{'BROKEN, ends with ' + str(code) if code else 'SURVIVED'}: {one}", sep="\n")
            elif code:
                healthy = False
                print(said, f"BROKEN, without any change the tests end with {code}", sep="\n")
        for late, under_way in busy.items():
            if under_way.mutant and time.monotonic() - under_way.began > SECONDS:
                os.kill(late, signal.SIGKILL)
        time.sleep(0.02)
    return killed, healthy


def copied(place: Path) -> Path:
    """A copy of what tests see, compiled so that a changed file is told by its content."""
    for name in SEEN:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place / name)
    by_content = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(place / "interp", quiet=2, invalidation_mode=by_content)
    return place


def forked(wanted: Run) -> int:
    """Runs tests in a process of their own; returns its id. It ends with pytest's exit code: 1 where a test failed."""
    if pid := os.fork():
        return pid
    code = 3
    try:
        log = os.open(wanted.place.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        os.chdir(wanted.place)
        sys.path[:0] = [str(wanted.place)]
        sys.dont_write_bytecode = True
        import hypothesis
        import pytest

        import interp

        assert Path(interp.__file__).is_relative_to(wanted.place), interp.__file__
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]  # that one example fails is enough
        hypothesis.settings.register_profile("mutants", phases=phases, database=None)
        hypothesis.settings.load_profile("mutants")
        options = ["-o", "addopts=", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore"]
        code = pytest.main([*options, *wanted.tests])
    finally:
        sys.stdout.flush()
        os._exit(int(code))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
