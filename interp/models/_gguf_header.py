"""A walk through the header of a GGUF file: the reader of the package `gguf` believes its counts and would loop."""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

from interp.errors import InterpError

__all__ = ["check_header"]

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by the number of its type."""
_STRING, _ARRAY = 8, 9
_DEEPEST = 4
_LEAST_TENSOR = 8 + 4 + 4 + 8
"""Bytes of what is said of a tensor without name and dimensions."""


def check_header(path: Path) -> int:
    """Refuse a file that is no GGUF file, or whose header lists more than there is in the file.

    Returns:
        How many numbers its tensors have.

    Raises:
        InterpError: it is one of these.

    Reference: the specification in ggml's ``docs/gguf.md``.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InterpError(f"{path} is not a GGUF file: it does not begin with 'GGUF'")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Header(data).walk()
            except (struct.error, ValueError) as error:
                raise InterpError(f"{path} is truncated or damaged: {error}; obtain the file again") from None


class _Header:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 4
        self.order = "<" if struct.unpack_from("<I", data, 4)[0] & 0xFFFF else ">"

    def walk(self) -> int:
        """How many numbers the tensors have, once everything that is listed has been found."""
        self.number("I")
        tensors, values = self.number("Q"), self.number("Q")
        self.room(tensors, _LEAST_TENSOR)
        for _ in range(values):
            self.string()
            self.value(self.number("I"))
        numbers = 0
        for _ in range(tensors):
            self.string()
            dimensions = self.number("I")
            self.room(dimensions, 8)
            numbers += math.prod(self.number("Q") for _ in range(dimensions))
            self.skip(1, 12)
        return numbers

    def value(self, kind: int, depth: int = 0) -> None:
        if kind == _STRING:
            self.string()
        elif kind == _ARRAY:
            if depth == _DEEPEST:
                raise ValueError(f"lists nested more than {_DEEPEST} deep")
            inner, count = self.number("I"), self.number("Q")
            if inner in _SIZES:
                self.skip(count, _SIZES[inner])
                return
            self.room(count, 8)
            for _ in range(count):
                self.value(inner, depth + 1)
        elif kind in _SIZES:
            self.skip(1, _SIZES[kind])
        else:
            raise ValueError(f"a value of the unknown type {kind}")

    def number(self, form: str) -> int:
        (found,) = struct.unpack_from(self.order + form, self.data, self.at)
        self.at += struct.calcsize(self.order + form)
        return int(found)

    def string(self) -> None:
        self.skip(self.number("Q"), 1)

    def skip(self, count: int, size: int) -> None:
        self.room(count, size)
        self.at += count * size

    def room(self, count: int, size: int) -> None:
        if self.at + count * size > len(self.data):
            raise ValueError(f"it lists {count:,} items where it has {len(self.data) - self.at:,} bytes left")
