"""``interp retrieval-heads``."""

from __future__ import annotations

import sys
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
    Out,
    Ray,
    app,
    command,
    known,
    known_text,
    load,
    numbers,
    out,
    writable,
)
from interp.cli.findings import write_finding
from interp.cli.ranges import Range
from interp.errors import UsageError

__all__ = ["retrieval_heads"]


@app.command("retrieval-heads")
@command
def retrieval_heads(
    model: Model = "smollm2",
    haystack: Annotated[
        str, typer.Option(help="prose, sotu, code, dialogue, a .txt or .jsonl file; by reach also noise.")
    ] = "prose",
    lengths: Annotated[str, typer.Option(help="Tokens of a prompt, with commas between.")] = "256,512,1024",
    depths: Annotated[
        str, typer.Option(help="By copying: where the needle stands, from 0 to 1.")
    ] = "0.1,0.3,0.5,0.7,0.9",
    n: Annotated[int, Range(), typer.Option("-n", help="Prompts of each length, and by copying of each depth.")] = 2,
    threshold: Annotated[float, Range(0, 1), typer.Option(help="By copying: from which score on a head counts.")] = 0.1,
    by: Annotated[
        str, typer.Option(help="copying, or reach: what an answer loses when a head sees sinks and a window alone.")
    ] = "copying",
    window: Annotated[int, Range(), typer.Option(help="By reach: recent tokens that a cut head still sees.")] = 124,
    mask: Annotated[
        bool, typer.Option("--mask", help="Also mask the strongest heads, and others beside them, on fresh needles.")
    ] = False,
    seed: Annotated[int, Range(0), typer.Option(help="Of all random choices.")] = 0,
    directory: Out = None,
    json: Annotated[bool, typer.Option("--json", help="Scores as JSON on standard output, and nothing else.")] = False,
    accept_license: Accept = False,
    device: Device = None,
    dtype: Dtype = "float32",
    ray: Ray = None,
) -> None:
    """Find the heads that copy a needle out of a haystack, and say how well the model does that at all."""
    import interp
    from interp.results.folders import together

    known("way to find them (--by)", by, ("copying", "reach"))
    if by == "reach" and mask:
        raise UsageError("--mask goes with --by copying; a cut head is masked already")
    if ray is not None and by == "copying":
        raise UsageError("--ray goes with --by reach, whose samples are split over a cluster; copying runs here")
    sizes, places = numbers(lengths, "lengths", 2) or [], _fractions(depths)
    if not (by == "reach" and haystack == "noise"):
        known_text(haystack)
    if directory:
        writable(directory)
    bridge = load(model, accept_license, device, dtype, ray)
    if by == "reach":
        cut = interp.attention.head_reach(bridge, length=sizes, n=n, haystack=haystack, seed=seed, window=window)
        _reach(cut, directory, json)
        return
    found = interp.attention.retrieval_heads(
        bridge, haystack=haystack, lengths=sizes, depths=places, n=n, threshold=threshold, seed=seed
    )
    masked = None
    if mask:
        fresh = interp.attention.needle_samples(bridge, haystack, sizes, places, n=1, seed=seed, split="score")
        masked = interp.attention.retrieval_causality(bridge, found, fresh, seed=seed)
    if directory:
        with together(directory) as aside:
            written = write_finding(found, found.scores, aside)
            if masked is not None:
                interp.results.save(masked, aside / "masking.json")
                for name in ("masking.html", "masking.png"):
                    interp.plots.save(interp.plots.masking_curve(masked), aside / name)
                written += ["masking.json", "masking.html", "masking.png"]
    if json:
        sys.stdout.write(interp.results.to_json(found.scores) + "\n")
        return
    _print(found)
    if masked is not None:
        _print_masked(masked)
    if directory:
        out.print(f"written to {directory}: {', '.join(written)}", soft_wrap=True)


def _reach(found: Any, directory: Path | None, json: bool) -> None:
    import numpy as np

    from interp.results import to_json

    if directory:
        written = write_finding(found, found.scores, directory)
    if json:
        sys.stdout.write(to_json(found.scores) + "\n")
        return
    settings, effect = found.settings, found.groups("sum")
    out.print(
        f"{found.model} answers {settings['recall']:.0%} of {settings['samples']} questions, with a loss of "
        f"{settings['loss']:.2f} nats a token; what it rises by when a key-value head sees {settings['sinks']} sinks "
        f"and the last {settings['window']} tokens alone:",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(title="key-value heads that need their reach", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("layer", "key-value head", "rise of the loss"):
        table.add_column(column, justify="right")
    order = np.argsort(-effect.values, axis=None)[:15]
    for layer, group in zip(*np.unravel_index(order, effect.shape), strict=True):
        table.add_row(str(layer), str(group), f"{float(effect.values[layer, group]):.3f}")
    out.print(table)
    if directory:
        out.print(f"written to {directory}: {', '.join(written)}", soft_wrap=True)


def _print(found: Any) -> None:
    settings, recall = found.settings, found.evidence["recall"]
    out.print(
        f"{found.model} answers {settings['recall']:.0%} of {settings['samples']} needles; "
        f"{settings['samples_used']} samples are scored",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(title="needle recall by length and depth", title_justify="left", box=box.SIMPLE_HEAD, min_width=40)
    for column in ("tokens", *(f"{float(depth):g}" for depth in recall["depth"].values)):
        table.add_column(column, justify="right")
    for length in recall["length"].values:
        table.add_row(f"{int(length):,}", *(f"{float(v):.0%}" for v in recall.sel(length=length).values))
    out.print(table)
    out.print(found.summary(), highlight=False, soft_wrap=True)
    table = Table(title="retrieval heads", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("head", "score", "95 % interval", "active in", "KV group"):
        table.add_column(column, justify="right")
    low, high, active = (found.evidence[name] for name in ("low", "high", "activation_rate"))
    per_group = found.scores.sizes["head"] // found.n_kv_heads
    for at in found.heads[:15]:
        interval = f"{float(low[at]):.2f}–{float(high[at]):.2f}"
        cells = (
            f"{float(found.scores[at]):.2f}",
            interval,
            f"{float(active[at]):.0%}",
            f"{at[0]}.{at[1] // per_group}",
        )
        table.add_row(f"{at[0]}.{at[1]}", *cells)
    out.print(table)


def _print_masked(masked: Any) -> None:
    mean = masked.mean("example")
    table = Table(title="with k heads masked", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("k", justify="right")
    columns = [(str(kind), str(metric)) for metric in mean["metric"].values for kind in mean["kind"].values]
    for kind, metric in columns:
        table.add_column(f"{metric}: {kind}", justify="right")
    for k in mean["k"].values:
        table.add_row(str(int(k)), *(f"{float(mean.sel(k=k, kind=kind, metric=m)):.2f}" for kind, m in columns))
    out.print(table)


def _fractions(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"can't read the depths {text!r}; write them as 0.1,0.5,0.9") from error
    if wrong := [depth for depth in found if not 0 <= depth <= 1]:
        raise UsageError(f"the depths {text!r} have {wrong[0]}, numbers from 0 to 1 are needed")
    if len(set(found)) < len(found):
        raise UsageError(f"the depths {text!r} have one twice; name each once")
    return found
