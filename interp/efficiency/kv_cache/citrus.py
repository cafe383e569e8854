"""CItruS: an instruction is asked behind every chunk what is worth keeping.

Bai et al. 2024 (arXiv 2406.12018), section 3: a long text is read in chunks; behind each, the instruction's tokens are
sent through the model, and the entries that they attend to most stay. This is the variant in which context and
instruction share one cache ("instruction_aware_single" in the authors' code): attention is averaged over the
instruction's tokens and over all heads of a layer, so that the heads of a layer keep the same entries, and the newest
chunk stays whole until the next one comes.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from interp.efficiency.kv_cache.geometry import Geometry
from interp.efficiency.kv_cache.method import CacheMethod
from interp.efficiency.kv_cache.top import Scorer, View
from interp.errors import UsageError

__all__ = ["CItruSCache", "InstructionAttention"]

INSTRUCTION = "Answer the question based on the text above."
"""What is asked where nothing else is given."""


class InstructionAttention(Scorer):
    """Worth is the instruction's attention, averaged over its tokens and the layer's heads."""

    probed = True

    def score(self, view: View) -> Float[Tensor, "row kv_head entry"]:
        found = torch.zeros(view.keys.shape[0], view.keys.shape[2], device=view.keys.device)
        for attention, _ in view.attention():
            found += attention.mean((1, 2)).sum(1)
        return found[:, None].expand(-1, view.keys.shape[1], -1)


class CItruSCache(CacheMethod):
    """Keeps what an instruction attends to, chunk by chunk.

    Args:
        budget: The share of the cache's bytes that is kept at `length` tokens.
        instruction: Text or token ids: best the task's own instruction.
        window: The most recent tokens, kept in any case: a quarter of the entries unless given. The authors keep the
            newest chunk besides the budget; here it is in it.
        length: The prompt's length that the budget is for.
        prefill_chunk: Tokens of a prompt that are read at once; the authors have 256 for Llama.
    """

    name = "citrus"

    def __init__(
        self,
        *,
        budget: float = 0.15,
        instruction: str | list[int] = INSTRUCTION,
        window: int | None = None,
        length: int | None = None,
        prefill_chunk: int | None = 256,
    ) -> None:
        super().__init__(budget=budget, length=length, prefill_chunk=prefill_chunk)
        if not instruction:
            raise UsageError("citrus: the instruction must not be empty")
        if window is not None and window < 0:
            raise UsageError(f"citrus: window must be 0 tokens or more, got {window}")
        self.asked, self.window = instruction, window

    def policies(self, shape: Geometry, length: int) -> dict[tuple[int, int], dict[str, Any]]:
        n = self.entries(shape, length, (self.window or 0) + 1)
        window = n // 4 if self.window is None else self.window
        kept = {"keep": "top", "score": "citrus", "n": n, "window": window, "sinks": 0}
        return dict.fromkeys(shape.compressible, kept)

    def instruction(self, model: PreTrainedModel) -> tuple[int, ...]:
        if not isinstance(self.asked, str):
            return tuple(self.asked)
        tokenizer: Any = getattr(model, "tokenizer", None)
        if tokenizer is None:
            raise UsageError("citrus: this model has no tokenizer; give the instruction as token ids")
        return tuple(tokenizer(self.asked, add_special_tokens=False).input_ids)
