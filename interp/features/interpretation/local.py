"""A language model on this machine as explainer and judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from interp.errors import InterpError, UsageError
from interp.features.interpretation.prompted import Prompted
from interp.tasks.chat import said

__all__ = ["LocalExplainer"]


class LocalExplainer(Prompted):
    """Any causal language model of Hugging Face's, which answers with its likeliest tokens.

    Args:
        model: A name or directory that `interp.load` takes, a bridge, or a Hugging Face model.
        tokenizer: Of a Hugging Face model; a bridge has its own.
        max_new_tokens: Of an answer.

    Raises:
        UsageError: A model without a tokenizer or without ``generate``.
    """

    def __init__(self, model: Any = "smollm2", tokenizer: Any = None, max_new_tokens: int = 96) -> None:
        if isinstance(model, str | Path):
            from interp.models import load

            model = load(model)
        self.tokenizer: Any = tokenizer or getattr(model, "tokenizer", None)
        self.model: Any = getattr(model, "original_model", model)
        self.max_new_tokens = max_new_tokens
        if self.tokenizer is None or not hasattr(self.model, "generate"):
            raise UsageError("an explainer needs a causal language model with a tokenizer; give tokenizer= beside it")

    @torch.no_grad()
    def complete(self, prompt: str) -> str:
        """The answer; with the model's chat template, if it has one.

        Raises:
            UsageError: A prompt that leaves no room for an answer.
        """
        ids = self._ids(prompt)
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if longest and ids.shape[1] + self.max_new_tokens > longest:
            raise UsageError(
                f"the prompt has {ids.shape[1]} tokens, and with {self.max_new_tokens} to answer that is beyond this "
                f"model's {longest}; show it fewer or shorter contexts"
            )
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id if pad is None else pad
        try:
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                pad_token_id=pad,
            )
        except (RuntimeError, ValueError) as error:
            raise InterpError(f"the explainer's model could not answer: {error}") from error
        return self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)

    @torch.no_grad()
    def surprisal(self, prompt: str, text: str) -> float:
        """-log p(text | prompt) in nats."""
        before = self._ids(prompt)
        said = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].to(before.device)
        logits = self.model(input_ids=torch.cat([before, said], 1)).logits[0, before.shape[1] - 1 : -1]
        return float(-torch.log_softmax(logits.float(), -1).gather(1, said[0][:, None]).sum())

    def _ids(self, prompt: str) -> torch.Tensor:
        device = next(self.model.parameters()).device
        if getattr(self.tokenizer, "chat_template", None):
            text = said(self.tokenizer, prompt)
            return self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"].to(device)
        return self.tokenizer(prompt, return_tensors="pt")["input_ids"].to(device)
