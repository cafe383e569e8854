"""A model's first use: the walk must give what the bridge's own forward pass gives.

What is checked is the architecture, not how numbers are rounded: half-precision weights are compared in float32. How
much rounding matters for a task, an experiment says on the task's own prompts.
"""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.forward import Recorder, Walk
from interp.engine.parts import Multiplied, Parts, parts_of
from interp.engine.precision import HALF, in_float32, widened
from interp.errors import InterpError
from interp.graph import SITES

__all__ = ["verified"]

_checked: weakref.WeakKeyDictionary[TransformerBridge, bool] = weakref.WeakKeyDictionary()
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


def verified(model: TransformerBridge) -> Parts:
    """The model's parts, after a check, once a model, that they compute what the model computes.

    Raises:
        UsageError: The architecture has a part that can't be described.
        InterpError: The walk and the bridge differ; the message names the first site where they do.
    """
    parts = parts_of(model)
    mode = bool(getattr(model, "compatibility_mode", False))
    if _checked.get(model) is not mode:
        _compare(model, parts)
        _checked[model] = mode
    return parts


@torch.no_grad()
def _compare(model: TransformerBridge, parts: Parts) -> None:
    """One forward pass of each on a few tokens, in float32 where the model is in half precision."""
    tokens = torch.randint(0, parts.graph.d_vocab, (1, 8), generator=torch.Generator().manual_seed(0)).to(parts.device)
    half = parts.dtype in HALF
    recorder = Recorder(set(SITES))
    ours = _walked(model, _in_float32(parts) if half else parts, tokens, recorder)
    with in_float32(model) if half else nullcontext():
        if _close(ours, model(tokens)):
            return
        kept = [(site, layer) for layer in range(parts.graph.n_layers) for site in SITES]
        sites = [at for at in kept if at in recorder.kept]
        names = {parts.graph.hook(*at): at for at in sites if not (at[0] == "resid_mid" and parts.graph.parallel)}
        _, cache = model.run_with_cache(tokens, names_filter=list(names))
    for name, at in names.items():
        theirs = cache[name]
        if not _close(recorder.kept[at].reshape(theirs.shape), theirs):
            raise InterpError(
                f"this architecture computes something that the graph does not describe: "
                f"the walk and the model first differ at {name}"
            )
    raise InterpError("this architecture computes something that the graph does not describe, after its last block")


def _walked(model: TransformerBridge, parts: Parts, tokens: Tensor, recorder: Recorder) -> Tensor:
    """The walk's logits; every module's weights are float32 while they are used, if they were in half precision."""
    bridge: Any = model
    walk = Walk(parts, tokens.shape[1])
    resid = walk.embed(tokens)
    for layer in range(parts.graph.n_layers):
        with widened(bridge.blocks[layer]):
            resid = walk(resid, recorder, first_layer=layer, last_layer=layer)
    with widened(bridge.unembed):
        return parts.logits(resid)


def _in_float32(parts: Parts) -> Parts:
    """The parts with what they look up in float32; their projections are widened while they are used."""

    def wide(table: Any) -> Any:
        if isinstance(table, Multiplied):
            return replace(table, table=wide(table.table))
        return None if table is None else lambda ids: table(ids).float()

    return replace(parts, dtype=torch.float32, embed=wide(parts.embed), pos_embed=wide(parts.pos_embed))


def _close(ours: Tensor, theirs: Tensor) -> bool:
    tolerance = _TOLERANCE[ours.dtype]
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1e-6))
