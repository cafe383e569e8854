"""Patching over one and two workers: what it costs, and a cost model fitted to it, as Markdown.

    python benchmarks/scale.py                                   # SmolLM2 and a random model of 321 million parameters
    python benchmarks/scale.py --models smollm2 982m --flops 2e12 --repeat 2

Every model sweeps heads of some layers, all positions at once, on random prompts: here, by one worker and by two, one
thread each. Seconds are of processor time, of this process and of each worker, which other programs on the machine
disturb less than the clock's; the clock's stand beside them. The best of the repetitions counts.

The model of the cost: a call of W operations over n workers takes

    seconds = W / (n * speed) + parts / n * a_part + parts * empty + here

with the speed of a worker, what a part costs beside its operations, what it takes to hand one out, and what this
process does besides. Before the first call each worker starts and loads the model: seconds, and its bytes over a rate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil
import torch

import interp
from interp.graph import Graph
from interp.tasks import METRICS, Task

LENGTH = 16
RANDOM = {
    "321m": {"hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 18, "num_attention_heads": 16},
    "982m": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 17, "num_attention_heads": 16},
    "1.5b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 27, "num_attention_heads": 16},
}
"""Llamas with random weights and SmolLM2's tokenizer and vocabulary."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["smollm2", "321m"], choices=["smollm2", *RANDOM])
    parser.add_argument("--flops", type=float, default=1e12, help="of a sweep, about")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, one thread each; ", end="")
    print(f"load average {os.getloadavg()[0]:.1f}, float32, prompts of {LENGTH} tokens\n")
    rows: list[dict[str, float | str]] = []
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            rows += measured(name, Path(folder), args)
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(f"{x:.4g}" if isinstance(x, float) else str(x) for x in row.values()) + " |")
    print("\n" + json.dumps(fitted(rows)))


def measured(name: str, folder: Path, args: argparse.Namespace) -> list[dict[str, float | str]]:
    """A row for each number of workers, 0 for a call without any."""
    if name != "smollm2":
        save_random(name, folder)
    began = time.process_time()
    model = interp.load("smollm2" if name == "smollm2" else folder)
    load = time.process_time() - began
    graph, task = Graph.of(model), random_pairs(4)
    layers, work = chosen(graph, len(task), args.flops)

    def sweep() -> None:
        interp.patching.activation(model, task, "heads", layers=layers)

    weights = sum(weight.nbytes for weight in model.parameters())
    about = {"model": name, "parameters": weights / 4, "operations": work}
    rows = []
    for n in (0, *args.workers):
        if n == 0:
            sweep()
            rows.append({**about, "workers": "none", "loading": load, **best(sweep, [], args.repeat)})
            continue
        began = time.perf_counter()
        with interp.scale.over(f"local:{n}") as cluster:
            up = time.perf_counter() - began
            pids = list(cluster.pool.pids.values())
            before = sum(used(pids))
            interp.patching.activation(model, task, "mlp_out", layers=[graph.n_layers - 1])
            loading = (sum(used(pids)) - before) / n
            row = {**about, "workers": str(n), "loading": loading, **best(sweep, pids, args.repeat)}
            empty = seconds_of_an_empty_part(cluster)
        rows.append(row)
        print(f"{name}, {n} workers: up in {up:.1f} s of the clock; {1e3 * empty:.2f} ms an empty part", flush=True)
    return rows


def best(work: Callable[[], None], pids: list[int], repeat: int) -> dict[str, float]:
    """Seconds of the best repetition: of this process, of the busiest worker, of all workers, and of the clock."""
    found = []
    for _ in range(repeat):
        here, there, clock = time.process_time(), used(pids), time.perf_counter()
        work()
        clock = time.perf_counter() - clock
        each = [now - before for now, before in zip(used(pids), there, strict=True)]
        found.append((time.process_time() - here, max(each, default=0.0), sum(each), clock))
    here, busiest, every, clock = min(found, key=lambda one: one[0] + one[2])
    return {"here": here, "busiest": busiest, "all workers": every, "clock": clock}


def seconds_of_an_empty_part(cluster: interp.scale.Cluster, n: int = 500) -> float:
    """Processor time of this process for handing out a part that does nothing, and for taking it back."""
    began = time.process_time()
    list(cluster.compute(nothing, None, (), range(n)))
    return (time.process_time() - began) / n


def nothing(model: None) -> Callable[[int], int]:
    return lambda part: part


def used(pids: list[int]) -> list[float]:
    """Seconds of processor time of each process."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return [one.user + one.system for one in times]


def chosen(graph: Graph, pairs: int, flops: float) -> tuple[list[int], float]:
    """Layers whose heads take about so many operations, and how many these take exactly."""

    def of(layers: list[int]) -> float:
        blocks = sum(graph.n_heads * (graph.n_layers - layer) for layer in layers)
        return 2.0 * block_weights(graph) * LENGTH * pairs * (blocks + graph.n_layers)

    for step in range(1, graph.n_layers):
        layers = list(range(step // 2, graph.n_layers, step))
        if of(layers) <= flops:
            break
    return layers, of(layers)


def block_weights(graph: Graph) -> float:
    heads, kv = graph.n_heads * graph.d_head, graph.n_kv_heads * graph.d_head
    return graph.d_model * (2 * heads + 2 * kv + (3 if graph.gated_mlp else 2) * graph.d_mlp)


def fitted(rows: list[dict[str, float | str]]) -> dict[str, float]:
    """Operations a second, seconds a part and here, seconds until a worker is up and bytes a second that it loads."""
    alone = {row["model"]: row for row in rows if row["workers"] == "none"}
    shared = [row for row in rows if row["workers"] != "none"]
    speeds = [float(row["operations"]) / float(row["here"]) for row in alone.values()]
    extra = []
    for row in shared:
        more = float(row["all workers"]) + float(row["here"]) - float(alone[row["model"]]["here"])
        extra.append(more / (4 * int(row["workers"])))
    found = {
        "operations_a_second": statistics.median(speeds),
        "seconds_a_part": statistics.median(extra),
        "seconds_here": statistics.median(float(row["here"]) for row in shared),
    }
    if len(alone) > 1:  # else what loading costs and what starting does can't be told apart
        loaded = torch.tensor([[4 * float(row["parameters"]), 1.0] for row in shared], dtype=torch.float64)
        loading = torch.tensor([[float(row["loading"])] for row in shared], dtype=torch.float64)
        slope, start = torch.linalg.lstsq(loaded, loading).solution[:, 0].tolist()
        found |= {"seconds_up": start, "bytes_a_second_loaded": 1 / slope}
    return found


def random_pairs(n: int) -> Task:
    """Prompts of random tokens that differ in one place."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(1000, 40_000, (n, LENGTH), generator=generator)
    corrupted = clean.clone()
    corrupted[:, 3] += 1
    answers = torch.randint(1000, 40_000, (n, 2), generator=generator)
    return Task(
        name="random",
        clean=clean,
        corrupted=corrupted,
        right=answers[:, :1],
        wrong=answers[:, 1:],
        positions={"end": torch.full((n,), LENGTH - 1)},
        lengths=torch.full((n,), LENGTH),
        clean_text=("",) * n,
        corrupted_text=("",) * n,
        str_tokens=(("",) * LENGTH,) * n,
        seed=0,
        description="random tokens",
        source="none",
        measure=METRICS["logit_diff"],
    )


def save_random(name: str, folder: Path) -> None:
    """A Llama with random weights."""
    import transformers as hf

    tokenizer = interp.load("smollm2").tokenizer
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=2048, tie_word_embeddings=True, **RANDOM[name]
    )
    config.architectures = ["LlamaForCausalLM"]
    torch.manual_seed(0)
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
