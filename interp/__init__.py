"""Measure what a transformer uses for a behaviour, and let the finding make the model cheaper.

>>> import interp
>>> model = interp.load("smollm2")                               # doctest: +SKIP
>>> task = interp.task("ioi", model, n=32, seed=0)               # doctest: +SKIP
>>> scores = interp.patching.activation(model, task, "heads")    # doctest: +SKIP
>>> interp.plots.heatmap(scores)                                 # doctest: +SKIP
"""

from typing import TYPE_CHECKING

from interp._lazy import lazy

if TYPE_CHECKING:
    from interp import (
        attention,
        circuits,
        efficiency,
        engine,
        errors,
        features,
        graph,
        models,
        papers,
        patching,
        plots,
        relevance,
        results,
        scale,
        statistics,
        tasks,
        tracing,
    )
    from interp.efficiency import deploy
    from interp.models import load
    from interp.tasks import task

__all__ = [
    "attention",
    "circuits",
    "deploy",
    "efficiency",
    "engine",
    "errors",
    "features",
    "graph",
    "load",
    "models",
    "papers",
    "patching",
    "plots",
    "relevance",
    "results",
    "scale",
    "statistics",
    "task",
    "tasks",
    "tracing",
]

lazy(__name__)
