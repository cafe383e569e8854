"""Findings to and from files: the statement as JSON, the arrays beside it as safetensors."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from interp.checking import arguments, checked, damaged, inside, parsed, read_json, typed
from interp.errors import InterpError, UsageError
from interp.results.confirming import confirm
from interp.results.files import write_text
from interp.results.findings import FINDINGS, Finding
from interp.results.folders import settle, together
from interp.results.header import describe, rebuild

__all__ = ["FORMAT", "from_json", "load", "save", "to_json"]

FORMAT = "interp.finding/1"


def save(finding: Finding, path: str | os.PathLike[str]) -> Path:
    """Write a finding as two files, both complete or neither.

    Args:
        finding: any finding.
        path: a ``.json`` file, or a folder, which gets ``finding.json``. The arrays go beside it under the same name
            with the suffix ``.safetensors``.

    Returns:
        The path of the JSON file.

    Raises:
        UsageError: another suffix, or evidence and settings that a file can't hold.
        InterpError: a file can't be written.
    """
    target = _json_path(path)
    data = _arrays(finding)
    arrays = {"file": target.with_suffix(".safetensors").name, "sha256": hashlib.sha256(data).hexdigest()}
    text = _text(finding, arrays, indent=1)
    confirm(finding.fingerprint)
    with together(target.parent) as aside:
        (aside / arrays["file"]).write_bytes(data)
        write_text(aside / target.name, text + "\n")
    return target


def load(path: str | os.PathLike[str], model: Any = None, *, any_model: bool = False) -> Finding:
    """Read a finding that `save` wrote.

    Args:
        path: the JSON file, or the folder with ``finding.json``.
        model: the model that it is to be used with, or its fingerprint; None to look at it only.
        any_model: take it although it is about a model with other weights.

    Raises:
        UsageError: the finding is about another model.
        InterpError: a file is missing, damaged, or not of this finding.
    """
    target = _json_path(path)
    settle(target.parent)
    document = read_json(target)
    if document.get("format") != FORMAT:
        raise InterpError(f"{target} does not hold a finding: it has no header of format {FORMAT!r}")
    finding = _rebuilt(document, _beside(document, target), target)
    if model is not None and not any_model:
        finding.check(model)
    return finding


def to_json(finding: Finding) -> str:
    """A finding with its arrays as one strict JSON text.

    Raises:
        UsageError: evidence and settings that a file can't hold.
    """
    return _text(finding, {"base64": base64.b64encode(_arrays(finding)).decode()})


def from_json(text: str) -> Finding:
    """The finding that `to_json` gave.

    Raises:
        InterpError: the text is not that of a finding.
    """
    document = typed(parsed(text, "the text"), dict, "the text")
    packed = checked(checked(document, "arrays", dict, "the text"), "base64", str, "the text")
    try:
        data = base64.b64decode(packed, validate=True)
    except ValueError as error:
        raise damaged("the text", f"its arrays can't be read: {error}") from None
    return _rebuilt(document, data, "the text")


def _arrays(finding: Finding) -> bytes:
    from safetensors.numpy import save as serialised

    return serialised({name: np.array(array.values, order="C") for name, array in finding.evidence.items()})


def _text(finding: Finding, arrays: dict[str, Any], indent: int | None = None) -> str:
    document = {
        "format": FORMAT,
        "type": type(finding).__name__,
        "summary": finding.summary(),
        "model": finding.model,
        "fingerprint": finding.fingerprint,
        **_plain(finding.statement),
        "settings": _plain(dict(finding.settings)),
        "evidence": {name: describe(array) for name, array in finding.evidence.items()},
        "arrays": arrays,
    }
    try:
        return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise UsageError(f"this {document['type']} can't be saved: {error}") from error


def _beside(document: dict[str, Any], target: Path) -> bytes:
    """The arrays' file of a finding's document, if it is that."""
    held = checked(document, "arrays", dict, target)
    beside = inside(target.parent, checked(held, "file", str, target), target)
    try:
        data = beside.read_bytes()
    except FileNotFoundError:
        raise InterpError(f"{beside} does not exist; copy it together with {target.name}") from None
    except OSError as error:
        raise InterpError(f"{beside} can't be read: {error.strerror or error}") from error
    if hashlib.sha256(data).hexdigest() != checked(held, "sha256", str, target):
        raise InterpError(f"{beside} does not belong to {target}: it was changed, cut short or written for another one")
    return data


def _rebuilt(document: dict[str, Any], data: bytes, where: Path | str) -> Finding:
    from safetensors.numpy import load as arrays_of

    name = checked(document, "type", str, where)
    if name not in FINDINGS:
        raise InterpError(f"{where} holds a finding of the unknown type {name!r}")
    try:
        arrays = arrays_of(data)
    except Exception as error:  # the library's own error, or whichever one numpy has for a shape
        raise damaged(where, f"its arrays can't be read: {error}") from None
    evidence = {}
    for label, header in checked(document, "evidence", dict[str, dict], where).items():
        if label not in arrays:
            raise damaged(where, f"its arrays lack {label!r}")
        evidence[label] = rebuild(header, arrays[label], where)
    known = {"format", "type", "summary", "arrays"}
    given = {label: value for label, value in document.items() if label not in known} | {"evidence": evidence}
    return FINDINGS[name](**arguments(given, FINDINGS[name], where))


def _json_path(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.suffix == ".json":
        return target
    if target.suffix and not target.is_dir():
        raise UsageError(f"a finding is written to a .json file or a folder, not to {target}")
    return target / "finding.json"


def _plain(value: Any) -> Any:
    """JSON's types for numpy's numbers, tuples and mappings."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
