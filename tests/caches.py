"""The cache in a call and in what comes back, whatever transformers calls it: ``cache`` from 5.24 on."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast

NAME = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"


def using(cache: Any) -> dict[str, Any]:
    """As keywords of `forward` or `generate`."""
    return {NAME: cache}


def cache_of(output: Any) -> Any:
    """Of what `forward` or `generate` returned."""
    return getattr(output, NAME)
