"""What all commands share: options, messages, loading a model, writing files.

What the command line alone tells is checked first, against registries that are read without torch: a command imports
what is slow only once its names, files and numbers make sense.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from interp.cli.ranges import Range, check
from interp.errors import InterpError, UsageError, unknown_name
from interp.models.cards import PRECISIONS

__all__ = [
    "Accept",
    "Compute",
    "Device",
    "Dtype",
    "Examples",
    "Model",
    "Out",
    "Ray",
    "Seed",
    "Split",
    "app",
    "bar",
    "command",
    "err",
    "fetched",
    "is_number",
    "known",
    "known_task",
    "known_text",
    "load",
    "numbers",
    "out",
    "plain",
    "there",
    "writable",
]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_MOST, _DIGITS = 100_000, 10


def _width(stream: Any) -> int | None:
    """In a file or a pipe a table is wide enough for its words; a terminal says itself how wide it is."""
    return None if stream.isatty() or "COLUMNS" in os.environ else 140


out = Console(width=_width(sys.stdout))
err = Console(stderr=True, highlight=False, width=_width(sys.stderr))

Model = Annotated[str, typer.Option("--model", "-m", help="A known name, a directory, a .gguf file or a hub id.")]
Examples = Annotated[int, Range(), typer.Option("-n", help="How many prompt pairs.")]
Seed = Annotated[int, Range(0), typer.Option(help="Of the prompt pairs, and of resampling.")]
Split = Annotated[
    str | None,
    typer.Option(help="find or score: half of the task's content, to find on or to try out on; default: all."),
]
Accept = Annotated[bool, typer.Option("--accept-license", help="Accept the licence of a model that asks for it.")]
Device = Annotated[str | None, typer.Option(help="Where to run, as torch names it. Default: an accelerator, if any.")]
Dtype = Annotated[str, typer.Option(help="Precision of the weights: float32, bfloat16, float16 or float64.")]
Compute = Annotated[
    str | None,
    typer.Option(help="float32, to compute in it with weights in half precision, cast a matrix at a time."),
]
Ray = Annotated[
    str | None,
    typer.Option(help="Split the work over a cluster: ray://host:10001, host:6379, auto, or local:2 for two workers."),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Directory for the files.", file_okay=False)]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"interp {version('interp')}")
        raise typer.Exit


@app.callback()
def interp(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version this is, and end.")
    ] = False,
) -> None:
    """Measure what a transformer uses for a behaviour, and let the finding make the model cheaper."""


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Failures become one message on standard error: exit code 2 for a bad request, 1 for anything else.

    A command's ``model`` is known, and its file there, and its ``ray`` is an address, before the command begins.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        warnings.showwarning = lambda message, *_: err.print(f"[yellow]note:[/] {message}", soft_wrap=True)
        try:
            if "model" in kwargs:
                _known_model(kwargs["model"])
            if "dtype" in kwargs:
                known("precision", kwargs["dtype"], PRECISIONS)
            check(function, kwargs)
            known("precision to compute in", kwargs.get("compute"), ("float32",))
            if kwargs.get("ray") is not None:
                _known_address(kwargs["ray"])
            with ExitStack() as until_the_end:
                token = _until_the_end.set(until_the_end)
                try:
                    function(*args, **kwargs)
                finally:
                    _until_the_end.reset(token)
            return
        except UsageError as error:
            message, code = str(error), 2
        except InterpError as error:
            message, code = str(error), 1
        except KeyboardInterrupt:
            message, code = "interrupted", 1
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        except Exception as error:
            if os.environ.get("INTERP_DEBUG"):
                raise
            message, code = f"{type(error).__name__}: {error} (INTERP_DEBUG=1 shows where)", 1
        err.print(f"[bold red]error:[/] {plain(message)}", soft_wrap=True)
        raise typer.Exit(code)

    return run


def fetched(name: str, accept_license: bool, dtype: str) -> None:
    """Obtains a known model that is not there yet, with a progress bar."""
    from interp.models import fetch, models, state

    if name in {card.name for card in models()} and state(name, dtype) == "not fetched":
        with bar() as progress:
            fetch(name, dtype=dtype, accept_license=accept_license, progress=progress)


_until_the_end: ContextVar[ExitStack] = ContextVar("until the end")
"""What is left when the command ends."""


def load(name: str, accept_license: bool, device: str | None, dtype: str, ray: str | None = None) -> Any:
    """A model, obtained first if its device is there and it has to be; with `ray`, what comes is split over that."""
    import torch

    from interp.models._device import device_of

    device_of(device)
    fetched(name, accept_license, dtype)
    if ray is not None:
        from interp.scale import over

        _until_the_end.get().enter_context(over(ray))

    from interp.models import load

    return load(name, device=device, dtype=getattr(torch, dtype), accept_license=accept_license)


@contextmanager
def bar() -> Iterator[Callable[[str, float, float], None]]:
    """A progress callback that draws a bar on a terminal and is silent elsewhere."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as progress:
        bars: dict[str, Any] = {}

        def report(stage: str, done: float, total: float) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total)
            progress.update(bars[stage], completed=done, total=total)

        yield report


def known(kind: str, name: str | None, names: Collection[str]) -> None:
    """Refuses a name that there is not; None stands for the default."""
    if name is not None and name not in names:
        raise unknown_name(kind, name, names)


def known_task(name: str, metric: str | None = None) -> None:
    """Refuses a task that there is not, a file that can't be read, and a metric that there is not."""
    from interp.tasks import METRICS, names
    from interp.tasks.jsonl import lines

    if name.endswith(".jsonl"):
        lines(Path(name))
    else:
        known("task", name, names())
    known("metric", metric, METRICS)


def known_text(*sources: str) -> None:
    """Refuses a text that there is not, or whose file can't be read."""
    from interp.tasks.corpora import CORPORA, documents

    for source in sources:
        if source not in CORPORA:
            documents(source)


def there(path: Path, what: str) -> None:
    """Refuses a file or folder that is not there."""
    if not path.exists():
        raise InterpError(f"there is no {what} at {path}")


def _known_model(name: str) -> None:
    from interp.models import named

    named(name)


def _known_address(address: str) -> None:
    from interp.scale.address import Address, imported

    Address.parse(address)
    imported()


def numbers(text: str | None, what: str = "layers", least: int = 0) -> list[int] | None:
    """``0,3,10-12`` as a list of numbers, each once.

    Args:
        text: the option; None if it was not given.
        what: what the message calls them.
        least: the smallest that makes sense.

    Raises:
        UsageError: it can't be read, has a number twice, too small a one, or more than there can be.
    """
    if text is None:
        return None
    found: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not is_number(first) or (dash and not is_number(last)):
            raise UsageError(f"can't read the {what} {text!r}; write them as 0,3,10-15")
        low, high = int(first), int(last if dash else first)
        if high < low or high - low > _MOST:
            raise UsageError(f"{part.strip()} in the {what} {text!r} is no range of up to {_MOST:,}; write it as 10-15")
        if low < least:
            raise UsageError(f"the {what} {text!r} have {low}, numbers from {least} on are needed")
        if twice := found.keys() & range(low, high + 1):
            raise UsageError(f"the {what} {text!r} have {min(twice)} twice; name each once")
        found |= dict.fromkeys(range(low, high + 1))
    return list(found)


def is_number(text: str) -> bool:
    """Whether a text is a whole number of few digits."""
    return text.isascii() and text.isdecimal() and len(text) < _DIGITS


def writable(directory: Path) -> None:
    """Makes the directory now, so that a sweep does not end with nowhere to write to."""
    from interp.results.files import staging

    try:
        with staging(directory):
            pass
    except OSError as error:
        raise InterpError(f"can't write to {directory}: {error.strerror}") from error


def plain(text: str) -> str:
    """Text in which rich finds no markup."""
    return text.replace("[", r"\[")
