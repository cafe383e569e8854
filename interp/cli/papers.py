"""``interp papers``, ``interp papers show`` and ``interp papers run``: the register of papers, and its commands."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from interp.cli.app import app, command, out, plain, writable
from interp.errors import InterpError

__all__ = ["papers", "run", "show"]

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("interp", "torch", "transformers", "transformer-lens")

papers_app = typer.Typer(help="The papers whose methods stand here.", invoke_without_command=True)
app.add_typer(papers_app, name="papers")


@papers_app.callback()
@command
def papers(
    context: typer.Context,
    family: Annotated[str | None, typer.Option(help="Only those of a family, such as attention or pruning.")] = None,
    verdict: Annotated[
        str | None, typer.Option(help="Only those with a verdict: reproduced, partly, not, transposed or unmeasured.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="All of it as JSON, and nothing else.")] = False,
) -> None:
    """List the papers whose methods stand here, and how far each one's claim was found true."""
    if context.invoked_subcommand:
        return
    import interp.papers as register

    found = register.papers(family, verdict)
    if json_:
        typer.echo(json.dumps([one.to_dict() for one in found], indent=1, ensure_ascii=False))
        return
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("key", "family", "verdict", "paper"):
        table.add_column(column, no_wrap=column != "paper", overflow="fold")
    for one in found:
        table.add_row(one.key, one.family, one.verdict, plain(f"{one.authors}, {one.title}"))
    out.print(table)
    out.print("`interp papers show KEY` says what was measured, `interp papers run KEY --out DIR` measures it.")


@papers_app.command()
@command
def show(key: Annotated[str, typer.Argument(help="A paper's key, or its number on arXiv.")]) -> None:
    """Print a paper's claim, what of it stands here, and what was measured, beside which control."""
    import interp.papers as register

    one = register.paper(key)
    out.print(plain(f"{one.authors}, {one.title}"), style="bold", soft_wrap=True, highlight=False)
    _print(
        {
            "read": one.url,
            "family": one.family,
            "names": ", ".join(one.names),
            "claim": one.claim,
            "measured": one.measured,
            "control": one.control,
            "verdict": f"{one.verdict}. {one.reason}",
            "command": one.command or "none yet",
        }
    )


@papers_app.command()
@command
def run(
    key: Annotated[str, typer.Argument(help="A paper's key, or its number on arXiv.")],
    directory: Annotated[Path, typer.Option("--out", "-o", help="Directory for the files.", file_okay=False)],
) -> None:
    """Run a paper's command and put what it prints beside what is recorded; comparing them is left to the reader."""
    import interp.papers as register
    from interp.results.files import write_text

    one = register.paper(key)
    steps = [_runnable(step, directory.absolute()) for step in _complete(one)]
    writable(directory)
    (directory / "files").mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "paper": one.to_dict(),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}",
        "steps": [],
    }
    with (directory / "output.txt").open("w", encoding="utf-8") as output:
        for words in steps:
            out.print(plain(f"+ {' '.join(words)}"), soft_wrap=True, highlight=False)
            began = time.monotonic()
            status = _stream(words, output)
            seconds = round(time.monotonic() - began, 1)
            record["steps"].append({"command": words, "exit_status": status, "seconds": seconds})
            write_text(directory / "record.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            if status:
                raise InterpError(f"a command ended with {status}; what it printed is in {directory / 'output.txt'}")
    out.print("\nWhat is recorded, to be compared by eye with what was printed above:", style="bold", highlight=False)
    _print({"claim": one.claim, "measured": one.measured, "control": one.control, "verdict": one.verdict})
    out.print(f"written to {directory}: output.txt, record.json, files/", soft_wrap=True, highlight=False)


def _complete(one: Any) -> list[list[str]]:
    """The steps of a paper's command, if it has one and what it runs is here."""
    if not one.steps:
        raise InterpError(f"no command measures {one.key} yet; `interp papers show {one.key}` says what is known")
    for program, script, *_ in one.steps:
        if program == "python" and not (_ROOT / script).is_file():
            raise InterpError(f"there is no {script} at {_ROOT}: benchmarks come with the repository, not the package")
    return one.steps


def _runnable(step: list[str], directory: Path) -> list[str]:
    """A step as the words that start it here, its results in `directory`."""
    from interp.papers import OUT

    program, *words = step
    words = [str(directory / "files" / word[len(OUT) :].lstrip("/")) if _is_out(word) else word for word in words]
    if program == "python":
        return [sys.executable, str(_ROOT / words[0]), *words[1:]]
    return [sys.executable, "-c", "from interp.cli import main; main()", *words]


def _is_out(word: str) -> bool:
    from interp.papers import OUT

    return word == OUT or word.startswith(f"{OUT}/")


def _stream(words: list[str], output: Any) -> int:
    """Runs a command, shows what it prints as it comes, and keeps it; the exit status."""
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            output.write(line)
            output.flush()
    return process.returncode


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _print(parts: dict[str, str]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, text in parts.items():
        if text:
            table.add_row(name, plain(text))
    out.print(table, highlight=False)
