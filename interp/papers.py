"""The register of papers: what of each stands here, and how far its claim has been found true.

The rows are in ``papers.toml``, a paper each, in the order in which they are listed. Reading them imports nothing slow.
``python -m interp.papers`` prints the page that ``docs/papers.md`` is; with ``--write`` it writes it there.
"""

from __future__ import annotations

import argparse
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from interp.errors import InterpError, unknown_name

__all__ = ["FAMILIES", "OUT", "UNMEASURED", "VERDICTS", "Paper", "page", "paper", "papers"]

FAMILIES = {
    "patching": "which nodes carry a behaviour, exactly or estimated",
    "circuits": "which edges do",
    "attention": "what heads do, and where they rest",
    "features": "dictionaries: trained, judged, read, and their shape",
    "tracing": "the graph of one prompt",
    "tasks": "behaviours whose papers say how a model does them",
    "kv_cache": "caches that keep less",
    "sparse_attention": "prompts that are read sparsely",
    "pruning": "heads, neurons and blocks that go",
    "quantization": "numbers of few bits",
    "calibration": "attention and outputs that are shifted while the model runs",
}
"""What a family is about."""

VERDICTS = {
    "reproduced": "measured here, and the claim holds, if with other sizes",
    "partly": "a part of the claim holds, or holds less, or only a part was measured",
    "not": "measured here, and the claim does not hold",
    "transposed": "the method was carried over to another kind of model, data or unit, and measured there",
    "unmeasured": "it stands here, and no figure about its claim does",
}
"""What a verdict means."""

UNMEASURED = "not measured yet"
"""How `Paper.measured` begins where no figure about the claim stands."""

OUT = "OUT"
"""What stands in a command for the folder that it writes to."""


@dataclass(frozen=True)
class Paper:
    """A paper, what of it stands here, and what was found.

    Args:
        key: What it is called here.
        title: As published.
        authors: The short form with the year.
        arxiv: Its number there; empty if it has none.
        family: One of `FAMILIES`.
        names: What implements it, as public dotted names.
        command: What measures its claim: commands of ``interp`` or of ``benchmarks/`` joined by ``&&``, run in the root
            of the repository, with `OUT` for a folder of results. Empty if there is none.
        claim: In one sentence.
        measured: Model, number of prompts, figures with intervals; or it begins with `UNMEASURED`.
        control: What stood beside it; or ``none:`` and why.
        verdict: One of `VERDICTS`.
        reason: Why that verdict.
    """

    key: str
    title: str
    authors: str
    arxiv: str
    family: str
    names: tuple[str, ...]
    command: str
    claim: str
    measured: str
    control: str
    verdict: str
    reason: str

    @property
    def url(self) -> str:
        """Where it can be read; empty if it has no number."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""

    @property
    def steps(self) -> list[list[str]]:
        """The words of each command, one after the other."""
        return [shlex.split(step) for step in self.command.split(" && ")] if self.command else []

    def to_dict(self) -> dict[str, Any]:
        """All fields and the address, as JSON has them."""
        return {**asdict(self), "names": list(self.names), "url": self.url}


def papers(family: str | None = None, verdict: str | None = None) -> list[Paper]:
    """The papers of the register, in its order.

    Args:
        family: Only those of one of `FAMILIES`.
        verdict: Only those with one of `VERDICTS`.

    Raises:
        UsageError: No such family or verdict.

    Example:
        >>> [paper.key for paper in papers("pruning", "not")]
        ['multipruner']
    """
    for kind, wanted, known in (("family", family, FAMILIES), ("verdict", verdict, VERDICTS)):
        if wanted is not None and wanted not in known:
            raise unknown_name(kind, wanted, known)
    found = _register().values()
    return [one for one in found if family in (None, one.family) and verdict in (None, one.verdict)]


def paper(key: str) -> Paper:
    """A paper by its key, or by its number on arXiv.

    Raises:
        UsageError: There is none; the message names near ones.
    """
    register = _register()
    if key in register:
        return register[key]
    for one in register.values():
        if key and one.arxiv == key:
            return one
    raise unknown_name("paper", key, register)


def page() -> str:
    """The register as a page of Markdown."""
    every = papers()
    counts = Counter((one.family, one.verdict) for one in every)
    lines = [
        "# Papers",
        "",
        "Made by `python -m interp.papers --write` from `interp/papers.toml`, and held against it by",
        "`tests/test_papers.py`. `interp papers` lists it, `interp papers show KEY` prints one, and",
        "`interp papers run KEY --out DIR` runs its command and puts what it prints beside what stands here.",
        "",
        f"`{OUT}` in a command is a folder for its results; commands run in the root of the repository.",
        "",
        *(f"- **{verdict}**: {meaning}." for verdict, meaning in VERDICTS.items()),
        "",
        *_table(
            ("family", *VERDICTS, "all"),
            (
                (
                    f"[{family}](#{family})",
                    *(counts[family, verdict] or "" for verdict in VERDICTS),
                    sum(counts[family, verdict] for verdict in VERDICTS),
                )
                for family in FAMILIES
            ),
        ),
    ]
    for family, meaning in FAMILIES.items():
        rows = papers(family)
        lines += ["", f"## {family}", "", f"{meaning[0].upper()}{meaning[1:]}.", ""]
        lines += _table(("paper", "key", "verdict"), ((_cited(one), f"`{one.key}`", one.verdict) for one in rows))
        for one in rows:
            lines += ["", *_section(one)]
    return "\n".join(lines) + "\n"


@cache
def _register() -> dict[str, Paper]:
    table = tomllib.loads(files("interp").joinpath("papers.toml").read_text(encoding="utf-8"))
    return {key: _read(key, row) for key, row in table.items()}


def _read(key: str, row: dict[str, Any]) -> Paper:
    wanted = {field.name for field in fields(Paper)} - {"key"}
    if row.keys() != wanted:
        raise InterpError(f"papers.toml: {key} has or lacks {', '.join(sorted(row.keys() ^ wanted))}")
    said: dict[str, Any] = {
        name: " ".join(value.split()) if isinstance(value, str) else tuple(value) for name, value in row.items()
    }
    return Paper(key=key, **said)


def _section(one: Paper) -> list[str]:
    parts = {
        "Claim": one.claim,
        "Here": ", ".join(f"`{name}`" for name in one.names),
        "Measured": one.measured,
        "Control": one.control,
        "Verdict": f"**{one.verdict}**. {one.reason}",
    }
    lines = [f"### {one.key}", "", f'{one.authors}, "{one.title}".']
    for name, text in parts.items():
        lines += ["", f"{name}: {text}"]
    if one.command:
        lines += ["", "```bash", *one.command.split(" && "), "```"]
    return lines


def _cited(one: Paper) -> str:
    title = f"[{one.title}]({one.url})" if one.url else one.title
    return f"{one.authors}, {title}".replace("|", r"\|")


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    head = list(head)
    return ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]


def main() -> None:
    """Prints the page, or writes it."""
    parser = argparse.ArgumentParser(description="The register of papers as a page of Markdown.")
    parser.add_argument("--write", action="store_true", help="into docs/papers.md of the repository")
    if parser.parse_args().write:
        (Path(__file__).parents[1] / "docs" / "papers.md").write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
