"""``interp demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp.cli.app import Accept, Device, Dtype, Examples, Model, Seed, app, command, load, out, writable

__all__ = ["demo"]


@app.command()
@command
def demo(
    directory: Annotated[Path, typer.Option("--out", "-o", help="Directory for the report.", file_okay=False)] = Path(
        "interp-demo"
    ),
    model: Model = "smollm2",
    n: Examples = 16,
    seed: Seed = 0,
    accept_license: Accept = False,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Locate a behaviour in a real model, say what its heads do, trace an answer, and make the model cheaper."""
    from interp.demo import attend, cheapen, locate, trace_page

    def say(text: str) -> None:
        out.print(text, highlight=False, soft_wrap=True)

    writable(directory)
    bridge = load(model, accept_license, device, dtype)
    say(f"report: {locate(bridge, directory, n=n, seed=seed, say=say)}")
    say(f"report: {attend(bridge, directory, seed=seed, say=say)}")
    say(f"report: {trace_page(bridge, directory, seed=seed, say=say)}")
    say(f"report: {cheapen(bridge, directory, seed=seed, say=say)}")
