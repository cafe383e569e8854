"""The cache as 8-bit or 4-bit integers, sinks in full precision.

Liu et al. 2024, KIVI (arXiv 2402.02750): keys by channel, values by token. Sinks (Xiao et al. 2023) are kept as they
are: their keys and values are unlike the others', and everything attends to them. A single token is multiplied with the
codes as they are; several at once with keys and values turned back.
"""

from __future__ import annotations

from typing import Any

from interp.efficiency.kv_cache.geometry import Geometry
from interp.efficiency.kv_cache.method import CacheMethod, sinks_of
from interp.efficiency.kv_cache.policies import entry_bytes
from interp.errors import UsageError
from interp.results.findings import SinkPositions

__all__ = ["QuantizedCache"]


class QuantizedCache(CacheMethod):
    """Keeps everything as integers.

    Args:
        budget: The share of the cache's bytes that may be kept at `length` tokens: 8 bits where they fit, else 4.
            Unless given, what `bits` take.
        bits: 8 or 4; unless given, as the budget says.
        sinks: Where the sinks are, or how many tokens at the start stay in full precision; 4 unless given.
        group: Tokens that share a key's scales.
        residual: Recent tokens that stay in full precision.
        length: The prompt's length that the budget is for.
        prefill_chunk: Tokens of a prompt that are processed at once.
    """

    name = "quantized"

    def __init__(
        self,
        *,
        budget: float | None = None,
        bits: int | None = None,
        sinks: SinkPositions | int | None = None,
        group: int = 32,
        residual: int = 32,
        length: int | None = None,
        prefill_chunk: int | None = None,
    ) -> None:
        if budget is None:
            budget = {8: 0.5, 4: 0.3}.get(bits or 8, 0.5)
            self.stated = False
        else:
            self.stated = True
        super().__init__(budget=budget, length=length, prefill_chunk=prefill_chunk)
        if bits not in (None, 4, 8):
            raise UsageError(f"quantized: keys and values are stored in 8 or 4 bits, not {bits}")
        if group < 1 or residual < 0:
            raise UsageError(f"quantized: group must be at least 1 and residual at least 0, got {group} and {residual}")
        self.bits, self.sinks, self.group, self.residual = bits, sinks, group, residual

    def findings(self) -> list[SinkPositions]:
        return [self.sinks] if isinstance(self.sinks, SinkPositions) else []

    def policies(self, shape: Geometry, length: int) -> dict[tuple[int, int], dict[str, Any]]:
        sizes = {}
        for bits in (8, 4) if self.bits is None else (self.bits,):
            kept = {"keep": "quantized", "bits": bits, "group": self.group, "residual": self.residual}
            kept["sinks"] = sinks_of(self.sinks, self.name)
            sizes[bits] = entry_bytes(kept, length, shape) / (length * shape.entry_bytes)
            if not self.stated or sizes[bits] <= self.room(shape, length):
                return dict.fromkeys(shape.compressible, kept)
        raise self.too_small(f"less than {min(sizes)} bits take", min(sizes.values()), shape, length)
