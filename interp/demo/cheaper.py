"""Findings make the model cheaper: the retrieval heads found before keep their cache, all others forget; a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from interp.efficiency import Cost, Keys, Tradeoff, deploy, tradeoff
from interp.efficiency.kv_cache import RetrievalCache, SnapKVCache, StreamingCache
from interp.plots import Section, write_report
from interp.results import RetrievalHeads, SinkPositions, load

__all__ = ["cheapen"]

_LENGTH = 512
_CHOSEN = "retrieval heads"
_BUDGET = 0.15


def cheapen(
    model: TransformerBridge, directory: Path, n: int = 4, seed: int = 0, say: Callable[[str], None] = print
) -> Path:
    """Makes cache plans from the findings in a directory and writes a report with recall against bytes.

    Args:
        model: The bridge that the findings are about.
        directory: Where `interp.demo.attend` left ``retrieval_heads`` and ``sink_positions``, and where
            ``cheaper.html`` and the plan go.
        n: Prompts with a key.
        seed: Of the prompts and the random heads.
        say: Called with a line for each result.

    Returns:
        The path of the report.

    Raises:
        InterpError: The findings are not there.
        UsageError: They are about another model.
    """
    began = time.perf_counter()
    heads, sinks = load(directory / "retrieval_heads", model), load(directory / "sink_positions", model)
    assert isinstance(heads, RetrievalHeads)
    assert isinstance(sinks, SinkPositions)
    deployed = deploy(model)
    retrieval = RetrievalCache(retrieval=heads, sinks=sinks, budget=_BUDGET, length=_LENGTH, bits=8)
    plan = retrieval.plan(deployed)
    plan.save(directory / "plan.json")
    rows = {
        _CHOSEN: retrieval,
        "sinks and window": StreamingCache(sinks=sinks, budget=_BUDGET, length=_LENGTH).plan(deployed),
        "SnapKV": SnapKVCache(budget=_BUDGET, length=_LENGTH).plan(deployed),
    }
    measured, cost = [Keys(1, _LENGTH, n, seed=seed)], Cost(_LENGTH, 8, peak=False)
    found = tradeoff(deployed, rows, measured, cost, controls=[_CHOSEN], repetitions=1, seed=seed)
    found.save(directory / "tradeoff", "keys1.recall")
    lead = _told(found)
    say(lead)
    sections = [
        Section(
            "Recall against bytes",
            [
                f"A number is hidden in {_LENGTH} tokens of noise; the cache is compressed before the question is "
                "known. A plan keeps everything, in 8 bits, for the key-value heads that serve the strongest retrieval "
                f"heads, and for all others the sinks and a window; the budget is {_BUDGET:.0%} of the bytes. Beside "
                "it: as many random heads, the heads that retrieve least, sinks and a window everywhere, and SnapKV, "
                "which keeps what the last tokens look at.",
            ],
            figure=found.picture("keys1.recall"),
            table=_table(found),
            caption=f"Dense model and plans, {n} prompts",
        ),
        Section("The plan", [plan.summary()], table=plan.to_frame().head(15), caption="What each key-value head keeps"),
        Section(
            "Where the numbers come from",
            facts={
                "model": f"{plan.model} (fingerprint {plan.fingerprint})",
                "findings": "retrieval_heads/finding.json, sink_positions/finding.json",
                "files": "plan.json, tradeoff/tradeoff.csv, tradeoff/tradeoff.json",
                "seconds": f"{time.perf_counter() - began:.0f}",
            },
        ),
    ]
    return write_report(directory / "cheaper.html", "What the findings save", sections, lead=lead)


def _told(found: Tradeoff) -> str:
    frame: Any = found.to_frame()
    share = frame.loc[_CHOSEN, "cache_bytes"] / frame.loc["dense", "cache_bytes"]
    recall = {row: frame.loc[row, "keys1.recall"] for row in ("dense", _CHOSEN, f"{_CHOSEN}, random")}
    return (
        f"With {share:.0%} of the cache's bytes, chosen by the retrieval heads, the model finds {recall[_CHOSEN]:.0%} "
        f"of the keys; with as many random heads {recall[f'{_CHOSEN}, random']:.0%}; dense {recall['dense']:.0%}."
    )


def _table(found: Tradeoff) -> pd.DataFrame:
    frame = found.to_frame()
    return pd.DataFrame(
        {
            "plan": frame.index,
            "recall": frame["keys1.recall"].values,
            "loss of the answer": frame["keys1.answer_loss"].values,
            "cache, MiB": frame["cache_bytes"].to_numpy(float) / 2**20,
            "seconds a token": frame["decode_seconds"].values,
        }
    )
