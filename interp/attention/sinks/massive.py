"""Massive activations: a few channels of the residual stream, huge at a few positions, and which neurons write them."""

from __future__ import annotations

from typing import Any

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.attention.sinks.census import LARGE, MANY_TIMES, Census, census
from interp.engine.forward import Recorder, Walk
from interp.engine.identity import identity, versions
from interp.engine.parts import Block, Parts
from interp.engine.verify import verified
from interp.graph import Node
from interp.results import scores
from interp.results.findings import MassiveActivations
from interp.tasks.corpora import corpus, sized

__all__ = ["massive_activations", "massive_finding"]

_WRITERS = 4
"""Texts on which it is seen who writes the massive activations."""


def massive_activations(
    model: Any,
    source: Any = "prose",
    n: int | None = None,
    length: int | None = None,
    seed: int = 0,
    *,
    prefix: bool = True,
) -> MassiveActivations:
    """Finds the massive activations of a model: which channels and positions, from which layer to which, how large.

    An activation of the residual stream behind a layer is massive if its absolute value is above 100 and above 1,000
    times the median absolute value of that layer's whole hidden state in that text.

    Args:
        model: any bridge.
        source: texts, see `interp.tasks.corpus`; also token ids.
        n: how many texts; 16, or all of the token ids.
        length: tokens of each; 64, or all of the token ids.
        seed: of the choice of texts.
        prefix: let what the model wants before a text (BOS) stand first.

    Returns:
        The finding. What it states is about ``positions``, where half of the texts at least have one (if there is no
        such position, about all); ``channels`` are massive in half of the texts at least, from ``appears`` until
        ``vanishes``. Evidence: ``size`` and ``resid_norm`` "layer position", means over the texts; ``median`` "layer";
        ``count`` "layer", massive activations a text; ``values`` "layer channel", of the channels at the largest one's
        position, mean and ``deviation`` over the texts; ``written`` "kind layer channel", what the embedding, each
        attention and each MLP adds to the channels there up to the layer where they appear; ``neurons`` "channel
        neuron", what each neuron of that layer's MLP adds.

    Raises:
        UsageError: `n` below 1, `length` below 2, an unknown source.

    Reference: Sun et al. 2024, "Massive Activations in Large Language Models", arXiv:2402.17762, section 2.
    """
    tokens = corpus(source, model, *sized(source, n, length, 16, 64), seed, prefix=prefix)
    settings = {
        "source": source if isinstance(source, str) else type(source).__name__,
        "n": len(tokens),
        "length": tokens.shape[1],
        "seed": seed,
        "prefix": prefix,
    }
    return massive_finding(model, census(model, tokens), settings)


def massive_finding(model: Any, found: Census, settings: dict[str, Any]) -> MassiveActivations:
    """The finding of a census; see `massive_activations`."""
    about: dict[str, Any] = {"model": str(model.cfg.model_name), "fingerprint": identity(model)}
    settings = {**settings, "larger_than": LARGE, "times_the_median": MANY_TIMES, "versions": versions()}
    evidence = {
        "size": scores(
            found.size.mean(1),
            ("layer", "position"),
            name="largest activation of the residual stream",
            units="size",
            **about,
        ),
        "resid_norm": scores(found.resid_norm.mean(1), ("layer", "position"), name="residual norm"),
        "median": scores(found.median.mean(1), ("layer",), name="median size"),
        "count": scores(
            torch.bincount(found.massive[:, 0], minlength=len(found.size)) / len(found.tokens), ("layer",), name="count"
        ),
    }
    nothing: dict[str, Any] = {"channels": (), "appears": 0, "vanishes": 0, "positions": (), "ratio": 0.0}
    if not len(found.massive):
        return MassiveActivations(**about, evidence=evidence, settings=settings, **nothing)
    layers, _, positions, channels = found.massive.T
    usual = [p for p in positions.unique().tolist() if _texts_with(found, positions == p) * 2 >= len(found.tokens)]
    here = torch.isin(positions, torch.tensor(usual)) if usual else torch.ones_like(positions, dtype=torch.bool)
    often = [_texts_with(found, here & (channels == c)) for c in range(int(channels.max()) + 1)]
    kept = [c for c, many in enumerate(often) if many * 2 >= len(found.tokens)] or [int(channels[here][0])]
    largest = {c: float(found.massive_values[here & (channels == c)].abs().max()) for c in kept}
    kept.sort(key=lambda c: (-largest[c], c))
    by_layer = [
        _texts_with(found, here & (layers == layer) & torch.isin(channels, torch.tensor(kept)))
        for layer in _layers(found)
    ]
    present = [many * 2 >= len(found.tokens) for many in by_layer]
    strongest = int(found.massive_values.abs().mul(here).argmax())
    appears, vanishes = _span(present, int(layers[strongest]))
    layer, text, position, _ = found.massive[strongest].tolist()
    ratio = float(found.massive_values[strongest].abs() / found.median[layer, text])
    evidence |= _writers(verified(model), found, kept, appears, position, text)
    return MassiveActivations(
        **about,
        channels=kept,
        appears=appears,
        vanishes=vanishes,
        positions=usual,
        ratio=ratio,
        evidence=evidence,
        settings={**settings, "writers_at": position},
    )


def _layers(found: Census) -> range:
    return range(len(found.size))


def _texts_with(found: Census, which: Tensor) -> int:
    return len(found.massive[which][:, 1].unique())


def _span(present: list[bool], strongest: int) -> tuple[int, int]:
    """The run of layers around the strongest one: first, and the first behind it."""
    first = last = strongest
    while first > 0 and present[first - 1]:
        first -= 1
    while last + 1 < len(present) and present[last + 1]:
        last += 1
    return first, last + 1


@torch.no_grad()
def _writers(
    parts: Parts, found: Census, channels: list[int], appears: int, position: int, text: int
) -> dict[str, xr.DataArray]:
    """Who adds what to the channels at one position, on a few texts of which `text` is the first."""
    tokens = found.tokens.roll(-text, 0)[:_WRITERS, : position + 1].to(parts.device)
    parts.graph.check(Node("post", appears))
    walk, recorder = Walk(parts, position + 1), Recorder({"resid_pre", "attn_out", "post", "mlp_out", "resid_post"})
    walk(walk.embed(tokens), recorder)

    def at(site: str, layer: int) -> Float[Tensor, "text channel"]:
        return recorder.kept[site, layer][:, position, channels].float().cpu()

    n_layers = len(parts.blocks)
    values = torch.stack([at("resid_post", layer) for layer in range(n_layers)])
    zero = torch.zeros(len(channels))
    written = [
        [at("resid_pre", 0).mean(0), *[zero] * appears],
        [at("attn_out", layer).mean(0) for layer in range(appears + 1)],
        [at("mlp_out", layer).mean(0) for layer in range(appears + 1)],
    ]
    post = recorder.kept["post", appears][:, position]
    by_neuron = _neurons(parts.blocks[appears], post, channels).float().cpu().mean(0)
    labels: dict[str, Any] = {"channel": channels}
    kinds = {**labels, "kind": ["embedding", "attention", "mlp"]}
    return {
        "values": scores(values.mean(1), ("layer", "channel"), labels, name="value"),
        "deviation": scores(values.std(1, correction=0), ("layer", "channel"), labels, name="standard deviation"),
        "written": scores(
            torch.stack([torch.stack(each) for each in written]), ("kind", "layer", "channel"), kinds, name="added"
        ),
        "neurons": scores(by_neuron, ("channel", "neuron"), labels, name="added", layer=appears),
    }


def _neurons(
    block: Block, post: Float[Tensor, "text neuron"], channels: list[int]
) -> Float[Tensor, "text channel neuron"]:
    """What each neuron adds to the channels; behind a norm of the MLP's output, as scaled by it (and not centred)."""
    inner = block.down
    while hasattr(inner, "original_component"):
        inner = inner.original_component
    weight = inner.weight.T if type(inner).__name__ == "Conv1D" else inner.weight
    added = post[:, None, :] * weight[channels]
    if block.ln2_post is not None:
        scale = block.ln2_post.inverse_scale(block.down(post))[..., None]
        added = added * scale * (1.0 if block.ln2_post.weight is None else block.ln2_post.weight[channels][:, None])
    return added
