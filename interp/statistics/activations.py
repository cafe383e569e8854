"""How large the inputs of linear layers are, channel by channel, with sinks and without."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.engine.forward import Visitor, Walk
from interp.engine.identity import identity, versions
from interp.engine.parts import Parts
from interp.engine.progress import track
from interp.engine.verify import verified
from interp.errors import UsageError
from interp.graph import Node
from interp.results import scores
from interp.results.findings import ActivationStatistics, MassiveActivations, SinkPositions, positions_or
from interp.tasks import corpus
from interp.tasks.splits import half_of_corpus

__all__ = ["INPUTS", "activation_statistics"]

INPUTS = {"qkv": "resid_pre", "o": "z", "mlp": "mlp_port", "down": "post"}
"""The inputs of a block's linear layers, and the site of the walk that each is read at."""

METRICS = ("mean", "square", "max")
_KINDS = ("all", "without sinks")
_AT_ONCE = 4


@torch.no_grad()
def activation_statistics(
    model: Any,
    source: Any = "prose",
    n: int | None = None,
    length: int | None = None,
    seed: int = 0,
    *,
    sinks: SinkPositions | MassiveActivations | None = None,
    split: str | None = "find",
) -> ActivationStatistics:
    """Mean absolute value, mean square and largest absolute value of each channel that enters a linear layer.

    Args:
        model: Any bridge.
        source: Texts, see `interp.tasks.corpus`; also token ids.
        n: How many texts; 16, or all of the token ids.
        length: Tokens of each; 256, or all of the token ids.
        seed: Of the choice of texts.
        sinks: Which positions and tokens are left out in the second set of numbers; without it, the first position.
        split: Of the texts; texts and token ids that are given are all taken, whatever the split.

    Returns:
        The finding; evidence ``qkv``, ``o``, ``mlp`` and ``down``, each "kind metric layer channel".

    Raises:
        UsageError: `n` below 1, `length` below 2, sinks of another model, or nothing left without them.

    Reference: the mean absolute value is what AWQ scales by (Lin et al. 2023, arXiv 2306.00978), the largest one what
    SmoothQuant does (Xiao et al. 2022, arXiv 2211.10438).
    """
    if sinks is not None:
        sinks.check(model)
    split = half_of_corpus(source, split)
    tokens = corpus(source, model, n, length, seed, split=split)
    parts = verified(model)
    parts.graph.check(Node("post", 0))
    positions = positions_or(sinks, (0,), "activation_statistics")
    named = tuple(getattr(sinks, "tokens", ()))
    left = torch.ones(tokens.shape, dtype=torch.bool)
    left[:, [p for p in positions if p < tokens.shape[1]]] = False
    left &= ~torch.isin(tokens.cpu(), torch.tensor(named, dtype=torch.long))
    if not left.any():
        raise UsageError(f"all {tokens.numel()} tokens are sinks, nothing is left to find statistics of")
    sums = _Sums(parts)
    walk = Walk(parts, tokens.shape[1])
    with track(len(tokens), "activation statistics") as advance:
        for at in range(0, len(tokens), _AT_ONCE):
            batch = tokens[at : at + _AT_ONCE].to(parts.device)
            sums.left = left[at : at + _AT_ONCE].to(parts.device)
            walk(walk.embed(batch), sums)
            advance(len(batch))
    return ActivationStatistics(
        model=str(model.cfg.model_name),
        fingerprint=identity(model),
        positions=positions,
        tokens=named,
        evidence={name: _array(name, values, tokens.numel(), int(left.sum())) for name, values in sums.found.items()},
        settings={
            "source": source if isinstance(source, str) else type(source).__name__,
            "n": len(tokens),
            "length": tokens.shape[1],
            "seed": seed,
            "split": split,
            **versions(),
        },
    )


class _Sums(Visitor):
    """Adds up, at each input of a linear layer: "kind metric layer channel"."""

    needs_pattern = False

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.left: Bool[Tensor, "text pos"] = torch.empty(0, 0, dtype=torch.bool)
        self.found: dict[str, Float[Tensor, "kind metric layer channel"]] = {}

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        for name, at in INPUTS.items():
            if at == site:
                self._add(name, layer, self._entering(name, layer, x).float().abs())
        return x

    def _entering(self, name: str, layer: int, x: Tensor) -> Tensor:
        block = self.parts.blocks[layer]
        if name == "qkv":
            return block.ln1(x)
        return block.ln2(x) if name == "mlp" else x.flatten(2)

    def _add(self, name: str, layer: int, size: Float[Tensor, "text pos channel"]) -> None:
        if name not in self.found:
            shape = (len(_KINDS), len(METRICS), len(self.parts.blocks), size.shape[-1])
            self.found[name] = torch.zeros(shape, dtype=torch.float64)
        for kind, x in enumerate((size.flatten(0, 1), size[self.left])):
            if not len(x):
                continue
            sums = self.found[name][kind, :, layer]
            sums[0] += x.sum(0).double().cpu()
            sums[1] += x.square().sum(0).double().cpu()
            sums[2] = torch.maximum(sums[2], x.amax(0).double().cpu())


def _array(name: str, sums: Float[Tensor, "kind metric layer channel"], tokens: int, left: int) -> Any:
    values = sums.clone()
    for kind, count in enumerate((tokens, left)):
        values[kind, :2] /= count
    return scores(
        values.float(),
        ("kind", "metric", "layer", "channel"),
        {"kind": list(_KINDS), "metric": list(METRICS)},
        name="size",
        units="absolute value (square: its square)",
        input=name,
        tokens=tokens,
        tokens_without_sinks=left,
    )
