"""What the toolkit does on an accelerator, beside what it can't do better than: one script, under eight minutes.

    python benchmarks/gpu.py                           # a billion parameters on the accelerator, if there is one
    python benchmarks/gpu.py 7b --out gpu.json         # small, 1b or 7b
    python benchmarks/gpu.py small --device cpu        # to try the script
    python benchmarks/gpu.py 1b --rows prefill decode  # some rows, by a part of their names

Weights are random, so nothing has to travel to the machine: no figure here says anything about quality. A row is
printed as soon as it is there, one that fails says why, and after --minutes the rest is left out. Seconds are the
best of three calls (of one call where a call takes more than two seconds), each after a first one that is not counted
where that is affordable. TransformerLens's patching is run on every so many layers and scaled up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
import torch
from transformer_lens import patching as reference
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

import interp
from interp.efficiency import Cost, deploy, make
from interp.efficiency.decoding import Decoder, storage_bytes
from interp.models._device import device_of
from interp.models._local import boot
from interp.models._words import SPECIAL, toy_tokenizer

PROMPT = 16
"""Tokens of a pair of prompts."""


@dataclass(frozen=True)
class Size:
    """A model's shape, and how much of everything is asked of it."""

    d_model: int
    layers: int
    heads: int
    kv_heads: int
    d_mlp: int
    vocabulary: int
    lengths: tuple[int, ...]
    latents: int
    batch: int


SIZES = {
    "small": Size(64, 3, 4, 2, 128, 512, (256,), 256, 256),
    "1b": Size(2048, 16, 32, 8, 8192, 49152, (4096, 8192, 16384, 32768), 16384, 4096),
    "7b": Size(4096, 32, 32, 8, 14336, 32000, (4096, 16384, 32768), 32768, 4096),
}


class Lab:
    """Models of one size on one device, made when they are first asked for."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.size, self.device = size, device

    @cached_property
    def model(self) -> Any:
        """To be analysed, in float32."""
        return self._made(torch.float32)

    @cached_property
    def deployed(self) -> Any:
        """To be used, in bfloat16; in float32 on a processor."""
        self.__dict__.pop("model", None)  # two of the larger ones do not fit
        self.bridge = self._made(torch.float32 if self.device.type == "cpu" else torch.bfloat16)
        return deploy(self.bridge)

    @cached_property
    def importance(self) -> Any:
        """A finding for the plans that want one."""
        deployed = self.deployed
        assert deployed is not None
        return interp.attention.head_importance(self.bridge, self.tokens(2, 64), "gradient")

    @cached_property
    def statistics(self) -> Any:
        deployed = self.deployed
        assert deployed is not None
        return interp.statistics.activation_statistics(self.bridge, self.tokens(2, 64), 2, 64)

    def tokens(self, rows: int, length: int, seed: int = 0) -> torch.Tensor:
        draw = torch.Generator().manual_seed(seed)
        return torch.randint(len(SPECIAL), self.size.vocabulary, (rows, length), generator=draw)

    @cached_property
    def task(self) -> interp.tasks.Task:
        """One pair whose prompts differ from the second token on, so that no cell of a sweep is skipped."""
        clean, corrupted = self.tokens(1, PROMPT), self.tokens(1, PROMPT, seed=1)
        corrupted[:, 0] = clean[:, 0]
        answers = self.tokens(1, 2, seed=2)
        return interp.tasks.Task(
            name="random",
            clean=clean,
            corrupted=corrupted,
            right=answers[:, :1],
            wrong=answers[:, 1:],
            positions={"end": torch.tensor([PROMPT - 1])},
            lengths=torch.tensor([PROMPT]),
            clean_text=("",),
            corrupted_text=("",),
            str_tokens=(tuple(map(str, range(PROMPT))),),
            seed=0,
            description="random tokens",
            source="none",
            measure=interp.tasks.METRICS["logit_diff"],
        ).to(self.device)

    def _made(self, dtype: torch.dtype) -> Any:
        size = self.size
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.d_model,
            intermediate_size=size.d_mlp,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            max_position_embeddings=1 << 16,
            attn_implementation="eager",
            bos_token_id=0,
            eos_token_id=1,
        )
        with torch.device(self.device):
            made = LlamaForCausalLM(config).to(dtype).eval()
        words = (*SPECIAL, *(f"t{i}" for i in range(len(SPECIAL), size.vocabulary)))
        return boot(made, toy_tokenizer(words), "random", self.device, dtype)

    # Measuring

    def now(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    def seconds(self, run: Callable[[], Any], warm: bool = True) -> float:
        """Of one call: the best of three, or the only one where it takes more than two seconds."""
        found = []
        for _ in range(3 + warm):
            began = self.now()
            run()
            found.append(self.now() - began)
            if found[-1] > 2:
                break
        return min(found)


def report(**numbers: Any) -> str:
    """Named numbers in a line."""
    said = {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in numbers.items()}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in said.items())


# Analyses


def patching(lab: Lab, by_position: bool) -> str:
    ours = lab.seconds(lambda: interp.patching.activation(lab.model, lab.task, "heads", by_position=by_position))
    theirs = transformer_lens(lab, by_position)
    return report(seconds=ours, transformer_lens=theirs, times=theirs / ours)


@torch.no_grad()
def transformer_lens(lab: Lab, by_position: bool) -> float:
    """Seconds of its own patching of every head, measured on a few cells of a few layers."""
    size, positions = lab.size, PROMPT if by_position else 1
    layers = range(0, size.layers, max(1, size.layers // 3))
    cells = [(layer, position, head) for layer in layers for position in range(positions) for head in range(2)]
    columns = ["layer", "pos", "head"] if by_position else ["layer", "head"]
    frame = pd.DataFrame([cell if by_position else (cell[0], cell[2]) for cell in cells], columns=columns)
    setter = reference.layer_pos_head_vector_patch_setter if by_position else reference.layer_head_vector_patch_setter
    _, cache = lab.model.run_with_cache(lab.task.clean)
    began = lab.now()
    reference.generic_activation_patch(
        lab.model, lab.task.corrupted, cache, lab.task.metric, setter, "z", index_df=frame
    )
    return (lab.now() - began) / len(cells) * size.layers * size.heads * positions


def passes(lab: Lab) -> float:
    """Seconds of two forward passes and one backward pass to the embeddings: the floor of attribution."""
    hf = deploy(lab.model)
    embedded = [hf.get_input_embeddings()(tokens).detach() for tokens in (lab.task.clean, lab.task.corrupted)]

    def run() -> None:
        with torch.no_grad():
            hf(inputs_embeds=embedded[0], use_cache=False, logits_to_keep=1)
        x = embedded[1].clone().requires_grad_()
        logits = hf(inputs_embeds=x, use_cache=False, logits_to_keep=1).logits
        torch.autograd.grad(logits[0, -1, 0], x)

    return lab.seconds(run)


def attribution(lab: Lab, **options: Any) -> str:
    ours = lab.seconds(lambda: interp.patching.attribution(lab.model, lab.task, "heads", **options))
    floor = passes(lab)
    return report(seconds=ours, floor_2F_plus_B=floor, times=ours / floor)


def edges(lab: Lab) -> str:
    steps = 5
    ours = lab.seconds(lambda: interp.circuits.score_edges(lab.model, lab.task, "eap-ig", steps=steps), warm=False)
    floor = passes(lab) * steps
    return report(seconds=ours, floor_of_5_steps=floor, times=ours / floor)


def tracing(lab: Lab) -> str:
    prompt = lab.tokens(1, 64)[0].tolist()
    most = 500 if lab.size.layers > 3 else 40
    nodes = len(interp.tracing.trace(lab.model, prompt, max_nodes=most).nodes)
    seconds = lab.seconds(lambda: interp.tracing.trace(lab.model, prompt, max_nodes=most), warm=False)
    return report(seconds=seconds, nodes=nodes, milliseconds_a_node=1e3 * seconds / nodes)


def sinks(lab: Lab) -> str:
    tokens = lab.tokens(8, 512 if lab.size.layers > 3 else 64)
    seconds = lab.seconds(lambda: interp.attention.sink_metric(lab.model, tokens))
    return report(seconds=seconds, tokens_a_second=tokens.numel() / seconds)


def harvest(lab: Lab) -> str:
    rows = lab.tokens(64 if lab.size.layers > 3 else 8, 256)
    place = f"resid_post.{lab.size.layers // 2}"

    def run() -> None:
        for _ in interp.features.harvest(lab.model, place, rows, length=256).batches(4096):
            pass

    seconds = lab.seconds(run)
    return report(seconds=seconds, tokens_a_second=rows.numel() / seconds)


def topk(lab: Lab, bf16: bool) -> str:
    """Training of a TopK dictionary beside the six products of its dense matrices, of which it skips most of four."""
    d, latents, batch = lab.size.d_model, lab.size.latents, lab.size.batch
    steps = 40 if lab.size.layers > 3 else 3
    x = torch.randn(batch, d, device=lab.device)
    dictionary = interp.features.TopK(d, latents, k=32).to(lab.device)
    settings = interp.features.TrainSettings(bf16=bf16)
    interp.features.train(dictionary, [x] * 5, steps=5, settings=settings)
    began = lab.now()
    interp.features.train(dictionary, [x] * steps, steps=steps, settings=settings)
    ours = (lab.now() - began) / steps
    dtype = torch.bfloat16 if bf16 else torch.float32
    read, weight = x.to(dtype), torch.randn(d, latents, device=lab.device, dtype=dtype)
    floor = 6 * lab.seconds(lambda: read @ weight)
    return report(activations_a_second=batch / ours, products_alone=batch / floor, share=floor / ours)


# Plans


def generation(lab: Lab, length: int, name: str | None, **options: Any) -> str:
    """Prefill and decoding of one prompt, and for caches decoding on a static cache of as many entries."""
    hf = lab.deployed
    given = [lab.importance] if name == "retrieval" else []
    plan = None if name is None else make(name, given, length=length, **options).plan(hf)
    cost = Cost(length, 8, source=lab.tokens(1, length), peak=False)
    cost.prepare(hf)
    with nullcontext() if plan is None else plan.applied(hf):
        cost.measure(hf)
        found = cost.measure(hf)
    told = {"prefill_s": found["prefill_seconds"], "decode_ms": 1e3 * found["decode_seconds"]}
    told["cache_MiB"] = found["cache_bytes"] / 2**20
    if name != "a_shape":
        entries = int(length * options.get("budget", 1.0))
        told["static_cache_of_as_many_ms"] = 1e3 * static(lab, entries)
    return report(**told)


def static(lab: Lab, entries: int) -> float:
    """Seconds of a decoded token on transformers' static cache that holds so many entries."""
    hf, steps = lab.deployed, 8
    cache = StaticCache(config=hf.config, max_cache_len=entries + steps + 1)
    decoder = Decoder(hf, cache)
    token = decoder.feed(lab.tokens(1, entries)).argmax(-1)
    found = []
    for _ in range(steps):
        began = lab.now()
        token = decoder.feed(token).argmax(-1)
        found.append(lab.now() - began)
    return sorted(found)[steps // 2]


def stored(lab: Lab, name: str | None, **options: Any) -> str:
    """One token and a prompt through weights in few bits."""
    hf = lab.deployed
    plan = None if name is None else make(name, [lab.statistics] if name == "awq" else [], **options).plan(hf)
    one, many = lab.tokens(1, 1).to(lab.device), lab.tokens(1, lab.size.lengths[0] // 2).to(lab.device)
    with torch.no_grad(), nullcontext() if plan is None else plan.applied(hf):
        told = {
            f"{what}_ms": 1e3 * lab.seconds(lambda tokens=tokens: hf(tokens, use_cache=False, logits_to_keep=1))
            for what, tokens in (("one token", one), (f"{many.shape[1]} tokens", many))
        }
        return report(**told, GiB=storage_bytes(hf) / 2**30)


def rows(lab: Lab) -> dict[str, Callable[[], str]]:
    """Every row by its name, the analyses first, since they want the model in float32."""
    found: dict[str, Callable[[], str]] = {
        "patching heads": lambda: patching(lab, False),
        "patching heads by position": lambda: patching(lab, True),
        "attribution": lambda: attribution(lab),
        "attribution relp": lambda: attribution(lab, rules="relp"),
        "eap-ig, all edges": lambda: edges(lab),
        "tracing": lambda: tracing(lab),
        "sink metric": lambda: sinks(lab),
        "harvest": lambda: harvest(lab),
        "topk float32": lambda: topk(lab, False),
        "topk bfloat16": lambda: topk(lab, True),
    }
    for kind, name, options in (
        ("dense", None, {}),
        ("int8", "rtn", {"bits": 8}),
        ("int4", "rtn", {"bits": 4, "group": 64}),
        ("w8a8", "w8a8", {}),
        ("awq", "awq", {"bits": 4, "group": 64, "steps": 4}),
    ):
        found[f"weights {kind}"] = lambda name=name, options=options: stored(lab, name, **options)
    for length in lab.size.lengths:
        window = min(1024, length // 4)
        for kind, name, options in (
            ("dense", None, {}),
            ("streaming 10 %", "streaming", {"budget": 0.1, "sinks": 4}),
            ("retrieval 25 %", "retrieval", {"budget": 0.25, "sinks": 4}),
            ("sparse, gathered", "a_shape", {"window": window, "sinks": 4}),
            ("sparse, flex", "a_shape", {"window": window, "sinks": 4, "backend": "flex"}),
        ):
            if kind == "sparse, flex" and lab.device.type == "cpu":
                continue
            name_of_row = f"prefill and decode {length:,} {kind}"
            found[name_of_row] = lambda n=length, name=name, options=options: generation(lab, n, name, **options)
    return found


def measured(lab: Lab, wanted: list[str], minutes: float) -> dict[str, str]:
    """Runs the rows one after another and prints each."""
    began, told = time.monotonic(), {}
    for name, run in rows(lab).items():
        if wanted and not any(part in name for part in wanted):
            continue
        row_began = time.monotonic()
        if row_began - began > 60 * minutes:
            told[name] = "left out, the time is up"
        else:
            try:
                told[name] = run()
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{os.path.basename(last.filename)}:{last.lineno}"
                told[name] = f"failed: {type(error).__name__}: {str(error)[:160]} ({where})"
        print(f"{name:40} {told[name]}  [{time.monotonic() - row_began:.1f} s]", flush=True)
    return told


def main(arguments: list[str] | None = None) -> dict[str, str]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", nargs="?", default="1b", choices=SIZES)
    parser.add_argument("--device")
    parser.add_argument("--rows", nargs="*", default=[], help="parts of rows' names")
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--out", help="a file for the table, in JSON")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    device = device_of(options.device)
    card = platform.processor() or platform.machine()
    if device.type != "cpu":
        card = torch.get_device_module(device).get_device_name()
    about = {"device": card, "size": options.size, "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(report(**about), flush=True)
    told = measured(Lab(SIZES[options.size], device), options.rows, options.minutes)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(about | {"rows": told}, file, indent=1)
    return told


if __name__ == "__main__":
    main()
