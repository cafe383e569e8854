"""How well a model performs a task, before anything is patched."""

from __future__ import annotations

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.forward import run
from interp.engine.parts import Parts
from interp.engine.verify import verified
from interp.errors import InterpError, UsageError
from interp.tasks import Task

__all__ = ["PERFORMS", "check_tokens", "end_logits", "finite", "own_logits", "performance"]

PERFORMS = 0.6
"""A model performs a task if it prefers the right answer in at least this share of the examples."""


def performance(model: TransformerBridge, task: Task) -> dict[str, float | str]:
    """A task's accuracy and baselines on a model.

    Args:
        model: Any bridge; it is only read.
        task: The prompt pairs.

    Returns:
        ``accuracy`` (share of clean prompts where the best right answer has a higher logit than the best wrong
        one), ``top1`` (share where the likeliest token is a right answer), ``metric`` (its name), ``clean`` and
        ``corrupted`` (its means, in its units).

    Raises:
        UsageError: The task's tokens are not of this model's vocabulary.
        InterpError: The model's logits are not finite.
    """
    parts = verified(model)
    task = task.to(parts.device)
    clean, corrupted = end_logits(parts, task, task.clean), end_logits(parts, task, task.corrupted)
    task = task.with_reference(clean)
    return {
        "accuracy": task.accuracy(clean),
        "top1": task.top1(clean),
        "metric": task.measure.name,
        "clean": float(task.metric(clean)),
        "corrupted": float(task.metric(corrupted)),
    }


@torch.no_grad()
def end_logits(parts: Parts, task: Task, tokens: Tensor, at_once: int = 64) -> Tensor:
    """The logits "batch vocab" at each example's end, of one side of a task.

    Raises:
        UsageError: The tokens are not of this model's vocabulary.
        InterpError: They are not finite; the message names the first layer where they are not.
    """
    check_tokens(parts, task, tokens)
    ends = task.positions["end"]
    first, stop = int(ends.min()), int(ends.max()) + 1
    found = []
    for begin in range(0, len(tokens), at_once):
        _, final = run(parts, tokens[begin : begin + at_once, :stop], set(), first)
        rows = torch.arange(len(final), device=final.device)
        found.append(parts.logits(final[rows, ends[begin : begin + at_once] - first]))
    return finite(parts, task, tokens, torch.cat(found))


@torch.no_grad()
def own_logits(model: TransformerBridge, task: Task, tokens: Tensor, at_once: int = 8) -> Tensor:
    """The same logits from the bridge's own forward pass."""
    ends, found = task.positions["end"], []
    stop = int(ends.max()) + 1
    for begin in range(0, len(tokens), at_once):
        logits = model(tokens[begin : begin + at_once, :stop])
        found.append(logits[torch.arange(len(logits), device=logits.device), ends[begin : begin + at_once]])
    return torch.cat(found)


def check_tokens(parts: Parts, task: Task, tokens: Tensor) -> None:
    """Refuses tokens that are not of this model's vocabulary.

    Raises:
        UsageError: There is one.
    """
    if int(tokens.max()) >= parts.graph.d_vocab:
        raise UsageError(
            f"task {task.name!r} has token ids up to {int(tokens.max())}, but the model's vocabulary has "
            f"{parts.graph.d_vocab}: build the task with this model"
        )


def finite(parts: Parts, task: Task, tokens: Tensor, logits: Tensor) -> Tensor:
    """The logits of these tokens, if they are finite.

    Raises:
        InterpError: They are not; the message names the first layer where they are not.
    """
    if not logits.isfinite().all():
        raise InterpError(f"the model's logits on task {task.name!r} are not finite: {_first_bad(parts, tokens)}")
    return logits


def _first_bad(parts: Parts, tokens: Tensor) -> str:
    sites = ("resid_pre", "attn_out", "mlp_out")
    kept, _ = run(parts, tokens[:8], set(sites))
    for layer in range(parts.graph.n_layers):
        for site in sites:
            if not kept[site, layer].isfinite().all():
                return f"the first NaN or infinity is at {parts.graph.hook(site, layer)}; are the weights intact?"
    return "the residual stream is finite, so the final norm or the unembedding is at fault"
