"""``interp attention``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interp.cli.app import Accept, Device, Dtype, Model, app, command, is_number, load, numbers, out, writable
from interp.errors import UsageError

__all__ = ["attention"]


@app.command()
@command
def attention(
    prompt: Annotated[str, typer.Argument(help="The text whose attention is shown.")],
    model: Model = "smollm2",
    beside: Annotated[str | None, typer.Option(help="A second text, shown side by side.")] = None,
    layers: Annotated[str | None, typer.Option(help="Only these, as in 0,3,10-15.")] = None,
    head: Annotated[str | None, typer.Option(help="The head that is shown first, as in 23.3.")] = None,
    directory: Annotated[
        Path, typer.Option("--out", "-o", help="Directory for attention.html and attention.png.", file_okay=False)
    ] = Path("interp-attention"),
    accept_license: Accept = False,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Show a prompt's attention: all heads, the pattern of one, and its lines, on a page that answers to clicks."""
    import interp
    from interp.results.folders import together

    shown, wanted = _head(head), numbers(layers)
    writable(directory)
    bridge = load(model, accept_license, device, dtype)
    patterns = interp.attention.patterns(bridge, prompt, wanted)
    other = interp.attention.patterns(bridge, beside, wanted) if beside is not None else None
    layer, index = shown or (None, None)
    picture = interp.plots.attention_view(patterns, other, layer=layer, head=index)
    with together(directory) as aside:
        for name in ("attention.html", "attention.png"):
            interp.plots.save(picture, aside / name)
    out.print(f"written to {directory}: attention.html, attention.png", soft_wrap=True)


def _head(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    layer, dot, head = text.partition(".")
    if not (dot and is_number(layer) and is_number(head)):
        raise UsageError(f"can't read the head {text!r}; write it as layer.head, as in 23.3")
    return int(layer), int(head)
