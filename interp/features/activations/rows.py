"""From texts to rows of token ids: which tokens a model is run on, in which order, and which of them are kept."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Int32
from torch import Tensor

from interp.errors import UsageError
from interp.tasks.corpora import documents, longest_input
from interp.tasks.tokens import Encoder

__all__ = ["LAYOUT", "Rows", "Source", "described", "rows_of"]

Source = str | Path | Iterable[Any] | Tensor
"""A corpus by name, a file, texts, a data set of dicts with a ``text``, or token ids "text pos"."""

LAYOUT = ("tokens", "documents", "edges", "row", "position")
"""What is stored beside the activations, see `Rows.layout`."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of token ids, made from one stream of tokens: each is the prefix and a stretch of the stream.

    Args:
        stream: the documents' tokens (and what separates them) one after another.
        document: the document that each token of the stream belongs to, by its number in the source.
        starts: where each row begins in the stream.
        stops: where each row ends in the stream.
        prefix: the token ids that stand before every row.
        special: the token ids that are not kept.
        cut: how many tokens of the last row count, or None for all.
    """

    stream: Int32[np.ndarray, " token"]
    document: Int32[np.ndarray, " token"]
    starts: Int[np.ndarray, " row"]
    stops: Int[np.ndarray, " row"]
    prefix: tuple[int, ...]
    special: frozenset[int]
    cut: int | None = None

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def lengths(self) -> Int[np.ndarray, " row"]:
        """How many tokens each row has, prefix included."""
        lengths = self.stops - self.starts + len(self.prefix)
        if self.cut is not None:
            lengths[-1] = self.cut
        return lengths

    @cached_property
    def kept(self) -> Int[np.ndarray, " row"]:
        """How many tokens of each row are kept."""
        before = np.concatenate([[0], np.cumsum(self._ordinary(self.stream))])
        kept = before[self.stops] - before[self.starts] + int(self._ordinary(np.array(self.prefix, np.int32)).sum())
        if self.cut is not None:
            kept[-1] = self.mask(len(self) - 1).sum()
        return kept

    def tokens(self, row: int) -> Int32[np.ndarray, " pos"]:
        """The token ids of one row."""
        stretch = self.stream[self.starts[row] : self.stops[row]]
        return np.concatenate([np.array(self.prefix, np.int32), stretch])[: self.lengths[row]]

    def documents(self, row: int) -> Int32[np.ndarray, " pos"]:
        """The document of each token of one row; the prefix belongs to that of the token behind it."""
        stretch = self.document[self.starts[row] : self.stops[row]]
        return np.concatenate([np.repeat(stretch[:1], len(self.prefix)), stretch])[: self.lengths[row]]

    def mask(self, row: int) -> Bool[np.ndarray, " pos"]:
        """Which tokens of one row are kept."""
        return self._ordinary(self.tokens(row))

    def first(self, n: int) -> Rows:
        """As many rows as hold `n` kept tokens, the last one cut behind the last of them."""
        total = np.cumsum(self.kept)
        last = int(np.searchsorted(total, n))
        wanted = n - (int(total[last - 1]) if last else 0)
        cut = int(np.searchsorted(np.cumsum(self.mask(last)), wanted)) + 1
        return replace(self, starts=self.starts[: last + 1], stops=self.stops[: last + 1], cut=cut)

    def part(self, rows: range) -> Rows:
        """Some successive rows by themselves, with no more of the stream than they take."""
        first, last = int(self.starts[rows.start]), int(self.stops[rows.stop - 1])
        return replace(
            self,
            stream=self.stream[first:last],
            document=self.document[first:last],
            starts=self.starts[rows.start : rows.stop] - first,
            stops=self.stops[rows.start : rows.stop] - first,
            cut=self.cut if rows.stop == len(self) else None,
        )

    def shards(self, size: int) -> list[range]:
        """Successive rows that hold about `size` kept tokens together."""
        number = (np.cumsum(self.kept) - self.kept) // size
        edges = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(self)]
        return [range(a, b) for a, b in itertools.pairwise(edges)]

    def layout(self, rows: range) -> dict[str, Tensor]:
        """Where the kept tokens of a shard stand.

        Returns:
            ``row`` (of the shard) and ``position`` (in the row) of each kept token; ``tokens`` and ``documents``, the
            rows' token ids and whose they are, one row after another, and ``edges``, where each row begins in them.
        """
        masks = [self.mask(row) for row in rows]
        columns: dict[str, list[Any]] = {
            "tokens": [self.tokens(row) for row in rows],
            "documents": [self.documents(row) for row in rows],
            "position": [np.flatnonzero(mask) for mask in masks],
            "row": [np.full(int(mask.sum()), at) for at, mask in enumerate(masks)],
            "edges": [[0], np.cumsum([len(mask) for mask in masks])],
        }
        return {name: torch.from_numpy(np.concatenate(column).astype(np.int32)) for name, column in columns.items()}

    @cached_property
    def digest(self) -> str:
        """A SHA-256 of all rows: other texts, another tokenizer or other settings give another one."""
        whole = hashlib.sha256(repr((self.prefix, sorted(self.special), self.cut)).encode())
        for array in (self.stream, self.document, self.starts, self.stops):
            whole.update(np.ascontiguousarray(array).data)
        return whole.hexdigest()

    def _ordinary(self, tokens: np.ndarray) -> np.ndarray:
        return ~np.isin(tokens, sorted(self.special)) if self.special else np.ones(len(tokens), bool)


def rows_of(
    source: Source,
    model: Any,
    tokens: int | None,
    length: int,
    *,
    packed: bool = True,
    exclude_special: bool = False,
    seed: int | None = 0,
    split: str | None = None,
) -> Rows:
    """Lays a source out in rows; see `interp.features.harvest` for what the arguments mean.

    Raises:
        UsageError: no text, too little of it, a bad length, or items that are no texts.
        InterpError: a file that can't be read.
    """
    if length < 2 or (tokens is not None and tokens < 1):
        raise UsageError(f"harvesting needs a length of 2 at least and 1 token at least, got {length=} and {tokens=}")
    longest = longest_input(model)
    if longest is not None and length > longest:
        raise UsageError(f"this model has positions for {longest} tokens, and a length of {length} is asked for")
    encoder = Encoder(model)
    prefix: tuple[int, ...] = () if isinstance(source, Tensor) else encoder.prefix
    if len(prefix) >= length:
        raise UsageError(f"a length of {length} leaves no room for text behind the prefix of {len(prefix)} tokens")
    special = _special(encoder) if exclude_special else frozenset()
    if split is not None:
        source = _half(source, split)
    if isinstance(source, Tensor):
        packed, found = False, _given(source, encoder)
    else:
        found = ((number, _encoded(text, encoder)) for number, text in _texts(source, seed))
    rows = _laid_out(found, prefix, special, tokens, length, _separator(encoder) if packed else None)
    total = int(rows.kept.sum()) if len(rows) else 0
    if total < max(1, tokens or 1):
        needed = f"{tokens:,} are needed" if tokens else "some are needed"
        left_out = ", special ones left out" if exclude_special else ""
        advice = f"give more text or ask for {total:,} at most" if total else "give a source with text in it"
        raise UsageError(f"the corpus is too short: it has {total:,} tokens{left_out}, and {needed}; {advice}")
    return rows if tokens is None else rows.first(tokens)


def described(source: Any) -> str:
    """What a manifest says about a source."""
    if isinstance(source, str | Path):
        return str(source)
    kind = "token ids" if isinstance(source, Tensor) else type(source).__name__
    return f"{kind} of {len(source)}" if hasattr(source, "__len__") else kind


def _half(source: Source, split: str) -> list[str]:
    texts = list(source) if isinstance(source, Sequence) and not isinstance(source, str) else source
    if not isinstance(texts, str | Path) and not (isinstance(texts, list) and all(isinstance(x, str) for x in texts)):
        raise UsageError(
            f"split={split!r} takes one half of a corpus, a file or a list of texts, not of {described(source)}; "
            "split it beforehand"
        )
    return documents(texts, split)


def _laid_out(found, prefix, special, tokens, length, separator) -> Rows:
    """Rows of the documents one by one (`separator` None) or concatenated, as many as are surely enough."""
    pieces: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    between: list[np.ndarray] = []
    starts, stops, at, enough = [], [], 0, 0
    for number, ids in found:
        if not len(ids):
            continue
        if separator is None:
            ids = ids[: length - len(prefix)]
            starts.append(at)
            stops.append(at + len(ids))
        elif at:
            ids = np.concatenate([separator, ids])
        pieces.append(ids)
        owners.append(np.full(len(ids), number, np.int32))
        between.append(np.arange(len(ids)) < (len(separator) if separator is not None and at else 0))
        at += len(ids)
        enough += int((~np.isin(ids, sorted(special))).sum()) if special else len(ids)
        if tokens is not None and enough >= tokens:
            break
    none = np.zeros(0, np.int32)
    stream = np.concatenate([none, *pieces])
    if separator is not None:
        starts, stops = _cut_up(np.concatenate([none, *between]).astype(bool), length - len(prefix))
    document = np.concatenate([none, *owners])
    return Rows(stream, document, np.array(starts, np.int64), np.array(stops, np.int64), prefix, special)


def _cut_up(between: np.ndarray, width: int) -> tuple[list[int], list[int]]:
    """Stretches of a stream; none begins with a separator, as the prefix already stands there."""
    starts, stops, at = [], [], 0
    while at < len(between):
        while between[at]:
            at += 1
        starts.append(at)
        at = min(at + width, len(between))
        stops.append(at)
    return starts, stops


def _separator(encoder: Encoder) -> np.ndarray:
    """What stands between packed documents: the model's prefix, or the end-of-text token if it has none."""
    end = getattr(encoder.tokenizer, "eos_token_id", None)
    return np.array(encoder.prefix or (() if end is None else (end,)), np.int32)


def _special(encoder: Encoder) -> frozenset[int]:
    return frozenset((*encoder.prefix, *(getattr(encoder.tokenizer, "all_special_ids", None) or ())))


def _encoded(text: str, encoder: Encoder) -> np.ndarray:
    if encoder.tokenizer is None:
        raise UsageError("this model has no tokenizer, so it reads no texts; give token ids as the source")
    return np.array(encoder.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], np.int32)


def _given(source: Tensor, encoder: Encoder) -> Iterator[tuple[int, np.ndarray]]:
    if source.ndim != 2 or source.dtype.is_floating_point:
        raise UsageError(f'token ids must be integers "text pos", got {source.dtype} of shape {list(source.shape)}')
    return enumerate(source.cpu().numpy().astype(np.int32))


def _texts(source: Any, seed: int | None) -> Iterator[tuple[int, str]]:
    """Number and text of each document, in the order of the seed; what can only be gone through keeps its own."""
    items: Any = documents(source) if isinstance(source, str | Path) else source
    if isinstance(items, Mapping):
        raise UsageError(f"give one split of the data set, such as source[{next(iter(items), 'train')!r}]")
    if isinstance(items, Sequence) or (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
        order = np.arange(len(items)) if seed is None else np.random.default_rng(seed).permutation(len(items))
        numbered: Iterable[tuple[int, Any]] = ((int(at), items[int(at)]) for at in order)
    else:
        numbered = enumerate(items)
    for number, item in numbered:
        text = item.get("text") if isinstance(item, Mapping) else item
        if not isinstance(text, str):
            raise UsageError(f'item {number} of the source is neither a text nor an object such as {{"text": "..."}}')
        yield number, text
