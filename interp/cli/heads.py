"""``interp heads``."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from interp.cli.app import (
    Accept,
    Device,
    Dtype,
    Model,
    Out,
    Split,
    app,
    command,
    known,
    known_text,
    load,
    out,
    plain,
    writable,
)
from interp.cli.findings import write_finding
from interp.cli.ranges import Range

__all__ = ["heads"]


@app.command()
@command
def heads(
    model: Model = "smollm2",
    kinds: Annotated[str, typer.Option(help="all, or names with commas between, as in induction,copying.")] = "all",
    text: Annotated[
        str | None, typer.Option(help="prose, sotu, code, dialogue, random, or a .txt or .jsonl file.")
    ] = None,
    n: Annotated[int, Range(), typer.Option("-n", help="How many stretches of text, and of each other input.")] = 8,
    length: Annotated[int | None, Range(2), typer.Option(help="Tokens in a stretch of text.")] = None,
    seed: Annotated[int, Range(0), typer.Option(help="Of all random choices.")] = 0,
    split: Split = None,
    top: Annotated[int, Range(), typer.Option(help="How many heads of each kind are named.")] = 5,
    directory: Out = None,
    json: Annotated[bool, typer.Option("--json", help="Scores as JSON on standard output, and nothing else.")] = False,
    accept_license: Accept = False,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Say what each attention head does: score all heads for every kind, and print the survey."""
    import interp
    from interp.attention.detectors import known as known_kinds

    wanted: Any = kinds if kinds == "all" else [kind.strip() for kind in kinds.split(",")]
    if text is not None:
        known_text(text)
    known_kinds(wanted)
    known("split", split, interp.tasks.SPLITS)
    if directory:
        writable(directory)
    bridge = load(model, accept_license, device, dtype)
    found = interp.attention.heads(bridge, wanted, text, n=n, length=length, seed=seed, split=split)
    survey = interp.attention.survey(found, top)
    written = []
    if directory:
        from interp.results.files import write_text
        from interp.results.folders import together

        with together(directory) as aside:
            written = write_finding(found, found.scores, aside)
            written.append(write_text(aside / "survey.csv", survey.to_csv(index=False)).name)
    if json:
        sys.stdout.write(interp.results.to_json(found.scores) + "\n")
        return
    table = Table(title=f"attention heads of {found.model}", title_justify="left", box=box.SIMPLE_HEAD)
    columns = ["kind", "layers", "top heads", *(["definition", "units"] if out.width >= 150 else [])]
    for column in columns:
        table.add_column(column, no_wrap=column in ("kind", "layers"))
    for row in survey.to_dict("records"):
        table.add_row(*(plain(str(row[name])) for name in columns))
    out.print(table)
    for kind, reason in found.settings["left_out"].items():
        out.print(f"left out: {kind} ({plain(reason)})", soft_wrap=True, highlight=False)
    if written:
        out.print(f"written to {directory}: {', '.join(written)}", soft_wrap=True)
