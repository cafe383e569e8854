"""Which text a dictionary was trained on, as a sketch that says of any other text how much of it was there too.

Stretches of 13 tokens (Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C) are hashed, and the
smallest hashes kept: a sample of the training text's stretches that another text's sample can be looked up in (Broder
1997, "On the resemblance and containment of documents").
"""

from __future__ import annotations

import base64
import binascii
import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, UInt64
from torch import Tensor

from interp.checking import checked, damaged, parsed, typed

__all__ = ["STRETCH", "TextSketch", "overlap", "sketch"]

STRETCH = 13
"""Tokens of a stretch."""

_KEPT = 1 << 15
"""Of two million tokens every sixtieth stretch: some 130 of 32 texts of 256 tokens."""

_MUCH = 0.05
"""Formulas that any two texts of a kind have in common stay below this."""


@dataclass(frozen=True, eq=False)
class TextSketch:
    """A sample of the stretches of a text.

    Args:
        hashes: of the stretches, in increasing order; if there are `_KEPT`, all below the last one are here.
        source: what the text is called.
    """

    hashes: UInt64[np.ndarray, " stretch"]
    source: str

    def share(self, tokens: Int[Tensor, "text pos"]) -> float | None:
        """The share of another text's stretches that this one has, from those that are in the sample; None of none."""
        _, width = tokens.shape
        found = _hashes(tokens.cpu().numpy().ravel(), np.repeat(np.arange(len(tokens)), width))
        if len(self.hashes) == _KEPT:
            found = found[found <= self.hashes[-1]]
        return float(np.isin(found, self.hashes).mean()) if len(found) else None

    def __or__(self, other: TextSketch) -> TextSketch:
        """Of both texts."""
        smallest = np.unique(np.concatenate([self.hashes, other.hashes]))
        names = dict.fromkeys([*self.source.split(" + "), *other.source.split(" + ")])
        return TextSketch(smallest[:_KEPT], " + ".join(names))

    def dumped(self) -> str:
        """As text, for a file."""
        packed = base64.b64encode(self.hashes.astype("<u8").tobytes()).decode()
        return json.dumps({"source": self.source, "hashes": packed})

    @classmethod
    def loaded(cls, text: str, where: Any) -> TextSketch:
        """What `dumped` gave.

        Raises:
            InterpError: something else.
        """
        found = typed(parsed(text, where), dict, where, "what it says of its training text")
        packed, source = (checked(found, name, str, where) for name in ("hashes", "source"))
        try:
            hashes = np.frombuffer(base64.b64decode(packed, validate=True), "<u8").astype(np.uint64)
        except (ValueError, binascii.Error) as error:
            raise damaged(where, f"the hashes of its training text can't be read: {error}") from None
        if len(hashes) > _KEPT or (hashes[1:] <= hashes[:-1]).any():
            raise damaged(where, "the hashes of its training text are in no order")
        return cls(hashes, source)


def sketch(pieces: Iterable[tuple[Int[np.ndarray, " token"], Int[np.ndarray, " token"]]], source: str) -> TextSketch:
    """The sketch of a text.

    Args:
        pieces: of the text, each with its token ids and the row of each; no stretch crosses rows.
        source: what the text is called.
    """
    kept = np.zeros(0, np.uint64)
    for tokens, rows in pieces:
        kept = np.unique(np.concatenate([kept, _hashes(tokens, rows)]))[:_KEPT]
    return TextSketch(kept, source)


def overlap(dictionary: Any, tokens: Int[Tensor, "text pos"]) -> float | None:
    """How much of a text a dictionary was trained on, with a warning where it is more than chance.

    Returns:
        The share of the text's stretches of 13 tokens; None where the training text is not known.
    """
    text: TextSketch | None = getattr(dictionary, "text", None)
    share = None if text is None else text.share(tokens)
    if share is not None and share > _MUCH:
        warnings.warn(
            f"{share:.0%} of this text stands in the text that the dictionary was trained on ({text and text.source}): "
            "what is measured is too good; take other text, or train on one half of the documents (harvest with "
            'split="find") and judge on the other, which judging takes by itself',
            stacklevel=4,  # behind the no_grad of whoever judges
        )
    return share


def _hashes(tokens: np.ndarray, rows: np.ndarray) -> UInt64[np.ndarray, " stretch"]:
    """A number for each stretch within a row: a polynomial in its tokens, mixed (splitmix64's last step)."""
    n = max(0, len(tokens) - STRETCH + 1)
    ids, found = tokens.astype(np.uint64), np.zeros(n, np.uint64)
    for at in range(STRETCH):
        found = found * np.uint64(0x9E3779B97F4A7C15) + ids[at : at + n]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        found = (found ^ (found >> np.uint64(shift))) * np.uint64(factor)
    found ^= found >> np.uint64(31)
    return found[rows[:n] == rows[STRETCH - 1 :][:n]]
