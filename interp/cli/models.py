"""``interp models`` and ``interp models fetch``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.padding import Padding

from interp.cli.app import Accept, Dtype, app, bar, command, out

__all__ = ["fetch", "models"]

models_app = typer.Typer(help="The models known by name.", invoke_without_command=True)
app.add_typer(models_app, name="models")


@models_app.callback()
@command
def models(context: typer.Context) -> None:
    """List the known models with size, licence and state."""
    if context.invoked_subcommand:
        return
    from interp.models import models, state
    from interp.models._fetch import precisions

    for card in models():
        kept = precisions(card.name)
        here = f"ready in {', '.join(kept)}" if kept not in ([], ["float32"]) else state(card.name)
        size = f"{card.size_bytes / 1e6:.1f} MB" if card.size_bytes else "-"
        out.print(f"[bold]{card.name:24}[/]{size:>10}   {card.licence:20} {here}", highlight=False)
        heads = f"{card.layers} layers, {card.heads} heads, {card.kv_heads} key-value heads"
        out.print(Padding(f"{card.description}; {heads}", (0, 0, 1, 4)), highlight=False)


@models_app.command("fetch")
@command
def fetch(
    name: Annotated[str, typer.Argument(help="A known model.")],
    dtype: Dtype = "float32",
    accept_license: Accept = False,
    force: Annotated[bool, typer.Option("--force", help="Obtain it again, to replace damaged files.")] = False,
) -> None:
    """Obtain a model, so that it loads offline from then on."""
    from interp.models import fetch

    with bar() as progress:
        directory = fetch(name, dtype=dtype, accept_license=accept_license, force=force, progress=progress)
    out.print(f"{name} is ready in {directory}", soft_wrap=True, highlight=False)
