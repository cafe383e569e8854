"""Circuits: which edges carry a behaviour, found by estimates or exactly, and held to the test of ablation."""

from typing import TYPE_CHECKING

from interp._lazy import lazy

if TYPE_CHECKING:
    from interp.circuits.attribution import edge_attribution
    from interp.circuits.discover import discover, score_edges
    from interp.circuits.evaluation import Evaluation, evaluate
    from interp.circuits.exact import exact_edges, patch_edges
    from interp.circuits.features import (
        FeatureCircuit,
        FeatureEvaluation,
        evaluate_features,
        feature_circuit,
        feature_curve,
        feature_edges,
    )
    from interp.circuits.methods import METHODS

__all__ = [
    "METHODS",
    "Evaluation",
    "FeatureCircuit",
    "FeatureEvaluation",
    "discover",
    "edge_attribution",
    "evaluate",
    "evaluate_features",
    "exact_edges",
    "feature_circuit",
    "feature_curve",
    "feature_edges",
    "patch_edges",
    "score_edges",
]

lazy(__name__)
