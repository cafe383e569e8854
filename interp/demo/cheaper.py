"""Findings make the model cheaper: the retrieval heads found before keep their cache, all others forget; a report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from interp.efficiency import Cost, deploy, tradeoff
from interp.efficiency.kv_cache import RetrievalCache, SnapKVCache, StreamingCache
from interp.efficiency.recall import recall
from interp.plots import Section, save, write_report
from interp.plots.bands import Curve, Panel, bands
from interp.plots.curves import LINES
from interp.plots.picture import Picture
from interp.results import RetrievalHeads, SinkPositions, load
from interp.results.files import write_text
from interp.statistics.intervals import of_mean, of_share
from interp.tasks import KeySample, key_samples

__all__ = ["cheapen"]

_LENGTH = 256
_BUDGETS = (0.15, 0.3, 0.5)
_SHOWN = _BUDGETS[0]
_CHOSEN, _RANDOM, _LEAST = "retrieval heads", "as many random heads", "heads that retrieve least"
_LOOKS = {
    _CHOSEN: LINES[1],
    "SnapKV": LINES[0],
    "sinks and window": LINES[2],
    _RANDOM: ("#8b9199", "o", "circle"),
    _LEAST: ("#c9922e", "v", "triangle-down"),
}


def cheapen(
    model: TransformerBridge, directory: Path, n: int = 16, seed: int = 0, say: Callable[[str], None] = print
) -> Path:
    """Makes cache plans from the findings in a directory and writes a report with recall over budgets.

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
    rows: dict[str, tuple[str, float]] = {}
    plans: dict[str, Any] = {}
    for budget in _BUDGETS:
        size: dict[str, Any] = {"budget": budget, "length": _LENGTH}
        method = RetrievalCache(retrieval=heads, sinks=sinks, bits=8, **size)
        made = {
            _CHOSEN: method.plan(deployed),
            "SnapKV": SnapKVCache(**size).plan(deployed),
            "sinks and window": StreamingCache(sinks=sinks, **size).plan(deployed),
            _RANDOM: method.random_plan(deployed, seed),
            _LEAST: method.inverted_plan(deployed),
        }
        rows |= {f"{name}, {budget:.0%}": (name, budget) for name in made}
        plans |= {f"{name}, {budget:.0%}": plan for name, plan in made.items()}
    plan = plans[f"{_CHOSEN}, {_SHOWN:.0%}"]
    plan.save(directory / "plan.json")
    samples = _alike(key_samples(deployed, _LENGTH, n=4 * n, seed=seed, split="score"), n)
    found = recall(deployed, plans, samples, at_once=8)
    table = _summed(found, rows)
    shown = {name: plans[f"{name}, {_SHOWN:.0%}"] for name in _LOOKS}
    timed = tradeoff(deployed, shown, [], Cost(_LENGTH, 8, peak=False), controls=False, repetitions=1).to_frame()
    write_text(directory / "recall.csv", table.to_csv(index=False))
    picture = _picture(table, n)
    for suffix in ("html", "png"):
        save(picture, directory / f"recall.{suffix}")
    lead = _told(table, timed)
    say(lead)
    sections = [
        Section(
            "Recall over budgets",
            [
                f"A number is hidden in {_LENGTH} tokens of noise; the cache is compressed before the question is "
                "known. A plan keeps everything, in 8 bits, for the key-value heads that serve the strongest retrieval "
                "heads, and for all others the sinks and a window. Beside it, of the same bytes: as many random heads, "
                "the heads that retrieve least, sinks and a window everywhere, and SnapKV, which keeps what the last "
                "tokens look at.",
            ],
            figure=picture,
            table=_costs(table, timed),
            caption=f"Dense model and plans at {_SHOWN:.0%} of the bytes, {n} prompts, 95 % intervals over prompts",
        ),
        Section(
            "The plan",
            [plan.summary()],
            table=plan.to_frame().sort_values("score", ascending=False, kind="stable").head(15),
            caption="What each key-value head keeps, those that retrieve most first",
        ),
        Section(
            "Where the numbers come from",
            facts={
                "model": f"{plan.model} (fingerprint {plan.fingerprint})",
                "findings": "retrieval_heads/finding.json, sink_positions/finding.json",
                "prompts": f"{n}, of equally many tokens, of things and numbers that no finding was made on",
                "files": "plan.json, recall.csv, recall.html, recall.png",
                "seconds": f"{time.perf_counter() - began:.0f}",
            },
        ),
    ]
    return write_report(directory / "cheaper.html", "What the findings save", sections, lead=lead)


def _alike(samples: Sequence[KeySample], n: int) -> list[KeySample]:
    """The first prompts of the commonest lengths, which run together."""
    sizes = [(len(one.context), len(one.question), len(one.answer)) for one in samples]
    commonest = Counter(sizes).most_common(1)[0][0]
    return [one for one, size in zip(samples, sizes, strict=True) if size == commonest][:n]


def _summed(found: pd.DataFrame, rows: dict[str, tuple[str, float]]) -> pd.DataFrame:
    """One row a plan: means over prompts and their intervals."""
    table = []
    for name, each in found.groupby("plan", sort=False):
        plan, budget = rows.get(str(name), (str(name), 1.0))
        share = float(each["recall"].mean())
        low, high = of_share(share, len(each))
        loss_low, loss_high = of_mean(each["answer_loss"].to_numpy())
        table.append(
            {
                "plan": plan,
                "budget": budget,
                "recall": share,
                "recall_low": low,
                "recall_high": high,
                "loss": float(each["answer_loss"].mean()),
                "loss_low": loss_low,
                "loss_high": loss_high,
            }
        )
    return pd.DataFrame(table)


def _picture(table: pd.DataFrame, n: int) -> Picture:
    """Recall and loss over budgets."""
    panels = []
    for quantity, label in (("recall", "recall"), ("loss", "loss of the answer (nats a token)")):
        columns = [quantity, f"{quantity}_low", f"{quantity}_high"]
        values = {name: table[table["plan"] == name][columns].to_numpy(float).T for name in _LOOKS}
        curves = [Curve(name, look, *values[name]) for name, look in _LOOKS.items()]
        panels.append(Panel.around(label, curves, (0.0, 1.0) if quantity == "recall" else None))
    dense = table.iloc[0]
    return bands(
        panels,
        [f"{budget:.0%}" for budget in _BUDGETS],
        across="bytes of the cache that are kept",
        band="95 %:",
        title="What is kept of the cache, and what is found in it",
        subtitle=f"{n} prompts, 95 % intervals; dense: recall {dense['recall']:.2f}, loss {dense['loss']:.2f}",
        bars=True,
    )


def _told(table: pd.DataFrame, timed: pd.DataFrame) -> str:
    at = table[table["budget"].isin([_SHOWN, 1.0])].set_index("plan")["recall"]
    share = float(timed["cache_bytes"][_CHOSEN]) / float(timed["cache_bytes"]["dense"])
    return (
        f"With {share:.0%} of the cache's bytes, chosen by the retrieval heads, the model finds {at[_CHOSEN]:.0%} "
        f"of the keys; with as many random heads {at[_RANDOM]:.0%}; dense {at['dense']:.0%}."
    )


def _costs(table: pd.DataFrame, timed: pd.DataFrame) -> pd.DataFrame:
    at = table[table["budget"].isin([_SHOWN, 1.0])].set_index("plan")
    timed = timed.loc[at.index]
    return pd.DataFrame(
        {
            "plan": at.index,
            "recall": at["recall"].values,
            "95 %": [f"{row.recall_low:.2f} to {row.recall_high:.2f}" for row in at.itertuples()],
            "loss of the answer": at["loss"].values,
            "cache, MiB": timed["cache_bytes"].to_numpy(float) / 2**20,
            "seconds a token": timed["decode_seconds"].to_numpy(float),
        }
    )
