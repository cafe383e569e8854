"""One forward and one backward pass: activations, and what flows back to them under a set of rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.engine.compute import note_slow
from interp.engine.forward import Visitor, Walk
from interp.engine.parts import Parts
from interp.engine.rules import GRADIENT, Rules
from interp.errors import InterpError
from interp.gradients import gradients
from interp.graph import ORDER

__all__ = ["Flow", "backward"]

Site = tuple[str, int]

STREAM = ("resid_pre", "resid_mid", "resid_post")


class Flow:
    """The result of a backward pass.

    Attributes:
        values: The activations at the recorded sites, by site and layer, "batch pos ...".
        gradients: What flowed back to them, of the same shapes; zero where nothing does.
        metric: The metric of every example.
    """

    def __init__(
        self,
        values: dict[Site, Tensor],
        gradients: dict[Site, Tensor],
        metric: Tensor,
        kept: dict[Site, Tensor] | None = None,
    ) -> None:
        self.values, self.gradients, self.metric = values, gradients, metric
        self.kept = kept

    @gradients()
    def drop(self, layer: int) -> dict[Site, Tensor]:
        """The gradients at this layer's and all earlier sites if the layer's attention and MLP passed nothing back.

        Only the skip connection is left of the layer, so what flows back to its output enters its input as it is,
        and the backward pass goes on from there. Later sites keep their gradients. Equals ``backward(cut=layer)``.

        Args:
            layer: The layer that is dropped.

        Raises:
            InterpError: The pass was not made with ``drops=True``.
        """
        if self.kept is None:
            raise InterpError("make the backward pass with drops=True to drop layers from it")
        n_layers = max(at[1] for at in self.kept if at[0] == "resid_pre") + 1
        after = ("resid_pre", layer + 1) if layer + 1 < n_layers else ("final", n_layers)
        into = self.kept["resid_pre", layer]
        seed = torch.zeros_like(into)
        seed[:, into.shape[1] - self.gradients[after].shape[1] :] = self.gradients[after]
        here = [at for at in self.kept if at[1] == layer and at[0] in STREAM]
        below = [at for at in self.kept if at[1] < layer]
        found = (
            torch.autograd.grad(into, [self.kept[at] for at in below], seed, retain_graph=True, allow_unused=True)
            if below
            else ()
        )
        gradients = {at: torch.zeros_like(self.gradients[at]) for at in self.kept if at[1] == layer}
        for at in here:
            gradients[at] = seed[:, seed.shape[1] - gradients[at].shape[1] :]
        gradients |= {
            at: torch.zeros_like(self.gradients[at]) if gradient is None else gradient
            for at, gradient in zip(below, found, strict=True)
        }
        return gradients


class _Tape(Visitor):
    def __init__(self, sites: set[str], replace: dict[Site, Callable[[Tensor], Tensor]], cut: int | None) -> None:
        self.sites, self.replace, self.cut = sites, replace, cut
        self.kept: dict[Site, Tensor] = {}

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        if (site, layer) in self.replace:
            x = self.replace[site, layer](x)
        if site in self.sites:
            if not x.requires_grad:
                x = x.detach().requires_grad_()
            self.kept[site, layer] = x
        return x.detach() if layer == self.cut and site in ("attn_out", "mlp_out") else x

    def wants(self, layer: int, site: str) -> bool:
        return site in self.sites or (site, layer) in self.replace


def backward(
    parts: Parts,
    tokens: Int[Tensor, "batch pos"] | None,
    ends: Int[Tensor, " batch"],
    metric: Callable[[Tensor], Tensor],
    sites: set[str],
    *,
    rules: Rules = GRADIENT,
    answers: Int[Tensor, " answers"] | None = None,
    ungrouped: bool = False,
    embedded: Float[Tensor, "batch pos d_model"] | None = None,
    replace: dict[Site, Callable[[Tensor], Tensor]] | None = None,
    cut: int | None = None,
    other: Mapping[Site, Tensor] | None = None,
    first_layer: int = 0,
    drops: bool = False,
) -> Flow:
    """Runs prompts forward, and the sum of their metrics backward.

    Args:
        parts: The model.
        tokens: The prompts; None if `embedded` is given.
        ends: The position whose logits are read, of each.
        metric: From logits "batch vocab" to the metric of each example.
        sites: Where activations and gradients are wanted.
        rules: What the backward pass does at each nonlinear place.
        answers: The tokens whose logits `metric` gets; None for all.
        ungrouped: Keys and values for each query head, see `Walk`.
        embedded: What enters the first block, instead of the tokens' embeddings.
        replace: New values at some sites and layers, as functions of the old ones.
        cut: A layer whose attention and MLP pass nothing back (GradDrop).
        other: For rules that look at both runs, see `Walk`.
        first_layer: The block that `embedded` enters.
        drops: Keep what `Flow.drop` needs.

    Raises:
        InterpError: A gradient is NaN or infinite; the message names the place where it first appeared.
    """
    note_slow(parts)
    sites = {*sites, "resid_pre", "final"} if drops else sites
    with gradients():
        given = tokens if embedded is None else embedded
        if given is None:
            raise InterpError("give tokens, or what enters the first block")
        walk, tape = Walk(parts, given.shape[1], rules, ungrouped, other), _Tape(sites, replace or {}, cut)
        resid = (walk.embed(given) if embedded is None else embedded).detach().requires_grad_(first_layer == 0)
        first = int(ends.min())
        final = walk(resid, tape, first_layer=first_layer, read_from=first)
        final = tape.visit(parts.graph.n_layers, "final", first, final)
        rows = torch.arange(len(final), device=final.device)
        other_final = (other or {}).get(("final", parts.graph.n_layers))
        other_final = None if other_final is None else other_final[rows, ends - first]
        logits = walk.logits(final[rows, ends - first], answers, other_final)
        measured = metric(logits)
        kept = dict(tape.kept)
        found = (
            torch.autograd.grad(measured.sum(), list(kept.values()), allow_unused=True, retain_graph=drops)
            if kept
            else ()
        )
    flows = {
        at: torch.zeros_like(x) if flow is None else flow for (at, x), flow in zip(kept.items(), found, strict=True)
    }
    _check(flows, rules, parts)
    values = {at: x.detach() for at, x in kept.items()}
    return Flow(values, flows, measured.detach(), kept if drops else None)


def _check(gradients: dict[Site, Tensor], rules: Rules, parts: Parts) -> None:
    """The backward pass runs from the last layer down, so the first bad place is the latest one."""
    order: Sequence[str] = [
        *ORDER,
        "k_rotated",
        "mlp_port",
        "q_rotated",
        "attn_written",
        "mlp_written",
        "gate",
        "up",
        "final",
    ]
    for site, layer in sorted(gradients, key=lambda at: (at[1], order.index(at[0])), reverse=True):
        if not gradients[site, layer].isfinite().all():
            raise InterpError(
                f"what flows back is NaN or infinite, first at {site} of layer {layer} under the rules ({rules}); "
                f"try a larger epsilon, or plain gradients there"
            )
