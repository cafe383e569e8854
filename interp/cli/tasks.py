"""``interp tasks``."""

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
    Examples,
    Model,
    Seed,
    Split,
    app,
    command,
    known,
    known_task,
    load,
    out,
)
from interp.errors import UsageError

__all__ = ["tasks"]


@app.command()
@command
def tasks(
    name: Annotated[str | None, typer.Argument(help="One task, to see what it asks; all of them if left out.")] = None,
    model: Model = "smollm2",
    n: Examples = 32,
    seed: Seed = 0,
    split: Split = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON on standard output, and nothing else.")] = False,
    accept_license: Accept = False,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Show every task with the model's accuracy, or one with examples."""
    import json as format

    import interp

    if name is not None:
        known_task(name)
    known("split", split, interp.tasks.SPLITS)
    from interp.patching.baselines import PERFORMS, performance

    bridge = load(model, accept_license, device, dtype)
    rows: list[dict[str, Any]] = []
    for one in [name] if name else interp.tasks.names():
        try:
            behaviour = interp.task(one, bridge, n=n, seed=seed, split=split)
        except UsageError as error:
            if name:
                raise
            rows.append({"task": one, "refused": str(error)})
            continue
        rows.append({"task": one, "description": behaviour.description, **performance(bridge, behaviour)})
    if json:
        sys.stdout.write(format.dumps(rows, indent=1) + "\n")
        return
    table = Table(title=f"tasks on {model}, {n} pairs each, seed {seed}", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("task", "accuracy", "top-1", "metric", "clean", "corrupted", ""):
        justify: Any = "left" if column in ("task", "metric", "") else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    for row in rows:
        if "refused" in row:
            table.add_row(row["task"], "-", "-", "-", "-", "-", "[yellow]does not fit[/]")
            continue
        numbers = (f"{row['accuracy']:.0%}", f"{row['top1']:.0%}", row["metric"])
        mark = "" if row["accuracy"] >= PERFORMS else "[red]not performed[/]"
        table.add_row(row["task"], *numbers, f"{row['clean']:.3f}", f"{row['corrupted']:.3f}", mark)
    out.print(table)
    if name:
        out.print(f"{behaviour.description}\n{behaviour.source}\n", highlight=False, markup=False)
        for i in range(min(3, len(behaviour))):
            right, wrong = (
                ", ".join(map(repr, words[i][:5])) for words in (behaviour.right_text, behaviour.wrong_text)
            )
            text = f"clean      {behaviour.clean_text[i]!r}\ncorrupted  {behaviour.corrupted_text[i]!r}"
            out.print(f"{text}\nright      {right}\nwrong      {wrong}\n", highlight=False, markup=False)
