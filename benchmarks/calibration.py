"""Calibration at inference on SmolLM2: what it gains and loses on tasks and on text, beside its controls.

    python benchmarks/calibration.py search --out DIR     # which heads, and the findings (seed 1)
    python benchmarks/calibration.py choose --out DIR     # the settings, on other examples (seed 2)
    python benchmarks/calibration.py judge --out DIR      # each row on further ones (seed 3); --rows for some of them
    python benchmarks/calibration.py table --out DIR

SmolLM2 answers multiple choice with one letter whatever is asked, so a metric on unbalanced examples rewards whatever
moves it to the commoner letter. Every question is therefore asked both ways round, with its options exchanged, and
`told apart` is the share of questions whose two margins sum to more than 0: the letter's own advantage drops out.

Settings are those with the highest accuracy on held-out multiple choice, ties broken by the likelihood of the right
letter. No example that heads or settings were chosen on is among those that are judged. ECE is between the right
answer and the wrong one, in 10 bins; intervals are 95 %, from 2,000 bootstrap samples of the examples, differences to
the dense model paired. Every step is under a minute of processor time; `judge` is for each row.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch

import interp
from interp.attention.sinks import survey_sinks
from interp.efficiency import Plan, deploy
from interp.efficiency.calibration import (
    ACT,
    Answers,
    FinalLayer,
    Redistribution,
    answers,
    search_heads,
    temperature,
)
from interp.efficiency.deployment import deployment
from interp.efficiency.quality import Text
from interp.results import scores
from interp.results.findings import CalibrationHeads, MassiveActivations, SinkHeads

CHOICE = "multiple_choice"
OTHERS = ("two_hop", "subject_verb_agreement", "ioi")
GRID: dict[str, list[dict[str, Any]]] = {
    "act": [{"share": share, "budget": 0.4} for share in (0.02, 0.1, 0.3)],
    "act, sink heads": [{"share": share, "budget": 0.4} for share in (0.1, 0.3)],
    "redistribution": [{"budget": p, "content": rho} for p in (0.6, 0.3) for rho in (0.2, 0.5)],
    "final_layer": [{"budget": kept, "parts": parts} for kept in (0.75, 0.5) for parts in ("attention", "mlp", "both")],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["search", "choose", "judge", "table"])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=48, help="questions of multiple choice that are judged")
    parser.add_argument("--others", type=int, default=32, help="of each other task")
    parser.add_argument("--held-out", type=int, default=16, help="questions for the heads, and again for the settings")
    parser.add_argument("--methods", nargs="+", default=list(GRID))
    parser.add_argument("--rows", nargs="+")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.what == "table":
        table(given)
        return
    start = time.process_time()
    bridge = interp.load(given.model)
    {"search": search, "choose": choose, "judge": judge}[given.what](given, bridge, deploy(bridge))
    print(f"{time.process_time() - start:.0f} s of processor time")


def search(given: argparse.Namespace, bridge: Any, model: Any) -> None:
    """Heads by their effect to first order, and what sinks there are."""
    found = search_heads(model, both_ways(first(bridge, given)))
    np.save(given.out / "heads.npy", found.scores.values)
    print(found.summary())
    if all((given.out / f"sink-{name}").is_dir() for name in ("heads", "massive")):
        return
    sinks = survey_sinks(bridge, n=8)
    for name in ("heads", "massive"):
        interp.results.save(getattr(sinks, name), given.out / f"sink-{name}")
    print(sinks.heads.summary(), sinks.massive.summary(), sinks.positions.summary(), sep="\n")


def choose(given: argparse.Namespace, bridge: Any, model: Any) -> None:
    """The settings of each method, on held-out examples."""
    task, make = both_ways(held_out(bridge, given)), methods(given, model)
    path = given.out / "chosen.json"
    chosen = json.loads(path.read_text()) if path.exists() else {}
    rows = [("dense", {}, answers(model, task))]
    chosen["temperature"] = temperature(rows[0][2])
    for name in given.methods:
        for settings in GRID[name]:
            with make[name](**settings).plan(model).applied(model):
                rows.append((name, settings, answers(model, task)))
        mine = [row for row in rows if row[0] == name]
        best = max(mine, key=lambda row: (row[2].right.mean(), -loss(row[2])))
        chosen[name] = best[1]
    path.write_text(json.dumps(chosen, indent=1))
    frame = pd.DataFrame([(n, s, a.right.mean(), loss(a), a.error()) for n, s, a in rows])
    frame.columns = ["method", "settings", "accuracy", "loss", "ece"]
    print(frame.round(4).to_string(), json.dumps(chosen), sep="\n")
    frame.to_csv(given.out / f"choose-{given.methods[0]}.csv")


def judge(given: argparse.Namespace, bridge: Any, model: Any) -> None:
    """Each row on examples that nothing was chosen on, and on text."""
    tasks = {CHOICE: both_ways(judged_on(bridge, given))}
    tasks |= {name: interp.task(name, bridge, n=given.others, seed=3) for name in OTHERS}
    text = Text("prose", n=1, length=256, scored=192, piece=64, seed=3)
    text.prepare(model)
    for name, plan in plans(given, model).items():
        if given.rows and name not in given.rows:
            continue
        found: dict[str, Any] = {}
        with plan.applied(model) if plan else nullcontext():
            for task in tasks.values():
                one = answers(model, task)
                found[f"{task.name}.margin"], found[f"{task.name}.metric"] = one.margin, one.metric
            found |= {f"text.{number}": value for number, value in text.measure(model).items()}
        np.savez(given.out / f"row {name}.npz", **found)
        print(name, round(float((found[f"{CHOICE}.margin"] > 0).mean()), 3), flush=True)


def table(given: argparse.Namespace) -> None:
    """Accuracy, metric and ECE with intervals, and paired differences to the dense model."""
    rows = {path.stem.removeprefix("row "): np.load(path) for path in sorted(given.out.glob("row *.npz"))}
    heat = json.loads((given.out / "chosen.json").read_text())["temperature"]
    lines = []
    for task in (CHOICE, *OTHERS):
        dense = Answers(rows["dense"][f"{task}.margin"], rows["dense"][f"{task}.metric"])
        count = len(dense.margin) // (2 if task == CHOICE else 1)
        index = np.random.default_rng(0).integers(0, count, (2000, count))
        if task == CHOICE:  # a question is drawn with its other way round
            index = np.concatenate([index, index + count], 1)
        for name, row in rows.items():
            mine = Answers(row[f"{task}.margin"], row[f"{task}.metric"])
            line = {"task": task, "row": name, "n": len(mine.margin)}
            for what, number in (NUMBERS if task == CHOICE else FEWER).items():
                own = [number(Answers(mine.margin[i], mine.metric[i])) for i in index]
                base = [number(Answers(dense.margin[i], dense.metric[i])) for i in index]
                line[what] = f"{number(mine):.3f} [{', '.join(f'{v:.3f}' for v in spread(own))}]"
                gap = f"{number(mine) - number(dense):+.3f}"
                line[f"{what} - dense"] = f"{gap} [{', '.join(f'{v:+.3f}' for v in spread(np.subtract(own, base)))}]"
            if name == "dense":
                line["ECE at the held-out temperature"] = f"{mine.error(heat):.3f}"
            line["text loss"], line["text kl"] = (f"{float(row[f'text.{n}']):.4f}" for n in ("loss", "kl"))
            lines.append(line)
    frame = pd.DataFrame(lines)
    frame.to_csv(given.out / "table.csv", index=False)
    print(f"held-out temperature {heat:.2f}", frame.to_string(index=False), sep="\n")


NUMBERS: dict[str, Callable[[Answers], float]] = {
    "accuracy": lambda found: float(found.right.mean()),
    "metric": lambda found: float(found.metric.mean()),
    "ECE": lambda found: found.error(),
    "told apart": lambda found: float((found.margin.reshape(2, -1).sum(0) > 0).mean()),
}
FEWER = {name: number for name, number in NUMBERS.items() if name != "told apart"}


def plans(given: argparse.Namespace, model: Any) -> dict[str, Plan | None]:
    """The rows: the dense model, each method at its settings, and their controls."""
    chosen, found = json.loads((given.out / "chosen.json").read_text()), dict[str, Plan | None](dense=None)
    for name, make in methods(given, model).items():
        if name not in chosen:
            continue
        method = make(**chosen[name])
        found[name] = method.plan(model)
        if name == "act, sink heads":
            continue
        for seed in (0, 1):
            found[f"{name}, random {seed}"] = method.random_plan(model, seed)
        found[f"{name}, inverted"] = method.inverted_plan(model)
    return found


def methods(given: argparse.Namespace, model: Any) -> dict[str, Callable[..., Any]]:
    """What makes each method from its settings."""
    about = deployment(model)
    effect = scores(np.load(given.out / "heads.npy"), ("layer", "head"), name="effect")
    heads = CalibrationHeads(
        model=about.name,
        fingerprint=about.fingerprint,
        evidence={"scores": effect},
        n_kv_heads=model.config.num_key_value_heads,
        target=CHOICE,
        method="gradient",
    )
    sinks, massive = (interp.results.load(given.out / f"sink-{name}") for name in ("heads", "massive"))
    assert isinstance(sinks, SinkHeads)
    assert isinstance(massive, MassiveActivations)
    return {
        "act": partial(ACT, heads),
        "act, sink heads": partial(ACT, sinks),
        "redistribution": partial(Redistribution, massive),
        "final_layer": lambda parts, **options: FinalLayer(
            parts=("attention", "mlp") if parts == "both" else parts, **options
        ),
    }


def held_out(bridge: Any, given: argparse.Namespace) -> Any:
    """Examples for the settings, without those for the heads."""
    return without(
        interp.task(CHOICE, bridge, n=2 * given.held_out, seed=2, split="find"), [first(bridge, given)], given.held_out
    )


def judged_on(bridge: Any, given: argparse.Namespace) -> Any:
    """Examples to judge on: of other words than any that something was chosen on."""
    return interp.task(CHOICE, bridge, n=given.n, seed=3, split="score")


def first(bridge: Any, given: argparse.Namespace) -> Any:
    return interp.task(CHOICE, bridge, n=given.held_out, seed=1, split="find")


def both_ways(task: Any) -> Any:
    """Each question, and each again with its options exchanged, in the second half."""
    tensors = {
        "clean": torch.cat([task.clean, task.corrupted]),
        "corrupted": torch.cat([task.corrupted, task.clean]),
        "right": torch.cat([task.right, task.wrong]),
        "wrong": torch.cat([task.wrong, task.right]),
        "lengths": task.lengths.repeat(2),
        "positions": {name: where.repeat(2) for name, where in task.positions.items()},
    }
    texts = {"clean_text": task.clean_text + task.corrupted_text, "corrupted_text": task.corrupted_text * 2}
    texts |= {name: getattr(task, name) * 2 for name in ("str_tokens", "right_text", "wrong_text")}
    return dataclasses.replace(task, **tensors, **texts)


def without(task: Any, used: list[Any], n: int) -> Any:
    known = {text for other in used for text in other.clean_text}
    return task[[i for i, text in enumerate(task.clean_text) if text not in known][:n]]


def loss(found: Answers) -> float:
    """Of the right answer, between it and the wrong one."""
    return float(np.logaddexp(0, -found.margin.astype(float)).mean())


def spread(values: Any) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
