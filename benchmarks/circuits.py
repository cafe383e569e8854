"""Edge scores on SmolLM2: seconds for a pair, and how faithful the circuits are that come of them.

    python benchmarks/circuits.py [--task ioi] [-n 8]

Circuits are found on one split of the task's content and evaluated on the other. CPR takes edges by signed score, CMD
by absolute score; each is beside random circuits of the same sizes. One thread.
"""

from __future__ import annotations

import argparse
import os
import platform
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import interp
from interp.circuits.exact import EdgeExperiment
from interp.circuits.faithfulness import curve, faithfulness
from interp.circuits.search import strongest
from interp.graph import Graph
from interp.patching.experiment import Experiment

METHODS = ("eap", "eap-ig", "relp", "relp-ig")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="ioi")
    parser.add_argument("-n", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = interp.load("smollm2", device="cpu")
    graph = Graph.of(model)
    task, fresh = (interp.task(arguments.task, model, n=arguments.n, split=split) for split in interp.tasks.SPLITS)
    edges = EdgeExperiment(Experiment(model, fresh, mode="noising"))
    processor = platform.processor() or platform.machine()
    print(f"{processor}, one thread, torch {torch.__version__}, SmolLM2-135M float32")
    print(f"{arguments.task}, {arguments.n} pairs of {task.clean.shape[1]} tokens, {graph.n_edges():,} edges\n")
    print("| method | s a pair | CPR | CMD | random CMD | at 1 % | at 2 % | at 5 % |")
    print("|---|---|---|---|---|---|---|---|")
    control = None
    for method in METHODS:
        began = time.process_time()
        scores = interp.circuits.score_edges(model, task, method)
        seconds = (time.process_time() - began) / arguments.n
        by_size = curve(edges, scores, random=0 if control else 3)
        control = control or by_size.attrs["random_cmd"]
        signed = curve(edges, scores, absolute=False, random=0)
        at = {row.fraction: f"{row.faithfulness:.3f}" for row in by_size.itertuples()}
        print(
            f"| {method} | {seconds:.2f} | {signed.attrs['cpr']:.3f} | {by_size.attrs['cmd']:.3f} | {control:.3f} | "
            f"{at[0.01]} | {at[0.02]} | {at[0.05]} |",
            flush=True,
        )
    kept = strongest(scores, graph, 2000)
    faithfulness(edges, kept)
    began = time.process_time()
    faithfulness(edges, kept)
    print(f"\nevaluating one circuit: {(time.process_time() - began) / 2 / arguments.n:.3f} s a pair")


if __name__ == "__main__":
    main()
