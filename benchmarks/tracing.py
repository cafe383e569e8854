"""Time of an attribution graph for each node, beside the passes that none can do without.

    python benchmarks/tracing.py [--nodes 128 512 1000] [--repeats 3] [--threads 1] [--basis neurons] [--page]
    python benchmarks/tracing.py --lengths 256 1024 4096 --nodes 16    # memory, each length in a process of its own

Floor: one batch of 64 targets pulled back through all layers of the locally linear model, nothing recorded on the way,
divided by 64; every node takes one such pull at least. Medians of processor seconds with one thread, of wall seconds
with more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import interp
from interp.engine import verified
from interp.tasks import corpus
from interp.tasks.tokens import Encoder
from interp.tracing import Transcoders, trace
from interp.tracing.bases import basis_of
from interp.tracing.frozen import FrozenRun
from interp.tracing.linear import LocalModel, Reads, order

PROMPT = "When Mary and John went to the store, John gave a drink to"
BATCH = 64


def now() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def floor_seconds(model, repeats: int) -> float:
    """One target's share of a batch that is pulled back from the end."""
    parts = verified(model)
    tokens = torch.tensor(Encoder(model).encode(PROMPT).ids)
    local = LocalModel(FrozenRun(parts, tokens), basis_of("neurons"))
    last, layers = len(tokens) - 1, parts.graph.n_layers
    at = torch.full((BATCH,), last)
    reads = Reads(
        torch.full_like(at, order("resid_pre", layers)), at, torch.randn(BATCH, parts.graph.d_model), torch.zeros(BATCH)
    )
    seconds = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            began = now()
            local.pull(reads, lambda place, some, gradient: None)
            seconds.append(now() - began)
    return statistics.median(seconds[1:]) / BATCH


def basis_from(model, name: str):
    """Neurons, or random transcoders as circuit-tracer was measured with: TopK of 16 among 4,608."""
    if name == "neurons":
        return name
    from interp.features.architectures.transcoder import transcoder

    d, layers = model.cfg.d_model, range(model.cfg.n_layers)
    return Transcoders({n: transcoder(f"mlp_in.{n}", f"mlp_out.{n}", d, 4608, k=16, seed=n) for n in layers})


def peak() -> float:
    """The most resident memory so far in GiB; of this program alone, which getrusage's is not."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 2**20


def print_lengths(lengths: list[int], nodes: int, threads: int) -> None:
    """Peak memory beyond the model of a graph by the prompt's length, in GiB; beside it what is not made, its dense
    matrix and whole patterns."""
    print("| tokens | units | nodes | edges kept | dropped | least share kept | GiB | matrix | patterns | s |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for length in lengths:
        command = [sys.executable, __file__, "--length", str(length), "--nodes", str(nodes), "--threads", str(threads)]
        subprocess.run(command, check=True)


def print_length(length: int, nodes: int) -> None:
    model = interp.load("smollm2")
    tokens = corpus("prose", model, 1, length + 1)[0]
    trace(model, PROMPT, max_nodes=8)
    before, began = peak(), now()
    graph = trace(model, tokens[:-1], targets=int(tokens[-1]), max_nodes=nodes)
    seconds, cfg = now() - began, model.cfg
    told = graph.about.get("strongest", {"dropped": 0, "least_kept": 1.0})
    rows = int(graph.nodes["expanded"].sum())
    matrix, patterns = 4 * rows * len(graph.nodes), 4 * cfg.n_layers * cfg.n_heads * length**2
    print(
        f"| {length:,} | {graph.about['active']:,} | {rows} | {len(graph.weights):,} | {told['dropped']:,} "
        f"| {told['least_kept']:.2f} | {peak() - before:.2f} | {matrix / 2**30:.3f} | {patterns / 2**30:.2f} "
        f"| {seconds:.0f} |",
        flush=True,
    )


def print_page() -> None:
    """Milliseconds in headless Chromium of a page with 1,000 nodes and 20,000 edges."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from test_plots_tracing import timed

    with tempfile.TemporaryDirectory() as folder:
        _, found = timed(Path(folder))
    for name in ("ready", "draw", "click", "slowest", "slide"):
        print(f"{name:8s} {found[name]:7.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[128, 512, 1000])
    parser.add_argument("--basis", choices=["neurons", "transcoders"], default="neurons")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lengths", type=int, nargs="+", help="peak memory of a graph of the first of --nodes instead")
    parser.add_argument("--length", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--page", action="store_true", help="time the page in Chromium instead")
    arguments = parser.parse_args()
    if arguments.page:
        print_page()
        return
    torch.set_num_threads(arguments.threads)
    if arguments.lengths:
        print_lengths(arguments.lengths, arguments.nodes[0], arguments.threads)
        return
    if arguments.length:
        print_length(arguments.length, arguments.nodes[0])
        return
    model = interp.load("smollm2")
    basis = basis_from(model, arguments.basis)
    trace(model, PROMPT, basis, max_nodes=8)  # what is done once a model
    before, floor = peak(), floor_seconds(model, arguments.repeats)
    print(f"floor: {1000 * floor:.2f} ms a node\n")
    print("| basis | nodes | s | ms a node | times the floor | replacement | completeness | error share |")
    print("|---|---|---|---|---|---|---|---|")
    for nodes in arguments.nodes:
        seconds = []
        for _ in range(arguments.repeats):
            began = now()
            graph = trace(model, PROMPT, basis, max_nodes=nodes)
            seconds.append(now() - began)
        median, scores = statistics.median(seconds), graph.scores()
        print(
            f"| {arguments.basis} | {nodes:,} | {median:.1f} | {1000 * median / nodes:.1f} "
            f"| {median / nodes / floor:.1f} | {scores['replacement']:.3f} | {scores['completeness']:.3f} "
            f"| {scores['error_share']:.3f} |",
            flush=True,
        )
    print(f"\nPeak of resident memory: {peak():.2f} GiB, {peak() - before:.2f} more than after loading")


if __name__ == "__main__":
    main()
