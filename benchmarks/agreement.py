"""How well each method agrees with exact patching, task by task, on SmolLM2 or another model, as Markdown.

    python benchmarks/agreement.py --keep DIR          # exact effects are kept in DIR and found there the next time
    python benchmarks/agreement.py --tasks ioi --pairs 3 --methods attribution relp secant

Pearson's r of the effects, mean over the pairs, of every node: residual stream, attention outputs and MLP outputs by
position, heads at all positions at once, and heads by position. Positions that can have no effect are left out.
Exact effects of heads by position take most of the time (half an hour for six tasks of eight pairs on one thread).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import torch

import interp
from interp.patching.agreement import KINDS, METHODS, agreement, exact

TASKS = ("ioi", "capitals", "greater_than", "subject_verb_agreement", "gendered_pronoun", "induction")


def truth(model, task, kinds, folder: Path | None):
    """Exact effects of each kind, from the folder where they are there."""
    found = {}
    for kind in kinds:
        about = f"{model.cfg.model_name}-{task.name}-{len(task)}-{task.seed}-{kind.replace(' ', '_')}"
        path = folder and folder / f"{about}.safetensors"
        if path and path.exists():
            found[kind] = interp.results.load(path)
        else:
            found |= exact(model, task, [kind])
            if path:
                interp.results.save(found[kind], path)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--methods", nargs="+", default=[name for name in METHODS if "activations" not in name])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the exact effects")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    model = interp.load(arguments.model, device="cpu")
    tables = []
    for name in arguments.tasks:
        task = interp.task(name, model, n=arguments.pairs, seed=arguments.seed)
        found = agreement(
            model, task, arguments.methods, arguments.kinds, truth(model, task, arguments.kinds, arguments.keep)
        )
        print(f"\n{name}, {len(task)} pairs, {task.measure.name}\n\n{found.markdown()}", flush=True)
        tables.append(found.table.assign(task=name))
    table = pd.concat(tables)
    for column, label in (("pearson", "Pearson"), ("spearman", "Spearman"), ("top10", "top-10 overlap")):
        wide = table.groupby(["method", "kind"], sort=False)[column].agg(["min", "mean"])
        print(
            f"\n{label}: lowest / mean of {len(arguments.tasks)} tasks\n\n| method | "
            + " | ".join(arguments.kinds)
            + " |"
        )
        print("|---|" + "---|" * len(arguments.kinds))
        for method in arguments.methods:
            cells = [wide.loc[(method, kind)] for kind in arguments.kinds]
            print(f"| {method} | " + " | ".join(f"{cell['min']:.3f} / {cell['mean']:.3f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
