"""Damage to files: cut short, bits flipped, values of other types, sizes that can't be, endless nesting."""

from __future__ import annotations

import copy
import json
import random
import struct
from dataclasses import dataclass

from hypothesis import strategies as st

VALUES = [
    None, True, -1, 0, 1, 3, 400_000, 10**9, 2**62, 10**30, 0.5, 1e308, float("nan"), float("inf"), "", "x", "blocks.0",
    "../out.safetensors", "/etc/hostname", "<U999999999", "float64", "logging", [], {}, [[]], ["x"], [1, 2, 3],
    [10**6, 10**6], [0, 2**62], {"x": 1}, {"__float__": "x"},
]  # fmt: skip
"""What stands where something else should."""

KINDS = (
    *("nudge",) * 4, *("value",) * 5, "drop", "drop", "swap", "key", "deep", "many",
    "cut", "flip", "number", "empty", "noise", "nested", "gone",
)  # fmt: skip


@dataclass(frozen=True)
class Damage:
    """One change to one of several files; numbers are taken modulo how many places there are."""

    kind: str
    file: int
    where: int
    other: int
    value: object

    def apply(self, files: dict[str, bytes]) -> dict[str, bytes]:
        if not files:
            return files
        name = sorted(files)[self.file % len(files)]
        changed = dict(files)
        done = self.bytes_of(files[name]) if self.kind in _BYTES else self.document(files[name])
        if done is None:
            del changed[name]
        else:
            changed[name] = done
        return changed

    def bytes_of(self, data: bytes) -> bytes | None:
        at = self.where % max(1, len(data))
        if self.kind == "cut":
            return data[:at]
        if self.kind == "flip":
            held = bytearray(data or b"\0")
            held[at] ^= 1 << self.other % 8
            return bytes(held)
        if self.kind == "number":
            size = (0, 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)[self.other % 7]
            return data[:at] + struct.pack("<Q", size) + data[at + 8 :]
        noise = random.Random(self.where).randbytes(200)
        return {"empty": b"", "noise": noise, "nested": b"[" * 100_000, "gone": None}[self.kind]

    def document(self, data: bytes) -> bytes:
        """The file with its JSON changed: the header of a safetensors file, a line of several, or the whole."""
        try:
            return json.dumps(self.changed(json.loads(data))).encode()
        except (ValueError, RecursionError):
            pass
        length = int.from_bytes(data[:8], "little")
        try:
            header = json.dumps(self.changed(json.loads(data[8 : 8 + length]))).encode()
            return len(header).to_bytes(8, "little") + header + data[8 + length :]
        except (ValueError, RecursionError):
            pass
        lines = data.splitlines()
        try:
            at = self.other % len(lines)
            lines[at] = json.dumps(self.changed(json.loads(lines[at]))).encode()
            return b"\n".join(lines)
        except (ValueError, ZeroDivisionError, RecursionError):
            return data[: len(data) // 2]

    def changed(self, document: object) -> object:
        """The document with one of its values changed; a text that holds JSON is changed within."""
        whole = [copy.deepcopy(document)]
        places = list(_places(whole))
        host, key = places[self.where % len(places)]
        if isinstance(host[key], str) and host[key][:1] in ("{", "["):
            host[key] = json.dumps(self.changed(json.loads(host[key])))
        elif self.kind == "value":
            host[key] = self.value
        elif self.kind == "nudge" and isinstance(host[key], int | float | str):
            step = (-1, 1, 7)[self.other % 3]
            host[key] = host[key][:-1] if isinstance(host[key], str) else host[key] + step
        elif self.kind == "drop" and host is not whole:
            del host[key]
        elif self.kind == "swap":
            other, at = places[self.other % len(places)]
            host[key] = copy.deepcopy(other[at])
        elif self.kind == "key" and isinstance(host, dict):
            host[["x", "d_in", "../y", "é"][self.other % 4]] = host.pop(key)
        elif self.kind == "many":
            host[key] = [host[key]] * 300
        else:
            host[key] = json.loads("[" * 100 + "]" * 100)
        return whole[0]


_BYTES = ("cut", "flip", "number", "empty", "noise", "nested", "gone")


def _places(host):
    """Every place in nested lists and dictionaries, as the container and the key."""
    for key in list(host) if isinstance(host, dict) else range(len(host)):
        yield host, key
        if isinstance(host[key], dict | list):
            yield from _places(host[key])


numbers = st.integers(0, 2**20)
damages = st.lists(
    st.builds(Damage, st.sampled_from(KINDS), numbers, numbers, numbers, st.sampled_from(VALUES)),
    min_size=1,
    max_size=2,
)
