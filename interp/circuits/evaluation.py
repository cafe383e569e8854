"""One circuit, evaluated: faithfulness, completeness, the curve over sizes, and what its edges are worth."""

from __future__ import annotations

import html
from dataclasses import dataclass

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge

from interp.circuits.discover import mask_of, scores_of
from interp.circuits.exact import EdgeExperiment
from interp.circuits.faithfulness import Faithfulness, curve, faithfulness, minimality
from interp.errors import UsageError, unknown_name
from interp.graph import Graph
from interp.models import fingerprint
from interp.patching.experiment import Experiment
from interp.patching.methods import SOURCES
from interp.patching.sources import derangement
from interp.results.circuit import Circuit
from interp.tasks import Task

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What ablating everything outside a circuit, or the circuit itself, does to a behaviour.

    Attributes:
        circuit: The circuit.
        faithfulness: The share of the behaviour that the circuit carries alone (1: all).
        complement: The share that the rest carries with the circuit ablated (0: the circuit is complete).
        curve: Faithfulness over sizes by absolute score, beside random circuits; None unless asked for. CMD and the
            random controls' areas are in its ``attrs``, and CPR, of the curve by signed score.
        worth: For each edge of the circuit the faithfulness lost when it is ablated too; None unless asked for.
    """

    circuit: Circuit
    faithfulness: Faithfulness
    complement: Faithfulness
    curve: pd.DataFrame | None = None
    worth: pd.DataFrame | None = None

    def __str__(self) -> str:
        text = (
            f"{len(self.circuit.in_edges)} of {len(self.circuit.edges)} edges: faithfulness {self.faithfulness}, "
            f"with the circuit ablated {self.complement}"
        )
        if self.curve is not None:
            attrs = self.curve.attrs
            text += f"; CPR {attrs['cpr']:.3f}, CMD {attrs['cmd']:.3f} (random {attrs['random_cmd']:.3f})"
        return text

    def _repr_html_(self) -> str:
        table = "" if self.curve is None else self.curve.round(3).to_html(index=False)
        return f"<p>{html.escape(str(self))}</p>{table}"


def evaluate(
    model: TransformerBridge,
    circuit: Circuit,
    task: Task,
    *,
    ablation: str = "corrupted",
    with_curve: bool = False,
    with_worth: bool = False,
    metric: str | None = None,
    random: int = 3,
    seed: int = 0,
) -> Evaluation:
    """Evaluates a circuit on clean prompts, with what is outside ablated.

    Args:
        model: The model that the circuit was found in; it is only read.
        circuit: Its edges, and for the curve its scores.
        task: The prompt pairs; preferably others than those that it was found on.
        ablation: What ablated edges carry: the ``corrupted`` prompt's write, ``zero``, the ``mean`` over the task's
            corrupted prompts, or the ``resampled`` one of another example's corrupted prompt.
        with_curve: Also the curve over circuit sizes, with CPR and CMD.
        with_worth: Also what each edge is worth.
        metric: Instead of the task's own.
        random: Random rankings beside the curve.
        seed: Of random rankings, bootstrap intervals and resampling.

    Raises:
        UsageError: The circuit of another model, an unknown ablation, or nothing to explain.
    """
    circuit.check(fingerprint(model))
    if ablation not in SOURCES:
        raise unknown_name("ablation", ablation, SOURCES)
    graph = Graph.of(model)
    experiment = Experiment(model, task, mode="noising", metrics=[metric] if metric else None)
    alternative: str | torch.Tensor | None = None if ablation == "corrupted" else ablation
    if ablation == "resampled":
        if len(task) < 2:
            raise UsageError("ablation='resampled' takes another example's writes: it needs two examples or more")
        alternative = experiment.task.corrupted[derangement(len(task), seed)]
    edges = EdgeExperiment(experiment, alternative)
    kept = mask_of(circuit, graph)
    sizes = None
    if with_curve:
        scores = scores_of(circuit, graph)
        sizes = curve(edges, scores, random=random, seed=seed)
        signed = curve(edges, scores, absolute=False, random=0, seed=seed)
        sizes.attrs["cpr"] = signed.attrs["cpr"]
        sizes["signed"] = signed["faithfulness"]
    return Evaluation(
        circuit,
        faithfulness(edges, kept, seed),
        faithfulness(edges, edges.known & ~kept, seed),
        sizes,
        _worth(minimality(edges, kept), graph) if with_worth else None,
    )


def _worth(values: torch.Tensor, graph: Graph) -> pd.DataFrame:
    names, ports = graph.nodes(), graph.ports()
    rows = [
        (names[node], ports[port], float(values[port, node])) for port, node in (~values.isnan()).nonzero().tolist()
    ]
    frame = pd.DataFrame(rows, columns=["node", "port", "worth"])
    return frame.sort_values("worth", ascending=False, kind="stable").reset_index(drop=True)
