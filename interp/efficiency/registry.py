"""The methods that there are: a method is a file and a row here."""

from __future__ import annotations

import importlib
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from interp.errors import UsageError, unknown_name

__all__ = ["METHODS", "MethodCard", "check_budget", "check_findings", "method", "plan_class"]


@dataclass(frozen=True)
class MethodCard:
    """A method in the registry.

    Args:
        family: ``kv_cache``, ``sparse_attention``, ``pruning``, ``quantization`` or ``calibration``.
        made_by: Its class as ``module:Class`` below ``interp.efficiency``. The class takes the findings by keyword,
            ``budget`` and the method's own options, and has ``plan(model) -> Plan``.
        needs: The findings that it can't do without, by the argument's name: the type's name.
        takes: The findings that it uses where they are given.
        source: Paper.
    """

    family: str
    made_by: str
    needs: Mapping[str, str]
    takes: Mapping[str, str]
    source: str

    def load(self) -> Any:
        """The method's class."""
        return _named(self.made_by)


METHODS: dict[str, MethodCard] = {
    "full": MethodCard("kv_cache", "kv_cache.full:FullCache", {}, {}, "no compression"),
    "streaming": MethodCard(
        "kv_cache",
        "kv_cache.streaming:StreamingCache",
        {},
        {"sinks": "SinkPositions"},
        "Xiao et al. 2023, StreamingLLM (arXiv 2309.17453)",
    ),
    "retrieval": MethodCard(
        "kv_cache",
        "kv_cache.retrieval:RetrievalCache",
        {"retrieval": "RetrievalHeads or HeadImportance"},
        {"sinks": "SinkPositions"},
        "Wu et al. 2024 (arXiv 2404.15574); Xiao et al. 2024, DuoAttention (arXiv 2410.10819)",
    ),
    "h2o": MethodCard("kv_cache", "kv_cache.h2o:H2OCache", {}, {}, "Zhang et al. 2023, H2O (arXiv 2306.14048)"),
    "snapkv": MethodCard("kv_cache", "kv_cache.snapkv:SnapKVCache", {}, {}, "Li et al. 2024 (arXiv 2404.14469)"),
    "pyramidkv": MethodCard(
        "kv_cache", "kv_cache.pyramidkv:PyramidKVCache", {}, {}, "Cai et al. 2024 (arXiv 2406.02069)"
    ),
    "citrus": MethodCard("kv_cache", "kv_cache.citrus:CItruSCache", {}, {}, "Bai et al. 2024 (arXiv 2406.12018)"),
    "actqkv": MethodCard("kv_cache", "kv_cache.actqkv:ActQKVCache", {}, {}, "Xiao et al. 2025 (arXiv 2502.13542)"),
    "attendre": MethodCard(
        "kv_cache",
        "kv_cache.attendre:AttendreCache",
        {},
        {"sinks": "SinkPositions"},
        "Yang and Hua 2024 (arXiv 2401.04881)",
    ),
    "quantized": MethodCard(
        "kv_cache",
        "kv_cache.quantized:QuantizedCache",
        {},
        {"sinks": "SinkPositions"},
        "Liu et al. 2024, KIVI (arXiv 2402.02750)",
    ),
    "a_shape": MethodCard(
        "sparse_attention",
        "sparse_attention.a_shape:AShape",
        {},
        {"sinks": "SinkPositions"},
        "Xiao et al. 2023, StreamingLLM (arXiv 2309.17453); Jiang et al. 2024, MInference (arXiv 2407.02490)",
    ),
    "head_patterns": MethodCard(
        "sparse_attention",
        "sparse_attention.heads:HeadPatterns",
        {"retrieval": "RetrievalHeads or HeadImportance"},
        {"sinks": "SinkPositions"},
        "Wu et al. 2024 (arXiv 2404.15574); Xiao et al. 2024, DuoAttention (arXiv 2410.10819)",
    ),
    "flexprefill": MethodCard(
        "sparse_attention", "sparse_attention.flexprefill:FlexPrefill", {}, {}, "Lai et al. 2025 (arXiv 2502.20766)"
    ),
    "anchor": MethodCard(
        "sparse_attention", "sparse_attention.anchor:AnchorAttention", {}, {}, "Zhang et al. 2025 (arXiv 2505.23520)"
    ),
    "moba": MethodCard("sparse_attention", "sparse_attention.moba:MoBA", {}, {}, "Lu et al. 2025 (arXiv 2502.13189)"),
    "sparge": MethodCard(
        "sparse_attention", "sparse_attention.sparge:SpargeAttn", {}, {}, "Zhang et al. 2025 (arXiv 2502.18137)"
    ),
    "star": MethodCard(
        "sparse_attention", "sparse_attention.star:StarAttention", {}, {}, "Acharya et al. 2024 (arXiv 2411.17116)"
    ),
    "heads": MethodCard(
        "pruning",
        "pruning.heads:HeadPruning",
        {"importance": "HeadImportance or RetrievalHeads or SinkHeads"},
        {},
        "Michel et al. 2019 (arXiv 1905.10650)",
    ),
    "greedy_heads": MethodCard(
        "pruning",
        "pruning.greedy_heads:GreedyHeadPruning",
        {},
        {"importance": "HeadImportance or RetrievalHeads or SinkHeads"},
        "Michel et al. 2019 (arXiv 1905.10650)",
    ),
    "neurons": MethodCard(
        "pruning",
        "pruning.neurons:NeuronPruning",
        {"relevance": "NeuronRelevance"},
        {},
        "Yeom et al. 2021, Pruning by Explaining (arXiv 1912.08881)",
    ),
    "activation_norm": MethodCard(
        "pruning",
        "pruning.activation_norm:ActivationNormPruning",
        {},
        {},
        "after Sun et al. 2023, Wanda (arXiv 2306.11695)",
    ),
    "blocks": MethodCard(
        "pruning",
        "pruning.blocks:BlockPruning",
        {"layers": "LayerRedundancy"},
        {},
        "Men et al. 2024, ShortGPT (arXiv 2403.03853); Gromov et al. 2024 (arXiv 2403.17887)",
    ),
    "multipruner": MethodCard(
        "pruning",
        "pruning.multipruner:MultiPruner",
        {},
        {"relevance": "NeuronRelevance", "importance": "HeadImportance or RetrievalHeads or SinkHeads"},
        "Muñoz et al. 2025, MultiPruner (arXiv 2501.09949)",
    ),
    "magnitude": MethodCard("pruning", "pruning.magnitude:MagnitudePruning", {}, {}, "size of the weights"),
    "random_units": MethodCard("pruning", "pruning.random_units:RandomPruning", {}, {}, "control"),
    "sparse": MethodCard(
        "pruning",
        "pruning.sparse:SparsePruning",
        {},
        {"relevance": "NeuronRelevance"},
        "Sun et al. 2023, Wanda (arXiv 2306.11695); simulated",
    ),
    "rtn": MethodCard("quantization", "quantization.rtn:RTN", {}, {}, "round to nearest"),
    "awq": MethodCard(
        "quantization",
        "quantization.awq:AWQ",
        {"statistics": "ActivationStatistics"},
        {},
        "Lin et al. 2023, AWQ (arXiv 2306.00978)",
    ),
    "gptq": MethodCard(
        "quantization",
        "quantization.gptq:GPTQ",
        {},
        {"sinks": "SinkPositions or MassiveActivations"},
        "Frantar et al. 2022, GPTQ (arXiv 2210.17323)",
    ),
    "adadim": MethodCard(
        "quantization",
        "quantization.adadim:AdaDim",
        {"statistics": "ActivationStatistics"},
        {},
        "Heo et al. 2023 (arXiv 2309.15531); groups along outputs simulated",
    ),
    "lorc": MethodCard(
        "quantization", "quantization.lorc:LoRC", {}, {}, "Yao et al. 2023, ZeroQuant-V2 (arXiv 2303.08302)"
    ),
    "llm-fp4": MethodCard(
        "quantization",
        "quantization.llm_fp4:LLMFP4",
        {},
        {"statistics": "ActivationStatistics"},
        "Liu et al. 2023, LLM-FP4 (arXiv 2310.16836); simulated",
    ),
    "w8a8": MethodCard(
        "quantization",
        "quantization.w8a8:W8A8",
        {},
        {"sinks": "SinkPositions or MassiveActivations", "statistics": "ActivationStatistics"},
        "Xiao et al. 2022, SmoothQuant (arXiv 2211.10438)",
    ),
    "act": MethodCard(
        "calibration",
        "calibration.act:ACT",
        {},
        {
            "heads": "CalibrationHeads or SinkHeads or HeadImportance or RetrievalHeads or HeadKinds",
            "sinks": "SinkPositions",
        },
        "Yu et al. 2024, ACT (arXiv 2406.15765)",
    ),
    "redistribution": MethodCard(
        "calibration",
        "calibration.redistribution:Redistribution",
        {"massive": "MassiveActivations"},
        {"heads": "CalibrationHeads or SinkHeads or HeadImportance or RetrievalHeads or HeadKinds"},
        "Kang et al. 2025, See What You Are Told (arXiv 2503.03321), carried over to text",
    ),
    "final_layer": MethodCard(
        "calibration", "calibration.final_layer:FinalLayer", {}, {}, "after Lv et al. 2024 (arXiv 2403.19521)"
    ),
}
"""The methods, by name."""

PLANS: dict[str, str] = {
    "composed": "composed:Composed",
    "kv_cache": "kv_cache.plan:KVPlan",
    "pruning": "pruning.plan:PruningPlan",
    "sparse": "pruning.sparse_plan:SparsePlan",
    "quantization": "quantization.plan:QuantPlan",
    "sparse_attention": "sparse_attention.plan:PrefillPlan",
    "calibration": "calibration.plan:CalibrationPlan",
    "final_layer": "calibration.final_layer:FinalLayerPlan",
}
"""The classes of plans, by the `kind` in their files."""

COMMANDS = {
    "CalibrationHeads": "interp.efficiency.calibration.search_heads",
    "ActivationStatistics": "interp.statistics.activation_statistics",
    "RetrievalHeads": "interp retrieval-heads",
    "SinkPositions": "interp sinks",
    "SinkHeads": "interp sinks",
    "MassiveActivations": "interp sinks",
    "HeadImportance": "interp.attention.importance",
    "HeadKinds": "interp heads",
    "NeuronRelevance": "interp.relevance.neuron_relevance",
    "LayerRedundancy": "interp.relevance.layer_redundancy",
}
"""What makes each type of finding."""


def method(name: str) -> MethodCard:
    """A method's card.

    Raises:
        UsageError: No such method.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]


def plan_class(kind: str) -> Any:
    """The class of plans of a kind.

    Raises:
        UsageError: No such kind.
    """
    if kind not in PLANS:
        raise unknown_name("kind of plan", kind, PLANS)
    return _named(PLANS[kind])


def check_budget(name: str, budget: float, what: str = "the share that is kept") -> float:
    """A method's budget, if it is one.

    Raises:
        UsageError: It is not in (0, 1].
    """
    if not 0 < budget <= 1:
        raise UsageError(f"{name}: the budget, {what}, must be in (0, 1], got {budget}")
    return budget


def check_findings(name: str, arguments: Container[str]) -> None:
    """Whether a method's arguments have the findings that it can't do without.

    Raises:
        UsageError: One is missing; the message names the command that makes it.
    """
    for argument, wanted in method(name).needs.items():
        if argument not in arguments:
            raise missing(name, wanted.split(" or ")[0])


def missing(name: str, finding: str) -> UsageError:
    """A method lacks a finding that it needs."""
    return UsageError(f"{name} needs a finding of type {finding}; make one with `{COMMANDS[finding]}`")


def _named(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"interp.efficiency.{module}"), name)
