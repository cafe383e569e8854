"""Options of every command, with values that make no sense: one message that has the value, and no model is loaded."""

from __future__ import annotations

import inspect
import os
import signal
import typing
from unittest import mock

import pytest
import typer
from command_line import command
from families import tiny
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import interp
from interp.cli import app
from interp.cli.ranges import Range
from interp.features import Place, TopK

MODEL = ("--model", "toy-induction")
FUZZ = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
SECONDS = 30


class LoadedError(BaseException):
    """A command came so far as to load its model."""


def leaves(group, path=()):
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from leaves(one, (*path, name))
        else:
            yield (*path, name), one


COMMANDS = {path: one for path, one in leaves(typer.main.get_command(app)) if path != ("models", "fetch")}


def options(path):
    """Of each option of a command its spelling, its type and its range."""
    hints = typing.get_type_hints(inspect.unwrap(COMMANDS[path].callback), include_extras=True)
    for parameter in COMMANDS[path].params:
        hint = hints.get(parameter.name)
        about = getattr(hint, "__metadata__", ())
        inner = getattr(hint, "__origin__", None)
        kinds = {inner, *typing.get_args(inner)}
        spelled = max(parameter.opts, key=len)
        yield spelled, kinds, next((one for one in about if isinstance(one, Range)), None)


NUMBERS = [
    (path, option, float if float in kinds else int, wanted)
    for path in COMMANDS
    for option, kinds, wanted in options(path)
    if kinds & {int, float} and bool not in kinds
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What commands ask for before they load a model."""
    folder = tmp_path_factory.mktemp("files")
    TopK(6, 10, 2, reads=Place("resid_post", 1)).save(folder / "dictionary")
    deployed = interp.deploy(tiny("llama"))
    interp.efficiency.make("magnitude", budget=0.5).plan(deployed).save(folder / "plan.json")
    return folder


def base(path, files):
    """Arguments with which a command comes to load its model."""
    needed = {
        ("patch",): ["induction"],
        ("circuit",): ["induction"],
        ("compress",): ["--method", "h2o"],
        ("tradeoff",): ["--plan", files / "plan.json"],
        ("trace",): ["the cat sat"],
        ("attention",): ["the cat sat"],
        ("sae", "transcoders"): ["--layers", "0"],
        ("sae", "eval"): [files / "dictionary"],
        ("sae", "dashboard"): [files / "dictionary"],
        ("sae", "explain"): [files / "dictionary"],
    }
    out = ["--out", files / "out"] if any("--out" in one.opts for one in COMMANDS[path].params) else []
    return [*path, *needed.get(path, ()), *MODEL, *out]


def tried(arguments):
    """What came of it: None if a model was loaded, else the exit code and the words on standard error."""

    def stop(*_, **__):
        raise LoadedError

    patched = (
        mock.patch.object(interp.models, "load", stop),
        mock.patch("interp.demo.demonstrate", lambda make, *_, **__: make()),
        mock.patch.dict(os.environ, COLUMNS="160"),
    )
    with patched[0], patched[1], patched[2]:
        try:
            done = CliRunner().invoke(app, [*map(str, arguments)])
        except LoadedError:
            return None
    return done.exit_code, " ".join(done.stderr.replace("│", " ").split())


def refusal(arguments):
    """The message of a refusal, which is one."""
    found = tried(arguments)
    assert found is not None, f"a model was loaded for {arguments}"
    code, words = found
    assert code == 2, (arguments, words)
    assert words.count("error:") + words.count("─ Error ") == 1
    assert "INTERP_DEBUG" not in words
    assert "Traceback" not in words
    return words


COMMANDS_WITH_MODEL = [path for path, one in COMMANDS.items() if any("--model" in each.opts for each in one.params)]


@pytest.mark.parametrize("path", COMMANDS_WITH_MODEL, ids=" ".join)
def test_with_what_makes_sense_a_command_loads_its_model(path, files):
    assert tried(base(path, files)) is None


whole = st.one_of(st.integers(-(10**6), 10**6), st.integers())


@pytest.mark.parametrize(
    ("path", "option", "kind", "wanted"), NUMBERS, ids=[f"{' '.join(path)} {option}" for path, option, *_ in NUMBERS]
)
def test_a_number_out_of_its_range_is_refused_before_a_model_is_loaded(path, option, kind, wanted, files):
    assert wanted is not None or option == "--budget", f"{option} has no range"

    @settings(max_examples=3, **FUZZ)
    @given(whole if kind is int else st.floats())
    @example(-1)
    @example(10**30)
    def check(number):
        found = tried(with_value(base(path, files), option, number))
        if kind(number) in (wanted or Range(0, 1, above=True)):  # it may not go with the others
            assert found is None or (found[0] == 2 and found[1].startswith("error:")), found
        else:
            assert found is not None, f"a model was loaded for {option} {number}"
            assert f"error: {option} is {kind(number)}, " in found[1] or f"got {kind(number)}" in found[1], found
            assert found[0] == 2

    check()
    for text in ("x", "", "1,2", *(["nan", "1.5"] if kind is int else ["nan"])):
        words = refusal(with_value(base(path, files), option, text))
        assert option in words or f"got {text}" in words


def with_value(arguments, option, value):
    return [*arguments, f"{option}={value}"] if option.startswith("--") else [*arguments, option, value]


LISTS = {
    "--layers": [("patch",), ("attention",)],
    "--lengths": [("retrieval-heads",)],
    "--depths": [("retrieval-heads",)],
    "--head": [("attention",)],
    "--features": [("sae", "explain")],
}
SENSELESS = ["", ",", "x", "-1", "1-", "5-3", "1,1", "0-3,2", "1;2", "0-99999999999", "0-999999999", "1e3", "³"]


@pytest.mark.parametrize(("option", "path"), [(option, path) for option in LISTS for path in LISTS[option]])
def test_a_list_that_makes_no_sense_is_refused_before_a_model_is_loaded(option, path, files):
    for text in SENSELESS:
        words = refusal([*base(path, files), f"{option}={text}"])
        assert repr(text) in words

    @settings(max_examples=10, **FUZZ)
    @given(st.text("0123456789,-. x", max_size=8))
    def check(text):
        found = tried([*base(path, files), f"{option}={text}"])
        assert found is None or (found[0] == 2 and repr(text) in found[1]), found

    check()


NAMED = ("metric", "split", "model", "nodes", "mode", "source", "method", "against", "search", "ablation", "kinds",
         "text", "haystack", "by", "hook", "arch", "explainer", "scorers", "quality", "cost", "basis", "device",
         "dtype")  # fmt: skip


@pytest.mark.parametrize(
    ("path", "option"),
    [
        (path, option)
        for path in COMMANDS
        for option, kinds, _ in options(path)
        if option.removeprefix("--") in NAMED and not kinds & {int, float}
    ],
    ids=lambda one: one if isinstance(one, str) else " ".join(one),
)
def test_an_unknown_name_is_refused_before_a_model_is_loaded(path, option, files):
    if (path, option) == (("demo",), "--device"):
        pytest.skip("the demo's processes choose their device")
    words = refusal([*base(path, files), option, "nosuchname"])
    assert "nosuchname" in words


TOGETHER = [
    (["circuit", "induction", *MODEL, "--edges", 3, "--nodes", 3], "give one of edges, nodes and threshold"),
    (["circuit", "induction", *MODEL, "--method", "acdc"], "acdc needs a threshold"),
    (["sae", "train", "-o", "x", *MODEL, "-k", 33, "--width", 32], "-k is 33, a whole number from 1 up to the --width"),
    (["sinks", *MODEL, "--text", "prose,prose"], "two kinds of text in 'prose,prose' have one name"),
    (["sinks", *MODEL, "--text", "prose,,code"], "unknown corpus ''"),
    (
        ["compress", "--method", "h2o", "-o", "x", *MODEL, "--set", "recent=half"],
        "recent is 'half', a number is needed",
    ),
    (["compress", "--method", "h2o", "-o", "x", *MODEL, "--set", "recent=NaN"], "recent is nan, a number is needed"),
    (["compress", "--method", "heads", "-o", "x", *MODEL, "--set", "unit=3", "--set", "importance=1"], "unit is 3"),
    (["compress", "--method", "sparse", "-o", "x", *MODEL, "--set", "pattern=[2]"], "pattern is"),
    (["compress", "--method", "rtn", "-o", "x", *MODEL, "--set", "bits=[]"], "bits is [], a whole number"),
]


@pytest.mark.parametrize(("arguments", "says"), TOGETHER, ids=[says for _, says in TOGETHER])
def test_what_does_not_go_together_is_refused_before_a_model_is_loaded(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in refusal(arguments)


# Values of which only the model tells whether they make sense

SMALL = {
    ("patch",): {"-n": int, "--layers": str, "--nodes": str, "--mode": str, "--source": str, "--method": str},
    ("circuit",): {"-n": int, "--edges": int, "--nodes": int, "--threshold": float, "--steps": int, "--method": str},
}
VALUES = {
    int: [1, 2, 3, 5, 31, 65, 1000, 2**31 - 1],
    float: [0.0, 1e-300, 0.3, 1.0],
    str: ["0", "1", "7", "0-1", "0.0", "7.0", "0.7", "1.3", "99999.1", "all",
          "induction", "", "heads", "mlp_out", "pattern",
          "noising", "mean", "resampled", "zero", "acdc", "exact", "attribution", "random", "repeated", "reach", "64",
          "2", "0,1"],
}  # fmt: skip


@pytest.mark.parametrize("path", SMALL, ids=" ".join)
def test_what_the_model_alone_tells_ends_well_or_in_one_message(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = st.lists(st.sampled_from([*SMALL[path]]), min_size=1, max_size=2, unique=True)

    @settings(max_examples=6, **FUZZ)
    @given(chosen.flatmap(lambda names: st.tuples(*[
        st.tuples(st.just(name), st.sampled_from(VALUES[SMALL[path][name]])) for name in names
    ])), st.sampled_from(["toy-induction", "toy-induction-trained"]))  # fmt: skip
    def check(given, model):
        arguments = [*path, "induction", "--model", model]
        few = [] if any(name == "-n" for name, _ in given) else ["-n", 2]
        said = [part for name, value in given for part in (name, value)]
        signal.signal(signal.SIGALRM, too_long)
        signal.alarm(SECONDS)
        try:
            done = command(*arguments, *few, *said)
        finally:
            signal.alarm(0)
        assert done.returncode in (0, 1, 2)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
            assert len(lines) == 1, done.stderr
            assert "INTERP_DEBUG" not in lines[0], (arguments, said, lines[0])
            assert "note:" in done.stderr or done.stderr.count("\n") == 1

    check()


def too_long(*_):
    raise TimeoutError(f"no end in {SECONDS} s")
