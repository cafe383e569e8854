"""Every reader of files, with what writes an intact one and what uses what was read."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from attribution_graphs import hand_made
from families import tiny
from test_results_circuit import shape
from test_results_findings import heads, one_of_each
from test_tracing_formats import foreign

from interp.circuits.features.circuit import FeatureCircuit
from interp.efficiency import Plan, deploy, deployment, make
from interp.efficiency.calibration.plan import CalibrationPlan
from interp.features import (
    Dictionary,
    Gated,
    JumpReLU,
    Standard,
    TopK,
    cross_layer_transcoder,
    crosscoder,
    load_circuit_tracer,
    load_cross_layer,
    save_circuit_tracer,
    save_cross_layer,
    transcoder,
)
from interp.results import Circuit, load, save, to_frame
from interp.tracing.graph import AttributionGraph

Writer, Reader = Callable[[Path], Any], Callable[[Path], Any]
READERS: dict[str, tuple[Writer, Reader]] = {}
"""What writes an intact file or folder to a path, and what reads it and uses what it has read."""


def reads(name: str, write: Writer) -> Callable[[Reader], Reader]:
    def add(read: Reader) -> Reader:
        READERS[name] = write, read
        return read

    return add


# Dictionaries


def encoded(dictionary: Dictionary) -> None:
    assert dictionary(torch.ones(2, dictionary.d_in)).shape == (2, dictionary.d_out)


SAELENS = {
    "standard": Standard(3, 5),
    "topk": TopK(3, 5, k=2),
    "jumprelu": JumpReLU(3, 5, reads=None),
    "gated": Gated(3, 5),
    "transcoder": transcoder("mlp_in.0", "mlp_out.0", 3, 5, architecture="topk", k=2, skip=True),
    "crosscoder": crosscoder(["resid_post.0", "resid_post.1"], 3, 4, architecture="batch_topk", k=2),
    "cross-layer transcoder": cross_layer_transcoder(range(2), 3, 4),
}
for kind, made in SAELENS.items():
    write = functools.partial(Dictionary.save, made, model_name="toy", model_fingerprint="f" * 16)
    reads(f"{kind}, SAELens", write)(lambda path: encoded(Dictionary.load(path)))


for kind in ("topk", "jumprelu"):
    options = {"k": 2} if kind == "topk" else {}
    made = transcoder("mlp_in.0", "mlp_out.0", 3, 5, architecture=kind, skip=True, **options)
    reads(f"{kind}, circuit-tracer", functools.partial(save_circuit_tracer, made))(
        lambda path: encoded(load_circuit_tracer(path, "mlp_in.0", "mlp_out.0"))
    )


@reads("cross-layer transcoder, circuit-tracer", lambda path: save_cross_layer(SAELENS["cross-layer transcoder"], path))
def _(path):
    encoded(load_cross_layer(path))


# Results


def used(found: Any) -> None:
    """Looks at what was read as a user would, and writes it again."""
    assert str(found)
    found.to_frame()


for suffix in (".safetensors", ".json", ".nc"):
    reads(f"scores{suffix}", lambda path, suffix=suffix: save(heads(), path.with_suffix(suffix)))(
        lambda path, suffix=suffix: to_frame(load(path.with_suffix(suffix)))
    )
for finding in one_of_each():
    reads(type(finding).__name__, finding.save)(lambda path: used(load(path)))


def some_circuit(**about) -> Circuit:
    edges = {("input", "a0.h0<q>"): 0.5, ("a0.h0", "m1"): -1.0, ("m1", "logits"): 2.0}
    nodes = {"a0.h0": 0.5, "m1": 1.0}
    return Circuit(nodes, edges, in_edges=frozenset(edges), heads_per_kv=2, settings={"steps": 5}, **about)


@reads("circuit", some_circuit(task="ioi", model="toy", fingerprint="f" * 16).save)
def _(path):
    found = Circuit.load(path)
    used(found)
    found.pruned()
    found.overlap(some_circuit())


@reads("circuit, EAP-IG", lambda path: some_circuit().to_eap_ig(path, shape()))
def _(path):
    used(Circuit.from_eap_ig(path))


@reads(
    "feature circuit",
    FeatureCircuit({"mlp.0.f3": 0.5, "mlp.0.error": 1.0}, {"mlp.0.f3"}, {("mlp.0.f3", "logits"): 1.0}).save,
)
def _(path):
    used(FeatureCircuit.load(path))


def looked_at(graph: AttributionGraph) -> None:
    assert str(graph)
    graph.scores()
    graph.pruned()
    assert len(graph.edges) == len(graph.weights)


reads("graph", hand_made().save)(lambda path: looked_at(AttributionGraph.load(path)))
reads("graph, circuit-tracer, ours", hand_made().to_circuit_tracer)(
    lambda path: looked_at(AttributionGraph.from_circuit_tracer(path))
)


@reads("graph, circuit-tracer", lambda path: path.write_text(json.dumps(foreign())))
def _(path):
    looked_at(AttributionGraph.from_circuit_tracer(path))


# Plans


@functools.cache
def deployed():
    return deploy(tiny("llama"))


def about() -> dict[str, Any]:
    found = deployment(deployed())
    return {"model": found.name, "fingerprint": found.fingerprint, "method": "by hand", "budget": 0.5}


def planned(*methods: str) -> Plan:
    made = [make(name, **OPTIONS[name]).plan(deployed()) for name in methods]
    return functools.reduce(operator.add, made)


def tried(path: Path) -> None:
    plan = Plan.load(path)
    assert plan.summary()
    plan.to_frame()
    plan.ledger(deployed(), 24)
    with plan.applied(deployed()), torch.no_grad():
        deployed()(torch.arange(4, 28)[None])


OPTIONS: dict[str, dict[str, Any]] = {
    "streaming": {"budget": 0.5, "sinks": 2, "length": 24},
    "h2o": {"budget": 0.5, "length": 24},
    "a_shape": {"budget": 0.8, "sinks": 2, "length": 24, "block": 4},
    "magnitude": {"budget": 0.7},
    "sparse": {"budget": 0.5},
    "rtn": {"group": 16},
    "final_layer": {},
}
QUANTIZED = {"keep": "quantized", "bits": 8, "group": 8, "sinks": 2, "residual": 8}
CALIBRATED = {"heads": ((0, 1), (1, 2)), "strength": 0.5, "sinks": {"by": "attention", "alpha": 1.0, "initial": 1}}


@reads("plan, calibration", lambda path: CalibrationPlan(**about(), **CALIBRATED).save(path))
def _(path):
    tried(path)


reads("plan, quantized", lambda path: replace(planned("streaming"), policies=(QUANTIZED,)).save(path))(tried)
for methods in (*((name,) for name in OPTIONS), ("streaming", "magnitude")):
    reads(f"plan, {' + '.join(methods)}", lambda path, methods=methods: planned(*methods).save(path))(tried)
