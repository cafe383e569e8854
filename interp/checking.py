"""What files say is checked before it is used: types, ranges, paths, and the sizes that they declare.

A reader takes each value through `checked`, or all of a class's through `arguments`, so that a damaged file ends in one
message with the file, the field and the value, and never in an error from further inside.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import reprlib
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from interp.errors import InterpError

__all__ = [
    "arguments",
    "checked",
    "damaged",
    "inside",
    "mistyped",
    "parsed",
    "read_json",
    "read_tensors",
    "tensor_shapes",
    "typed",
]

_DEEPEST = 64
_LARGEST = 2**63
_FEW = 16
_REQUIRED = object()

Location = str | os.PathLike[str]


def read_json(path: Location) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InterpError: No file, no JSON, no object, or one nested deeper than any that this program writes.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InterpError(f"there is no file {os.fspath(path)}") from None
    except OSError as error:
        raise InterpError(f"{os.fspath(path)} can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise damaged(path, f"it is no UTF-8 text ({error.reason} at byte {error.start})") from None
    return typed(parsed(text, path), dict, path)


def parsed(text: str, path: Location) -> Any:
    """The JSON in a text that stands in a file.

    Raises:
        InterpError: It is none, or nested too deep.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"no JSON: {error}") from None
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(_DEEPEST):
        if not level:
            return value
        level = [
            one for held in level for one in (held.values() if isinstance(held, dict) else held)
            if isinstance(one, dict | list)
        ]  # fmt: skip
    raise damaged(path, f"it is nested more than {_DEEPEST} deep")


def checked(
    record: Mapping[str, Any],
    name: str,
    hint: Any,
    path: Location,
    *,
    least: float | None = None,
    most: float | None = None,
    among: Collection[Any] | None = None,
    default: Any = _REQUIRED,
) -> Any:
    """One value of a record, checked.

    Args:
        record: What was read.
        name: Of the field.
        hint: Its type as an annotation says it: ``int``, ``list[str]``, ``dict[str, float]``, ``int | None``, ...
            A bool is no number here, and a whole number is a float.
        path: The file that the message names.
        least: The smallest value.
        most: The largest.
        among: All values that there are.
        default: For a field that may be missing.

    Raises:
        InterpError: It is missing, of another type or out of range.
    """
    if name not in record:
        if default is not _REQUIRED:
            return default
        raise damaged(path, f"it lacks {name!r}")
    value = typed(record[name], hint, path, name)
    if among is not None and value not in among:
        known = ", ".join(map(repr, among)) if len(among) <= _FEW else f"{len(among):,} known ones"
        raise damaged(path, f"{name} is {_shown(value)}, one of {known} is needed")
    low, high = least is None or value >= least, most is None or value <= most
    if not (low and high):
        bounds = f"{'' if least is None else f' from {least:,}'}{'' if most is None else f' up to {most:,}'}"
        raise damaged(path, f"{name} is {_shown(value)}, {_words(hint)}{bounds} is needed")
    return value


def arguments(record: Mapping[str, Any], of: type, path: Location, *, least: int | None = None) -> dict[str, Any]:
    """The arguments of a class in a record, checked by their annotations.

    Args:
        record: What was read.
        of: A dataclass, or a class whose `__init__` hands on to those of its bases what it has no name for.
        path: The file that the message names.
        least: The smallest that a whole number may be.

    Raises:
        InterpError: One is missing, unknown, of another type or too small.
    """
    hints, needed = _arguments(of)
    if unknown := [name for name in record if name not in hints]:
        raise damaged(path, f"{of.__name__} has no {unknown[0]!r}")
    if missing := [name for name in needed if name not in record]:
        raise damaged(path, f"it lacks {missing[0]!r}")
    for name, value in record.items():
        checked(record, name, hints[name], path, least=least if isinstance(value, int) else None)
    return dict(record)


def typed(value: Any, hint: Any, path: Location, name: str = "") -> Any:
    """The value, if it is of the type that an annotation says; `name` is what the message calls it.

    Raises:
        InterpError: It is of another type, or a number of more than 64 bits.
    """
    if why := mistyped(value, hint, name):
        raise damaged(path, why)
    return value


def mistyped(value: Any, hint: Any, name: str = "") -> str | None:
    """What is wrong with the type of a value, in words; None if nothing is. See `checked` for `hint`."""
    fault = _fault(value, hint, name)
    if fault is None:
        return None
    where, found, wanted = fault
    return f"{where or 'it'} is {_shown(found)}, {_words(wanted)} is needed"


def inside(folder: Location, name: Any, path: Location) -> Path:
    """The place of a file of `folder` that the file `path` names.

    Raises:
        InterpError: The name leads out of the folder, or is none.
    """
    text = typed(name, str, path, "the name of a file")
    parts = (*PurePosixPath(text).parts, *PureWindowsPath(text).parts)
    if not text.strip() or "\0" in text or ".." in parts or PurePosixPath(text).root or PureWindowsPath(text).anchor:
        raise damaged(path, f"it names the file {_shown(text)}, which is not inside {os.fspath(folder)}")
    return Path(folder) / text


def tensor_shapes(path: Location) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a safetensors file, from its header alone.

    Raises:
        InterpError: No file, or one that is not as long as its header says.
    """
    try:
        size = Path(path).stat().st_size
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if 8 + length <= size else None
    except FileNotFoundError:
        raise InterpError(f"there is no file {os.fspath(path)}") from None
    except OSError as error:
        raise InterpError(f"{os.fspath(path)} can't be read: {error.strerror or error}") from None
    if size < 8 or header is None:
        raise damaged(path, f"{size:,} bytes don't hold its header")
    try:
        record = typed(parsed(header.decode(), path), dict[str, dict], path, "its header")
    except UnicodeDecodeError:
        raise damaged(path, "its header is not readable") from None
    record.pop("__metadata__", None)
    found, end = {}, 0
    for name, entry in record.items():
        found[name] = tuple(checked(entry, "shape", list[int], path))
        begin, stop = checked(entry, "data_offsets", tuple[int, int], path)
        if min(begin, *found[name]) < 0 or stop < begin:
            raise damaged(path, f"its header gives {_shown(name)} the shape {found[name]} at {begin} to {stop}")
        end = max(end, stop)
    if size != 8 + length + end:
        raise damaged(path, f"{size:,} bytes where its header needs {8 + length + end:,}")
    return found


def read_tensors(
    path: Location, framework: str = "pt", only: Collection[str] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors of a safetensors file and the texts in its header; no more memory is used than the file is long.

    Args:
        path: The file.
        framework: ``pt`` for torch's tensors, ``np`` for numpy's arrays.
        only: The names of those that are wanted, as far as they are there; all by default.

    Raises:
        InterpError: No file, or a damaged one.
    """
    from safetensors import safe_open

    if not Path(path).is_file():
        raise InterpError(f"there is no file {os.fspath(path)}")
    try:
        with safe_open(os.fspath(path), framework) as file:
            names = [name for name in file.keys() if only is None or name in only]  # noqa: SIM118
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except Exception as error:  # the library's own error, or whichever one numpy or torch has for a shape
        raise damaged(path, str(error)) from None


def damaged(path: Location, why: str) -> InterpError:
    """The error for a file that can't be used."""
    return InterpError(f"{os.fspath(path)} is cut short, damaged or of another kind: {why}; obtain or write it anew")


@cache
def _arguments(of: type) -> tuple[dict[str, Any], list[str]]:
    """The annotations of what makes a class, by name, and which arguments it can't do without."""
    if dataclasses.is_dataclass(of):
        known, taken = typing.get_type_hints(of), [item for item in dataclasses.fields(of) if item.init]
        absent = dataclasses.MISSING
        needed = [item.name for item in taken if item.default is absent and item.default_factory is absent]
        return {item.name: known[item.name] for item in taken}, needed
    hints: dict[str, Any] = {}
    required: dict[str, bool] = {}
    for one in of.__mro__:
        if "__init__" not in vars(one):
            continue
        known, handed_on = typing.get_type_hints(one.__init__), False  # type: ignore[misc]
        for name, item in list(inspect.signature(one).parameters.items()):
            if item.kind in (item.VAR_KEYWORD, item.VAR_POSITIONAL):
                handed_on = True
            elif name != "self":  # of a base rather than of a class that narrows it
                hints[name] = known.get(name, Any)
                required.setdefault(name, item.default is item.empty)
        if not handed_on:
            break
    return hints, [name for name, is_needed in required.items() if is_needed]


def _fault(value: Any, hint: Any, where: str) -> tuple[str, Any, Any] | None:
    """Where a value is not of its type: the place, what stands there, and what should."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return None
    if origin in (typing.Union, types.UnionType):
        faults = [_fault(value, part, where) for part in parts]
        if None in faults:
            return None
        inner = [fault for fault in faults if fault is not None and fault[0] != where]
        return inner[0] if inner else (where, value, hint)
    if origin is typing.Literal:
        return None if any(value == part and type(value) is type(part) for part in parts) else (where, value, hint)
    if not _is(value, origin or hint):
        return where, value, hint
    if isinstance(value, Mapping) and len(parts) == 2:
        pairs = ((f"{where}[{_shown(key)}]" if where else _shown(key), one, parts[1]) for key, one in value.items())
    elif isinstance(value, list | tuple) and parts:
        fixed = origin is tuple and parts[-1] is not Ellipsis
        if fixed and len(value) != len(parts):
            return where, value, hint
        each = parts if fixed else (parts[0],) * len(value)
        pairs = ((f"{where}[{at}]", one, part) for at, (one, part) in enumerate(zip(value, each, strict=True)))
    else:
        return None
    return next((fault for place, one, part in pairs if (fault := _fault(one, part, place))), None)


def _is(value: Any, kind: Any) -> bool:
    """JSON has lists where Python has tuples and other sequences; a bool is no number."""
    if kind is None or kind is types.NoneType:
        return value is None
    if kind in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST
        return whole or (kind is float and isinstance(value, float))
    if kind in (list, tuple, Sequence):
        return isinstance(value, list | tuple)
    if kind in (dict, Mapping):
        return isinstance(value, Mapping)
    return isinstance(value, kind)


def _words(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(part) for part in parts)
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, parts))}"
    kind = origin or hint
    if kind is tuple and parts and parts[-1] is not Ellipsis:
        return f"a list of {len(parts)} ({', '.join(_words(part) for part in parts)})"
    named = {
        int: "a whole number", float: "a number", str: "a text", bool: "true or false", None: "null",
        types.NoneType: "null", dict: "an object", Mapping: "an object", list: "a list", tuple: "a list",
        Sequence: "a list",
    }  # fmt: skip
    return named.get(kind, getattr(kind, "__name__", str(kind)))


def _shown(value: Any) -> str:
    text = _short.repr(value)
    return text if len(text) <= _CUT else f"{text[:_CUT]}..."


_CUT = 60
_short = reprlib.Repr()
_short.maxlevel = _short.maxdict = _short.maxlist = _short.maxtuple = 3
