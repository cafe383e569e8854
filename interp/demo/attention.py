"""What each attention head does: kinds of heads, attention sinks and retrieval heads, in a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

import interp
from interp.plots import Section, write_report
from interp.results import HeadKinds, RetrievalHeads

__all__ = ["attend"]

_MASKED = 8


def attend(model: TransformerBridge, directory: Path, seed: int = 0, say: Callable[[str], None] = print) -> Path:
    """Finds out what a model's attention heads do and writes a report with figures and findings.

    Args:
        model: Any bridge.
        directory: Where ``attention.html``, a page with all patterns, and the findings go.
        seed: Of all random choices.
        say: Called with a line for each result.

    Returns:
        The path of the report.
    """
    began = time.perf_counter()
    kinds = interp.attention.heads(model, length=128, seed=seed)
    say(kinds.summary())
    sinks = interp.attention.survey_sinks(model, n=16, seed=seed)
    say(sinks.heads.summary())
    needles = interp.attention.needle_samples(model, lengths=(256,), n=2, seed=seed, split="find")
    retrieval = interp.attention.retrieval_heads(model, needles, seed=seed)
    say(f"retrieval heads: {retrieval.summary()}")
    fresh = interp.attention.needle_samples(model, lengths=(256,), n=1, seed=seed, split="score")
    masked = interp.attention.retrieval_causality(model, retrieval, fresh, (0, _MASKED), draws=1, texts=2, seed=seed)
    task = interp.task("ioi", model, n=1, seed=seed)
    patterns = interp.attention.patterns(model, task.clean[0])
    findings: dict[str, Any] = {
        "head_kinds": kinds,
        "sink_heads": sinks.heads,
        "sink_positions": sinks.positions,
        "massive_activations": sinks.massive,
        "retrieval_heads": retrieval,
    }
    for name, finding in findings.items():
        interp.results.save(finding, directory / name)
    layer, head = kinds.top("subject_suppressor" if "subject_suppressor" in kinds.kinds else "induction", 1)[0]
    sections = [
        _kinds(kinds),
        Section(
            "Look at them",
            [f"All patterns on one prompt. Click a head; layer {layer}, head {head} is shown first."],
            figure=interp.plots.attention_view(patterns, layer=layer, head=head),
        ),
        *_sinks(sinks),
        *_retrieval(retrieval, masked),
        Section(
            "Where the numbers come from",
            facts={
                "model": f"{kinds.model} (fingerprint {kinds.fingerprint})",
                "findings": ", ".join(f"{name}/finding.json" for name in findings),
                "seconds": f"{time.perf_counter() - began:.0f}",
            },
        ),
    ]
    lead = f"{_effect(masked)} {sinks.heads.summary().capitalize()}."
    return write_report(
        directory / "attention.html", f"What the attention heads of {kinds.model} do", sections, lead=lead
    )


def _kinds(kinds: HeadKinds) -> Section:
    table = interp.attention.survey(kinds, 4)[["kind", "definition", "layers", "top heads", "source"]]
    return Section(
        "Kinds of heads",
        [
            "Every head was scored for every kind, on speeches, on random tokens said twice, on sentences with an "
            "indirect object, and from its weights alone.",
        ],
        figure=kinds.scores,
        table=table,
        caption="Strongest heads of each kind, as layer.head (score)",
        notes=[f"Left out: {', '.join(kinds.settings['left_out'])}."] if kinds.settings["left_out"] else [],
    )


def _sinks(sinks: Any) -> list[Section]:
    domains = sinks.heads.evidence["domains"]
    shares = ", ".join(f"{float(domains.sel(domain=name).mean()):.0%} on {name}" for name in domains["domain"].values)
    return [
        Section(
            "Attention sinks",
            [
                "Where a head has nothing to do it rests at the first position. Shown is the share of texts in which a "
                f"head gives it more than {sinks.heads.threshold:g} of its attention: {shares} over all heads. A head "
                "that rests on one kind of text and works on another is active-dormant.",
            ],
            figure=domains,
            notes=[f"{sinks.positions.summary().capitalize()}. Massive activations: {sinks.massive.summary()}."],
        ),
        Section("The residual stream at a sink", figure=sinks.massive.evidence["size"]),
    ]


def _retrieval(retrieval: RetrievalHeads, masked: Any) -> list[Section]:
    mean = masked.mean("example")
    table = pd.DataFrame(
        [
            {
                "heads masked": f"{_MASKED} {'strongest retrieval heads' if kind == 'retrieval' else f'({kind})'}",
                **{
                    str(metric): float(mean.sel(kind=kind, k=_MASKED, metric=metric))
                    for metric in mean["metric"].values
                },
            }
            for kind in mean["kind"].values
        ]
    )
    return [
        Section(
            "Retrieval heads",
            [
                "A fact is hidden in a long text and asked for. The score is the share of the answer's tokens that a "
                f"head copies: its strongest attention lies on the token that is written next. "
                f"{retrieval.summary().capitalize()}.",
                f"The model answers {retrieval.settings['recall']:.0%} of {retrieval.settings['samples']} questions; "
                "the others are not scored.",
            ],
            figure=retrieval.scores,
            table=table,
            caption="With heads masked, on fresh needles: recall, KL divergence of the answers, loss on plain text",
        ),
    ]


def _effect(masked: Any) -> str:
    recall = masked.sel(metric="recall", k=_MASKED).mean("example")
    return (
        f"With its {_MASKED} strongest retrieval heads masked the model finds "
        f"{float(recall.sel(kind='retrieval')):.0%} of the needles that it found before; with {_MASKED} random other "
        f"heads masked, {float(recall.sel(kind='random')):.0%}."
    )
