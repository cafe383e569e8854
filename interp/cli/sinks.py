"""``interp sinks``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from interp.cli.app import Accept, Device, Dtype, Model, Out, app, command, known, known_text, load, out, writable
from interp.cli.findings import write_finding
from interp.cli.ranges import Range
from interp.errors import UsageError

__all__ = ["sinks"]


@app.command()
@command
def sinks(
    model: Model = "smollm2",
    text: Annotated[
        str, typer.Option(help="Kinds of text with commas between: prose, code, dialogue, random, or files.")
    ] = "prose,code,dialogue",
    n: Annotated[int, Range(), typer.Option("-n", help="How many stretches of each kind of text.")] = 32,
    length: Annotated[int, Range(2), typer.Option(help="Tokens in a stretch of text.")] = 64,
    threshold: Annotated[
        float, Range(0, 1), typer.Option(help="Mean attention from which on a position is a head's sink.")
    ] = 0.3,
    seed: Annotated[int, Range(0), typer.Option(help="Of the choice of texts.")] = 0,
    split: Annotated[str, typer.Option(help="Of the shipped documents: find, score (the others), or all.")] = "find",
    prefix: Annotated[bool, typer.Option(help="Let what the model wants before a text (BOS) stand first.")] = True,
    directory: Out = None,
    json: Annotated[
        bool, typer.Option("--json", help="Sink rate of each head as JSON on standard output, and nothing else.")
    ] = False,
    accept_license: Accept = False,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Find attention sinks: their heads, positions and tokens, and the massive activations behind them."""
    import interp

    domains = [name.strip() for name in text.split(",")]
    known_text(*domains)
    known("split", split, [*interp.tasks.SPLITS, "all"])
    kinds = {Path(name).stem: name for name in domains}
    if len(kinds) < len(domains):
        raise UsageError(f"two kinds of text in {text!r} have one name; give each once, and files different names")
    if directory:
        writable(directory)
    bridge = load(model, accept_license, device, dtype)
    found = interp.attention.survey_sinks(
        bridge, kinds, n, length, threshold, seed, prefix=prefix, split=None if split == "all" else split
    )
    written = _write(found, directory) if directory else []
    if json:
        sys.stdout.write(interp.results.to_json(found.heads.scores) + "\n")
        return
    _print(found, length)
    if written:
        out.print(f"written to {directory}: {', '.join(written)}", soft_wrap=True)


def _write(found: Any, directory: Path) -> list[str]:
    """Each finding in a folder of its own."""
    parts = {
        "sink_heads": (found.heads, found.heads.evidence["domains"]),
        "sink_positions": (found.positions, found.positions.evidence["attention"]),
        "massive_activations": (found.massive, found.massive.evidence["size"]),
    }
    for name, (finding, scores) in parts.items():
        write_finding(finding, scores, directory / name)
    return [f"{name}/finding.json" for name in parts] + ["scores.csv and heatmaps beside each"]


def _print(found: Any, length: int) -> None:
    heads, domains = found.heads, found.heads.evidence["domains"]
    out.print(f"{heads.model}, {length} tokens: {heads.summary()}", soft_wrap=True, highlight=False)
    out.print(f"positions: {found.positions.summary()}", soft_wrap=True, highlight=False)
    out.print(f"massive activations: {found.massive.summary()}", soft_wrap=True, highlight=False)
    table = Table(title="share of texts with a sink at the first position", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("text")
    for column in ("all heads", "strongest head", "weakest head", "sink from layer"):
        table.add_column(column, justify="right")
    for name in domains["domain"].values:
        rates = domains.sel(domain=name)
        by_layer = rates.mean("head")
        first = next(
            (int(layer) for layer in by_layer["layer"].values if float(by_layer.sel(layer=layer)) >= 0.5), None
        )
        ends = (rates.argmax(...), rates.argmin(...))
        named = [f"{int(at['layer'])}.{int(at['head'])} ({float(rates[at]):.0%})" for at in ends]
        table.add_row(str(name), f"{float(rates.mean()):.1%}", *named, "none" if first is None else str(first))
    out.print(table)
