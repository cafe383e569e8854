"""``interp circuit``."""

from __future__ import annotations

import sys
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
    Seed,
    Split,
    app,
    command,
    known,
    known_task,
    load,
    out,
    writable,
)
from interp.cli.ranges import Range

__all__ = ["circuit"]


@app.command()
@command
def circuit(
    task: Annotated[str, typer.Argument(help="A task's name (see `interp tasks`) or a .jsonl file of your own.")],
    model: Model = "smollm2",
    method: Annotated[
        str, typer.Option(help="eap, eap-ig, eap-ig-activations, relp, relp-ig, exact or acdc.")
    ] = "eap-ig",
    edges: Annotated[
        int | None, Range(), typer.Option(help="How many edges to take. Default: 1 % of the graph's.")
    ] = None,
    nodes: Annotated[int | None, Range(), typer.Option(help="All edges among so many nodes instead.")] = None,
    threshold: Annotated[
        float | None,
        Range(0),
        typer.Option(help="Edges that score above it instead; with acdc, what a removal may change."),
    ] = None,
    search: Annotated[str, typer.Option(help="strongest, or greedy growth from the logits.")] = "strongest",
    ablation: Annotated[str, typer.Option(help="What other edges carry: corrupted, zero or mean.")] = "corrupted",
    steps: Annotated[int | None, Range(1, 100_000), typer.Option(help="Of integrated gradients.")] = None,
    metric: Annotated[str | None, typer.Option(help="Instead of the task's own.")] = None,
    evaluate: Annotated[
        bool,
        typer.Option(
            "--evaluate",
            help="Also faithfulness over sizes, on the other split; without --split the circuit is found on find.",
        ),
    ] = False,
    n: Examples = 8,
    seed: Seed = 0,
    split: Split = None,
    directory: Out = None,
    json: Annotated[
        bool, typer.Option("--json", help="The circuit as JSON on standard output, and nothing else.")
    ] = False,
    accept_license: Accept = False,
    device: Device = None,
    dtype: Dtype = "float32",
    compute: Compute = None,
) -> None:
    """Find the circuit of a behaviour, test it, and write it to --out."""
    import interp
    from interp.circuits.methods import ABLATIONS, METHODS, SEARCHES, check_choice
    from interp.results.folders import together

    known_task(task, metric)
    known("split", split, interp.tasks.SPLITS)
    known("method", method, [*METHODS, "acdc"])
    known("search", search, SEARCHES)
    known("ablation", ablation, ABLATIONS)
    check_choice(method, edges, nodes, threshold)
    if directory:
        writable(directory)
    bridge = load(model, accept_license, device, dtype)
    split = split or ("find" if evaluate else None)
    behaviour = interp.task(task, bridge, n=n, seed=seed, metric=metric, split=split)
    found = interp.circuits.discover(
        bridge,
        behaviour,
        method,
        edges=edges,
        nodes=nodes,
        threshold=threshold,
        search=search,
        ablation=ablation,
        steps=steps,
        compute=compute,
    )
    evaluation = None
    if evaluate:
        (other,) = {*interp.tasks.SPLITS} - {split}
        fresh = interp.task(task, bridge, n=n, seed=seed, metric=metric, split=other)
        evaluation = interp.circuits.evaluate(bridge, found, fresh, ablation=ablation, with_curve=True, seed=seed)
    if directory:
        with together(directory) as aside:
            _write(aside, bridge, behaviour, found, evaluation)
    if json:
        import json as format

        chosen = found.to_frame().query("in_circuit")[["node", "port", "score"]]
        answer: dict[str, Any] = {"edges": chosen.to_dict("records"), "settings": dict(found.settings)}
        if evaluation is not None and evaluation.curve is not None:
            answer["faithfulness"] = evaluation.faithfulness.value
            answer["complement"] = evaluation.complement.value
            answer |= {name: evaluation.curve.attrs[name] for name in ("cpr", "cmd", "random_cmd")}
        sys.stdout.write(format.dumps(answer, indent=1) + "\n")
        return
    out.print(f"{found!r}, found in {found.settings['seconds']} s", highlight=False, markup=False, soft_wrap=True)
    out.print(_strongest(found))
    if evaluation is not None:
        out.print(str(evaluation), highlight=False, markup=False, soft_wrap=True)
        out.print(_sizes(evaluation.curve))
    if directory:
        names = ", ".join(sorted(path.name for path in directory.iterdir() if not path.name.startswith(".")))
        out.print(f"in {directory}: {names}", soft_wrap=True, highlight=False)


def _write(directory: Any, bridge: Any, behaviour: Any, found: Any, evaluation: Any) -> None:
    import interp
    from interp.engine import run, verified
    from interp.graph import Graph, Node
    from interp.results.files import write_text

    graph = Graph.of(bridge)
    found.save(directory / "circuit.json")
    found.to_eap_ig(directory / "eap-ig.json", graph)
    write_text(directory / "scores.csv", found.to_frame().to_csv(index=False))
    if found.in_edges:
        length = int(behaviour.lengths[0])
        kept, _ = run(verified(bridge), behaviour.clean[:1, :length], {"pattern"})
        heads = [Node.parse(name) for name in found.in_nodes if name.startswith("a")]
        patterns = {str(head): kept["pattern", head.layer][0, head.index].detach().cpu() for head in heads}
        picture = interp.plots.circuit_graph(found, graph, patterns=patterns, tokens=behaviour.str_tokens[0])
        interp.plots.save(picture, directory / "circuit.html")
        interp.plots.save(picture, directory / "circuit.png")
    if evaluation is not None:
        interp.plots.save(interp.plots.faithfulness_curve(evaluation.curve), directory / "faithfulness.png")


def _strongest(found: Any, k: int = 10) -> Table:
    table = Table(title="strongest edges", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("from")
    table.add_column("to")
    table.add_column("score", justify="right")
    for row in found.to_frame().query("in_circuit").head(k).itertuples():
        table.add_row(row.node, row.port, f"{row.score:+.4f}")
    return table


def _sizes(curve: Any) -> Table:
    table = Table(title="faithfulness over sizes, random circuits beside", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("of all edges", "edges", "faithfulness", "95 %", "random"):
        table.add_column(column, justify="right")
    for row in curve.itertuples():
        interval = f"{row.low:.2f} to {row.high:.2f}"
        table.add_row(f"{row.fraction:.1%}", f"{row.edges:,}", f"{row.faithfulness:.3f}", interval, f"{row.random:.3f}")
    return table
