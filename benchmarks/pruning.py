"""Which finding keeps the most per budget, on which task: SmolLM2 with heads, neurons or blocks really removed.

    python benchmarks/pruning.py heads --target prose      # loss of text; or a task: ioi, induction, capitals
    python benchmarks/pruning.py neurons                   # and what leaving sinks out of the statistics does
    python benchmarks/pruning.py blocks
    python benchmarks/pruning.py multipruner --budgets 0.9

Findings are made on one half of the documents, or of a task's content, and scored on the other, no prompt twice; a task
with fewer prompts than are asked for gives what it has. A budget is the share kept, of key-value heads, neurons or
blocks, no training in between. `beats random` counts the random draws that a row is better than; `- random` is the
difference to their mean; intervals are 95 %, bootstrapped over prompts or texts. Calls take about a minute of processor
time, `multipruner` several.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from intervals import of_mean, shown

import interp
from interp.attention import head_importance
from interp.efficiency import deploy
from interp.efficiency.pruning import (
    ActivationNormPruning,
    BlockPruning,
    GradientScores,
    GreedyHeadPruning,
    HeadPruning,
    MagnitudePruning,
    MultiPruner,
    NeuronPruning,
    RandomPruning,
    count,
)
from interp.relevance import layer_redundancy, neuron_relevance
from interp.results.finding_files import load
from interp.tasks import corpus

HIGHER = {"accuracy": True, "metric": True, "loss": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["heads", "neurons", "blocks", "multipruner"])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--target", default="prose", help="of heads: prose, code, ... or a task")
    parser.add_argument("--budgets", type=float, nargs="+", default=None)
    parser.add_argument("--n", type=int, default=4, help="texts or prompts that findings are made on")
    parser.add_argument("--length", type=int, default=64, help="tokens of a text")
    parser.add_argument("--scored", type=int, default=16, help="prompts that are scored; a quarter as many texts")
    parser.add_argument("--scored-length", type=int, default=64, help="tokens of a text that is scored")
    parser.add_argument("--findings", type=Path, default=None, help="a folder that keeps findings from call to call")
    parser.add_argument("--draws", type=int, default=3, help="random plans at each budget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="a CSV file for the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    bridge = interp.load(arguments.model, device="cpu")
    model = deploy(bridge)
    makers = {"heads": by_heads, "neurons": by_neurons, "blocks": by_blocks, "multipruner": by_multipruner}
    with torch.no_grad():
        rows = makers[arguments.what](bridge, arguments)
        frame = table(model, rows, arguments)
    print(frame.round(3).to_string(index=False))
    if arguments.out is not None:
        frame.to_csv(arguments.out, index=False)
    print(f"{time.process_time() - began:.0f} s of processor time", flush=True)


# What is compared: by name, a method for a budget


Rows = Mapping[str, Callable[[float], Any]]


def by_heads(bridge: Any, arguments: argparse.Namespace) -> Rows:
    """Heads by what each way of measuring importance finds on the target."""
    target, options = aim(bridge, arguments, arguments.seed, arguments.n)
    exact = "ablation" if isinstance(target, str) else "activation"
    rows: dict[str, Callable[[float], Any]] = {}
    for name in (exact, "relp", "attribution", "gradient"):
        finding = importance(bridge, target, name, options, arguments)
        rows[name] = lambda budget, finding=finding: HeadPruning(importance=finding, budget=budget)
        if name == exact:
            rows[f"{name}, inverted"] = lambda budget, finding=finding: Inverted(
                HeadPruning(importance=finding, budget=budget)
            )
            signed = replace(finding, evidence={**finding.evidence, "scores": finding.evidence["effect"]})
            rows[f"{name}, signed"] = lambda budget, finding=signed: HeadPruning(importance=finding, budget=budget)
    scores = GradientScores(target, **options)
    rows["greedy gradient"] = lambda budget: GreedyHeadPruning(rescore=scores, budget=budget, step=0.05)
    rows["magnitude"] = lambda budget: MagnitudePruning(budget=budget)
    return rows | random_rows("group", arguments)


def importance(bridge: Any, target: Any, name: str, options: Mapping[str, Any], arguments: argparse.Namespace) -> Any:
    """Importance of heads, measured or read."""
    where = None if arguments.findings is None else arguments.findings / f"{arguments.target}-{name}"
    if where is not None and (where / "finding.json").is_file():
        return load(where, bridge)
    finding = head_importance(bridge, target, name, **options)
    print(f"importance by {name}: {finding.settings['seconds']:.1f} s", flush=True)
    if where is not None:
        finding.save(where)
    return finding


def by_neurons(bridge: Any, arguments: argparse.Namespace) -> Rows:
    """Neurons by relevance, by what they write, with the sinks in the statistics and without them."""
    text = {"n": arguments.n, "length": arguments.length, "seed": arguments.seed}
    rows: dict[str, Callable[[float], Any]] = {}
    for name, rules, absolute in (
        ("relp", "relp", True),
        ("relp, signed", "relp", False),
        ("gradient", "gradient", True),
    ):
        finding = neuron_relevance(bridge, arguments.target, rules, absolute=absolute, **text)
        rows[name] = lambda budget, finding=finding: NeuronPruning(relevance=finding, budget=budget)
        if absolute:
            rows[f"{name}, by layer"] = lambda budget, finding=finding: NeuronPruning(
                relevance=finding, budget=budget, across="layer"
            )
    rows["activation norm"] = lambda budget: ActivationNormPruning(budget=budget, **text)
    rows["activation norm, first token left out"] = lambda budget: ActivationNormPruning(budget=budget, skip=1, **text)
    rows["magnitude"] = lambda budget: MagnitudePruning(budget=budget, unit="neuron")
    return rows | random_rows("neuron", arguments)


def by_blocks(bridge: Any, arguments: argparse.Namespace) -> Rows:
    """Blocks by influence, by the loss without them, by the angle of runs, by depth."""
    layers = layer_redundancy(bridge, arguments.target, n=arguments.n, length=arguments.length, seed=arguments.seed)
    rows: dict[str, Callable[[float], Any]] = {
        by: lambda budget, by=by: BlockPruning(layers=layers, budget=budget, by=by)
        for by in ("influence", "harm", "distance", "depth")
    }
    rows["magnitude"] = lambda budget: MagnitudePruning(budget=budget, unit="block")
    return rows | random_rows("block", arguments)


def by_multipruner(bridge: Any, arguments: argparse.Namespace) -> Rows:
    """All granularities against each alone, at the same share of the blocks' parameters."""
    text = {"n": 1, "length": arguments.length, "seed": arguments.seed}
    relevance = neuron_relevance(bridge, arguments.target, **text)
    shares = {"balanced": (0.44, 0.52, 0.04), "sub-blocks alone": (1, 0, 0)}
    return {
        f"{name}, {'relevance' if finding else 'magnitude'}": (
            lambda budget, finding=finding, share=share: MultiPruner(
                budget=budget, relevance=finding, shares=share, channels=768, **text
            )
        )
        for name, share in shares.items()
        for finding in (None, relevance)
    }


def random_rows(unit: Any, arguments: argparse.Namespace) -> Rows:
    return {
        f"random {draw + 1}": lambda budget, draw=draw: RandomPruning(unit=unit, budget=budget, seed=draw)
        for draw in range(arguments.draws)
    }


class Inverted:
    """A method whose plan is the inverted one."""

    def __init__(self, method: Any) -> None:
        self.method = method

    def plan(self, model: Any) -> Any:
        return self.method.inverted_plan(model)


# What is measured


def aim(bridge: Any, arguments: argparse.Namespace, seed: int, n: int) -> tuple[Any, dict[str, Any]]:
    """The target: a task, or a corpus and the options that say which stretches of it."""
    if arguments.target in interp.tasks.CORPORA:
        return arguments.target, {"n": n, "length": arguments.length, "seed": seed}
    task = interp.task(arguments.target, bridge, n=n, seed=seed, split="find", fewer=True)
    print(f"findings on {len(task)} prompts, {len(set(task.clean_text))} different", flush=True)
    return task, {}


def table(model: Any, rows: Rows, arguments: argparse.Namespace) -> pd.DataFrame:
    """One row a method and budget."""
    budgets = arguments.budgets or {"heads": [0.95, 0.9, 0.8], "neurons": [0.9, 0.75]}.get(arguments.what, [0.9, 0.8])
    measure = scorer(model, arguments)
    dense = count(model).parameters
    found = [finished({"row": "dense", "budget": 1.0, "parameters": 1.0, **measure(model)}, None)]
    for budget in budgets:
        here = []
        for name, make in rows.items():
            plan = make(budget).plan(model)
            with plan.applied(model) if plan else nullcontext():
                here.append(
                    {"row": name, "budget": budget, "parameters": count(model).parameters / dense, **measure(model)}
                )
        drawn = [row for row in here if row["row"].startswith("random")]
        quantity = next(name for name in ("metric", "loss") if name in here[0])
        sign = 1 if HIGHER[quantity] else -1
        control = np.mean([row[quantity] for row in drawn], 0) if drawn else None
        for row in here:
            others = [other[quantity].mean() for other in drawn if other is not row]
            row["beats random"] = f"{sum(sign * row[quantity].mean() > sign * other for other in others)}/{len(others)}"
        found += sorted((finished(row, control) for row in here), key=lambda row: -sign * row[quantity])
    return pd.DataFrame(found)


def finished(row: dict[str, Any], control: np.ndarray | None) -> dict[str, Any]:
    """A row with means over prompts or texts, the interval, and the paired difference to the mean of random draws."""
    quantity = next(name for name in ("metric", "loss") if name in row)
    each, made = row[quantity], {**row, quantity: float(row[quantity].mean())}
    made["95 %"] = shown(*of_mean(each))
    if control is not None:
        gap = each - control
        made["- random"], made["95 % of it"] = float(gap.mean()), shown(*of_mean(gap))
    return made


def scorer(model: Any, arguments: argparse.Namespace) -> Callable[[Any], dict[str, Any]]:
    """What measures a model on texts or prompts that no finding has seen."""
    if arguments.target in interp.tasks.CORPORA:
        n = max(1, arguments.scored // 4)
        tokens = corpus(arguments.target, model, n, arguments.scored_length, arguments.seed, split="score")

        def loss(current: Any) -> dict[str, Any]:
            each = [float(current(row[None], labels=row[None], use_cache=False).loss) for row in tokens]
            return {"loss": np.array(each)}

        return loss
    task = interp.task(arguments.target, model, n=arguments.scored, seed=arguments.seed, split="score", fewer=True)
    print(f"scored on {len(task)} prompts, {len(set(task.clean_text))} different", flush=True)

    def score(current: Any) -> dict[str, Any]:
        logits = current(task.clean, use_cache=False).logits
        return {"accuracy": task.accuracy(logits), "metric": task.per_example(logits).double().numpy()}

    return score


if __name__ == "__main__":
    main()
