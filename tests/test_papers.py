"""The register of papers: what it names exists, what it runs parses, and each row has its control and its reason."""

from __future__ import annotations

import argparse
import doctest
import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from functools import cache
from importlib.resources import files
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
from command_line import command
from typer.main import get_command

import interp.papers as register
from interp.attention.detectors import DETECTORS
from interp.circuits.methods import METHODS as CIRCUITS
from interp.cli import app
from interp.cli import papers as commands
from interp.efficiency import METHODS as CHEAPER
from interp.errors import InterpError, UsageError
from interp.papers import FAMILIES, OUT, UNMEASURED, VERDICTS, Paper, page, paper, papers
from interp.patching.methods import METHODS as ESTIMATES
from interp.tasks import names as tasks

ROOT = Path(__file__).parents[1]
EVERY = papers()
STEPS = [pytest.param(step, id=f"{one.key}-{i}") for one in EVERY for i, step in enumerate(one.steps)]
NUMBER = re.compile(r"-?[\d.]+")


@cache
def cited() -> set[str]:
    """The numbers on arXiv in the package's sources."""
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "interp").rglob("*.py"))
    return {number for source in sources for number in re.findall(r"\b\d{4}\.\d{4,5}\b", source)}


@pytest.fixture(params=EVERY, ids=lambda one: one.key)
def one(request) -> Paper:
    return request.param


def test_what_implements_a_paper_is_public(one):
    assert one.names
    for name in one.names:
        package, _, attribute = name.rpartition(".")
        assert package.startswith("interp.")
        module = importlib.import_module(package)
        assert attribute in module.__all__, f"{package} does not offer {attribute}"
        assert getattr(module, attribute) is not None


def test_a_row_has_a_control_or_says_why_it_has_none_and_a_reason_for_its_verdict(one):
    for field in fields(Paper):
        if field.name not in ("arxiv", "command"):
            assert getattr(one, field.name), f"{one.key} has no {field.name}"
    if one.control.startswith("none"):
        assert re.match(r"none\b[^:]*: \w+ \w+ \w+", one.control), "say why there is no control"
    assert len(one.reason.split()) >= 4
    assert one.family in FAMILIES
    assert one.verdict in VERDICTS
    assert (one.verdict == "unmeasured") == one.measured.startswith(UNMEASURED)


def test_a_claim_that_was_measured_has_a_number_or_says_that_none_is_written_down(one):
    if one.verdict != "unmeasured":
        assert re.search(r"\d", one.measured) or "No figure is written down" in one.measured
    if one.verdict == "reproduced":
        assert not one.control.startswith("none"), "without a control nothing is reproduced"


def test_numbers_on_arxiv_are_well_formed_and_keys_and_numbers_are_unique(one):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", one.key)
    if one.arxiv:
        assert re.fullmatch(r"\d{2}(0[1-9]|1[0-2])\.\d{4,5}", one.arxiv)
        assert one.url == f"https://arxiv.org/abs/{one.arxiv}"
    assert [other.key for other in EVERY if one.arxiv and other.arxiv == one.arxiv] in ([], [one.key])
    assert [other.key for other in EVERY if other.title == one.title] == [one.key]


def test_a_number_on_arxiv_is_one_that_the_code_cites(one):
    if one.arxiv and one.key != "attention-heads-survey":  # the docstring gives its title alone
        assert one.arxiv in cited()


# Commands


class Parsed(Exception):
    """The arguments were understood."""


def parsed_by_benchmark(script: Path, words: list[str]) -> None:
    """Its own parser reads the words; nothing is run."""
    spec = spec_from_file_location(f"benchmark_{script.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    parse = argparse.ArgumentParser.parse_args

    def read(self, *_, **__):
        parse(self, words)
        raise Parsed

    with (
        mock.patch.dict(os.environ),
        mock.patch.object(sys, "path", [str(script.parent), *sys.path]),
        mock.patch.object(argparse.ArgumentParser, "parse_args", read),
    ):
        spec.loader.exec_module(module)
        with pytest.raises(Parsed):
            module.main()


def parsed_by_interp(words: list[str]) -> None:
    """The command's own parser reads the words; nothing is run."""
    group, context = get_command(app), None
    while hasattr(group, "commands"):
        context = group.make_context("interp", list(words), parent=context)
        name, group, words = group.resolve_command(context, words)
        assert group is not None, f"there is no command {name}"
    assert group.make_context(group.name, list(words), parent=context).args == []


@pytest.mark.parametrize("step", STEPS)
def test_a_command_parses_and_what_it_names_exists(step):
    program, first, *rest = step
    if program == "interp":
        parsed_by_interp([first, *rest])
        known = {*DETECTORS, "all", *ESTIMATES, *CIRCUITS, "acdc", *tasks()}
        for option, value in zip([first, *rest], rest, strict=False):
            if option in ("--kinds", "--method", "patch", "circuit", "tasks"):
                assert set(value.split(",")) <= known
    else:
        assert program == "python"
        script = ROOT / first
        assert script.parent == ROOT / "benchmarks"
        parsed_by_benchmark(script, rest)
        source, known = script.read_text(), {*CHEAPER, *ESTIMATES, *tasks(), OUT}
        for word in rest:
            said = word in known or word.startswith(f"{OUT}/") or f'"{word}"' in source or f"def {word}(" in source
            assert said or NUMBER.fullmatch(word) or word.startswith("-"), f"{script.name} knows no {word!r}"


def test_a_step_finds_only_what_an_earlier_one_has_written():
    for one in EVERY:
        written: set[str] = set()
        for step in one.steps:
            outs = [word for word in step if word == OUT or word.startswith(f"{OUT}/")]
            made = {step[i + 1] for i, word in enumerate(step[:-1]) if word == "--out"}
            made |= {word for word in outs if step[0] == "python" and step[1].endswith("transcoders.py")}
            assert set(outs) <= made | written, f"{one.key}: {' '.join(step)}"
            written |= made


# The register


def test_filters_and_keys_find_and_refuse():
    assert {one.family for one in papers("quantization")} == {"quantization"}
    assert {one.verdict for one in papers(verdict="not")} == {"not"}
    assert papers("pruning", "not") == [paper("multipruner")]
    assert paper("2404.15574") is paper("retrieval-heads")
    for family in FAMILIES:
        assert papers(family)
    for verdict in VERDICTS:
        assert papers(verdict=verdict)
    with pytest.raises(UsageError, match="unknown family 'prunning'; did you mean 'pruning'"):
        papers("prunning")
    with pytest.raises(UsageError, match="unknown verdict 'reproducd'; did you mean 'reproduced'"):
        papers(verdict="reproducd")
    with pytest.raises(UsageError, match="unknown paper 'pyramid-kv'; did you mean 'pyramidkv'"):
        paper("pyramid-kv")
    with pytest.raises(UsageError, match="unknown paper ''"):
        paper("")


def test_a_row_that_lacks_or_has_too_much_is_refused_by_name():
    row = {name: value for name, value in vars(EVERY[0]).items() if name not in ("key", "control")} | {"controls": "x"}
    with pytest.raises(InterpError, match=r"papers.toml: relp has or lacks control, controls"):
        register._read("relp", row)


def test_the_examples_in_its_docstrings_hold():
    assert doctest.testmod(register, verbose=False).failed == 0


def test_the_page_is_what_the_register_gives():
    assert (ROOT / "docs" / "papers.md").read_text(encoding="utf-8") == page()


def test_the_page_has_every_paper_once_with_its_verdict():
    written = page()
    for one in EVERY:
        assert written.count(f"\n### {one.key}\n") == 1
        assert f"| `{one.key}` | {one.verdict} |" in written
    assert f"[attention](#attention) | {len(papers('attention', 'reproduced'))} |" in written


def test_the_data_is_a_file_of_the_package_that_a_wheel_takes():
    assert files("interp").joinpath("papers.toml").is_file()
    ignored = subprocess.run(["git", "check-ignore", "interp/papers.toml"], cwd=ROOT, capture_output=True)
    assert ignored.returncode != 0


# The command line


def test_the_command_line_lists_and_filters():
    assert "retrieval-heads" in command("papers").stdout
    found = json.loads(command("papers", "--family", "kv_cache", "--verdict", "not", "--json").stdout)
    assert [one["key"] for one in found] == [one.key for one in papers("kv_cache", "not")]
    assert found[0]["url"].startswith("https://arxiv.org/abs/")
    listed = command("papers", "--verdict", "not").stdout
    assert "multipruner" in listed
    assert "retrieval-heads" not in listed


def test_the_command_line_shows_one():
    shown = " ".join(command("papers", "show", "retrieval-heads").stdout.split())
    one = paper("retrieval-heads")
    for text in (one.title, one.claim, one.measured, one.control, one.reason, one.url):
        assert text in shown


REFUSED = {
    "family": (["papers", "--family", "cache"], "did you mean 'kv_cache'"),
    "verdict": (["papers", "--verdict", "maybe"], "unknown verdict 'maybe'; known: not, partly"),
    "key to show": (["papers", "show", "retrival-heads"], "did you mean 'retrieval-heads'"),
    "key to run": (["papers", "run", "retrival-heads", "--out", "o"], "did you mean 'retrieval-heads'"),
    "no command": (["papers", "run", "gradient-sae", "--out", "o"], "no command measures gradient-sae yet"),
}
RUN = """
import json, os, sys
from typer.testing import CliRunner
from interp.cli import app
answers = {}
for name, words in json.load(sys.stdin).items():
    done = CliRunner().invoke(app, words)
    slow = [module for module in ("torch", "transformers", "transformer_lens") if module in sys.modules]
    answers[name] = [done.exit_code, done.output, slow, os.listdir()]
json.dump(answers, sys.stdout)
"""


def test_bad_requests_are_refused_before_torch_is_imported_and_anything_is_written(tmp_path):
    asked = {name: words for name, (words, _) in REFUSED.items()}
    asked |= {"list": ["papers"], "as JSON": ["papers", "--json"], "show": ["papers", "show", "relp"]}
    run = [sys.executable, "-c", RUN]
    done = subprocess.run(run, input=json.dumps(asked), capture_output=True, text=True, check=True, cwd=tmp_path)
    for name, (code, output, slow, written) in json.loads(done.stdout).items():
        assert (slow, written) == ([], [])
        assert code == (0 if name not in REFUSED else 1 if name == "no command" else 2), output
        if name in REFUSED:
            assert REFUSED[name][1] in " ".join(output.split())


def written(monkeypatch, tmp_path, script: str) -> ModuleType:
    """A register with one paper whose command is a script of the test."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "short.py").write_text(script)
    step = "python benchmarks/short.py --out OUT/x"
    made = Paper(**{**vars(paper("relp")), "command": f"interp --version && {step} && {step}"})
    monkeypatch.setattr(register, "paper", lambda key: made)
    monkeypatch.setattr(commands, "_ROOT", tmp_path)
    return register


def test_running_keeps_what_was_printed_beside_what_is_recorded(monkeypatch, tmp_path):
    written(monkeypatch, tmp_path, "import sys; print('r = .888'); open(sys.argv[2], 'a').write('x')")
    done = command("papers", "run", "relp", "--out", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o" / "output.txt").read_text().count("r = .888") == 2
    assert (tmp_path / "o" / "files" / "x").read_text() == "xx"
    record = json.loads((tmp_path / "o" / "record.json").read_text())
    assert [step["exit_status"] for step in record["steps"]] == [0, 0, 0]
    assert record["steps"][1]["command"][1:] == [
        str(tmp_path / "benchmarks" / "short.py"),
        "--out",
        str(tmp_path / "o" / "files" / "x"),
    ]
    assert record["paper"]["measured"] == paper("relp").measured
    assert {"python", "interp", "torch", "transformers"} <= record["versions"].keys()
    said = " ".join(done.stdout.split())
    assert "to be compared by eye" in said
    assert paper("relp").measured in said


def test_running_stops_at_a_command_that_fails_and_says_where_its_words_are(monkeypatch, tmp_path):
    written(monkeypatch, tmp_path, "import sys; print('no model', file=sys.stderr); sys.exit(3)")
    done = command("papers", "run", "relp", "--out", tmp_path / "o")
    assert done.returncode == 1
    assert "a command ended with 3" in done.stderr
    assert "no model" in (tmp_path / "o" / "output.txt").read_text()
    steps = json.loads((tmp_path / "o" / "record.json").read_text())["steps"]
    assert [step["exit_status"] for step in steps] == [0, 3]


def test_running_without_the_repository_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(commands, "_ROOT", tmp_path)
    done = command("papers", "run", "retrieval-heads", "--out", tmp_path / "o")
    assert done.returncode == 1
    assert "benchmarks come with the repository" in done.stderr
    assert not (tmp_path / "o").exists()
