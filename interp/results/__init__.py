"""What an analysis gives back: labelled scores, circuits and findings, their tables and their files."""

from typing import TYPE_CHECKING

from interp._lazy import lazy

if TYPE_CHECKING:
    from interp.results.circuit import Circuit
    from interp.results.findings import (
        ActivationStatistics,
        CalibrationHeads,
        Finding,
        HeadImportance,
        HeadKinds,
        HeadScores,
        LayerRedundancy,
        MassiveActivations,
        NeuronRelevance,
        RetrievalHeads,
        SinkHeads,
        SinkPositions,
    )
    from interp.results.io import save, to_json
    from interp.results.loading import load
    from interp.results.overlap import composition
    from interp.results.scores import normalised, scores
    from interp.results.tables import to_frame, top

__all__ = [
    "ActivationStatistics",
    "CalibrationHeads",
    "Circuit",
    "Finding",
    "HeadImportance",
    "HeadKinds",
    "HeadScores",
    "LayerRedundancy",
    "MassiveActivations",
    "NeuronRelevance",
    "RetrievalHeads",
    "SinkHeads",
    "SinkPositions",
    "composition",
    "load",
    "normalised",
    "save",
    "scores",
    "to_frame",
    "to_json",
    "top",
]

lazy(__name__)
