"""How much each head matters, for a task or for plain text, measured in five ways that end in one type of finding.

| method | of a task | of plain text |
|---|---|---|
| `activation` | exact: z is the corrupted prompt's | exact: z is another text's |
| `attribution` | the same, estimated by gradients | the same, estimated by gradients |
| `relp` | the same by relevance patching, or other `rules` | the same by relevance patching |
| `gradient` | E abs(z . dM/dz), M the task's metric | E abs(z . dL/dz), L the loss |
| `ablation` | exact: z is zero, or its mean | exact: z is zero, or its mean |

The exact methods and the estimates measure how far the task's metric falls, or the text's loss rises.

*Signs*: every method also has a signed `effect`, the harm of taking the head's own output away: positive where the head
helps. The score is its absolute value (of `gradient` the mean of absolute values), so that a head that matters by
getting in the way counts too; ``absolute=False`` makes the harm itself the score.

`gradient` is that of Michel et al. 2019, "Are Sixteen Heads Really Better than One?" (arXiv:1905.10650, eq. 2),
I_h = E abs(dL / d xi_h) with a mask xi_h on the head's output, which is Att_h(x)^T dL / d Att_h(x); they divide the
importances of each layer by their l2 norm, as ``by_layer=True`` does. The loss is the mean of a text's next-token
cross-entropies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.forward import Visitor, Walk, run
from interp.engine.gradient import backward
from interp.engine.identity import identity
from interp.engine.memory import budget_bytes, bytes_per_row
from interp.engine.parts import Parts
from interp.engine.progress import track
from interp.engine.rules import GRADIENT, Rules
from interp.engine.rules import rules as rule_set
from interp.engine.verify import verified
from interp.errors import UsageError, unknown_name
from interp.gradients import gradients
from interp.patching import activation, attribution
from interp.results import scores
from interp.results.findings import HeadImportance
from interp.tasks import Task, corpus, sized
from interp.tasks.splits import half_of_corpus

__all__ = ["METHODS", "head_importance", "rank_agreement"]

METHODS = ("activation", "attribution", "relp", "gradient", "ablation")
"""The ways of measuring importance."""

REPLACEMENTS = ("zero", "mean")


@gradients()
def head_importance(
    model: TransformerBridge,
    target: Task | str | Sequence[str] | Int[Tensor, "text pos"],
    method: Literal["activation", "attribution", "relp", "gradient", "ablation"] = "ablation",
    *,
    replacement: Literal["zero", "mean"] = "zero",
    rules: str | Rules = "relp",
    absolute: bool = True,
    by_layer: bool = False,
    n: int | None = None,
    length: int | None = None,
    seed: int = 0,
    split: str | None = "find",
    max_memory: int | None = None,
) -> HeadImportance:
    """Importance of every head.

    Args:
        model: any bridge; it is only read.
        target: a task, or plain text: a name of `interp.tasks.CORPORA`, texts, or token ids.
        method: one of `METHODS`; see the module for what each measures.
        replacement: of ``ablation``: ``zero``, or the ``mean`` (of a task's corrupted prompts by position; of the texts
            over all positions but each one's first).
        rules: of ``relp``: a name in `interp.engine.rules.RULE_SETS` for a task, for plain text one that does not look
            at both runs.
        absolute: score by absolute effects; else by the harm of taking the head away, which may be negative.
        by_layer: divide the scores of each layer by their l2 norm.
        n, length, seed, split: of the text, 4 stretches of 64 tokens unless said, or all of the token ids
            that are given. Text that is given is not split.
        max_memory: bytes for the rows that are run together.

    Returns:
        The finding; larger scores matter more. Its evidence has the ``scores`` and the signed ``effect``.

    Raises:
        UsageError: an unknown method or replacement, signs that a method does not have, or text as of `corpus`.

    Reference: Michel et al. 2019, arXiv:1905.10650; Nanda 2023; Jafari et al. 2025, arXiv:2508.21258.

    Example:
        >>> head_importance(model, interp.task("ioi", model), "relp").top(5)    # doctest: +SKIP
        >>> head_importance(model, "prose", "gradient").lowest(20)              # doctest: +SKIP
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if replacement not in REPLACEMENTS:
        raise unknown_name("replacement", replacement, REPLACEMENTS)
    if method == "gradient" and not absolute:
        raise UsageError("gradient importance is a mean of absolute values and has no sign; leave absolute=True")
    parts, began = verified(model), time.perf_counter()
    settings: dict[str, Any] = {"method": method, "absolute": absolute, "by_layer": by_layer}
    if method == "ablation":
        settings["replacement"] = replacement
    if method == "relp":
        settings["rules"] = str(rules)
    if isinstance(target, Task):
        name = target.name
        settings |= {"n": len(target), "seed": target.seed, "split": target.split, "metric": target.measure.name}
        units = target.measure.units
        effect, sizes = _of_task(model, parts, target, method, replacement, rules, max_memory)
    else:
        name = target if isinstance(target, str) else "text"
        split = half_of_corpus(target, split)
        tokens = corpus(target, model, *sized(target, n, length, 4, 64), seed, split=split).to(parts.device)
        if method in ("activation", "attribution", "relp") and len(tokens) < 2:
            raise UsageError(
                f"{method} takes a text's activations from another text; give two or more, n={len(tokens)}"
            )
        settings |= {"n": len(tokens), "length": tokens.shape[1], "seed": seed, "split": split}
        settings["metric"] = "cross_entropy"
        units = "nats"
        effect, sizes = _of_text(parts, tokens, method, replacement, rules, max_memory)
    values = sizes if absolute else effect
    if by_layer:
        values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-30)
    settings["seconds"] = round(time.perf_counter() - began, 3)
    return HeadImportance(
        model=str(model.cfg.model_name),
        fingerprint=identity(model),
        evidence={
            "scores": scores(values, ("layer", "head"), name="importance", units="share" if by_layer else units),
            "effect": scores(effect, ("layer", "head"), name="harm of taking the head away", units=units),
        },
        settings=settings,
        n_kv_heads=parts.graph.n_kv_heads,
        method=method,
        target=name,
    )


def rank_agreement(findings: Sequence[HeadImportance]) -> pd.DataFrame:
    """Spearman's rank correlation of every two findings' scores, by their methods.

    Raises:
        UsageError: fewer than two, or of different models.
    """
    if len(findings) < 2:
        raise UsageError(f"an agreement needs two findings or more, got {len(findings)}")
    for finding in findings[1:]:
        finding.check(findings[0].fingerprint)
    names = [finding.method for finding in findings]
    values = [finding.scores.values.reshape(-1) for finding in findings]
    table = [[float(stats.spearmanr(a, b).statistic) for b in values] for a in values]
    return pd.DataFrame(table, index=names, columns=names)


def _of_task(
    model: TransformerBridge,
    parts: Parts,
    task: Task,
    method: str,
    replacement: Any,
    rules: Any,
    max_memory: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Harm "layer head", and its size."""
    sign = -1.0 if task.measure.higher_is_clean else 1.0
    if method == "gradient":
        each = sign * _gradients(parts, task)
        return -each.mean(-1).numpy(), each.abs().mean(-1).numpy()
    if method == "ablation":
        found = activation(model, task, "heads", mode="noising", source=replacement, max_memory=max_memory)
    elif method == "activation":
        found = activation(model, task, "heads", mode="noising", max_memory=max_memory)
    else:
        chosen = "gradient" if method == "attribution" else rules
        found = attribution(model, task, "heads", mode="noising", rules=chosen, max_memory=max_memory)
    harm = sign * found.values
    return harm, np.abs(harm)


def _gradients(parts: Parts, task: Task) -> Float[Tensor, "layer head example"]:
    """z . dM/dz of the clean prompts, over all positions."""
    task, found = task.to(parts.device), []
    stop = int(task.positions["end"].max()) + 1
    for batch in task.batches(8):

        def measure(logits: Tensor, batch: Task = batch) -> Tensor:
            return batch.measure(logits, batch.right, batch.wrong, logits.detach())

        flow = backward(parts, batch.clean[:, :stop], batch.positions["end"], measure, {"z"})
        each = [
            torch.linalg.vecdot(flow.values["z", layer], flow.gradients["z", layer]).sum(1)
            for layer in range(parts.graph.n_layers)
        ]
        found.append(torch.stack(each).transpose(1, 2).float().cpu())
    return torch.cat(found, -1)


@torch.no_grad()
def _of_text(
    parts: Parts, tokens: Tensor, method: str, replacement: str, rules: Any, max_memory: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Harm "layer head", and its size."""
    if method in ("activation", "ablation"):
        harm = _exact(parts, tokens, "other" if method == "activation" else replacement, max_memory).mean(-1)
        return harm.numpy(), harm.abs().numpy()
    chosen = rule_set(rules) if method == "relp" else GRADIENT
    if chosen.two_runs:
        raise UsageError(f"the rules {rules!r} look at both runs of a pair, and plain text has no pairs; take 'relp'")
    others = None if method == "gradient" else run(parts, tokens, {"z"})[0]
    found = []
    for text in range(len(tokens)):
        values, flows = _backward(parts, tokens[text : text + 1], chosen)
        each = []
        for layer, (z, flow) in enumerate(zip(values, flows, strict=True)):
            change = -z if others is None else others["z", layer][text - 1] - z
            each.append(torch.linalg.vecdot(change, flow).sum((0, 1)))
        found.append(torch.stack(each).float().cpu())
    harm = torch.stack(found, -1)
    size = harm.abs().mean(-1) if method == "gradient" else harm.mean(-1).abs()
    return harm.mean(-1).numpy(), size.numpy()


def _backward(parts: Parts, tokens: Tensor, chosen: Rules) -> tuple[list[Tensor], Sequence[Tensor]]:
    """Each layer's z "text pos head d_head" and what flows back to it from the loss."""
    with gradients():
        walk, outputs = Walk(parts, tokens.shape[1], chosen), _Outputs()
        final = walk(walk.embed(tokens).detach(), outputs)
        loss = _losses(walk.logits(final), tokens).sum()
        flows = torch.autograd.grad(loss, outputs.kept)
    return [z.detach() for z in outputs.kept], flows


class _Outputs(Visitor):
    """Keeps the heads' outputs, with gradients."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        if site != "z":
            return x
        x = x if x.requires_grad else x.detach().requires_grad_()
        self.kept.append(x)
        return x


@torch.no_grad()
def _exact(parts: Parts, tokens: Tensor, replacement: str, max_memory: int | None) -> Float[Tensor, "layer head text"]:
    """The rise of each text's loss when one head's z is replaced; each run begins at the head's layer."""
    graph, (n, length) = parts.graph, tokens.shape
    kept, final = run(parts, tokens, {"resid_pre", "z"})
    row = bytes_per_row(graph, length, length, graph.d_vocab * length, parts.dtype.itemsize)
    at_once = max(1, budget_bytes(parts.device, max_memory) // (row * n))
    plain = _losses(parts.logits(final), tokens)
    found = torch.empty(graph.n_layers, graph.n_heads, n)
    new_of: dict[str, Callable[[Tensor], Tensor]] = {
        "zero": torch.zeros_like,
        "mean": lambda z: z[:, 1:].mean((0, 1)).expand_as(z),
        "other": lambda z: z.roll(1, 0),
    }
    walk = Walk(parts, length)
    with track(graph.n_layers * graph.n_heads, "head by head") as advance:
        for layer in range(graph.n_layers):
            new = new_of[replacement](kept["z", layer])
            for heads in torch.arange(graph.n_heads).split(at_once):
                resid = kept["resid_pre", layer].repeat(len(heads), 1, 1)
                changed = walk(resid, _Replaced(layer, heads.tolist(), new), first_layer=layer)
                losses = _losses(parts.logits(changed), tokens.repeat(len(heads), 1)).unflatten(0, (len(heads), n))
                found[layer, heads] = (losses - plain).float().cpu()
                advance(len(heads))
    return found


class _Replaced(Visitor):
    """Rows "(head text)", in each of which another head's z is replaced."""

    def __init__(self, layer: int, heads: list[int], new: Tensor) -> None:
        self.layer, self.heads, self.new = layer, heads, new

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        if site == "z" and layer == self.layer:
            x = x.clone()
            for rows, head in zip(x.unflatten(0, (len(self.heads), -1)), self.heads, strict=True):
                rows[:, :, head] = self.new[:, :, head]
        return x


def _losses(logits: Float[Tensor, "text pos vocab"], tokens: Int[Tensor, "text pos"]) -> Float[Tensor, " text"]:
    """Mean cross-entropy of each text's next tokens."""
    guesses = logits[:, :-1].flatten(0, 1)
    wide = guesses if guesses.dtype == torch.float64 else guesses.float()
    each = torch.nn.functional.cross_entropy(wide, tokens[:, 1:].flatten(), reduction="none")
    return each.unflatten(0, (len(tokens), -1)).mean(-1)
