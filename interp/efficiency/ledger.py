"""What a plan costs and saves, counted: bytes of weights and cache, and FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Self

import pandas as pd

__all__ = ["Amount", "Ledger"]


@dataclass(frozen=True)
class Amount:
    """A quantity without the plan and with it; `real` says whether the difference is really saved."""

    before: float
    after: float
    real: bool = True

    @property
    def share(self) -> float:
        """What is left, as a share."""
        return self.after / self.before if self.before else 1.0

    def then(self, other: Amount) -> Amount:
        """Both changes, taken as independent: the shares are multiplied."""
        return Amount(self.before, self.after * other.share, self.real and other.real)


@dataclass(frozen=True)
class Ledger:
    """What a model takes without and with a plan, for prompts of one length.

    Args:
        weight_bytes: Of what the modules hold, each tensor counted once.
        cache_bytes: Of keys and values behind the prompt, from their storages.
        prefill_flops: Of the prompt's forward pass; a multiplication and an addition count two.
        decode_flops: Of one further token.
        length: Tokens of the prompt.
        batch: Prompts.
    """

    weight_bytes: Amount
    cache_bytes: Amount
    prefill_flops: Amount
    decode_flops: Amount
    length: int
    batch: int = 1

    @classmethod
    def composed(cls, parts: Sequence[Ledger]) -> Self:
        """The ledger of plans in force together, their shares multiplied; measure where they touch the same thing."""
        first, *others = parts
        made = {f.name: getattr(first, f.name) for f in fields(cls)}
        for other in others:
            for name, value in made.items():
                if isinstance(value, Amount):
                    made[name] = value.then(getattr(other, name))
        return cls(**made)

    def to_frame(self) -> pd.DataFrame:
        """One row a quantity: ``before``, ``after``, ``share``, ``real``."""
        rows = {
            f.name: {**asdict(getattr(self, f.name)), "share": getattr(self, f.name).share}
            for f in fields(self)
            if isinstance(getattr(self, f.name), Amount)
        }
        return pd.DataFrame(rows).T[["before", "after", "share", "real"]].rename_axis("quantity")
