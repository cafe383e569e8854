"""Dictionaries: sparse autoencoders and transcoders, their activations, training, judging and reading."""

from typing import TYPE_CHECKING

from interp._lazy import lazy

if TYPE_CHECKING:
    from interp.features import geometry
    from interp.features.activations.base import Activations, Origin
    from interp.features.activations.batches import Batches
    from interp.features.activations.harvest import harvest
    from interp.features.activations.store import ActivationStore, ActivationStream
    from interp.features.architectures.batch_topk import BatchTopK
    from interp.features.architectures.cross_layer import CrossLayerTranscoder, cross_layer_transcoder
    from interp.features.architectures.crosscoder import (
        BatchTopKCrosscoder,
        Crosscoder,
        TopKCrosscoder,
        crosscoder,
        norms_by_place,
    )
    from interp.features.architectures.dictionary import Batch, Dictionary, Step
    from interp.features.architectures.gated import Gated
    from interp.features.architectures.gradient_topk import GradientTopK
    from interp.features.architectures.jumprelu import JumpReLU
    from interp.features.architectures.matryoshka import Matryoshka
    from interp.features.architectures.registry import ARCHITECTURES, OF_SEVERAL_PLACES
    from interp.features.architectures.standard import Standard
    from interp.features.architectures.topk import TopK
    from interp.features.architectures.transcoder import transcoder
    from interp.features.formats.circuit_tracer import (
        load_circuit_tracer,
        load_cross_layer,
        save_circuit_tracer,
        save_cross_layer,
    )
    from interp.features.interpretation.endpoint import EndpointExplainer
    from interp.features.interpretation.interpret import interpret
    from interp.features.interpretation.interpretations import Interpretations
    from interp.features.interpretation.local import LocalExplainer
    from interp.features.interpretation.ngrams import NGramExplainer
    from interp.features.interventions import ablate, clamp, steer
    from interp.features.judging.absorption import absorption
    from interp.features.judging.dark_matter import dark_matter
    from interp.features.judging.judge import judge
    from interp.features.judging.probing import sparse_probing
    from interp.features.judging.report import Report
    from interp.features.judging.several import explained, judge_replacement
    from interp.features.place import Place
    from interp.features.reading.read import read_features
    from interp.features.reading.readings import FeatureReadings
    from interp.features.training.end_to_end import finetune
    from interp.features.training.loop import Training, TrainSettings, train
    from interp.features.training.transcoders import load_transcoders, train_transcoders

__all__ = [
    "ARCHITECTURES",
    "OF_SEVERAL_PLACES",
    "ActivationStore",
    "ActivationStream",
    "Activations",
    "Batch",
    "BatchTopK",
    "BatchTopKCrosscoder",
    "Batches",
    "CrossLayerTranscoder",
    "Crosscoder",
    "Dictionary",
    "EndpointExplainer",
    "FeatureReadings",
    "Gated",
    "GradientTopK",
    "Interpretations",
    "JumpReLU",
    "LocalExplainer",
    "Matryoshka",
    "NGramExplainer",
    "Origin",
    "Place",
    "Report",
    "Standard",
    "Step",
    "TopK",
    "TopKCrosscoder",
    "TrainSettings",
    "Training",
    "ablate",
    "absorption",
    "clamp",
    "cross_layer_transcoder",
    "crosscoder",
    "dark_matter",
    "explained",
    "finetune",
    "geometry",
    "harvest",
    "interpret",
    "judge",
    "judge_replacement",
    "load_circuit_tracer",
    "load_cross_layer",
    "load_transcoders",
    "norms_by_place",
    "read_features",
    "save_circuit_tracer",
    "save_cross_layer",
    "sparse_probing",
    "steer",
    "train",
    "train_transcoders",
    "transcoder",
]

lazy(__name__)
