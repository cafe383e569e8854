"""Compressed caches of SmolLM2: seconds a decoded token against the dense caches, and keys found again against bytes.

    python benchmarks/kv_cache.py speed --dtype float32      # some minutes on one thread
    python benchmarks/kv_cache.py speed --dtype bfloat16
    python benchmarks/kv_cache.py recall --finding REACH COPYING --keys 1 --length 1024 --n 12 --budgets 0.15 0.3

Speed: caches are filled with random numbers, which cost as much as a text's; every step of all caches is interleaved;
processor time. Beside each plan stands a plain static cache of as many entries.
Recall: the context is compressed before the question is known. Its dense prefill is the same for every plan that does
not read in chunks, so it is computed once and handed to each plan's cache. `guess` is the answer's loss without the
context. Prompts are of the split `score`: other things, numbers and noise than those of findings. Intervals are 95 %
(of the recall Wilson's, of the loss a bootstrap over prompts).
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from intervals import of_mean, of_share, shown
from transformers import DynamicCache, StaticCache

import interp
from interp.efficiency import deploy, deployment
from interp.efficiency.decoding import Decoder, storage_bytes
from interp.efficiency.kv_cache import KVCache, KVPlan, RetrievalCache, SnapKVCache, StreamingCache
from interp.efficiency.kv_cache.cache import KVLayer
from interp.efficiency.kv_cache.geometry import geometry
from interp.efficiency.kv_cache.running import with_cache
from interp.efficiency.kv_cache.stores import Full
from interp.efficiency.registry import METHODS
from interp.results import scores
from interp.results.findings import RetrievalHeads
from interp.tasks import corpus, key_samples
from interp.upstream import cache_of, cached

SCORED = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    kinds = parser.add_subparsers(dest="what", required=True)
    speed = kinds.add_parser("speed")
    speed.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    speed.add_argument("--length", type=int, default=4096)
    speed.add_argument("--steps", type=int, default=20)
    recall = kinds.add_parser("recall")
    recall.add_argument(
        "--finding", type=Path, nargs="+", required=True, help="folders as `interp retrieval-heads` writes them"
    )
    recall.add_argument("--keys", type=int, default=1)
    recall.add_argument("--length", type=int, default=1024)
    recall.add_argument("--n", type=int, default=12)
    recall.add_argument("--budgets", type=float, nargs="+", default=[0.1, 0.15, 0.3, 0.5])
    recall.add_argument("--bits", type=int, nargs="+", default=[0, 8], help="of heads kept whole; 0: as they are")
    recall.add_argument("--window", type=int, help="recent tokens of heads that are not kept whole")
    recall.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    recall.add_argument("--methods", nargs="+", default=["retrieval", "streaming", "snapkv"])
    recall.add_argument("--sinks", type=Path, help="a folder with SinkPositions; 4 sinks without it")
    recall.add_argument("--texts", type=int, default=0, help="stretches of prose whose last 128 tokens are predicted")
    recall.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bridge = interp.load(arguments.model, device="cpu")
    with torch.no_grad():
        (measure_speed if arguments.what == "speed" else measure_recall)(deploy(bridge), arguments)


# Speed


def measure_speed(model: Any, arguments: argparse.Namespace) -> None:
    dtype, length = getattr(torch, arguments.dtype), arguments.length
    model.to(dtype)
    finding = random_finding(model)
    plans = {
        "full": interp.efficiency.kv_cache.FullCache(length=length).plan(model),
        "sink + window": StreamingCache(budget=512 / length, length=length).plan(model),
        "25 % of heads full": RetrievalCache(retrieval=finding, groups=0.25, budget=0.35, length=length).plan(model),
        "50 % of heads full": RetrievalCache(retrieval=finding, groups=0.5, budget=0.6, length=length).plan(model),
        "25 % of heads in int8": RetrievalCache(retrieval=finding, groups=0.25, budget=0.2, bits=8, length=length).plan(
            model
        ),
        "snapkv 512": SnapKVCache(budget=512 / length, length=length).plan(model),
        "h2o 512": METHODS["h2o"].load()(budget=512 / length, length=length).plan(model),
    }
    runs: dict[str, tuple[KVPlan | None, Any]] = {
        "dynamic": (None, plain(model, DynamicCache(config=model.config), length)),
        "static": (None, plain(model, StaticCache(config=model.config, max_cache_len=length + 64), length)),
    }
    for name, plan in plans.items():
        runs[name] = (plan, filled(model, plan, length))
        if name != "full":
            entries = round(np.mean(runs[name][1].entries()))
            static = StaticCache(config=model.config, max_cache_len=entries)
            runs[f"static of {entries}, as {name}"] = (None, plain(model, static, entries - arguments.steps - 2))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for step in range(arguments.steps + 2):
        for name, (plan, cache) in runs.items():
            seconds[name].append(one_step(model, plan, cache, length + step))
    show_speed({name: values[2:] for name, values in seconds.items()}, {name: run[1] for name, run in runs.items()})


def one_step(model: Any, plan: KVPlan | None, cache: Any, position: int) -> float:
    token, at = torch.tensor([[5]]), torch.tensor([[position]])
    if plan is None:
        began = time.process_time()
        model(**cached(model, cache, input_ids=token, position_ids=at, use_cache=True))
        return time.process_time() - began
    with plan.applied(model):
        began = time.process_time()
        model(**cached(model, cache, input_ids=token, position_ids=at, use_cache=True))
        return time.process_time() - began


def show_speed(seconds: dict[str, list[float]], caches: dict[str, Any]) -> None:
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    rows = {
        name: {
            "ms": 1e3 * median[name],
            "low": 1e3 * np.quantile(values, 0.25),
            "high": 1e3 * np.quantile(values, 0.75),
            "x dynamic": median["dynamic"] / median[name],
            "x static": median["static"] / median[name],
            "MB": storage_bytes(caches[name]) / 1e6,
        }
        for name, values in seconds.items()
    }
    print(pd.DataFrame(rows).T.round(2).to_string())


def entry(model: Any, heads: int, tokens: int) -> torch.Tensor:
    return torch.randn(1, heads, tokens, geometry(model).head_dim, dtype=model.dtype)


def plain(model: Any, cache: Any, length: int) -> Any:
    for layer, groups in enumerate(geometry(model).groups):
        cache.update(entry(model, len(groups), length), entry(model, len(groups), length), layer)
    return cache


def filled(model: Any, plan: KVPlan, length: int) -> KVCache:
    cache, shape = plan.new_cache(model), geometry(model)
    for layer, groups in zip(cache.layers, shape.groups, strict=True):
        query = 0.1 * entry(model, len(groups) * shape.query_heads, length)
        layer.step(query, entry(model, len(groups), length), entry(model, len(groups), length), {})
    return cache


def random_finding(model: Any) -> RetrievalHeads:
    shape, found = geometry(model), deployment(model)
    values = np.random.default_rng(0).random((len(shape.layers), shape.query_heads * len(shape.groups[0])))
    each = scores(values, ("layer", "head"), {}, name="retrieval", units="share")
    return RetrievalHeads(
        model=found.name,
        fingerprint=found.fingerprint,
        n_kv_heads=len(shape.groups[0]),
        evidence={"scores": each, "low": each, "high": each},
    )


# Recall


class Recorded(KVLayer):
    """A layer that keeps everything, and the queries too."""

    def step(self, query: Any, keys: Any, values: Any, options: Any) -> Any:
        self.recorded = (query, keys, values, options)
        return super().step(query, keys, values, options)


def measure_recall(model: Any, arguments: argparse.Namespace) -> None:
    findings = {path.name: interp.results.load(path) for path in arguments.finding}
    if alien := [name for name, found in findings.items() if found.settings.get("split") != "find"]:
        raise SystemExit(
            f"{alien[0]} was not found on the split 'find', from which these prompts differ; find it again"
        )
    model.to(getattr(torch, arguments.dtype))
    samples = key_samples(model, arguments.length, arguments.keys, arguments.n, seed=arguments.seed, split="score")
    plans = all_plans(model, findings, arguments, len(samples[0].context))
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in plans}
    for number, sample in enumerate(samples):
        recorded, guess = prefill(model, sample.context), answer(model, None, None, sample.control, sample.answer)
        for name, plan in plans.items():
            began = time.process_time()
            cache = handed_over(model, plan, sample.context, recorded)
            held = cache.bytes()
            found = answer(model, plan, cache, sample.question, sample.answer)
            took = time.process_time() - began
            rows[name].append({**found, "guess": guess["loss"], "bytes": held, "seconds": took})
        if number in (2, 5, 11) or number == len(samples) - 1:
            show_recall(rows, arguments)
    if arguments.texts:
        show_text(model, plans, corpus("prose", model, arguments.texts, arguments.length, split="score"))


def show_recall(rows: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> None:
    frame = pd.DataFrame({name: pd.DataFrame(found).mean() for name, found in rows.items()}).T
    frame["bytes"] /= frame["bytes"].iloc[0]
    done = len(next(iter(rows.values())))
    frame["95 % recall"] = [shown(*of_share(float(recall), done)) for recall in frame["recall"]]
    frame["95 % loss"] = [shown(*of_mean([one["loss"] for one in found])) for found in rows.values()]
    print(f"\n{arguments.keys} key(s), {arguments.length} tokens, {done} prompts; bytes as a share of the full cache's")
    print(frame.round(3).to_string(), flush=True)


def show_text(model: Any, plans: dict[str, KVPlan], texts: Any) -> None:
    """The loss of each text's last tokens, read in pieces behind a compressed cache of those before."""
    losses: dict[str, list[float]] = {name: [] for name in plans}
    for text in texts:
        context, rest = text[:-SCORED], text[-SCORED:]
        recorded = prefill(model, context)
        for name, plan in plans.items():
            decoder = Decoder(model, handed_over(model, plan, context, recorded))
            with plan.applied(model):
                logits = decoder.logits(rest[None, :-1], 16)[0].float()
            losses[name].append(float(torch.nn.functional.cross_entropy(logits, rest[1:])))
    frame = pd.DataFrame({"loss": {name: float(np.mean(found)) for name, found in losses.items()}})
    frame["95 %"] = [shown(*of_mean(found)) for found in losses.values()]
    frame["- full"] = frame["loss"] - frame["loss"].iloc[0]
    full = np.array(losses[next(iter(plans))])
    frame["95 % of it"] = [shown(*of_mean(np.array(found) - full)) for found in losses.values()]
    print(f"\nprose, {len(texts)} texts, the last {SCORED} tokens of each\n{frame.round(3).to_string()}", flush=True)


def all_plans(model: Any, findings: Any, arguments: argparse.Namespace, length: int) -> dict[str, KVPlan]:
    plans = {"full": interp.efficiency.kv_cache.FullCache().plan(model)}
    sinks = {} if arguments.sinks is None else {"sinks": interp.results.load(arguments.sinks)}
    for budget in arguments.budgets:
        for name in arguments.methods:
            variants: list[tuple[str, dict[str, Any]]] = [(name, {})]
            if METHODS[name].needs:
                variants = [
                    (folder, {**dict.fromkeys(METHODS[name].needs, finding), **(kept if name == "retrieval" else {})})
                    for folder, finding in findings.items()
                    for kept in ({"bits": bits or None, "window": arguments.window} for bits in arguments.bits)
                ]
            for called, options in variants:
                options = {**options, **(sinks if "sinks" in METHODS[name].takes else {})}
                made = METHODS[name].load()(budget=budget, length=length, **options)
                label = f"{called} {budget:.3g}" + (f" int{options['bits']}" if options.get("bits") else "")
                try:
                    plans[label] = made.plan(model)
                except interp.errors.UsageError as error:
                    print(error, flush=True)
                    continue
                if name == "retrieval":
                    plans[label.replace(called, "random heads")] = made.random_plan(model, arguments.seed)
                    plans[f"{label} inverted"] = made.inverted_plan(model)
    return plans


def prefill(model: Any, context: Any) -> list[Any]:
    heads = [len(groups) for groups in geometry(model).groups]
    cache = KVCache("recorded", [partial(one_store, n) for n in heads], heads)
    cache.layers = [Recorded(layer.make, cache.state) for layer in cache.layers]
    tokens = torch.as_tensor(context)[None]
    with with_cache(model, cache, 1, tokens.shape[1]):
        model(**cached(model, cache, input_ids=tokens, use_cache=True, logits_to_keep=1))
    return [layer.recorded for layer in cache.layers]


def one_store(heads: int) -> list[Any]:
    return [(list(range(heads)), Full())]


def handed_over(model: Any, plan: KVPlan, context: Any, recorded: list[Any]) -> KVCache:
    cache = plan.new_cache(model)
    if plan.prefill_chunk or plan.instruction:
        with plan.applied(model):
            model(**cached(model, cache, input_ids=torch.as_tensor(context)[None], logits_to_keep=1))
        return cache
    cache.begin(1, len(context), None)
    for layer, (query, keys, values, options) in zip(cache.layers, recorded, strict=True):
        layer.step(query, keys, values, options)
    return cache


def answer(model: Any, plan: KVPlan | None, cache: Any, question: Any, right: Any) -> dict[str, float]:
    """Is the answer written, greedily and in full, and what is its loss? The question and the answer are fed apart."""
    if plan is None:
        return _answer(model, cache, question, right)
    with plan.applied(model):
        return _answer(model, cache, question, right)


def _answer(model: Any, cache: Any, question: Any, right: Any) -> dict[str, float]:
    out = model(**cached(model, cache, input_ids=torch.tensor([question]), use_cache=True, logits_to_keep=1))
    rows = [out.logits[0]]
    for token in right[:-1]:
        out = model(**cached(model, cache_of(out), input_ids=torch.tensor([[token]]), use_cache=True))
        rows.append(out.logits[0])
    logits, wanted = torch.cat(rows).float(), torch.tensor(right)
    exact = float((logits.argmax(-1) == wanted).all())
    return {"recall": exact, "loss": float(torch.nn.functional.cross_entropy(logits, wanted))}


if __name__ == "__main__":
    main()
