"""Transcoders of ten layers of SmolLM2, trained, judged, and the graphs over them beside the graphs over neurons.

    python benchmarks/transcoders.py DIR [--layers 10-19] [--tokens 1000000] [--nodes 1000] [--float32]

Trains them into DIR, or goes on where it was interrupted, with what `interp sae transcoders` runs. How many latents are
dead is said of the end of training (200,000 tokens) and of the judged text, beside random directions on the same one:
the shorter a text, the more are. In the graphs all other layers are read in neurons. The control has the transcoders'
own codes, but each latent writes what another one should: as sparse, as large, and as likely a node. How many nodes lie
in the transcoded layers stands beside every score; of a basis without any it would be the other layers' alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd

import interp
from interp.cli.app import numbers
from interp.features import judge, load_transcoders, train_transcoders
from interp.features.judging.several import shuffled
from interp.tracing import Transcoders, trace

PROMPTS = {
    "ioi": ("When Mary and John went to the store, John gave a drink to", (" Mary", " John")),
    "ioi, other names": ("When Tom and Anna went to the park, Anna handed the ball to", (" Tom", " Anna")),
    "capital": ("The capital of France is the city of", (" Paris", " London")),
    "agreement": ("The keys to the old cabinet near the door", (" are", " is")),
    "next day": ("Monday, Tuesday, Wednesday, Thursday,", (" Friday", " Saturday")),
}


def trained(directory: Path, layers: list[int], tokens: int, autocast: str | None) -> dict:
    """The transcoders, from the directory if all are there."""
    there = {int(path.parent.name.removeprefix("layer_")) for path in directory.glob("layer_*/cfg.json")}
    if not set(layers) <= there:
        model = interp.load("smollm2")
        train_transcoders(
            model, layers, directory=directory, tokens=tokens, options={"k": 32}, autocast=autocast, keep=True
        )
    return {layer: made for layer, made in load_transcoders(directory).items() if layer in layers}


def judged(model, made: dict, directory: Path) -> pd.DataFrame:
    """Each layer's report on prose that it was not trained on."""
    metrics = ["ce_recovered", "ce_recovered_mean", "r2", "l0", "dead"]
    rows = {}
    for layer, one in made.items():
        report, training = judge(model, one, "prose", 32, 256, skip=1), directory / f"layer_{layer}" / "metrics.jsonl"
        about = report.scores.attrs
        rows[layer] = {
            **{metric: report.value(metric) for metric in metrics},
            "dead random": report.value("dead", "random"),
            "dead in training": json.loads(training.read_text().splitlines()[-1])["dead_share"],
            "r2 PCA": report.value("r2", "PCA"),
            "tokens": about["tokens"],
            "trained on": about["overlap"],
        }
    return pd.DataFrame(rows).T.rename_axis("layer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", default="10-19")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--float32", action="store_true", help="of the model while harvesting, where bfloat16 is slow")
    arguments = parser.parse_args()
    layers, began = numbers(arguments.layers) or [], time.process_time()
    made = trained(arguments.directory, layers, arguments.tokens, None if arguments.float32 else "bfloat16")
    model = interp.load("smollm2")
    print(judged(model, made, arguments.directory).round(3).to_string())
    control = {layer: shuffled(one, seed=layer) for layer, one in made.items()}
    bases = {
        "neurons": "neurons",
        "transcoders": Transcoders(made, others="neurons"),
        "shuffled transcoders": Transcoders(control, others="neurons"),
    }
    rows, effects = [], []
    for name, (prompt, targets) in PROMPTS.items():
        for kind, basis in bases.items():
            graph = trace(model, prompt, basis, targets, max_nodes=arguments.nodes)
            inside = graph.nodes[(graph.nodes["kind"] == "feature") & graph.nodes["layer"].isin(layers)]
            row = {"prompt": name, "basis": kind, **graph.scores(), "nodes in these layers": len(inside)}
            row["their influence"] = float(inside["influence"].sum())
            for attention in ("frozen", "free"):
                found = graph.validate(n=20, groups=10, size=5, attention=attention)
                effects.append(found.effects.assign(basis=kind, prompt=name, attention=attention))
            rows.append(row)
    table = pd.DataFrame(rows)
    print()
    print(table.round(3).to_string(index=False))
    print("\nmeans over prompts")
    print(table.drop(columns="prompt").groupby("basis", sort=False).mean().round(3).to_string())
    print("\npredicted against measured effects on the logit difference, all prompts together")
    pooled = pd.concat(effects).groupby(["basis", "attention", "kind"], sort=False)
    agreement = {
        key: {
            "pearson": group["predicted"].corr(group["measured"]),
            "spearman": group["predicted"].corr(group["measured"], method="spearman"),
            "mean size": group["measured"].abs().mean(),
            "n": len(group),
        }
        for key, group in pooled
    }
    print(pd.DataFrame(agreement).T.round(3).to_string())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\nprocessor seconds {time.process_time() - began:.0f}, peak {peak:.1f} GiB")


if __name__ == "__main__":
    main()
