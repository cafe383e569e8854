"""The kinds of attention heads that can be told by what they do, each in a file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp._lazy import Registry, lazy
from interp.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from interp.attention.detectors.detector import Detector, DoesNotApply

__all__ = ["DETECTORS", "Detector", "DoesNotApply", "known"]

DETECTORS: Registry[Detector] = Registry(
    "interp.attention.detectors",
    previous_token="previous_token:PREVIOUS_TOKEN",
    current_token="current_token:CURRENT_TOKEN",
    first_token="first_token:FIRST_TOKEN",
    duplicate_token="duplicate_token:DUPLICATE_TOKEN",
    induction="induction:INDUCTION",
    copying="copying:COPYING",
    copy_suppression="copy_suppression:COPY_SUPPRESSION",
    successor="successor:SUCCESSOR_HEAD",
    name_mover="name_mover:NAME_MOVER",
    subject_suppressor="subject_suppressor:SUBJECT_SUPPRESSOR",
    s_inhibition="s_inhibition:S_INHIBITION",
    separator="separator:SEPARATOR",
    positional="positional:POSITIONAL",
    entropy="entropy:ENTROPY",
    distance="distance:DISTANCE",
)
"""The shipped detectors by name, in the order of the survey table."""


def known(kinds: str | Sequence[str | Detector]) -> list[Detector]:
    """The detectors that are asked for.

    Raises:
        UsageError: an unknown kind, none, or one twice.
    """
    if isinstance(kinds, str):
        kinds = list(DETECTORS) if kinds == "all" else [kinds]
    for kind in kinds:
        if isinstance(kind, str) and kind not in DETECTORS:
            raise unknown_name("kind of head", kind, [*DETECTORS, "all"])
    names = [kind if isinstance(kind, str) else kind.name for kind in kinds]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"name one kind of head or more, each once; got {names}")
    return [DETECTORS[kind] if isinstance(kind, str) else kind for kind in kinds]


lazy(__name__)
