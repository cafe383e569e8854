"""The command line: the same capabilities as in Python, one command each."""

from interp.cli import (
    attention,
    circuit,
    compress,
    demo,
    heads,
    models,
    papers,
    patch,
    reading,
    retrieval,
    sae,
    sinks,
    tasks,
    trace,
)
from interp.cli.app import app

__all__ = [
    "app",
    "attention",
    "circuit",
    "compress",
    "demo",
    "heads",
    "main",
    "models",
    "papers",
    "patch",
    "reading",
    "retrieval",
    "sae",
    "sinks",
    "tasks",
    "trace",
]


def main() -> None:
    """Runs the command line; the entry point of ``interp``."""
    app()
