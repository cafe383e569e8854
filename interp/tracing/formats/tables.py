"""An attribution graph as two tables, for spreadsheets and other languages."""

from __future__ import annotations

import os
from pathlib import Path

from interp.results.files import write_text
from interp.results.folders import together
from interp.tracing.graph import AttributionGraph

__all__ = ["write"]


def write(graph: AttributionGraph, directory: str | os.PathLike[str]) -> Path:
    """Writes ``nodes.csv`` (the columns of `AttributionGraph.nodes`, names first) and ``edges.csv``.

    Edges have ``source``, ``target``, ``weight`` and ``share`` (of the absolute weights into the target).

    Raises:
        InterpError: The files can't be written.
    """
    folder = Path(directory)
    with together(folder) as aside:
        write_text(aside / "nodes.csv", graph.nodes.rename_axis("node").to_csv(lineterminator="\n"))
        write_text(aside / "edges.csv", graph.edges.to_csv(index=False, lineterminator="\n"))
    return folder
