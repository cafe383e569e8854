"""The README's table: plans from findings beside the dense model, random heads, inverted findings and heuristics.

    python benchmarks/efficiency.py [--findings DIR] [--length 1024] [--n 12] [--budget 0.15 --keys 1]

Makes the findings into DIR if they are not there (some minutes), measures all plans in one run, and prints the table in
Markdown. Recall: numbers hidden in noise, the context compressed before the question is known; the findings were made
on other things, numbers, noise and texts. Intervals are 95 %, of the recall Wilson's, of the loss a bootstrap.
Medians of wall seconds; decoding with the static cache stands beside the growing one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import torch
from intervals import of_mean, of_share, shown

import interp
from interp.efficiency import Cost, Keys, Text, deploy, make, tradeoff


class KeptKeys(Keys):
    """Keys that keep every row's prompts."""

    def prepare(self, model: Any) -> None:
        super().prepare(model)
        self.rows: list[list[dict[str, float]]] = []

    def measure(self, model: Any) -> dict[str, float]:
        found = super().measure(model)
        self.rows.append(self.each)
        return found


def findings(model, directory: Path) -> dict:
    """Retrieval heads, the reach of heads and sink positions of the model."""
    makers = {
        "retrieval_heads": lambda: interp.attention.retrieval_heads(model),
        "reach": lambda: interp.attention.head_reach(model, n=16, seed=100),
        "sink_positions": lambda: interp.attention.survey_sinks(model).positions,
    }
    for name, maker in makers.items():
        if not (directory / name / "finding.json").exists():
            interp.results.save(maker(), directory / name)
    return {name: interp.results.load(directory / name, model) for name in makers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()) / "interp-findings")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--n", type=int, default=12)
    parser.add_argument("--budget", type=float, default=0.15)
    parser.add_argument("--keys", type=int, default=1)
    parser.add_argument("--texts", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = interp.load("smollm2")
    made = findings(model, arguments.findings)
    heads, reach, sinks = made["retrieval_heads"], made["reach"], made["sink_positions"]
    same = {"budget": arguments.budget, "length": arguments.length}
    hf = deploy(model)
    rows: dict[str, Any] = {}
    for name, finding, bits in (
        ("reach", reach, None),
        ("reach, 4 bits", reach, 4),
        ("copying", heads, None),
        ("copying, 8 bits", heads, 8),
    ):
        rows[name] = make("retrieval", [finding, sinks], bits=bits, **same)
    for name in ("streaming", "quantized", "snapkv", "pyramidkv", "h2o"):
        takes_sinks = name in ("streaming", "quantized")
        try:
            rows[name] = make(name, [sinks] if takes_sinks else [], **same).plan(hf)
        except interp.errors.UsageError as error:
            print(f"{error}\n")
    hidden = KeptKeys(arguments.keys, arguments.length, arguments.n, seed=arguments.seed)
    text = Text("prose", arguments.texts, arguments.length, 128)
    by_findings = [name for name in rows if name.startswith(("reach", "copying"))]
    cost = Cost(arguments.length, 12, peak=False)
    found = tradeoff(hf, rows, [hidden, text], cost, controls=by_findings, repetitions=3)
    frame, keys = found.to_frame(), f"keys{arguments.keys}"
    measured = [name for name, row in frame.iterrows() if not pd.isna(row[f"{keys}.recall"])]
    prompts = dict(zip(measured, hidden.rows, strict=True))
    dense = frame.loc["dense"]
    head = f"at {arguments.budget:.0%} of {arguments.length:,} tokens"
    print(f"| {head} | bytes | recall | loss of the answer | loss of text | ms a token |")
    print("|---|---|---|---|---|---|")
    for name, row in frame.iterrows():
        cells = [
            f"{row['cache_bytes'] / dense['cache_bytes']:.1%}",
            *quality_cells(prompts.get(name), row),
            f"{1000 * row['decode_seconds']:.0f}",
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    guess = dense[f"{keys}.guess_loss"]
    print(f"\n{arguments.n} prompts with {arguments.keys} keys; without the context the answer's loss is {guess:.2f}")


def quality_cells(prompts: list[dict[str, float]] | None, row: Any) -> list[str]:
    """Recall and loss of the answer with their intervals, loss of text; empty where nothing was measured."""
    if prompts is None:
        return ["", "", ""]
    recall, loss = ([one[name] for one in prompts] for name in ("recall", "answer_loss"))
    share = sum(recall) / len(recall)
    return [
        f"{share:.2f} {shown(*of_share(share, len(recall)))}",
        f"{sum(loss) / len(loss):.2f} {shown(*of_mean(loss))}",
        f"{row['prose.loss']:.2f}",
    ]


if __name__ == "__main__":
    main()
