"""Locate indirect object identification in a model, and say in a report what one sees."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

import interp
from interp.circuits import Evaluation
from interp.graph import Graph
from interp.plots import Section, write_report
from interp.results import Circuit, normalised, top

__all__ = ["locate"]

_BY_POSITION, _CIRCUIT = 4, 8
"""Pairs. On the default model, 8 pairs give the map of heads that 16 give (r .997), 4 that of streams that 8 give
(.996 and more)."""


def locate(
    model: TransformerBridge, directory: Path, n: int = 8, seed: int = 0, say: Callable[[str], None] = print
) -> Path:
    """Runs indirect object identification on a model and writes a report with figures and scores.

    Args:
        model: Any bridge.
        directory: Where ``report.html``, the heatmaps (PNG) and the scores (JSON) go.
        n: How many prompt pairs; positions, of which there are many, are patched on the first four.
        seed: Of the prompt pairs.
        say: Called with a line for each result.

    Returns:
        The path of the report.
    """
    began = time.perf_counter()
    task = interp.task("ioi", model, n=n, seed=seed, split="find")
    found = interp.patching.performance(model, task)
    say(
        f"indirect object identification, {n} pairs: the model prefers the right name in {found['accuracy']:.0%}, "
        f"logit difference {found['clean']:.2f} on clean and {found['corrupted']:.2f} on corrupted prompts"
    )
    heads = interp.patching.activation(model, task, "heads")
    say(f"{heads.attrs['interventions']} interventions on heads in {heads.attrs['seconds']:.1f} s")
    few = task[: min(_BY_POSITION, n)]
    streams = interp.patching.activation(model, few, ["resid_pre", "attn_out", "mlp_out"], by_position=True)
    say(f"{streams.attrs['interventions']} interventions by position in {streams.attrs['seconds']:.1f} s")
    heads_by_position = interp.patching.activation(model, few, "heads", by_position=True)
    attrs = heads_by_position.attrs
    say(f"{attrs['interventions']} interventions on heads by position in {attrs['seconds']:.1f} s")

    pictures = {"heads": heads, "streams": streams, "heads_by_position": heads_by_position}
    for name, scores in pictures.items():
        interp.results.save(scores, directory / f"{name}.json")
        interp.plots.save(scores, directory / f"{name}.png")
    estimated = interp.patching.attribution(model, task, "heads", rules="relp")
    some = task[: min(_CIRCUIT, n)]
    circuit = interp.circuits.discover(model, some, "eap-ig", edges=Graph.of(model).n_edges() // 50)
    fresh = interp.task("ioi", model, n=len(few), seed=seed, split="score")
    evaluation = interp.circuits.evaluate(model, circuit, fresh, with_curve=True, random=2, seed=seed)
    say(str(evaluation))
    circuit.save(directory / "circuit.json")
    sections = [
        _question(task, found),
        _heads(heads),
        _positions(streams, task),
        Section("Heads by position", [_heads_by_position(heads_by_position, task)], figure=heads_by_position),
        _estimates(estimated, heads),
        *_circuit(circuit, evaluation, len(some), Graph.of(model)),
        Section(
            "Where the numbers come from",
            facts={
                "model": f"{heads.attrs['model']} (fingerprint {heads.attrs['fingerprint']})",
                "method": "activation patching, denoising: a clean activation is put into the corrupted prompt and the "
                "rest of the model is run again",
                "effect": "patched minus corrupted logit difference; nothing is estimated",
                "versions": ", ".join(f"{name} {version}" for name, version in heads.attrs["versions"].items()),
                "pairs and seed": f"{n} and {seed} ({len(few)} pairs by position)",
                "seconds": f"{time.perf_counter() - began:.0f}",
            },
        ),
    ]
    lead = _lead(heads, found)
    say(lead)
    return write_report(
        directory / "report.html",
        f"Where {heads.attrs['model']} identifies the indirect object",
        sections,
        lead=lead,
        footer="Wang et al. 2022, Interpretability in the Wild: a Circuit for Indirect Object Identification.",
    )


def _question(task: interp.tasks.Task, found: dict) -> Section:
    examples = pd.DataFrame(
        {
            "clean": task.clean_text[:3],
            "corrupted": task.corrupted_text[:3],
            "right": [words[0].strip() for words in task.right_text[:3]],
            "wrong": [words[0].strip() for words in task.wrong_text[:3]],
        }
    )
    return Section(
        "The behaviour",
        [
            "A sentence names two people, and one of them acts a second time. The model should go on with the other "
            "one. The corrupted prompt repeats the other name, so that the right answer changes.",
            f"The model prefers the right name in {found['accuracy']:.0%} of the prompts (as its likeliest word of "
            f"all in {found['top1']:.0%}). The logit difference, right minus wrong, is {found['clean']:.2f} on clean "
            f"and {found['corrupted']:.2f} on corrupted prompts.",
        ],
        table=examples,
        caption="Three of the pairs",
    )


def _lead(heads: xr.DataArray, found: dict) -> str:
    helpful = _named(heads, 1)
    return (
        f"Putting back one head's clean output, {', '.join(helpful[:-1])} and {helpful[-1]} move the answer most "
        f"towards the right name: {_share(heads, helpful[0])} of the way for the strongest, of a logit difference "
        f"that spans {found['corrupted']:.1f} to {found['clean']:.1f}."
    )


def _heads(heads: xr.DataArray) -> Section:
    table = top(heads, 10)
    scale = normalised(heads)
    table["normalised"] = [float(scale.sel(layer=row["layer"], head=row["head"])) for _, row in table.iterrows()]
    table = table.rename(columns={"value": "effect (logits)"})
    against = _named(heads, -1)
    return Section(
        "Which heads carry it",
        [
            "Each cell is one run: the corrupted prompt with this head's output (at all positions) taken from the "
            "clean prompt. A positive effect pushes towards the right name, a negative one away from it.",
        ],
        figure=heads,
        table=table,
        caption="The ten strongest heads; normalised: 0 = corrupted, 1 = clean",
        notes=[
            f"Most of the model's {heads.size} heads hardly matter: {int((abs(scale) > 0.05).sum())} of them move the "
            f"answer by more than 5 % of the span. {' and '.join(against[:2])} work against the right name."
        ],
    )


def _positions(streams: xr.DataArray, task: interp.tasks.Task) -> Section:
    resid = normalised(streams.sel(kind="resid_pre"))
    last = task.clean.shape[1] - 1
    earlier = resid.isel(position=slice(0, last)).max("position")
    at_end = resid.isel(position=last)
    moved = [
        int(layer) for layer in resid.layer.values if float(at_end.sel(layer=layer)) > float(earlier.sel(layer=layer))
    ]
    when = f"from layer {moved[0]} on" if moved else "in no layer"
    return Section(
        "Where the information is",
        [
            "The residual stream, attention outputs and MLP outputs, patched at one position at a time, for the first "
            f"{streams.attrs['n']} pairs. Positions before the repeated name are the same in both prompts and can't "
            "have an effect.",
        ],
        figure=streams,
        notes=[
            "The residual stream tells where the answer is decided: in early layers all depends on the position of "
            f"the repeated name (S2), {when} more of it is at the last position, where the answer is read. The "
            "layers between the two are where attention carries it over."
        ],
    )


def _heads_by_position(scores: xr.DataArray, task: interp.tasks.Task) -> str:
    best = top(scores, 1).iloc[0]
    return (
        f"The same heads at one position at a time, for the first {len(task.clean[: scores.attrs['n']])} pairs. The "
        f"strongest single cell is head {int(best['head'])} of layer {int(best['layer'])} at position "
        f"{best['token']} ({best['value']:+.2f} logits)."
    )


def _estimates(estimated: xr.DataArray, heads: xr.DataArray) -> Section:
    return Section(
        "An estimate of the same",
        [
            "Exact patching runs the model once for every head. Relevance patching (RelP) estimates all of them from "
            f"two forward passes and a backward pass: {estimated.attrs['seconds']:.1f} s against "
            f"{heads.attrs['seconds']:.1f} s here. Each point is a head; on the line, estimate and truth agree.",
        ],
        figure=interp.plots.scatter(estimated, heads),
    )


def _circuit(circuit: Circuit, evaluation: Evaluation, found_on: int, graph: Graph) -> list[Section]:
    share, curve = len(circuit.in_edges) / len(circuit.edges), evaluation.curve
    assert curve is not None
    return [
        Section(
            "The circuit",
            [
                f"Every edge between components was scored (EAP-IG, {found_on} pairs) and the strongest were kept: "
                f"{len(circuit.in_edges):,} of {len(circuit.edges):,} edges ({share:.1%}). With all other edges "
                "carrying what the corrupted prompt sends along them, "
                f"{evaluation.faithfulness.value:.0%} of the logit "
                f"difference is still there on {len(evaluation.faithfulness.metric)} pairs that the circuit was not "
                f"found on; with the circuit's edges ablated instead, {abs(evaluation.complement.value):.0%} is.",
            ],
            figure=interp.plots.faithfulness_curve(curve),
            notes=[
                "The curve shows how much is left with fewer or more edges, with a 95 % interval over prompts. Random "
                f"circuits of the same sizes stand beside it. CPR {curve.attrs['cpr']:.3f} (area under the curve by "
                f"signed score), CMD {curve.attrs['cmd']:.3f} (area between the curve and 1; random circuits "
                f"{curve.attrs['random_cmd']:.3f})."
            ],
        ),
        Section("Its strongest edges", figure=interp.plots.circuit_graph(circuit, graph, most=300, first=100)),
    ]


def _named(heads: xr.DataArray, sign: int, k: int = 3) -> list[str]:
    frame = top(sign * heads, k, by="signed")
    return [f"a{int(layer)}.h{int(head)}" for layer, head in zip(frame["layer"], frame["head"], strict=True)]


def _share(heads: xr.DataArray, name: str) -> str:
    node = interp.graph.Node.parse(name)
    return f"{float(normalised(heads).sel(layer=node.layer, head=node.index)):.0%}"
