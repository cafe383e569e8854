"""Sparse prefill: seconds of one layer's attention and of whole prompts, beside dense; what is kept; keys found again.

    python benchmarks/sparse_attention.py layer --length 8192 --budget 0.15 --methods moba flexprefill "anchor tuned"
    python benchmarks/sparse_attention.py prefill --length 8192          # minutes for each method
    python benchmarks/sparse_attention.py quality --length 2048 --finding DIR
    python benchmarks/sparse_attention.py recall --length 2048 --finding DIR --n 12
    OMP_NUM_THREADS=2 python benchmarks/sparse_attention.py prefill --wall --length 8192 --methods "a_shape, window"

Seconds are processor time on one thread (with --wall those of the clock, for several threads on an idle machine),
medians of interleaved runs: what else the machine does counts little, though it slows memory down. `layer` times what a
plan does in some layers on the queries, keys and values that a text has there, and says what it keeps of their
attention: seconds and quality of one setting. `recall` asks behind the prompt (what sparse reading left in the cache)
and in the same prompt (read sparsely, too). Without --finding, heads are scored at random: seconds are the same,
quality is random heads'.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch

import interp
from interp.cli.app import numbers
from interp.efficiency import Keys, deploy, deployment
from interp.efficiency.kv_cache.geometry import geometry
from interp.efficiency.sparse_attention import (
    AnchorAttention,
    AShape,
    FlexPrefill,
    HeadPatterns,
    KeysInOneGo,
    MoBA,
    SpargeAttn,
    StarAttention,
    gathered,
    kept_attention,
    text_loss,
)
from interp.efficiency.sparse_attention.flexible import flexible
from interp.efficiency.sparse_attention.gathered import dense
from interp.efficiency.sparse_attention.measuring import kept_mass
from interp.efficiency.sparse_attention.observing import observe
from interp.efficiency.sparse_attention.patterns import View, pattern
from interp.results import scores
from interp.results.findings import RetrievalHeads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["layer", "prefill", "quality", "recall"])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--block", type=int, default=128)
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--window", type=int, default=128, help="tokens, of the rows that are named after it")
    parser.add_argument("--full", type=float, default=1 / 30, help="share of the heads that see everything in them")
    parser.add_argument("--layers", default="5,15,25", help="of `layer`")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--wall", action="store_true", help="seconds of the clock, not of the processor")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--flex", action="store_true", help="compile flex_attention, too")
    parser.add_argument("--finding", type=Path, help="RetrievalHeads, as `interp retrieval-heads` writes them")
    parser.add_argument("--methods", nargs="*", help="some of them; all unless given")
    parser.add_argument("--controls", action="store_true", help="random and inverted plans beside each")
    parser.add_argument("--keys", type=int, default=1)
    parser.add_argument("--n", type=int, default=6)
    parser.add_argument("--out", type=Path, help="also write the table as CSV")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with torch.no_grad():
        model = deploy(interp.load(arguments.model, device=arguments.device)).to(getattr(torch, arguments.dtype))
        measure = {
            "layer": measure_layer,
            "prefill": measure_prefill,
            "quality": measure_quality,
            "recall": measure_recall,
        }
        table = measure[arguments.what](model, plans(model, arguments), arguments)
    print(table.to_string(float_format=lambda x: f"{x:.4g}"))
    if arguments.out:
        table.to_csv(arguments.out)


def plans(model: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Methods at the budget, and those with a number of their own as their authors have it."""
    common = {"length": arguments.length, "block": arguments.block}
    tuned = {"budget": arguments.budget, **common}
    finding = random_finding(model) if arguments.finding is None else load_finding(arguments.finding)
    made = {
        "a_shape": lambda: AShape(**tuned),
        "head_patterns": lambda: HeadPatterns(retrieval=finding, **tuned),
        "a_shape, window": lambda: AShape(window=arguments.window, **common),
        "head_patterns, window": lambda: HeadPatterns(
            retrieval=finding, window=arguments.window, full=arguments.full, **common
        ),
        "flexprefill": lambda: FlexPrefill(**common),
        "flexprefill 0.95": lambda: FlexPrefill(gamma=0.95, **common),
        "anchor": lambda: AnchorAttention(**common),
        "anchor tuned": lambda: AnchorAttention(**tuned),
        "moba": lambda: MoBA(**tuned),
        "sparge": lambda: SpargeAttn(**common),
        "star": lambda: StarAttention(**tuned),
    }
    found: dict[str, Any] = {}
    for name in arguments.methods or made:
        try:
            method = made[name]()
            found[name] = method.plan(model)
            if arguments.controls:
                found[f"{name}, random"] = method.random_plan(model)
                if hasattr(method, "inverted_plan"):
                    found[f"{name}, inverted"] = method.inverted_plan(model)
        except interp.errors.UsageError as error:
            print(f"{name}: {error}")
    return found


def measure_layer(model: Any, found: dict[str, Any], arguments: argparse.Namespace) -> pd.DataFrame:
    """Attention of some layers on the model's own queries, keys and values, and what is kept of it, means over them."""
    tokens = interp.tasks.corpus("prose", model, 1, arguments.length, 1).to(model.device)
    seen: dict[int, tuple[View, Any]] = {}

    def keep(view: View, values: Any) -> None:
        if view.layer in numbers(arguments.layers):
            seen[view.layer] = view, values

    observe(model, tokens, arguments.block, keep)
    runs: dict[Any, Callable[[], Any]] = {}
    kept: dict[str, list[dict[str, float]]] = {}
    for layer, (view, values) in seen.items():
        given = view.query, view.keys, values, view.kv
        runs["dense", layer] = lambda given=given, view=view: dense(*given, view.block, view.scaling, view.softcap)
        true = runs["dense", layer]()
        for name, plan in found.items():
            runs[f"{name}: choose", layer] = lambda plan=plan, view=view: chosen(plan, view)
            lists = chosen(plan, view)
            runs[name, layer] = lambda lists=lists, values=values: attended(lists, values, gathered)
            if arguments.flex:
                runs[f"{name}: flex", layer] = lambda lists=lists, values=values: attended(lists, values, flexible)
            off = (runs[name, layer]() - true).float().norm() / true.float().norm()
            share = torch.cat([blocks.density() for _, blocks in lists]).mean()
            mass = torch.cat([kept_mass(one, blocks) for one, blocks in lists]).mean()
            kept.setdefault(name, []).append({"blocks": float(share), "mass": float(mass), "error": float(off)})
    ms = pd.Series({key: 1e3 * np.median(times) for key, times in interleaved(runs, arguments).items()})
    each = ms.groupby(level=0, sort=False).mean()
    rows = {"dense": {"attend": each["dense"], "choose": 0.0, "blocks": 1.0, "mass": 1.0, "error": 0.0}}
    for name, layers in kept.items():
        rows[name] = {"attend": each[name], "choose": each[f"{name}: choose"], **pd.DataFrame(layers).mean()}
        if arguments.flex:
            rows[f"{name}: flex"] = {**rows[name], "attend": each[f"{name}: flex"]}
    frame = pd.DataFrame(rows).T
    both = frame["attend"] + frame["choose"]
    return frame.assign(times_as_fast=both["dense"] / both).rename(
        columns={"attend": "attend ms", "choose": "choose ms"}
    )


def chosen(plan: Any, view: View) -> list[tuple[View, Any]]:
    """What a plan's rules choose in a layer, heads of one rule together."""
    by_rule: dict[int, list[int]] = {}
    for layer, head, rule in plan.heads:
        if layer == view.layer:
            by_rule.setdefault(rule, []).append(view.heads.index(head))
    found = []
    for rule, at in by_rule.items():
        own = tuple(view.kv[n] for n in at), tuple(view.heads[n] for n in at)
        mine = replace(view, query=view.query[at], kv=own[0], heads=own[1])
        found.append((mine, pattern(plan.rules[rule]).select(mine)))
    return found


def attended(lists: list[tuple[View, Any]], values: Any, how: Callable[..., Any]) -> Any:
    """Attention to what was chosen, heads in the model's order."""
    parts = [how(view.query, view.keys, values, view.kv, blocks, view.scaling) for view, blocks in lists]
    order = np.argsort([head for view, _ in lists for head in view.heads])
    return torch.cat(parts)[torch.from_numpy(order)]


def measure_prefill(model: Any, found: dict[str, Any], arguments: argparse.Namespace) -> pd.DataFrame:
    tokens = interp.tasks.corpus("prose", model, 1, arguments.length, 1).to(model.device)

    def run(plan: Any) -> Callable[[], Any]:
        def once() -> Any:
            if plan is None:
                return model(input_ids=tokens, use_cache=True, logits_to_keep=1)
            with plan.applied(model):
                return model(input_ids=tokens, use_cache=True, logits_to_keep=1)

        return once

    seconds = interleaved({"dense": run(None), **{name: run(plan) for name, plan in found.items()}}, arguments)
    rows = {name: {"seconds": np.median(values), "low": min(values)} for name, values in seconds.items()}
    for name, plan in found.items():
        ledger = plan.ledger(model, arguments.length)
        rows[name] |= {"density": plan.density, "flops": ledger.prefill_flops.share}
    frame = pd.DataFrame(rows).T
    return frame.assign(times_as_fast=frame.loc["dense", "seconds"] / frame["seconds"])


def measure_quality(model: Any, found: dict[str, Any], arguments: argparse.Namespace) -> pd.DataFrame:
    """Attention kept and output error on the dense model's activations, and the loss with everything in force."""
    tokens = interp.tasks.corpus("prose", model, 1, arguments.length, 1).to(model.device)
    skip = arguments.length // 2
    rows = {
        "dense": {"mass": 1.0, "least mass": 1.0, "density": 1.0, "error": 0.0, "loss": text_loss(model, tokens, skip)}
    }
    for name, plan in found.items():
        frame = kept_attention(model, plan, tokens)
        with plan.applied(model):
            loss = text_loss(model, tokens, skip)
        means = frame[["mass", "density", "error"]].mean().to_dict()
        rows[name] = {**means, "least mass": frame["mass"].min(), "loss": loss}
    return pd.DataFrame(rows).T


def measure_recall(model: Any, found: dict[str, Any], arguments: argparse.Namespace) -> pd.DataFrame:
    rows: dict[str, dict[str, float]] = {}
    for kind in (Keys, KeysInOneGo):
        quality = kind(arguments.keys, arguments.length, arguments.n)
        quality.prepare(model)
        rows.setdefault("dense", {}).update(named(quality, model))
        for name, plan in found.items():
            with plan.applied(model):
                rows.setdefault(name, {"density": plan.density}).update(named(quality, model))
    return pd.DataFrame(rows).T


def named(quality: Any, model: Any) -> dict[str, float]:
    return {f"{quality.name}: {name}": value for name, value in quality.measure(model).items()}


def interleaved(runs: dict[str, Callable[[], Any]], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each, taking turns; the first turn warms up where there are several."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.repetitions + (arguments.repetitions > 1)):
        for name, run in runs.items():
            began = now(arguments)
            run()
            seconds[name].append(now(arguments) - began)
    return {name: values[-arguments.repetitions :] for name, values in seconds.items()}


def now(arguments: argparse.Namespace) -> float:
    if arguments.device == "cpu":
        return time.perf_counter() if arguments.wall else time.process_time()
    torch.accelerator.synchronize()
    return time.perf_counter()


def load_finding(path: Path) -> Any:
    from interp.results import load

    return load(path)


def random_finding(model: Any) -> RetrievalHeads:
    """Heads in random order, for seconds."""
    shape, found = geometry(model), deployment(model)
    groups = len(shape.groups[0])
    values = np.random.default_rng(0).random((len(shape.layers), groups * shape.query_heads))
    each = scores(values, ("layer", "head"), {}, name="retrieval", units="share")
    evidence = {"scores": each, "low": each, "high": each}
    return RetrievalHeads(model=found.name, fingerprint=found.fingerprint, evidence=evidence, n_kv_heads=groups)


if __name__ == "__main__":
    main()
