"""Models by name: what there is, how it is obtained, and loading it as a `TransformerBridge`."""

from __future__ import annotations

from interp.models._fetch import fetch, state
from interp.models._fingerprint import fingerprint
from interp.models._load import load, named
from interp.models._toys import known_circuit
from interp.models.cards import ModelCard, models

__all__ = ["ModelCard", "fetch", "fingerprint", "known_circuit", "load", "models", "named", "state"]
