"""One of everything that this program writes, in two versions, and what makes two of them the same."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from attribution_graphs import random_graph
from families import tiny
from test_plots_tracing import readings
from test_results_findings import SCORES, heads, retrieval

import interp
from interp import efficiency
from interp.circuits.features.circuit import FeatureCircuit
from interp.efficiency.tradeoff import Row, Tradeoff
from interp.features import (
    Dictionary,
    Interpretations,
    Place,
    TopK,
    TopKCrosscoder,
    cross_layer_transcoder,
    save_circuit_tracer,
    save_cross_layer,
    transcoder,
)
from interp.features.interpretation.interpretations import Interpretation
from interp.results import Circuit

__all__ = ["KINDS", "Kind", "content"]


@dataclass(frozen=True)
class Kind:
    """Something that is saved.

    Args:
        make: One of it; another one for another seed.
        save: Writes it into a folder, and says what to load.
        keeps: What of it is kept in a file.
        reader: How `interp.results.loading.READERS` calls it.
    """

    make: Callable[[int], Any]
    save: Callable[[Any, Path], Path]
    reader: str
    keeps: Callable[[Any], Any] = lambda made: made


def content(found: Any) -> Any:
    """All that something holds, as nested dicts, lists, texts and bytes, to be compared."""
    if isinstance(found, xr.DataArray):
        coords = {name: content(coord.values) for name, coord in found.coords.items()}
        return ["scores", found.name, list(found.dims), content(found.values), coords, content(found.attrs)]
    if isinstance(found, pd.DataFrame):
        return {str(name): [str(found[name].dtype), *map(repr, found[name].tolist())] for name in found}
    if isinstance(found, torch.Tensor):
        return content(found.detach().cpu().contiguous().view(torch.uint8).numpy()) if found.numel() else []
    if isinstance(found, np.ndarray):
        return [str(found.dtype), list(found.shape), found.tolist() if found.dtype == object else found.tobytes()]
    if isinstance(found, Dictionary):
        own = {"reads": str(found.reads), "writes": str(found.writes), "model": found.model}
        return [type(found).__name__, content(own), content(found.state_dict())]
    if isinstance(found, torch.nn.Module):
        return [content(found.state_dict()), content(found.deployment), found.config.to_json_string()]
    if isinstance(found, interp.features.ActivationStore):
        names = list(found.manifest["places"])
        return [content(found.manifest), [content(found.load(at, names)) for at in range(len(found.shards))]]
    if is_dataclass(found):
        own = {item.name: content(getattr(found, item.name)) for item in fields(found)}
        return [type(found).__name__, own]
    if isinstance(found, Mapping):
        return {str(key): content(value) for key, value in sorted(found.items(), key=lambda pair: str(pair[0]))}
    if isinstance(found, frozenset):
        return sorted(map(repr, found))
    if isinstance(found, list | tuple):
        return [content(value) for value in found]
    if type(found).__module__.startswith("interp."):
        return [type(found).__name__, content({k: v for k, v in vars(found).items() if not k.startswith("_")})]
    return repr(found)


def _scores(seed: int) -> xr.DataArray:
    values = SCORES + seed
    return interp.results.scores(values, ("layer", "head"), units="logits", fingerprint="f" * 16, model="small")


def _finding(seed: int) -> Any:
    return retrieval(
        threshold=0.1 + 0.5 * seed, evidence=dict.fromkeys(("scores", "low", "high"), heads(SCORES / (1 + seed)))
    )


def _circuit(seed: int) -> Circuit:
    edges = {("input", "a0.h1<q>"): 0.5 + seed, ("a0.h1", "m0"): -0.25, ("m0", "logits"): 1.0}
    about = {"task": "t", "model": "small", "fingerprint": "f" * 16, "method": "eap", "heads_per_kv": 2}
    return Circuit({"m0": 1.5}, edges, in_edges=frozenset(list(edges)[seed:]), **about)


def _feature_circuit(seed: int) -> FeatureCircuit:
    nodes = {"resid_post.1.f3": 0.5, "resid_post.1.error": -1.0 + seed}
    edges = {("resid_post.1.f3", "logits"): 0.25}
    return FeatureCircuit(nodes, frozenset(nodes), edges, frozenset(edges), {"resid_post.1": "abc"}, model="small")


def _plan(seed: int) -> efficiency.Plan:
    return efficiency.make("magnitude", budget=0.5 + 0.25 * seed).plan(_deployed())


def _deployed() -> Any:
    return efficiency.deploy(tiny("llama"))


def _model(seed: int) -> Any:
    """The second one has no tokenizer, and so fewer files."""
    model = _plan(seed).made_permanent(_deployed())
    if seed:
        model.tokenizer = None
    return model


def _tradeoff(seed: int) -> Tradeoff:
    plan = _plan(seed)
    rows = (Row("dense", "dense", "dense"), Row("less", "plan", "less", plan))
    cells = [
        (row.name, group, name, repetition, value + seed + at + repetition / 3)
        for at, row in enumerate(rows)
        for group, name, value in (("quality", "text.kl", 0.1), ("cost", "cache_bytes", 100.0))
        for repetition in range(2)
    ]
    cells.append(("less", "cost", "prefill_seconds", 0, float("nan")))
    values = pd.DataFrame(cells, columns=["row", "group", "quantity", "repetition", "value"])
    return Tradeoff(rows, values, {"text.kl": "lower"}, {"model": plan.model, "fingerprint": plan.fingerprint})


def _saved_tradeoff(found: Tradeoff, folder: Path) -> Path:
    found.save(folder, "text.kl")
    return folder


def _dictionary(seed: int) -> TopK:
    made = TopK(6, 10 + seed, 2 + seed, reads=Place("resid_post", 1), seed=seed)
    made.model = ("small", "f" * 16)
    return made.eval()


def _coders(seed: int) -> dict[int, Dictionary]:
    return {
        layer: transcoder(f"mlp_in.{layer}", f"mlp_out.{layer}", 6, 10, architecture="standard", seed=seed).eval()
        for layer in (0, 2)
    }


def _cross_layer(seed: int) -> Dictionary:
    """The second one has fewer layers, and so fewer files."""
    made = cross_layer_transcoder((0, 1, 2)[seed:], 4, 6, kind="tanh", seed=seed)
    return made.eval()


def _explanations(seed: int) -> Interpretations:
    row = Interpretation(3, "dogs", 0.25, {"detection": 0.75}, {"detection": float("nan")}, 5, {"feature": 1}, "")
    return Interpretations((row,), {"chance": {"detection": 0.5}, "reads": "resid_post.1", "model": "small", "n": seed})


def _readings(seed: int) -> Any:
    made = readings()
    places = {"reads": "resid_post.1", "writes": "resid_post.1"}
    about = {**made.about, "model": "small", "fingerprint": "0", "d_sae": 4, "quantiles": 2, **places}
    arrays = {**made.arrays, "sample.index": np.full((1, 2, 3), -1), "sample.tokens": np.full((1, 2, 3, 1), -1)}
    return type(made)(made.features + seed, about, made.strings, arrays)


def _into(name: str, method: str = "save") -> Callable[[Any, Path], Path]:
    """A method that takes a file's path, or a folder's for an empty name."""

    def save(made: Any, folder: Path) -> Path:
        getattr(made, method)(folder / name)
        return folder / name

    return save


def _by(function: Callable[[Any, Path], Any], name: str = "") -> Callable[[Any, Path], Path]:
    def save(made: Any, folder: Path) -> Path:
        with contextlib.redirect_stdout(io.StringIO()):
            function(made, folder / name)
        return folder / name

    return save


def _each(made: Mapping[int, Dictionary], folder: Path) -> Path:
    for layer, dictionary in made.items():
        dictionary.save(folder / f"layer_{layer}")
    return folder


def _eap_ig(made: Circuit, folder: Path) -> Path:
    from interp.graph import Graph

    return made.to_eap_ig(folder / "x.json", Graph.of(tiny("llama", num_hidden_layers=1)))


def _eap_ig_kept(found: Circuit) -> Any:
    """Scores of edges and what is in the circuit: the format has all edges of the graph, and no provenance."""
    return {edge: score for edge, score in found.edges.items() if score}, found.in_edges, dict(found.nodes)


def _circuit_tracer(made: Any, folder: Path) -> Path:
    return made.to_circuit_tracer(folder / "x.json", nodes=None, edges=None)


KINDS = {
    "scores": Kind(_scores, _by(interp.results.save, "x.safetensors"), "interp.scores/1"),
    "scores, json": Kind(_scores, _by(interp.results.save, "scores.json"), "interp.scores/1"),
    "scores, netCDF": Kind(_scores, _by(interp.results.save, "x.nc"), "interp.scores/1"),
    "finding": Kind(_finding, _into(""), "interp.finding/1"),
    "finding, json": Kind(_finding, _into("x.json"), "interp.finding/1"),
    "circuit": Kind(_circuit, _into("circuit.json"), "interp.circuit/1"),
    "feature circuit": Kind(_feature_circuit, _into("x.json"), "interp.feature_circuit/1"),
    "plan": Kind(_plan, _into("plan.json"), "a plan"),
    "model": Kind(_model, _by(efficiency.save), "a deployed model"),
    "trade-off": Kind(_tradeoff, _saved_tradeoff, "interp.tradeoff/1"),
    "graph": Kind(lambda seed: random_graph(20, seed=seed), _into("graph.safetensors"), "interp.attribution-graph/1"),
    "circuit-tracer's graph": Kind(
        lambda seed: random_graph(20, seed=seed).pruned(1.0, 1.0), _circuit_tracer, "circuit-tracer's graph"
    ),
    "EAP-IG's circuit": Kind(_circuit, _eap_ig, "EAP-IG's circuit", _eap_ig_kept),
    "dictionary": Kind(_dictionary, _into(""), "a dictionary"),
    "crosscoder": Kind(
        lambda seed: TopKCrosscoder((3, 3), 10, k=2 + seed, seed=seed).eval(), _into(""), "interp.dictionary/1"
    ),
    "transcoders": Kind(_coders, _each, "transcoders"),
    "circuit-tracer's transcoder": Kind(
        lambda seed: _coders(seed)[2], _by(save_circuit_tracer, "x.safetensors"), "circuit-tracer's transcoder"
    ),
    "circuit-tracer's cross-layer transcoder": Kind(
        _cross_layer, _by(save_cross_layer), "circuit-tracer's cross-layer transcoder"
    ),
    "explanations": Kind(_explanations, _into("x.json"), "interp.explanations/1"),
    "readings": Kind(_readings, _into(""), "interp.readings/1"),
}
