"""Weights and inputs in few bits on SmolLM2: loss on text, seconds a decoded token and of a prefill, bytes.

    python benchmarks/quantization.py loss       # about a minute on one thread
    python benchmarks/quantization.py loss --plans awq "awq, random" "awq, inverted" gptq adadim lorc llm-fp4
    python benchmarks/quantization.py speed

Loss: next-token cross-entropy of stretches of text, each read in one pass, so inputs of all tokens are quantised. The
statistics, the calibration text and the sinks are of other stretches. Differences from the dense model are by text:
mean and standard error. SmolLM2 comes from a file in 4 bits with a scale and an offset for every 32 weights, which
groups of 32 give back exactly: that says nothing about a method, so the default here is groups of 64. Speed:
processor time on one thread, all rows interleaved, against the dense model in float32 and in bfloat16.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch

import interp
from interp.attention.sinks import sink_positions
from interp.efficiency import deploy
from interp.efficiency.decoding import Decoder, storage_bytes
from interp.efficiency.quantization import AWQ, GPTQ, LLMFP4, RTN, W8A8, AdaDim, LoRC
from interp.statistics import activation_statistics
from interp.tasks import corpus

LOSS = ["rtn 8", "rtn 4", "w8a8", "w8a8 smooth", "w8a8 sequence", "w8a8 sequence, sinks", "w8a8 sequence, random"]
SPEED = ["rtn 8", "rtn 4", "w8a8", "w8a8 smooth, sinks"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["loss", "speed"])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--plans", nargs="+", help="some of those that are known")
    parser.add_argument("--group", type=int, default=64, help="weights that share a scale, in 4 bits")
    parser.add_argument("--n", type=int, default=4, help="texts whose loss is measured")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--source", default="prose")
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bridge = interp.load(arguments.model, device="cpu")
    with torch.no_grad():
        (loss if arguments.what == "loss" else speed)(bridge, arguments)


def known(bridge: Any, model: Any, group: int) -> dict[str, Callable[[], Any]]:
    """What makes each plan; findings are found once, when they are needed."""
    found: dict[str, Any] = {}

    def statistics() -> Any:
        if "statistics" not in found:
            found["statistics"] = activation_statistics(bridge, "prose", 8, 256, seed=7)
        return found["statistics"]

    def sinks() -> Any:
        if "sinks" not in found:
            found["sinks"] = sink_positions(bridge, ["prose"], 4, 64)
        return found["sinks"]

    def awq() -> Any:
        return AWQ(statistics(), steps=10, group=group)

    return {
        "rtn 8": lambda: RTN(bits=8).plan(model),
        "rtn 8, dense head": lambda: RTN(bits=8, head=False).plan(model),
        "rtn 4": lambda: RTN(bits=4, group=group).plan(model),
        "rtn 4, dense head": lambda: RTN(bits=4, group=group, head=False).plan(model),
        "w8a8": lambda: W8A8().plan(model),
        "w8a8, sinks": lambda: W8A8(sinks()).plan(model),
        "w8a8, sinks, dense head": lambda: W8A8(sinks(), head=False).plan(model),
        "w8a8 smooth": lambda: W8A8(statistics=statistics()).plan(model),
        "w8a8 smooth, sinks": lambda: W8A8(sinks(), statistics()).plan(model),
        "w8a8, down in 16": lambda: W8A8(sinks(), skip=("down_proj",)).plan(model),
        "w8a8 sequence": lambda: W8A8(scales="sequence").plan(model),
        "w8a8 sequence, sinks": lambda: W8A8(sinks(), scales="sequence").plan(model),
        "w8a8 sequence, random": lambda: W8A8(sinks(), scales="sequence").random_plan(model),
        "w8a8 sequence smooth, sinks": lambda: W8A8(sinks(), statistics(), scales="sequence").plan(model),
        "awq": lambda: awq().plan(model),
        "awq, random": lambda: awq().random_plan(model),
        "awq, inverted": lambda: awq().inverted_plan(model),
        "gptq": lambda: GPTQ(sinks(), group=group).plan(model),
        "gptq, with sinks": lambda: GPTQ(group=group).plan(model),
        "gptq, random": lambda: GPTQ(sinks(), group=group).random_plan(model),
        "adadim": lambda: AdaDim(statistics(), group=group).plan(model),
        "adadim, random": lambda: AdaDim(statistics(), group=group).random_plan(model),
        "adadim, inverted": lambda: AdaDim(statistics(), group=group).inverted_plan(model),
        "lorc": lambda: LoRC(group=group).plan(model),
        "llm-fp4": lambda: LLMFP4(statistics(), group=group).plan(model),
    }


def loss(bridge: Any, arguments: argparse.Namespace) -> None:
    model = deploy(bridge)
    tokens = corpus(arguments.source, bridge, arguments.n, arguments.length, 0, split="score")
    dense = text_losses(model, tokens)
    print(
        f"{arguments.n} texts of {arguments.length} tokens ({arguments.source}); dense loss {dense.mean():.4f}, "
        f"{storage_bytes(model) / 1e6:.0f} MB",
        flush=True,
    )
    makers = known(bridge, model, arguments.group)
    for name in arguments.plans or LOSS:
        began = time.process_time()
        plan = makers[name]()
        made = time.process_time() - began
        with plan.applied(model):
            found, size = text_losses(model, tokens), storage_bytes(model)
        more = found - dense
        error = more.std(ddof=1) / np.sqrt(len(more)) if len(more) > 1 else float("nan")
        kind = "real" if plan.real else "simulated"
        print(
            f"{name:30s} {found.mean():.4f} {more.mean():+.4f} ± {error:.4f} {size / 1e6:5.0f} MB {kind}, {made:.0f} s",
            flush=True,
        )


def text_losses(model: Any, tokens: torch.Tensor) -> np.ndarray:
    """The mean loss of each text."""
    rows = []
    for text in tokens:
        logits = model(input_ids=text[None], use_cache=False).logits[0, :-1].float()
        rows.append(float(torch.nn.functional.cross_entropy(logits, text[1:])))
    return np.array(rows)


def speed(bridge: Any, arguments: argparse.Namespace) -> None:
    model = deploy(bridge)
    tokens = corpus(arguments.source, bridge, 1, arguments.length, 0)
    half = copy.deepcopy(model).bfloat16()
    rows: dict[str, tuple[Any, Any]] = {"float32": (model, None), "bfloat16": (half, None)}
    makers = known(bridge, model, arguments.group)
    for name in arguments.plans or SPEED:
        rows[name] = (model, makers[name]())
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    prefill: dict[str, list[float]] = {name: [] for name in rows}
    size = {}
    for _ in range(3):
        for name, (on, plan) in rows.items():
            with plan.applied(on) if plan is not None else nullcontext():
                size[name] = storage_bytes(on) / 1e6
                decoder = Decoder(on)
                began = time.process_time()
                token = decoder.feed(tokens).argmax(-1)
                prefill[name].append(time.process_time() - began)
                for _step in range(arguments.steps):
                    began = time.process_time()
                    token = decoder.feed(token).argmax(-1)
                    seconds[name].append(time.process_time() - began)
    table = {
        name: {
            "ms a token": 1e3 * np.median(seconds[name]),
            "x float32": np.median(seconds["float32"]) / np.median(seconds[name]),
            "x bfloat16": np.median(seconds["bfloat16"]) / np.median(seconds[name]),
            "prefill ms": 1e3 * np.median(prefill[name]),
            "prefill x float32": np.median(prefill["float32"]) / np.median(prefill[name]),
            "MB": size[name],
        }
        for name in rows
    }
    print(f"context {arguments.length}, one thread, processor time; medians")
    print(pd.DataFrame(table).T.round(2).to_string())


if __name__ == "__main__":
    main()
