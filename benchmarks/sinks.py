"""Attention sinks of SmolLM2, and how one grows in a small model: the tables, as Markdown.

    python benchmarks/sinks.py                                   # all; about ten minutes on one thread
    python benchmarks/sinks.py --only metric layers              # metric, layers, cost, massive, tokens, blocking,
                                                                 # dormant, backcopy

`prefix` says whether `<|im_start|>`, which the tokenizer puts before a text, stands first. Seconds are processor time.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch

import interp
from interp.attention.sinks.backcopy_training import train_backcopy
from interp.attention.sinks.blocking import WithoutKey, block_sink, blocking_table
from interp.attention.sinks.census import census
from interp.attention.sinks.dormant import active_dormant, dormant_ablation
from interp.attention.sinks.losses import interval
from interp.attention.sinks.survey import DOMAINS, sink_heads, sink_metric, survey_sinks
from interp.tasks import corpus


def metric(model) -> None:
    """The published metric, by kind of text and with or without the prefix."""
    rows = []
    for source in (*DOMAINS, "random", "constant"):
        for prefix in (True, False):
            tokens = corpus(source, model, 100, 64, prefix=prefix)
            rows.append((source, prefix, f"{100 * float(sink_metric(model, tokens).mean()):.2f} %"))
    show(pd.DataFrame(rows, columns=["texts (100 of 64 tokens)", "prefix", "Sink_1, threshold 0.3"]))


def layers(model) -> None:
    """Attention of later queries to the first position and norms, by layer; and attention by length."""
    found = survey_sinks(model, n=32)
    attention = found.heads.evidence["domain_attention"].mean("head")
    table = pd.DataFrame({str(name): attention.sel(domain=name).values for name in attention["domain"].values})
    table["value norm, first/others"] = found.positions.evidence["value_ratio"].mean("kv_head").values
    norm = found.massive.evidence["resid_norm"].values
    table["residual norm, first"], table["others, median"] = norm[:, 0], np.median(norm[:, 1:], 1)
    table.insert(0, "layer", range(len(table)))
    show(table)
    rows = []
    for length, n in ((64, 32), (256, 8), (1024, 2)):
        first = census(model, corpus("prose", model, n, length)).from_others[..., 0].mean((1, 2))
        rows.append((length, *(float(first[a:b].mean()) for a, b in ((0, 3), (3, 10), (10, 12), (12, 30)))))
    show(pd.DataFrame(rows, columns=["length (prose)", "layers 0-2", "3-9", "10-11", "12-29"]))


def cost(model, texts: int = 24, length: int = 64) -> None:
    """What a survey takes beside one forward pass without logits, in processor seconds, medians of three in turn."""
    tokens = corpus("prose", model, texts, length)
    hidden = model.original_model.model
    survey_sinks(model, tokens)  # what is done once a model
    seconds: dict[str, list[float]] = {"forward pass": [], "survey": []}
    with torch.no_grad():
        for _ in range(3):
            for name, run in (
                ("forward pass", lambda: hidden(tokens, use_cache=False)),
                ("survey", lambda: survey_sinks(model, tokens)),
            ):
                began = time.process_time()
                run()
                seconds[name].append(time.process_time() - began)
    weights = sum(weight.numel() for weight in hidden.layers.parameters())
    flops = 2 * weights * texts * length
    median = {name: float(np.median(each)) for name, each in seconds.items()}
    rows = [(name, each, each / median["forward pass"], flops / each / 1e9) for name, each in median.items()]
    print(f"{texts} texts of {length} tokens; {weights:,} numbers in the blocks, {flops / 1e9:,.0f} GFLOP\n")
    show(pd.DataFrame(rows, columns=["", "s", "forward passes", "GFLOP/s"]))


def massive(model) -> None:
    """Which channels, where, and who writes them."""
    found = survey_sinks(model, n=32).massive
    print(found.summary(), "\n")
    evidence = found.evidence
    for channel in found.channels:
        written = evidence["written"].sel(channel=channel)
        table = pd.DataFrame({str(kind): written.sel(kind=kind).values for kind in written["kind"].values})
        table["value behind the layer"] = evidence["values"].sel(channel=channel).values[: len(table)]
        table.insert(0, "layer", range(len(table)))
        neurons = evidence["neurons"].sel(channel=channel)
        best = abs(neurons).argsort().values[::-1][:4]
        named = ", ".join(f"{int(i)} ({float(neurons[i]):,.0f})" for i in best)
        print(f"channel {channel}; neurons of MLP {found.appears} that write it: {named}\n")
        show(table)


def tokens(model) -> None:
    """Tokens that become sinks further on."""
    for prefix in (True, False):
        found = survey_sinks(model, n=64, prefix=prefix).positions
        rate, again = found.evidence["token_rate"], found.evidence["token_rate_again"]
        print(f"prefix {prefix}: {found.summary()}\n")
        columns = {name: rate[name].values for name in ("word", "texts")}
        where = found.evidence["token_attention"].argmax("layer").values
        show(
            pd.DataFrame(
                {
                    **columns,
                    "sink at its first place": rate.values,
                    "at later places": again.values,
                    "most in layer": where,
                }
            ).head(8)
        )


def blocking(model) -> None:
    """Loss with the sink blocked, and with another position blocked."""
    texts = corpus("prose", model, 16, 128)
    everywhere, late = block_sink(model, texts), block_sink(model, texts, ("key", "value"), layers=range(12, 30))
    for name, losses in (("all layers", everywhere), ("from layer 12 on", late)):
        print(f"prose, 16 texts of 128 tokens, predictions from position 16 on; key and value blocked in {name}\n")
        show(blocking_table(losses), 4)
    for name, visitor in (
        ("as it is", None),
        ("key 0 masked in all layers", WithoutKey(0)),
        ("key 0 masked from layer 12 on", WithoutKey(0, layers=range(12, 30))),
    ):
        share = census(model, texts[:8, :64], visitor).sinks(0.3).float().mean((0, 1, 2))
        print(f"{name}: share of heads with a sink at positions 0 to 4: {[round(float(x), 3) for x in share[:5]]}")
    print()


def dormant(model) -> None:
    """Heads that sink on one kind of text, and what they are worth on each."""
    found = sink_heads(model, n=64)
    show(active_dormant(found).head(12))
    table = dormant_ablation(model, found, k=12, n=12)
    show(table, 4)
    for state in ("dormant", "active"):
        mean, low, high = interval(table[table.state == state]["increase"].to_numpy())
        print(f"{state}: mean rise {mean:.4f} nats a token [{low:.4f}, {high:.4f}] over heads")
    wide = table[table.state != "between"].pivot(index=["layer", "head"], columns="state", values="increase")
    mean, low, high = interval((wide["active"] - wide["dormant"]).to_numpy())
    print(f"active less dormant: {mean:.4f} [{low:.4f}, {high:.4f}], paired over {len(wide)} heads\n")


def backcopy(_) -> None:
    """The Bigram-Backcopy task."""
    rows = {}
    for attn, optimizer in (("softmax", "adam"), ("relu", "adam"), ("softmax", "sgd")):
        trained = train_backcopy(attn=attn, optimizer=optimizer)
        last = trained.scores.isel(step=-1)
        rows[f"{attn}, {optimizer}"] = [*last.values, trained.seconds]
    show(pd.DataFrame(rows, index=[*last["kind"].values, "seconds (wall)"]).reset_index(names="after 2,000 steps"))


PARTS: dict[str, Callable] = {
    part.__name__: part for part in (metric, layers, cost, massive, tokens, blocking, dormant, backcopy)
}


def show(table: pd.DataFrame, digits: int = 3) -> None:
    """Print a table as Markdown."""
    print("| " + " | ".join(map(str, table.columns)) + " |")
    print("|" + "---|" * len(table.columns))
    for row in table.itertuples(index=False):
        print("| " + " | ".join(f"{x:.{digits}f}" if isinstance(x, float) else repr_of(x) for x in row) + " |")
    print(flush=True)


def repr_of(value: object) -> str:
    return repr(value) if isinstance(value, str) and value.strip() != value else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = interp.load("smollm2", device="cpu")
    print(
        f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__}, SmolLM2-135M float32\n"
    )
    for name in arguments.only:
        began = time.process_time()
        print(f"### {name}: {PARTS[name].__doc__}\n")
        PARTS[name](model)
        print(f"({time.process_time() - began:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main()
