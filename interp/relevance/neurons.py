"""How relevant each MLP neuron is, for a task or for plain text, by one backward pass under relevance propagation.

A neuron's relevance at a position is its activation times what flows back to it: with plain gradients the first-order
estimate of what the metric loses without it, under LRP's rules its share of the metric. Yeom et al. 2021, "Pruning by
Explaining" (arXiv:1912.08881), sum it over positions and reference samples.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.forward import Visitor, Walk
from interp.engine.gradient import backward
from interp.engine.identity import identity
from interp.engine.parts import Parts
from interp.engine.progress import track
from interp.engine.rules import Rules
from interp.engine.rules import rules as rule_set
from interp.engine.verify import verified
from interp.errors import UsageError
from interp.gradients import gradients
from interp.graph import Node
from interp.results import scores
from interp.results.findings import NeuronRelevance
from interp.tasks import Task, corpus, sized
from interp.tasks.splits import half_of_corpus

__all__ = ["neuron_relevance"]


@gradients()
def neuron_relevance(
    model: TransformerBridge,
    target: Task | str | Sequence[str] | Int[Tensor, "text pos"],
    rules: str | Rules = "relp",
    *,
    absolute: bool = True,
    n: int | None = None,
    length: int | None = None,
    seed: int = 0,
    split: str | None = "find",
) -> NeuronRelevance:
    """Relevance of every MLP neuron.

    Args:
        model: any bridge; it is only read.
        target: a task, whose metric counts, or plain text, whose mean next-token loss does: a name of
            `interp.tasks.CORPORA`, texts, or token ids.
        rules: what the backward pass does: a name in `interp.engine.rules.RULE_SETS`, as ``relp``, ``attnlrp`` or
            ``gradient``, of those that look at one run only.
        absolute: score by the sum over positions of absolute relevances, so that effects of either sign count and
            don't cancel; else by their plain sum, as in the paper, which is low for neurons that do harm.
        n, length, seed, split: of the text, 4 stretches of 128 tokens unless said, or all of the token ids
            that are given. Text that is given is not split.

    Returns:
        The finding; larger scores matter more. Its evidence has the ``scores`` and the signed ``effect``, the harm of
        taking a neuron away as estimated, both means over examples.

    Raises:
        UsageError: rules that look at two runs, or text as of `corpus`.
        InterpError: what flows back is NaN or infinite.

    Reference: Yeom et al. 2021, arXiv:1912.08881; Jafari et al. 2025, arXiv:2508.21258.

    Example:
        >>> neuron_relevance(model, "prose").top(10)    # doctest: +SKIP
    """
    chosen = rule_set(rules)
    if chosen.two_runs:
        raise UsageError(f"the rules {rules!r} look at both runs of a pair; take 'relp', 'attnlrp' or 'gradient'")
    parts, began = verified(model), time.perf_counter()
    parts.graph.check(Node("post", 0))
    settings: dict[str, Any] = {"rules": str(rules), "absolute": absolute, "seed": seed}
    if isinstance(target, Task):
        name, units = target.name, target.measure.units
        settings |= {"n": len(target), "seed": target.seed, "split": target.split, "metric": target.measure.name}
        signed, sizes = _of_task(parts, target, chosen)
    else:
        name, units = target if isinstance(target, str) else "text", "nats"
        split = half_of_corpus(target, split)
        tokens = corpus(target, model, *sized(target, n, length, 4, 128), seed, split=split).to(parts.device)
        settings |= {"n": len(tokens), "length": tokens.shape[1], "split": split, "metric": "cross_entropy"}
        signed, sizes = _of_text(parts, tokens, chosen)
    settings["seconds"] = round(time.perf_counter() - began, 3)
    dims = ("layer", "neuron")
    return NeuronRelevance(
        model=str(model.cfg.model_name),
        fingerprint=identity(model),
        evidence={
            "scores": scores(sizes if absolute else signed, dims, name="relevance", units=units),
            "effect": scores(signed, dims, name="harm of taking the neuron away, estimated", units=units),
        },
        settings=settings,
        method=str(rules),
        target=name,
    )


Pair = tuple[Float[np.ndarray, "layer neuron"], Float[np.ndarray, "layer neuron"]]


def _of_task(parts: Parts, task: Task, rules: Rules) -> Pair:
    """Signed and absolute relevance."""
    task, layers = task.to(parts.device), range(parts.graph.n_layers)
    sign = 1.0 if task.measure.higher_is_clean else -1.0
    stop = int(task.positions["end"].max()) + 1
    total = _Total(parts)
    with track(len(task), "relevance") as advance:
        for batch in task.batches(8):

            def measure(logits: Tensor, batch: Task = batch) -> Tensor:
                return batch.measure(logits, batch.right, batch.wrong, logits.detach())

            flow = backward(parts, batch.clean[:, :stop], batch.positions["end"], measure, {"post"}, rules=rules)
            total.add([sign * flow.values["post", layer] * flow.gradients["post", layer] for layer in layers])
            advance(len(batch))
    return total.means()


def _of_text(parts: Parts, tokens: Int[Tensor, "text pos"], rules: Rules) -> Pair:
    """Signed and absolute relevance."""
    total = _Total(parts)
    with track(len(tokens), "relevance") as advance:
        for text in tokens.split(1):
            with gradients():
                walk, neurons = Walk(parts, text.shape[1], rules), _Neurons()
                logits = parts.logits(walk(walk.embed(text).detach(), neurons))[0, :-1]
                wide = logits if logits.dtype == torch.float64 else logits.float()
                loss = torch.nn.functional.cross_entropy(wide, text[0, 1:])
                flows = torch.autograd.grad(loss, neurons.kept)
            total.add([-post.detach() * flow for post, flow in zip(neurons.kept, flows, strict=True)])
            advance(1)
    return total.means()


class _Neurons(Visitor):
    """Keeps the neurons' activations, with gradients."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        if site != "post":
            return x
        x = x if x.requires_grad else x.detach().requires_grad_()
        self.kept.append(x)
        return x


class _Total:
    """Relevances added up over positions and examples."""

    def __init__(self, parts: Parts) -> None:
        shape = (parts.graph.n_layers, parts.graph.d_mlp)
        self.signed, self.sizes, self.n = torch.zeros(shape), torch.zeros(shape), 0

    def add(self, each: Sequence[Float[Tensor, "row pos neuron"]]) -> None:
        self.signed += torch.stack([x.float().sum((0, 1)).cpu() for x in each])
        self.sizes += torch.stack([x.float().abs().sum((0, 1)).cpu() for x in each])
        self.n += len(each[0])

    def means(self) -> Pair:
        return (self.signed / self.n).numpy(), (self.sizes / self.n).numpy()
