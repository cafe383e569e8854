"""One load for everything that this program writes, by what a file or folder says that it is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr
from safetensors import SafetensorError, safe_open

from interp._lazy import Registry
from interp.checking import read_json
from interp.errors import InterpError, UsageError, unknown_name
from interp.results.folders import settle

__all__ = ["READERS", "load"]

_BEGIN = 4096

READERS: Registry[Any] = Registry(
    "interp",
    **{
        "interp.scores/1": "results.io:load_scores",
        "interp.finding/1": "results.finding_files:load",
        "interp.circuit/1": "results.circuit:Circuit.load",
        "interp.feature_circuit/1": "circuits.features.circuit:FeatureCircuit.load",
        "interp.attribution-graph/1": "tracing.graph:AttributionGraph.load",
        "interp.activations/1": "features.activations.store:ActivationStore.open",
        "interp.readings/1": "features.reading.readings:FeatureReadings.load",
        "interp.explanations/1": "features.interpretation.interpretations:Interpretations.load",
        "interp.dictionary/1": "features.formats.saelens:load",
        "interp.tradeoff/1": "efficiency.tradeoff_files:load",
        "a dictionary": "features.formats.saelens:load",
        "transcoders": "features.training.transcoders:load_transcoders",
        "a plan": "efficiency.plan:Plan.load",
        "a deployed model": "efficiency.saving:load",
        "circuit-tracer's transcoder": "features.formats.circuit_tracer:load_circuit_tracer",
        "circuit-tracer's cross-layer transcoder": "features.formats.circuit_tracer:load_cross_layer",
        "circuit-tracer's graph": "tracing.formats.circuit_tracer:read",
        "EAP-IG's circuit": "results.eap_ig:read",
    },
)
"""What a file or folder is, most of them by the format that they name, and what reads it."""

_BY_FIELDS = {
    "a plan": {"kind", "version", "fingerprint", "budget"},
    "a deployed model": {"plans", "class", "fingerprint"},
    "a dictionary": {"architecture", "d_in", "d_sae"},
    "EAP-IG's circuit": {"cfg", "nodes", "edges"},
    "circuit-tracer's graph": {"metadata", "nodes", "links"},
}
"""What JSON without a format's name is, by fields that it has."""

_READ_BY_FOLDER = (
    "interp.activations/1", "interp.readings/1", "interp.dictionary/1", "a dictionary", "a deployed model",
    "circuit-tracer's cross-layer transcoder",
)  # fmt: skip

_TELLING = (
    (
        "finding.json", "readings.json", "tradeoff.json", "plans.json", "cfg.json", "manifest.json",
        "W_enc_0.safetensors",
    ),
    ("scores.json", "circuit.json", "graph.safetensors", "plan.json", "explanations.json"),
)  # fmt: skip
"""Files that tell what a folder holds: as a whole; else what a command wrote, among other programs' formats of it."""

_FOR_OTHERS = {
    ".csv": "a CSV file holds neither the attributes nor the types; load the file of scores, circuit, ... beside it",
    ".graphml": "GraphML is for other programs; load the graph's .safetensors or .json",
    ".html": "it is a page; load what it was made from",
    ".jsonl": "it holds lines for a task or of a training run; interp.task(path, model) makes a task of them",
    ".gguf": "it is a model; interp.load(path, ...) makes one of it",
    **dict.fromkeys((".png", ".svg", ".pdf"), "it is a picture; load what it was made from"),
    **dict.fromkeys((".pt", ".pth", ".bin", ".pkl", ".pickle"), "it is a pickle, which this program never opens"),
}


def load(path: str | os.PathLike[str], model: Any = None, *, any_model: bool = False) -> Any:
    """Read anything that this program has written, as the type that was saved.

    Args:
        path: a file of scores, of a circuit, a plan, a graph, explanations, ..., or a folder with a finding, a
            dictionary, a set of transcoders, activations, readings, a trade-off, a deployed model, or what one
            command wrote. Of scores the suffix `.safetensors` may be left out.
        model: the model, or its fingerprint, that it is to be used with.
        any_model: take it although it is about a model with other weights.

    Returns:
        Scores as a `DataArray`, a `Finding`, `Circuit`, `FeatureCircuit`, `Plan`, `Tradeoff`, `AttributionGraph`,
        `Dictionary` (transcoders and crosscoders too), transcoders by layer, an `ActivationStore`, `FeatureReadings`,
        `Interpretations`, or a deployed model. What was written in another program's format is what that can hold.

    Raises:
        UsageError: a file for other programs, a folder with several things in it, or something about another model.
        InterpError: nothing there, damaged, of another version, or not written by this program; the message says so.

    Example:
        >>> interp.results.load("retrieval/", model).heads[:5]
    """
    target = Path(path)
    if not target.exists() and not target.suffix:
        target = target.with_name(f"{target.name}.safetensors")
    settle(target if target.is_dir() else target.parent)
    if not target.exists():
        raise InterpError(f"{target} does not exist")
    kind, where = _what(target)
    if kind not in READERS:
        same = [one for one in READERS if one.startswith(f"{kind.partition('/')[0]}/")]
        why = f"this version reads {same[0]!r}; write it anew" if same else "which this program does not write"
        raise InterpError(f"{where} is of the format {kind!r}, {why}")
    found = READERS[kind](where)
    if model is not None and not any_model:
        _check(found, model, where)
    return found


def _what(path: Path) -> tuple[str, Path]:
    """What something is, and the path that its reader takes."""
    if path.is_dir():
        if not (path / "cfg.json").exists() and any(path.glob("layer_*/cfg.json")):
            return "transcoders", path
        return _what(path / _telling(path))
    if path.suffix in _FOR_OTHERS:
        raise UsageError(f"{path} can't be loaded: {_FOR_OTHERS[path.suffix]}")
    if path.suffix not in _KINDS:
        raise unknown_name("file format", path.suffix, _KINDS)
    kind = _KINDS[path.suffix](path)
    return kind, path.parent if kind in _READ_BY_FOLDER else path


def _telling(folder: Path) -> str:
    """The file that tells what a folder holds."""
    for names in _TELLING:
        there = [name for name in names if (folder / name).is_file()]
        if len(there) == 1:
            return there[0]
        if there:
            raise UsageError(f"{folder} holds several things; load one of them: {', '.join(there)}")
    if (folder / "config.json").is_file():
        raise UsageError(f"{folder} holds a model without plans; interp.load(path) loads it")
    files = sorted(path for path in folder.iterdir() if path.suffix in _KINDS)
    there = [path.name for path in files if path.suffix == ".json" or path.with_suffix(".json") not in files]
    if len(there) == 1:
        return there[0]
    inner = there or sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not inner:
        raise InterpError(f"{folder} holds nothing that this program has written")
    raise UsageError(f"{folder} as a whole is nothing that this program writes; load one of: {', '.join(inner)}")


def _of_json(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        begin = file.read(_BEGIN)
    if named := re.match(r'\s*\{\s*"format"\s*:\s*"([^"\\]*)"', begin):  # so that large files are read once only
        return named[1]
    document = read_json(path)
    if isinstance(document.get("format"), str):
        return document["format"]
    for kind, needed in _BY_FIELDS.items():
        if needed <= set(document):
            return kind
    shown = ", ".join(sorted(document)[:5]) or "nothing"
    raise InterpError(f"{path} does not say what it is, and is nothing that this program has written: it has {shown}")


def _of_safetensors(path: Path) -> str:
    try:
        with safe_open(path, framework="np") as file:
            names, about = sorted(file.keys()), file.metadata() or {}
        if "interp" in about:
            return str(json.loads(about["interp"])["format"])
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InterpError(f"{path} is cut short, damaged or not of this program: {error}") from None
    if about.get("format", "").startswith("interp."):
        return about["format"]
    if "checkpoint" in about:
        raise UsageError(f"{path} is a checkpoint of a training run; `train` into its folder goes on from it")
    if "identity" in about:
        raise UsageError(f"{path} is what a sweep has computed so far; the same sweep goes on from it")
    if "W_enc_0" in names:
        return "circuit-tracer's cross-layer transcoder"
    if "interp.reads" in about:
        return "circuit-tracer's transcoder"
    hint = "; interp.features.load_circuit_tracer(path, reads, writes) reads one of circuit-tracer's transcoders"
    raise InterpError(
        f"{path} does not say what it is: it has {', '.join(names[:5]) or 'no tensors'}. If it is a part of what its "
        f"folder holds, load the folder{hint if 'W_enc' in names else ''}"
    )


_KINDS = {".json": _of_json, ".safetensors": _of_safetensors, ".nc": lambda path: "interp.scores/1"}


def _check(found: Any, model: Any, where: Path) -> None:
    """Refuses what is about another model; what names none is taken.

    Raises:
        UsageError: the fingerprint is another one.
    """
    from interp.engine.identity import identity

    name, fingerprint = _model_of(found)
    deployed = getattr(model, "deployment", None)
    theirs = model if isinstance(model, str) else deployed.fingerprint if deployed is not None else identity(model)
    if fingerprint and fingerprint != theirs:
        raise UsageError(
            f"{where} is about {name or 'another model'} with the fingerprint {fingerprint}, the model given has "
            f"{theirs}: its weights are others; make it anew for this model, or load it with any_model=True"
        )


def _model_of(found: Any) -> tuple[Any, Any]:
    """The name and the fingerprint of the model that something is about."""
    if isinstance(found, xr.DataArray):
        return found.attrs.get("model"), found.attrs.get("fingerprint")
    if isinstance(found, dict):  # dictionaries by layer
        return _model_of(next(iter(found.values())))
    if deployed := getattr(found, "deployment", None):
        return deployed.name, deployed.fingerprint
    about = getattr(found, "manifest", None) or getattr(found, "about", None)
    if isinstance(about, Mapping):
        return about.get("model"), about.get("fingerprint")
    model = getattr(found, "model", None)
    return model if isinstance(model, tuple) else (model, getattr(found, "fingerprint", None))
