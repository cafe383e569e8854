"""The attribution graph of one prompt: which tokens and features lead to which prediction, and by how much.

An edge's weight is the direct effect of its source on its target's value: over all paths through attention and the
residual stream that pass no other node. Into every feature and every logit the weights and the node's ``bias`` sum to
its ``value``, as long as nothing has been dropped, pruned or merged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.numpy import save_file
from scipy import sparse

from interp.checking import checked, damaged, parsed, read_tensors, typed
from interp.errors import InterpError, UsageError, unknown_name
from interp.results.confirming import confirm
from interp.results.files import replacing

if TYPE_CHECKING:
    from interp.tracing.influence import Path as StrongPath
    from interp.tracing.intervening import Intervened
    from interp.tracing.validating import Validation

__all__ = ["COLUMNS", "FORMAT", "KINDS", "AttributionGraph", "Origin", "feature_name"]

FORMAT = "interp.attribution-graph/1"
KINDS = ("token", "feature", "error", "logit", "group")
COLUMNS = {
    "kind": "str", "layer": "int64", "position": "int64", "feature": "int64", "activation": "float64",
    "value": "float64", "bias": "float64", "weight": "float64", "influence": "float64", "expanded": "bool",
    "label": "str",
}  # fmt: skip
"""The columns of `AttributionGraph.nodes` and their types."""
_EDGES = {"targets": "int64", "sources": "int64", "weights": "float32"}
_TEXTS = tuple(name for name, kind in COLUMNS.items() if kind == "str")


@dataclass(frozen=True, eq=False)
class Origin:
    """The model and the basis that a graph was traced in; they live in memory and are not saved with it.

    A pickle holds None in their place, so that a graph goes to another process without its model's weights; copies
    share them.
    """

    model: Any
    basis: Any

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Origin:
        return self


@dataclass(frozen=True, eq=False, repr=False)
class AttributionGraph:
    """Nodes and edges of one prompt's attribution graph.

    Args:
        prompt: The text, "" if there were only tokens.
        tokens: Token ids, with those that the model wants before every text.
        words: The tokens as text.
        nodes: One row a node, in causal order; the index holds the names: ``token@3``, ``7.1229@3`` (a feature:
            layer, index, position), ``error.7@3``, ``logit.4242``, ``logit.4242-515`` (a difference), ``group.NAME``.
            Columns: ``kind`` (of `KINDS`), ``layer`` (-1 for tokens, the number of layers for logits), ``position``,
            ``feature`` (neuron or latent; token id of tokens and logits; -1 of errors), ``activation`` (of a feature;
            probability of a logit; else 1), ``value`` (what edges and bias sum to), ``bias``, ``weight`` (of a
            target in the influence; else 0), ``influence``, ``expanded`` (whether its inputs were computed), ``label``.
        targets: Of each edge the row of its target in `nodes`.
        sources: Of each edge the row of its source.
        weights: Of each edge the direct effect of source on target, in units of the target's value.
        about: Model, basis, settings and scores, of JSON's types.
        origin: The model and basis, for what runs the model again.

    Raises:
        UsageError: Columns are missing, names occur twice, or edges don't fit the nodes.
    """

    prompt: str
    tokens: tuple[int, ...]
    words: tuple[str, ...]
    nodes: pd.DataFrame
    targets: Int[np.ndarray, " edge"]
    sources: Int[np.ndarray, " edge"]
    weights: Float[np.ndarray, " edge"]
    about: dict[str, Any] = field(default_factory=dict)
    origin: Origin | None = None

    def __post_init__(self) -> None:
        missing = [name for name in COLUMNS if name not in self.nodes.columns]
        if missing:
            raise UsageError(f"the table of nodes lacks the column {missing[0]!r}")
        if not self.nodes.index.is_unique:
            twice = self.nodes.index[self.nodes.index.duplicated()][0]
            raise UsageError(f"the node {twice!r} is there twice")
        if not len(self.targets) == len(self.sources) == len(self.weights):
            raise UsageError("targets, sources and weights must have one entry an edge")
        if len(self.targets) and not 0 <= self._ends.min() <= self._ends.max() < len(self.nodes):
            raise UsageError(f"an edge ends outside the {len(self.nodes)} nodes")
        if unknown := sorted(set(self.nodes["kind"]) - set(KINDS)):
            raise UsageError(f"a node is of the kind {unknown[0]!r}; the kinds are {', '.join(KINDS)}")

    def __repr__(self) -> str:
        return f"AttributionGraph({self.prompt!r}, {len(self.nodes):,} nodes, {len(self.weights):,} edges)"

    @property
    def _ends(self) -> np.ndarray:
        return np.concatenate([self.targets, self.sources])

    @property
    def edges(self) -> pd.DataFrame:
        """Columns ``source``, ``target``, ``weight``, ``share`` (of the absolute weights into the target)."""
        size = np.abs(self.weights).astype(np.float64)
        total = np.bincount(self.targets, size, len(self.nodes))[self.targets]
        names = self.nodes.index.to_numpy()
        return pd.DataFrame(
            {
                "source": names[self.sources],
                "target": names[self.targets],
                "weight": self.weights,
                "share": np.divide(size, total, out=np.zeros_like(size), where=total > 0),
            }
        )

    def matrix(self) -> sparse.csr_array:
        """The weights, "target source", in the order of `nodes`."""
        shape = (len(self.nodes), len(self.nodes))
        entries = self.weights.astype(np.float64), (self.targets, self.sources)
        return sparse.coo_array(entries, shape=shape).tocsr()

    def row(self, node: str) -> int:
        """Where a node stands in `nodes`.

        Raises:
            UsageError: There is no such node.
        """
        if node not in self.nodes.index:
            raise unknown_name("node", str(node), map(str, self.nodes.index))
        return int(np.flatnonzero(self.nodes.index == node)[0])

    def inputs(self, node: str) -> pd.DataFrame:
        """The edges into a node, strongest first.

        Raises:
            UsageError: There is no such node.
        """
        return _strongest(self.edges[self.targets == self.row(node)])

    def outputs(self, node: str) -> pd.DataFrame:
        """The edges out of a node, strongest first.

        Raises:
            UsageError: There is no such node.
        """
        return _strongest(self.edges[self.sources == self.row(node)])

    def kept(self, rows: np.ndarray, edges: np.ndarray, **about: Any) -> AttributionGraph:
        """The graph of some nodes and of some edges among them.

        Args:
            rows: Which nodes stay, a mask.
            edges: Which edges stay, a mask.
            **about: What to note in `about`.
        """
        edges = edges & rows[self.targets] & rows[self.sources]
        new = np.cumsum(rows) - 1
        return replace(
            self,
            nodes=self.nodes[rows],
            targets=new[self.targets[edges]],
            sources=new[self.sources[edges]],
            weights=self.weights[edges],
            about={**self.about, **about},
        )

    # The stages of the method, each in its file

    def scores(self) -> dict[str, float]:
        """``replacement``, ``completeness`` and ``error_share``, see `interp.tracing.influence.scores`."""
        from interp.tracing.influence import scores

        return scores(self)

    def pruned(self, nodes: float = 0.8, edges: float = 0.98) -> AttributionGraph:
        """The nodes and edges that carry most of the influence, see `interp.tracing.influence.pruned`."""
        from interp.tracing.influence import pruned

        return pruned(self, nodes, edges)

    def paths(self, n: int = 3) -> list[StrongPath]:
        """The strongest paths from tokens to targets, see `interp.tracing.influence.paths`."""
        from interp.tracing.influence import paths

        return paths(self, n)

    def merged(self, groups: Mapping[str, Sequence[str]]) -> AttributionGraph:
        """The graph with some nodes merged into supernodes, see `interp.tracing.supernodes`."""
        from interp.tracing.supernodes import merged

        return merged(self, groups)

    def intervene(self, values: Mapping[str, float], attention: str = "free") -> Intervened:
        """The real model with nodes set to values, see `interp.tracing.intervening.intervene`."""
        from interp.tracing.intervening import intervene

        return intervene(self, values, attention)

    def validate(self, n: int = 20, groups: int = 10, size: int = 5, seed: int = 0, **options: Any) -> Validation:
        """Predicted beside measured effects, see `interp.tracing.validating.validate`."""
        from interp.tracing.validating import validate

        return validate(self, n, groups, size, seed, **options)

    def attached(self, model: Any, basis: Any = "neurons") -> AttributionGraph:
        """A graph read from a file or a pickle with the model and basis it was traced in.

        Raises:
            UsageError: The model or the basis is another one.
        """
        from interp.tracing.trace import attached

        return attached(self, model, basis)

    @property
    def traced_in(self) -> Origin:
        """The model and basis.

        Raises:
            UsageError: The graph was read from a file or a pickle.
        """
        if self.origin is None:
            raise UsageError(
                "this graph was read from a file, or sent from another process, and has no model with it; give it the "
                "one it was traced in: graph.attached(model, basis)"
            )
        return self.origin

    # Files and pictures

    def html(self, path: str | os.PathLike[str], **options: Any) -> Path:
        """Writes an interactive page that needs nothing else, see `interp.plots.tracing`."""
        from interp.plots.tracing import write_page

        return write_page(self, path, **options)

    def to_circuit_tracer(self, path: str | os.PathLike[str], **options: Any) -> Path:
        """Writes circuit-tracer's JSON, see `interp.tracing.formats.circuit_tracer`."""
        from interp.tracing.formats.circuit_tracer import write

        return write(self, path, **options)

    def to_graphml(self, path: str | os.PathLike[str]) -> Path:
        """Writes GraphML, see `interp.tracing.formats.graphml`."""
        from interp.tracing.formats.graphml import write

        return write(self, path)

    def to_csv(self, directory: str | os.PathLike[str]) -> Path:
        """Writes ``nodes.csv`` and ``edges.csv``, see `interp.tracing.formats.tables`."""
        from interp.tracing.formats.tables import write

        return write(self, directory)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes one safetensors file: numbers as tensors, the rest as JSON in its header.

        Raises:
            InterpError: The file can't be written.
        """
        confirm(self.about.get("fingerprint"))
        arrays = {f"nodes.{name}": self.nodes[name].to_numpy(kind) for name, kind in COLUMNS.items() if kind != "str"}
        arrays |= {"targets": self.targets.astype(np.int64), "sources": self.sources.astype(np.int64)}
        arrays["weights"] = self.weights.astype(np.float32)
        texts = {name: [str(text) for text in self.nodes[name]] for name in _TEXTS}
        header = {
            "prompt": self.prompt,
            "tokens": list(self.tokens),
            "words": list(self.words),
            "names": list(self.nodes.index),
            "texts": texts,
            "about": self.about,
        }
        with replacing(path) as aside:
            try:
                save_file(arrays, aside, {"format": FORMAT, "graph": json.dumps(header)})
            except SafetensorError as error:
                raise InterpError(f"could not write {os.fspath(path)}: {error}") from error
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AttributionGraph:
        """Reads what `save` wrote.

        Raises:
            InterpError: The file is missing or damaged, or was written in another version of the format.
        """
        arrays, about = read_tensors(path, "np")
        if about.get("format") != FORMAT:
            found = about.get("format", "no format at all")
            raise InterpError(
                f"{os.fspath(path)} says {found!r}, and this program reads {FORMAT!r}; trace the graph anew"
            )
        header = typed(parsed(about.get("graph", "null"), path), dict, path, "its header")
        names, texts = checked(header, "names", list[str], path), checked(header, "texts", dict[str, list[str]], path)
        columns: dict[str, Any] = {}
        for name, kind in COLUMNS.items():
            if kind != "str":
                columns[name] = _array(arrays, f"nodes.{name}", kind, len(names), path)
            elif len(checked(texts, name, list[str], path)) == len(names):
                columns[name] = texts[name]
            else:
                raise damaged(path, f"{name} has {len(texts[name])} texts for {len(names)} nodes")
        n = len(arrays.get("weights", ()))
        targets, sources, weights = (_array(arrays, name, kind, n, path) for name, kind in _EDGES.items())
        words = checked(header, "words", list[str], path)
        if not all(0 <= position < len(words) for position in columns["position"]):
            raise damaged(path, f"a node stands outside the {len(words)} tokens")
        try:
            return cls(
                checked(header, "prompt", str, path),
                tuple(checked(header, "tokens", list[int], path)),
                tuple(words),
                pd.DataFrame(columns, index=pd.Index(names, name="node")),
                targets,
                sources,
                weights,
                about=checked(header, "about", dict, path),
            )
        except UsageError as error:
            raise damaged(path, str(error)) from None

    @staticmethod
    def from_circuit_tracer(path: str | os.PathLike[str]) -> AttributionGraph:
        """Reads circuit-tracer's graph JSON, see `interp.tracing.formats.circuit_tracer`."""
        from interp.tracing.formats.circuit_tracer import read

        return read(path)


def feature_name(layer: int, feature: int, position: int) -> str:
    """A feature's name, such as ``7.1229@3``."""
    return f"{layer}.{feature}@{position}"


def _array(arrays: Mapping[str, np.ndarray], name: str, kind: str, length: int, path: Any) -> np.ndarray:
    """A column out of a file, of the type that it was written in."""
    if name not in arrays:
        raise damaged(path, f"it lacks {name!r}")
    found, wanted = arrays[name], np.dtype(kind)
    if found.dtype != wanted or found.shape != (length,):
        raise damaged(path, f"{name} is {found.dtype} of shape {found.shape}, {wanted} of shape {(length,)} is needed")
    if wanted.kind == "f" and not np.isfinite(found).all():
        raise damaged(path, f"{name} has values that are not finite")
    return found


def _strongest(edges: pd.DataFrame) -> pd.DataFrame:
    order = edges["weight"].abs().sort_values(ascending=False, kind="stable").index
    return edges.loc[order].reset_index(drop=True)
