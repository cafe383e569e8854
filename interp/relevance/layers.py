"""How redundant each block is: how little it turns the residual stream, and how little is lost without it.

*Influence* (Men et al. 2024, ShortGPT, arXiv:2403.03853): 1 - E cos(x_l, x_l+1) of a block's input and output, over all
tokens. *Distance* (Gromov et al. 2024, arXiv:2403.17887): arccos(cos(x_l, x_l+n)) / pi of what enters block l and what
enters block l + n, at the last token of each text. *Harm*: the rise of the loss when the block is left out, which the
others stand for and which they need not agree with.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.forward import Recorder, Visitor, Walk
from interp.engine.identity import identity
from interp.engine.parts import Parts
from interp.engine.progress import track
from interp.engine.verify import verified
from interp.results import scores
from interp.results.findings import LayerRedundancy
from interp.tasks import corpus, sized
from interp.tasks.splits import half_of_corpus

__all__ = ["layer_redundancy"]


@torch.no_grad()
def layer_redundancy(
    model: TransformerBridge,
    target: str | Sequence[str] | Int[Tensor, "text pos"] = "prose",
    *,
    harm: bool = True,
    n: int | None = None,
    length: int | None = None,
    seed: int = 0,
    split: str | None = "find",
) -> LayerRedundancy:
    """What each block does to plain text.

    Args:
        model: any bridge; it is only read.
        target: a name of `interp.tasks.CORPORA`, texts, or token ids.
        harm: measure the loss without each block as well, which takes as long as half as many passes as blocks.
        n, length, seed, split: of the text, 8 stretches of 64 tokens unless said, or all of the token ids
            that are given. Text that is given is not split.

    Returns:
        The finding.

    Raises:
        UsageError: text as of `corpus`.

    Reference: Men et al. 2024, arXiv:2403.03853; Gromov et al. 2024, arXiv:2403.17887.

    Example:
        >>> layer_redundancy(model, "prose").to_frame()    # doctest: +SKIP
    """
    parts, began = verified(model), time.perf_counter()
    split = half_of_corpus(target, split)
    tokens = corpus(target, model, *sized(target, n, length, 8, 64), seed, split=split).to(parts.device)
    layers = parts.graph.n_layers
    walk, recorder = Walk(parts, tokens.shape[1]), Recorder({"resid_pre"})
    final = walk(walk.embed(tokens), recorder)
    stream = [*(recorder.kept["resid_pre", layer] for layer in range(layers)), final]
    influence = np.array([1 - float(_cosine(a, b).mean()) for a, b in pairwise(stream)])
    evidence = {
        "influence": scores(influence, ("layer",), name="1 - cosine of input and output"),
        "distance": scores(
            _distances(stream),
            ("layer", "length"),
            {"length": np.arange(1, layers + 1)},
            name="angle between input and output of a run",
            units="share of pi",
            allow_nan=True,
        ),
    }
    if harm:
        values = _harm(parts, walk, tokens, stream)
        evidence["harm"] = scores(values, ("layer",), name="rise of the loss", units="nats")
    return LayerRedundancy(
        model=str(model.cfg.model_name),
        fingerprint=identity(model),
        evidence=evidence,
        settings={
            "n": len(tokens),
            "length": tokens.shape[1],
            "seed": seed,
            "split": split,
            "seconds": round(time.perf_counter() - began, 3),
        },
        target=target if isinstance(target, str) else "text",
    )


def _cosine(a: Tensor, b: Tensor) -> Float[Tensor, ...]:
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)


def _distances(stream: Sequence[Tensor]) -> Float[np.ndarray, "layer length"]:
    """Angles at the last token; NaN where a run would be longer than the model."""
    last = [x[:, -1] for x in stream]
    found = np.full((len(last) - 1, len(last) - 1), np.nan)
    for first, x in enumerate(last[:-1]):
        for length, y in enumerate(last[first + 1 :]):
            found[first, length] = float(_cosine(x, y).clamp(-1, 1).arccos().mean() / torch.pi)
    return found


def _harm(
    parts: Parts, walk: Walk, tokens: Int[Tensor, "text pos"], stream: Sequence[Tensor]
) -> Float[np.ndarray, " layer"]:
    """The rise of the loss without each block; what enters it enters the next one instead."""
    plain, layers = _loss(parts, stream[-1], tokens), parts.graph.n_layers
    found = np.zeros(layers)
    with track(layers, "block by block") as advance:
        for layer in range(layers):
            without = walk(stream[layer], Visitor(), first_layer=layer + 1)
            found[layer] = _loss(parts, without, tokens) - plain
            advance(1)
    return found


def _loss(parts: Parts, final: Float[Tensor, "text pos d_model"], tokens: Int[Tensor, "text pos"]) -> float:
    """Mean cross-entropy of the next tokens."""
    total = 0.0
    for x, text in zip(final, tokens, strict=True):
        total += float(torch.nn.functional.cross_entropy(parts.logits(x[:-1]).double(), text[1:]))
    return total / len(tokens)
