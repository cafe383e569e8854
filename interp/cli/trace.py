"""``interp trace``: the attribution graph of one prompt, as files and in words."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli.app import Accept, Device, Dtype, Model, app, command, load, out, there, writable
from interp.cli.ranges import Range
from interp.errors import UsageError

__all__ = ["trace"]


@app.command()
@command
def trace(
    prompt: Annotated[str, typer.Argument(help="A text, or a graph file that this command wrote, to be shown again.")],
    directory: Annotated[Path, typer.Option("--out", "-o", help="Directory for the files.", file_okay=False)] = Path(
        "interp-trace"
    ),
    model: Model = "smollm2",
    basis: Annotated[
        str, typer.Option(help="neurons, or a directory with transcoders or residual autoencoders.")
    ] = "neurons",
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", "-t", help="What to explain: a token, or A|B for a difference of logits; can be repeated."
        ),
    ] = None,
    max_nodes: Annotated[int, Range(), typer.Option(help="How many features become nodes at most.")] = 1000,
    max_edges: Annotated[
        int, Range(), typer.Option(help="How many edges into each node are kept at most, the strongest.")
    ] = 5000,
    nodes: Annotated[
        float, Range(0, 1), typer.Option(help="Prune to the nodes with this share of the influence.")
    ] = 0.8,
    edges: Annotated[float, Range(0, 1), typer.Option(help="Then to the edges with this share.")] = 0.98,
    paths: Annotated[int, Range(), typer.Option(help="How many of the strongest paths are told.")] = 3,
    accept_license: Accept = False,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Find out which tokens and features lead to a prediction: an interactive page, graph files, and words."""
    if not prompt.strip():
        raise UsageError("the prompt is empty; give a text to trace")
    targets = None if not target else [_target(text) for text in target]
    saved = prompt.endswith(".safetensors")
    if saved:
        there(Path(prompt), "graph")
    elif basis != "neurons":
        _homes(Path(basis))
    writable(directory)
    from interp.results.files import write_text
    from interp.results.folders import together
    from interp.tracing import AttributionGraph
    from interp.tracing import trace as traced
    from interp.tracing.words import summary
    from interp.tracing.writes import logit_effects

    if saved:
        graph, effects = AttributionGraph.load(prompt), {}
    else:
        chosen: Any = basis if basis == "neurons" else _basis(Path(basis))
        bridge = load(model, accept_license, device, dtype)
        began = time.perf_counter()
        graph = traced(bridge, prompt, chosen, targets, max_nodes=max_nodes, max_edges=max_edges)
        out.print(f"traced in {time.perf_counter() - began:.1f} s", highlight=False)
        effects = logit_effects(graph, n=8)
    small = graph.pruned(nodes, edges)
    words = f"{summary(graph, paths)}\n\nPruned: {summary(small, paths)}"
    files = {"graph.safetensors": "the whole graph", "graph.json": "pruned, for circuit-tracer's viewers"}
    with together(directory) as aside:
        graph.save(aside / "graph.safetensors")
        small.to_circuit_tracer(aside / "graph.json")
        graph.html(aside / "graph.html", effects=effects, nodes=nodes)
        write_text(aside / "summary.txt", words + "\n")
    files |= {"graph.html": "a page to look at it, which works offline", "summary.txt": "the above"}
    typer.echo(words)
    typer.echo("\nWritten:")
    for name, what in files.items():
        typer.echo(f"  {directory / name}: {what}")


def _target(text: str) -> Any:
    """A token, or two for a difference; a bar that is itself wanted is written twice."""
    a, bar, b = text.replace("||", "\0").partition("|")
    if bar and not (a and b):
        raise UsageError(f"can't read the target {text!r}; write a token, or two as ' Mary| John'")
    first, second = (part.replace("\0", "|") for part in (a, b))
    return (first, second) if bar else first


def _homes(folder: Path) -> list[Path]:
    """The folders of dictionaries in a directory."""
    if not folder.is_dir():
        raise UsageError(f"unknown basis {str(folder)!r}: neither neurons nor a directory with dictionaries")
    homes = sorted(path.parent for path in [*folder.glob("cfg.json"), *folder.glob("*/cfg.json")])
    if not homes:
        raise UsageError(f"{folder} holds no dictionary: there is no cfg.json in it or in its folders")
    return homes


def _basis(folder: Path) -> dict[int, Any]:
    """The dictionaries in a directory and its folders, by layer."""
    from interp.features import Dictionary, Place

    found: dict[int, Any] = {}
    for home in _homes(folder):
        dictionary = Dictionary.load(home)
        if not isinstance(dictionary.writes, Place):
            raise UsageError(f"{home} does not say at which one place of a model it writes (hook_name in cfg.json)")
        if dictionary.writes.layer in found:
            raise UsageError(f"{folder} holds two dictionaries of layer {dictionary.writes.layer}; keep one")
        found[dictionary.writes.layer] = dictionary
    return found
