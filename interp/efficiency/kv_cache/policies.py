"""The ways to keep entries: a table of settings says which, and this module makes its store.

``{"keep": "full"}``
    everything;
``{"keep": "window", "sinks": 4, "window": 124, "positions": "kept"}``
    the first and the most recent tokens;
``{"keep": "top", "score": "snapkv", "n": 128, "window": 32, "sinks": 0, "options": {...}}``
    the `n` entries that score highest, the most recent ones among them in any case;
``{"keep": "quantized", "bits": 8, "group": 32, "sinks": 4}``
    everything, as integers with scales, sinks and the most recent tokens in full precision.
"""

from __future__ import annotations

import importlib
from typing import Any

from interp.checking import arguments, checked
from interp.efficiency.kv_cache.geometry import Geometry
from interp.efficiency.kv_cache.quantized_store import Quantized
from interp.efficiency.kv_cache.stores import Full, Rotate, Store, Window
from interp.efficiency.kv_cache.top import Scorer, Top
from interp.errors import unknown_name

__all__ = ["FULL", "SCORERS", "described", "entries", "entry_bytes", "scorer", "store"]

_PLAN = "the cache plan"

FULL: dict[str, Any] = {"keep": "full"}

STORES: dict[str, type[Store]] = {"full": Full, "window": Window, "top": Top, "quantized": Quantized}
"""What keeps entries, by the name in a policy."""

SCORERS = {
    "random": "random_score:RandomScore",
    "h2o": "h2o:HeavyHitters",
    "snapkv": "snapkv:RecentAttention",
    "citrus": "citrus:InstructionAttention",
    "actqkv": "actqkv:ProbeQuery",
    "attendre": "attendre:Attended",
}
"""What scores entries, as module and class below this package."""


def store(policy: dict[str, Any], rotate: Rotate | None = None) -> Store:
    """An empty store for a policy.

    Raises:
        UsageError: An unknown way to keep, or an unknown score.
    """
    name = checked(policy, "keep", str, _PLAN)
    settings: dict[str, Any] = {key: value for key, value in policy.items() if key != "keep"}
    if name not in STORES:
        raise unknown_name("way to keep entries", name, STORES)
    if name == "window":
        settings["rotate"] = rotate
    if name == "top":
        options = checked(settings, "options", dict, _PLAN, default={})
        settings = {**settings, "scorer": scorer(checked(settings, "score", str, _PLAN), options)}
        settings = {key: value for key, value in settings.items() if key not in ("score", "options")}
    return STORES[name](**arguments(settings, STORES[name], _PLAN, least=0))


def scorer(name: str, options: dict[str, Any]) -> Scorer:
    """What scores entries.

    Raises:
        UsageError: No such score.
    """
    if name not in SCORERS:
        raise unknown_name("score of entries", name, SCORERS)
    module, _, kind = SCORERS[name].partition(":")
    made = getattr(importlib.import_module(f"interp.efficiency.kv_cache.{module}"), kind)
    return made(**arguments(options, made, _PLAN, least=0))


def entries(policy: dict[str, Any], length: int) -> int:
    """Entries that a head holds behind a prompt of so many tokens."""
    if policy["keep"] in ("full", "quantized"):
        return length
    return min(length, policy["n"] if policy["keep"] == "top" else policy["sinks"] + policy["window"])


def entry_bytes(policy: dict[str, Any], length: int, shape: Geometry) -> int:
    """Bytes of a head's entries behind a prompt of so many tokens, with the numbers that a store keeps beside them."""
    kept = entries(policy, length)
    if policy["keep"] == "quantized":
        return Quantized(**{k: v for k, v in policy.items() if k != "keep"}).bytes_of(length, shape)
    plain = kept * shape.entry_bytes
    if policy["keep"] == "top":
        scores = scorer(policy["score"], policy.get("options", {}))
        plain += kept * 4 * scores.numbers + scores.bytes_beside(length, shape)
    if policy.get("positions") == "reindexed":
        plain += min(policy["sinks"], length) * shape.entry_bytes // 2
    return plain


def described(policy: dict[str, Any]) -> str:
    """A policy in a few words."""
    match policy["keep"]:
        case "window":
            again = ", re-indexed" if policy.get("positions") == "reindexed" else ""
            return f"{policy['sinks']} sinks and {policy['window']} recent{again}"
        case "top":
            return f"{policy['n']} by {policy['score']}, {policy.get('window', 0)} of them recent"
        case "quantized":
            made = Quantized(**{name: value for name, value in policy.items() if name != "keep"})
            return f"all in int{made.bits}, {made.sinks} sinks in full precision"
    return "all"
