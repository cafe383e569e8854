"""What calibration takes: nothing is saved, the calibrated heads' attention is computed twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from interp.efficiency.counting import count
from interp.efficiency.ledger import Amount, Ledger
from interp.efficiency.pruning.anatomy import anatomy

if TYPE_CHECKING:
    from interp.efficiency.calibration.plan import CalibrationPlan

__all__ = ["attention_ledger", "dearer"]

_PER_PAIR = 10
"""Elementwise operations for each query and key: sums and means of what keys got, the change itself."""


def attention_ledger(plan: CalibrationPlan, model: PreTrainedModel, length: int, batch: int) -> Ledger:
    """The ledger of a plan for attention: scores and the weighted sum once more in its heads, and the account's bytes.

    Windows that layers have by design are not taken off, so it is an upper bound there.
    """
    body = anatomy(model)
    heads = [len([h for h in plan.in_layer(at) if h in body.attention(at).heads]) for at in body.layers]
    each = 4 * body.head_dim + _PER_PAIR
    # what each key got, in float32, and how often it was seen; or whether it is a sink
    account = sum(4 * n + 8 if plan.sinks["by"] == "attention" else 1 for n in heads if n)
    return dearer(
        model,
        length,
        batch,
        prefill=each * sum(heads) * length * (length + 1) / 2,
        decode=each * sum(heads) * length,
        cache=(account + 1) * length if any(heads) else 0,
    )


def dearer(
    model: PreTrainedModel, length: int, batch: int, *, prefill: float, decode: float, cache: float = 0
) -> Ledger:
    """A ledger where something comes on top, for each prompt.

    Args:
        model: The model.
        length: Tokens of the prompt.
        batch: Prompts.
        prefill: FLOPs of the prompt.
        decode: FLOPs of one further token.
        cache: Bytes held beside keys and values.
    """
    dense = count(model, length)
    return Ledger(
        weight_bytes=Amount(dense.weight_bytes, dense.weight_bytes),
        cache_bytes=Amount(dense.cache_bytes * batch, (dense.cache_bytes + cache) * batch),
        prefill_flops=Amount(dense.prefill_flops * batch, (dense.prefill_flops + prefill) * batch),
        decode_flops=Amount(dense.decode_flops * batch, (dense.decode_flops + decode) * batch),
        length=length,
        batch=batch,
    )
