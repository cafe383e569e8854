"""``interp patch``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from interp.cli.app import (
    Accept,
    Compute,
    Device,
    Dtype,
    Examples,
    Model,
    Out,
    Ray,
    Seed,
    Split,
    app,
    command,
    known,
    known_task,
    load,
    numbers,
    out,
    plain,
    writable,
)
from interp.errors import InterpError, UsageError

__all__ = ["patch"]


@app.command()
@command
def patch(
    task: Annotated[str, typer.Argument(help="A task's name (see `interp tasks`) or a .jsonl file of your own.")],
    model: Model = "smollm2",
    nodes: Annotated[
        str,
        typer.Option(help="resid_pre, resid_mid, resid_post, attn_out, mlp_out, heads, q, k, v, pattern or neurons."),
    ] = "heads",
    by_position: Annotated[bool, typer.Option("--by-position", help="Each position by itself.")] = False,
    mode: Annotated[str, typer.Option(help="denoising (clean into corrupted) or noising.")] = "denoising",
    source: Annotated[str, typer.Option(help="In noising: corrupted, zero, mean or resampled.")] = "corrupted",
    method: Annotated[
        list[str] | None,
        typer.Option(help="activation (exact, the default), or an estimate; several with --against."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="activation: how far each --method agrees with exact patching.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="Instead of the task's own.")] = None,
    layers: Annotated[str | None, typer.Option(help="Only these, as in 0,3,10-15.")] = None,
    n: Examples = 32,
    seed: Seed = 0,
    split: Split = None,
    directory: Out = None,
    json: Annotated[bool, typer.Option("--json", help="Scores as JSON on standard output, and nothing else.")] = False,
    accept_license: Accept = False,
    device: Device = None,
    dtype: Dtype = "float32",
    compute: Compute = None,
    ray: Ray = None,
) -> None:
    """Patch every node of one kind; print the strongest, and write scores and heatmaps to --out."""
    import interp
    from interp.patching.methods import MODES, SOURCES

    wanted = numbers(layers)
    known_task(task, metric)
    interp.graph.site_of(nodes)
    known("split", split, interp.tasks.SPLITS)
    known("mode", mode, MODES)
    known("source", source, SOURCES)
    methods = _methods(method, against)
    if compute and (against or methods[0] in ("activation", "atp*")):
        raise UsageError("--compute is for --method attribution and relevance methods such as relp, by themselves")
    if directory:
        writable(directory)
    bridge = load(model, accept_license, device, dtype, ray)
    behaviour = interp.task(task, bridge, n=n, seed=seed, metric=metric, split=split)
    if against:
        _agreement(bridge, behaviour, methods, nodes, by_position, mode, directory, json)
        return
    if methods != ["activation"]:
        scores = _estimate(bridge, behaviour, methods[0], nodes, by_position, mode, wanted, compute)
        _report(scores, directory, json)
        return
    checkpoint = directory / ".sweep.safetensors" if directory else None
    try:
        scores = interp.patching.activation(
            bridge,
            behaviour,
            nodes,
            by_position,
            mode,  # type: ignore[arg-type]
            source,  # type: ignore[arg-type]
            layers=wanted,
            seed=seed,
            checkpoint=checkpoint,
        )
    except KeyboardInterrupt:
        if checkpoint and checkpoint.exists():
            raise InterpError("interrupted; the same command goes on from what is computed") from None
        raise
    _report(scores, directory, json)


def _report(scores: Any, directory: Path | None, json: bool) -> None:
    """Writes scores and pictures, and prints the strongest nodes."""
    import interp
    from interp.results.folders import together

    if directory:
        with together(directory) as aside:
            interp.results.save(scores, aside / "scores.json")
            interp.results.save(scores, aside / "scores.csv")
            interp.plots.save(scores, aside / "heatmap.html")
            interp.plots.save(scores, aside / "heatmap.png")
    if json:
        sys.stdout.write(interp.results.to_json(scores) + "\n")
        return
    attrs = scores.attrs
    work = f"{attrs['interventions']} interventions" if attrs["interventions"] else f"estimated by {attrs['method']}"
    out.print(
        f"{attrs['task']} on {attrs['model']}, {attrs['n']} pairs: accuracy {attrs['accuracy']:.0%}, "
        f"{attrs['metric']} {attrs['clean']:.3f} clean, {attrs['corrupted']:.3f} corrupted; "
        f"{work} in {attrs['seconds']:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
    out.print(top_table(scores))
    if directory:
        out.print(f"written to {directory}: scores.json, scores.csv, heatmap.html, heatmap.png", soft_wrap=True)


def _methods(method: list[str] | None, against: str | None) -> list[str]:
    """The methods asked for, checked before a model is loaded."""
    from interp.engine.rule_sets import RULE_SETS
    from interp.patching.methods import METHODS

    if against not in (None, "activation"):
        raise UsageError(f"estimates are held against exact patching: --against activation, not {against!r}")
    chosen = method or (["attribution", "relp", "secant"] if against else ["activation"])
    for name in chosen:
        known("method", name, [*METHODS] if against else ["activation", "attribution", "atp*", *RULE_SETS])
    if len(chosen) > 1 and not against:
        raise UsageError("several methods are compared with --against activation; without it give one")
    return chosen


def _estimate(
    bridge: Any, behaviour: Any, method: str, nodes: str, by_position: bool, mode: Any, layers: Any, compute: Any
) -> Any:
    import interp

    if method == "atp*":
        return interp.patching.atp_star(bridge, behaviour, nodes, by_position, mode, layers=layers)
    rules = "gradient" if method == "attribution" else method
    return interp.patching.attribution(
        bridge, behaviour, nodes, by_position, mode, rules=rules, layers=layers, compute=compute
    )


def _agreement(
    bridge: Any, task: Any, methods: list[str], nodes: str, by_position: bool, mode: Any, directory: Any, json: bool
) -> None:
    """The table of agreement with exact patching, and a scatter plot for each method."""
    import numpy as np

    import interp
    from interp.patching.agreement import able
    from interp.results.files import write_text
    from interp.results.folders import together

    kind = "heads by position" if nodes == "heads" and by_position else nodes
    kinds = [kind, *(other for other in ("resid_pre", "attn_out", "mlp_out") if other != kind)]
    found = interp.patching.agreement(bridge, task, methods, kinds, mode=mode)
    if directory:
        with together(directory) as aside:
            write_text(aside / "agreement.csv", found.table.to_csv(index=False))
            for method in methods:
                estimates = {
                    kind: found.estimates[method, kind].copy(
                        data=np.where(able(found.exact[kind], task), found.estimates[method, kind], np.nan)
                    )
                    for kind in kinds
                }
                interp.plots.save(interp.plots.scatter(estimates, found.exact), aside / f"scatter-{method}.png")
    if json:
        sys.stdout.write(found.table.to_json(orient="records", indent=1) + "\n")
        return
    table = Table(title="agreement with exact patching", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("method", "nodes", "r", "rho", "top 10", "of", "s", "exact s", "MiB"):
        table.add_column(column, justify="left" if column in ("method", "nodes") else "right", no_wrap=True)
    for row in found.table.to_dict("records"):
        numbers = [f"{row[name]:.3f}" for name in ("pearson", "spearman", "top10")]
        cost = f"{row['seconds']:.2f}", f"{row['exact_seconds']:.2f}", f"{row['peak_bytes'] / 2**20:.0f}"
        table.add_row(row["method"], row["kind"], *numbers, f"{row['nodes']}", *cost)
    out.print(table)


def top_table(scores: Any, k: int = 10) -> Table:
    import interp

    table = Table(title="strongest nodes", title_justify="left", box=box.SIMPLE_HEAD)
    frame = interp.results.top(scores, k)
    try:
        normalised = interp.results.normalised(scores)
    except UsageError:
        normalised = None
    for column in frame.columns:
        table.add_column("effect" if column == "value" else column, justify="left" if column == "token" else "right")
    if normalised is not None:
        table.add_column("normalised", justify="right")
    for row in frame.to_dict("records"):
        cells = [f"{row[c]:+.4f}" if c == "value" else plain(str(row[c])) for c in frame.columns]
        if normalised is not None:
            at = {dim: row[dim] for dim in scores.dims}
            cells.append(f"{float(normalised.sel(at)):+.3f}")
        table.add_row(*cells)
    return table
