"""``interp demo``."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from interp.cli.app import Accept, Device, Dtype, Examples, Model, Seed, app, command, fetched, load, out, writable

__all__ = ["demo"]


@app.command()
@command
def demo(
    directory: Annotated[Path, typer.Option("--out", "-o", help="Directory for the pages.", file_okay=False)] = Path(
        "interp-demo"
    ),
    model: Model = "smollm2",
    n: Examples = 8,
    seed: Seed = 0,
    accept_license: Accept = False,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Locate a behaviour in a real model, say what its heads do, trace an answer, and make the model cheaper."""
    from interp.models import models

    writable(directory)
    fetched(model, accept_license, dtype)
    import torch
    from tqdm import tqdm

    from interp.demo import demonstrate

    def say(text: str) -> None:
        with tqdm.external_write_mode():
            out.print(text, highlight=False, soft_wrap=True)

    small = model in {card.name for card in models()}
    on_cpu = device == "cpu" if device else not torch.accelerator.is_available()
    demonstrate(
        partial(load, model, accept_license, device, dtype),
        directory,
        n=n,
        seed=seed,
        say=say,
        beside=small and on_cpu and (os.cpu_count() or 1) > 1,
    )
