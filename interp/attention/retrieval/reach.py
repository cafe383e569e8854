"""What a head's reach is worth: the loss of an answer when one key-value head sees only sinks and a window.

Retrieval scores count what a head copies. Here the cut itself is made, one key-value head at a time, which is what a
cache with sinks and a window does to it: DuoAttention (Xiao et al. 2024, arXiv 2410.10819, section 2.2) defines
retrieval heads by this deviation, and trains a gate for each head to find them. One cut at a time is exact, needs no
training, and does not see heads that stand in for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.forward import Recorder, Visitor, Walk
from interp.engine.identity import identity
from interp.engine.parts import Parts
from interp.engine.progress import track
from interp.engine.spread import elsewhere, in_order, spread
from interp.engine.verify import verified
from interp.errors import InterpError, UsageError, unknown_name
from interp.results import scores
from interp.results.findings import HeadImportance
from interp.tasks.keys import KeySample, key_samples
from interp.tasks.splits import one_split

__all__ = ["head_reach"]


@torch.no_grad()
def head_reach(
    model: TransformerBridge,
    samples: Sequence[KeySample] | None = None,
    *,
    where: Literal["answer", "prompt"] = "answer",
    sinks: int = 4,
    window: int = 124,
    keys: int = 1,
    length: int | Sequence[int] = 1024,
    haystack: str = "noise",
    n: int = 8,
    seed: int = 0,
    split: str | None = "find",
) -> HeadImportance:
    """How much the loss of an answer rises when a key-value head sees only sinks and a window.

    In the cut head queries see the first tokens and the most recent ones, in all other heads everything. Cut are either
    the queries behind the context, of the question and the answer: what a cache does that is compressed before the
    question comes; or those of the prompt, context and question: what sparse prefill does. Only samples that the model
    answers count.

    Args:
        model: any bridge; it is only read.
        samples: context, question and answer; unless given, made by `interp.tasks.key_samples` of the next arguments.
        where: ``answer`` (question and answer) or ``prompt`` (context and question; takes some ten times as long).
        sinks: tokens at the start that a cut head still sees.
        window: recent tokens that it still sees, the query's own among them.
        keys, length, haystack, n, seed, split: of the samples; of several lengths, `n` each.

    Returns:
        The finding, by method ``reach``: ``scores`` "layer head", in nats a token of the answer. Query heads that share
        a key-value head share its effect evenly, so that ``groups("sum")`` is the effect. Negative where the cut helps.
        ``settings`` have the dense model's ``recall`` and ``loss``.

    Raises:
        UsageError: sizes that make no sense, or a context that sinks and window cover.
        InterpError: the dense model finds none of the answers.

    Example:
        >>> finding = head_reach(model, length=1024)                            # doctest: +SKIP
        >>> RetrievalCache(retrieval=finding, budget=0.15, length=1024).plan(model)    # doctest: +SKIP
    """
    if where not in ("answer", "prompt"):
        raise unknown_name("place of the cut (where)", where, ("answer", "prompt"))
    if sinks < 0 or window < 1:
        raise UsageError(f"a cut head sees 0 sinks or more and a window of at least 1, got {sinks} and {window}")
    asked: dict[str, Any]
    if samples is None:
        sizes = [length] if isinstance(length, int) else length
        options: dict[str, Any] = {"haystack": haystack, "seed": seed, "split": split}
        samples = [one for size in sizes for one in key_samples(model, size, keys, n, **options)]
        asked = {"haystack": haystack, "seed": seed}
    else:
        asked = {"haystack": "given with the samples"}
    if not samples:
        raise UsageError("head_reach needs at least one sample")
    if (least := min(len(sample.context) for sample in samples)) <= sinks + window:
        raise UsageError(
            f"a context of {least} tokens is covered by {sinks} sinks and a window of {window}, so nothing is cut; "
            "take longer ones, or a smaller window"
        )
    parts = verified(model)
    harms, losses = [], []
    with track(len(samples) * parts.graph.n_layers, "reach of heads") as advance:
        here = partial(_cut, parts, where, sinks, window, advance)
        for found in in_order(spread(samples, here, _begin, model, (where, sinks, window))):
            if elsewhere() is not None:
                advance(parts.graph.n_layers)
            if found is not None:
                harms.append(found[0])
                losses.append(found[1])
    if not harms:
        raise InterpError(
            f"{model.cfg.model_name} finds none of the {len(samples)} answers, so no reach is worth anything; take "
            "shorter contexts (length=) or fewer keys"
        )
    shared = parts.graph.n_heads // parts.graph.n_kv_heads
    by_head = np.stack(harms).repeat(shared, 2) / shared
    return HeadImportance(
        model=str(model.cfg.model_name),
        fingerprint=identity(model),
        evidence={
            "scores": scores(by_head.mean(0), ("layer", "head"), name="rise of the loss", units="nats"),
            "each": scores(by_head, ("example", "layer", "head"), name="rise of the loss", units="nats"),
        },
        settings={
            "method": "reach",
            "where": where,
            "sinks": sinks,
            "window": window,
            "keys": samples[0].keys,
            "samples": len(samples),
            "lengths": sorted({len(sample.prompt) for sample in samples}),
            **asked,
            "split": one_split(samples),
            "recall": len(harms) / len(samples),
            "loss": float(np.mean(losses)),
        },
        n_kv_heads=parts.graph.n_kv_heads,
        method="reach",
        target=f"keys{samples[0].keys}",
    )


def _begin(model: TransformerBridge, where: str, sinks: int, window: int) -> Callable[[KeySample], Any]:
    """Measures samples on a worker's own model."""
    return partial(_cut, verified(model), where, sinks, window, lambda done: None)


@torch.no_grad()
def _cut(
    parts: Parts, where: str, sinks: int, window: int, advance: Callable[[float], Any], sample: KeySample
) -> tuple[Float[np.ndarray, "layer kv_head"], float] | None:
    """What each key-value head's cut does to one sample, and the sample's loss; None if it is not answered."""
    dense = _Sample(parts, sample, where, sinks, window)
    return (dense.harm(advance), dense.loss) if dense.found else None


class _Sample:
    """One sample: what enters each layer, and the keys and values of what is not computed anew."""

    def __init__(self, parts: Parts, sample: KeySample, where: str, sinks: int, window: int) -> None:
        tokens = torch.tensor([[*sample.prompt, *sample.answer[:-1]]], device=parts.device)
        self.parts, self.answer = parts, torch.tensor(sample.answer, device=parts.device)
        self.start, length = len(sample.context) if where == "answer" else 0, tokens.shape[1]
        self.walk, record = Walk(parts, length), Recorder({"resid_pre", "k_rotated", "v"})
        final = self.walk(self.walk.embed(tokens), record, read_from=length - len(self.answer))
        self.kept = record.kept
        self.loss = self._losses(final).item()
        self.found = bool((parts.logits(final)[0].argmax(-1) == self.answer).all())
        at = torch.arange(length, device=parts.device)
        distance = at[self.start :, None] - at
        self.hidden = (at >= sinks) & (distance >= window)
        if where == "prompt":
            self.hidden[len(sample.prompt) :] = False

    def harm(self, advance: Callable[[float], Any]) -> Float[np.ndarray, "layer kv_head"]:
        """The rise of the loss for each key-value head that is cut."""
        found, groups = [], self.parts.graph.n_kv_heads
        for layer in range(self.parts.graph.n_layers):
            resid = self.kept["resid_pre", layer][:, self.start :].expand(groups, -1, -1)
            final = self.walk(
                resid,
                _Cut(layer, groups, self.hidden),
                start=self.start,
                first_layer=layer,
                earlier=self._earlier,
                read_from=self.walk.length - len(self.answer),
            )
            found.append((self._losses(final) - self.loss).cpu())
            advance(1)
        return torch.stack(found).double().numpy()

    def _earlier(self, layer: int, rows: int) -> tuple[Tensor, Tensor]:
        keys, values = (self.kept[name, layer][:, : self.start] for name in ("k_rotated", "v"))
        return keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1)

    def _losses(self, final: Float[Tensor, "row token d_model"]) -> Float[Tensor, " row"]:
        logprobs = self.parts.logits(final).float().log_softmax(-1)
        return -logprobs.gather(2, self.answer.expand(len(final), -1)[..., None])[..., 0].mean(1)


class _Cut(Visitor):
    """In row r, key-value head r of a layer does not see what is hidden."""

    def __init__(self, layer: int, groups: int, hidden: Bool[Tensor, "query key"]) -> None:
        self.layer, self.groups, self.hidden = layer, groups, hidden

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        if site != "pattern" or layer != self.layer:
            return x
        hidden = self.hidden[self.hidden.shape[0] - x.shape[2] :]
        by_group = x.unflatten(1, (self.groups, -1)).clone()
        own = by_group.diagonal(dim1=0, dim2=1)  # "head query key group", a view
        own.masked_fill_(hidden[..., None], 0.0)
        own /= own.sum(2, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        return by_group.flatten(1, 2)
