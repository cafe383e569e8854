"""What all estimates share: the runs in batches, the backward passes, and the way from there to labelled scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.forward import Recorder, Walk, inside
from interp.engine.gradient import Flow, backward
from interp.engine.memory import budget_bytes
from interp.engine.parts import Parts
from interp.engine.rules import Rules
from interp.engine.spread import part_count, spread
from interp.errors import UsageError
from interp.gradients import gradients
from interp.graph import INDEX_OF_SITE, site_of
from interp.patching.baselines import check_tokens, finite
from interp.patching.experiment import Experiment
from interp.patching.labels import Axes, labelled
from interp.tasks import Task

__all__ = [
    "Batch",
    "Estimated",
    "Plan",
    "along_activation",
    "assembled",
    "batches",
    "effect",
    "estimates",
    "labelled_estimates",
    "placed",
    "reduced",
    "room",
]


Estimated = tuple[dict[str, Tensor], Tensor, Tensor]
"""Estimates "*node example metric" by kind, and the logits "example vocab" of the base run and of the other."""


class Plan:
    """What is to be estimated, of which nodes, and where what is found goes.

    Args:
        As in `attribution`.

    Attributes:
        given: What makes the same plan with another process's model; the budget is that process's own.
    """

    def __init__(
        self,
        model: TransformerBridge,
        task: Task,
        kinds: Sequence[str],
        by_position: bool | str = False,
        mode: str = "denoising",
        metric: str | Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        indices: Sequence[int] | None = None,
        positions: Sequence[int] | None = None,
        max_memory: int | None = None,
        compute: str | None = None,
    ) -> None:
        self.kinds, self.by_position, self.several = list(kinds), by_position, not isinstance(metric, str | None)
        metrics = [metric] if isinstance(metric, str) else metric
        self.experiment = Experiment(
            model, task, mode=mode, metrics=metrics, max_memory=max_memory, compute=compute, deferred=True
        )
        self.task, self.parts = self.experiment.task, self.experiment.parts
        self.max_memory = max_memory
        for kind in self.experiment.metrics:
            if kind.name == "rank":
                raise UsageError(
                    "metric 'rank' counts tokens and has no gradient; take 'logit_diff' or 'cross_entropy'"
                )
        for tokens in (self.task.clean, self.task.corrupted):
            check_tokens(self.parts, self.task, tokens)
        self.ends = self.task.positions["end"]
        self.first, self.stop = int(self.ends.min()), int(self.ends.max()) + 1
        self.given = {
            "task": self.task.to("cpu"),
            "kinds": self.kinds,
            "by_position": by_position,
            "mode": mode,
            "metric": metric,
            "layers": layers,
            "indices": indices,
            "positions": positions,
            "compute": compute,
        }
        self.settings = {"layers": layers, "indices": indices, "positions": positions}
        self.axes = {
            kind: Axes.of(self.parts.graph, self.task, site_of(kind), by_position, layers, indices, positions)
            for kind in kinds
        }

    @property
    def sites(self) -> set[str]:
        """The sites of all kinds."""
        return {site_of(kind) for kind in self.kinds}


class Batch:
    """Some examples of a plan, with the run that activations are taken from.

    Attributes:
        examples: Which examples.
        base: Tokens of the base run, up to the last position that is read.
        other: Activations of the other run, by site and layer.
        other_logits: Its logits at the ends.
        base_logits: Those of the base run, once it has been made.
        embedded: What enters the first block in the base run and in the other.
    """

    def __init__(self, plan: Plan, examples: slice, sites: set[str], chosen: Rules) -> None:
        self.plan, self.examples, self.rules = plan, examples, chosen
        self.base = plan.experiment.base[examples, : plan.stop]
        self.ends = plan.ends[examples]
        tokens = plan.experiment.other[examples, : plan.stop]
        self.other, self.other_logits, other_embedded = self._run(tokens, sites | inside(chosen))
        self.base_logits: Tensor | None = None
        self.embedded = (Walk(plan.parts, plan.stop).embed(self.base), other_embedded)

    def logits(self) -> tuple[Tensor, Tensor]:
        """The logits at the ends of the base run, which is made if it has not been, and of the other."""
        if self.base_logits is None:
            self.base_run(set())
        assert self.base_logits is not None
        return self.base_logits, self.other_logits

    @torch.no_grad()
    def base_run(self, sites: set[str]) -> dict[tuple[str, int], Tensor]:
        """The activations of the base run."""
        values, self.base_logits, _ = self._run(self.base, sites)
        return values

    def backward(self, metric: int, sites: set[str], repeats: int = 1, **options: Any) -> Flow:
        """A backward pass of one of the plan's metrics from the base run, or from the rows ``embedded``."""
        given = {"rules": self.rules, "other": self.other if self.rules.two_runs else None, **options}
        tokens = None if "embedded" in options else self.base
        ends = self.ends.repeat(repeats)
        return backward(self.plan.parts, tokens, ends, self.measure(metric, repeats), sites, **given)

    def measure(self, number: int, repeats: int = 1) -> Callable[[Tensor], Tensor]:
        """One of the metrics, of logits "row vocab"; it must have a gradient."""
        plan, kind = self.plan, self.plan.experiment.metrics[number]
        right, wrong = (ids[self.examples].repeat(repeats, 1) for ids in (plan.task.right, plan.task.wrong))

        def measure(logits: Tensor) -> Tensor:
            if self.base_logits is None:
                self.base_logits = logits.detach()
            clean = self.other_logits if plan.experiment.mode == "denoising" else self.base_logits
            values = kind(logits, right, wrong, clean.repeat(repeats, 1))
            if not values.requires_grad:
                raise UsageError(f"metric {kind.name!r} has no gradient, so nothing can be estimated from it")
            return values

        return measure

    @torch.no_grad()
    def _run(self, tokens: Tensor, sites: set[str]) -> tuple[dict[tuple[str, int], Tensor], Tensor, Tensor]:
        plan = self.plan
        walk, recorder = Walk(plan.parts, plan.stop), Recorder(sites)
        embedded = walk.embed(tokens)
        final = walk(embedded, recorder, read_from=plan.first)
        rows = torch.arange(len(final), device=final.device)
        recorder.kept["final", plan.parts.graph.n_layers] = final
        return recorder.kept, plan.parts.logits(final[rows, self.ends - plan.first]), embedded


def batches(plan: Plan, sites: set[str], chosen: Rules, rows: int = 1) -> Iterator[Batch]:
    """The examples in batches that keep within the memory budget, with their other run made.

    When the last one has been taken, the plan's experiment knows the baselines.

    Args:
        plan: What is to be estimated.
        sites: The sites whose activations in the other run are wanted.
        chosen: The rules.
        rows: How many rows of each example go backward together.
    """
    found: list[tuple[Tensor, Tensor]] = []
    for examples in _slices(plan, rows):
        batch = Batch(plan, examples, sites, chosen)
        yield batch
        found.append(batch.logits())
    _measure(plan, found)


def assembled(
    plan: Plan,
    here: Callable[[slice], Estimated],
    begin: Callable[..., Callable[[slice], Estimated]],
    given: tuple,
    rows: int = 1,
) -> dict[str, Float[Tensor, "*node example metric"]]:
    """The estimates of all examples from those of some at a time, computed here or by workers.

    When they are all there, the plan's experiment knows the baselines.

    Args:
        plan: What is to be estimated.
        here: The estimates of some examples: by kind, and the logits of the base run and of the other.
        begin: ``begin(model, *given)`` makes the same of `here` in a worker.
        given: See `begin`.
        rows: How many rows of each example go backward together.
    """
    found = {kind: room(plan, kind) for kind in plan.kinds}
    parts = _slices(plan, rows, part_count())
    logits: dict[int, tuple[Tensor, Tensor]] = {}
    for number, (effects, *both) in spread(parts, here, begin, plan.experiment.model, given):
        for kind in plan.kinds:
            found[kind][..., parts[number], :] = effects[kind]
        logits[number] = both[0], both[1]
    _measure(plan, [logits[number] for number in range(len(parts))])
    return found


def _slices(plan: Plan, rows: int, least: int | None = None) -> list[slice]:
    """The examples in batches that keep within the memory budget; about `least` batches, where there are so many."""
    budget, n = budget_bytes(plan.parts.device, plan.max_memory), len(plan.task)
    at_once = max(1, budget // (rows * _bytes_per_example(plan.parts, plan.stop)))
    if least is not None:
        at_once = min(at_once, -(-n // least))
    return [slice(begin, min(begin + at_once, n)) for begin in range(0, n, at_once)]


def _measure(plan: Plan, found: list[tuple[Tensor, Tensor]]) -> None:
    """Tells the plan's experiment the logits of the base run and of the other."""
    experiment = plan.experiment
    base, other = (
        finite(plan.parts, plan.task, tokens, torch.cat(logits).to(plan.parts.device))
        for tokens, logits in zip((experiment.base, experiment.other), zip(*found, strict=True), strict=True)
    )
    denoising = experiment.mode == "denoising"
    experiment.measure({"clean": other if denoising else base, "corrupted": base if denoising else other})


def estimates(
    plan: Plan, chosen: Rules, steps: int = 1, along: str = "inputs"
) -> dict[str, Float[Tensor, "*node example metric"]]:
    """Estimates of all kinds of node of a plan: from one backward pass, if ``steps`` is 1.

    Args:
        plan: What is to be estimated.
        chosen: The rules.
        steps: As in `attribution`.
        along: As in `attribution`.

    Returns:
        For each kind its estimates, with the plan's axes, the examples and the metrics.
    """
    rows = steps if along == "activations" else 1
    here = partial(_estimated, plan, chosen, steps, along)
    return assembled(plan, here, _begin, (plan.given, chosen, steps, along), rows)


def _begin(model: TransformerBridge, given: dict[str, Any], *settings: Any) -> Callable[[slice], Estimated]:
    """Computes estimates of some examples on a worker's own model."""
    return partial(_estimated, Plan(model, **given), *settings)


@gradients()
def _estimated(plan: Plan, chosen: Rules, steps: int, along: str, examples: slice) -> Estimated:
    batch = Batch(plan, examples, plan.sites, chosen)
    found = {kind: room(plan, kind, batch) for kind in plan.kinds}
    for number in range(len(plan.experiment.metrics)):
        if steps == 1:
            flow = batch.backward(number, plan.sites)
            values, flows = flow.values, flow.gradients
        else:
            values = batch.base_run(plan.sites | {"resid_pre"})
            way = _along_inputs if along == "inputs" else _along_activations
            flows = way(batch, number, values, steps)
        for kind in plan.kinds:
            site = site_of(kind)
            effects = {
                layer: effect(site, batch.other[site, layer] - values[site, layer], flows[site, layer])
                for layer in plan.axes[kind].layers
            }
            found[kind][..., number] = reduced(plan, kind, effects, batch.examples)
    base, other = batch.logits()
    return found, base.cpu(), other.cpu()


def effect(site: str, difference: Tensor, flow: Tensor) -> Float[Tensor, "batch *index pos"]:
    """The inner product of difference and flow at every node and position of a site."""
    if site in ("post", "router"):
        return (difference * flow).transpose(1, 2)
    product = torch.linalg.vecdot(difference, flow)
    return product.transpose(1, 2) if site in ("q", "k", "v", "z", "expert") else product


def reduced(
    plan: Plan, kind: str, effects: dict[int, Float[Tensor, "batch *index pos"]], examples: slice
) -> Float[Tensor, "*node example"]:
    """The effects of all positions, by layer, laid out along a kind's axes.

    In the last block only the positions that are read are walked; at the others there is no effect.
    """
    axes, stop = plan.axes[kind], plan.stop
    layers = []
    for layer in axes.layers:
        x = effects[layer].movedim(0, -1)
        if INDEX_OF_SITE.get(site_of(kind)) and plan.settings["indices"] is not None:
            x = x[list(axes.indices)]
        layers.append(placed(x, axes.places, stop, examples))
    return torch.stack(layers).float().cpu()


def placed(
    effects: Float[Tensor, "*index pos example"], places: Sequence[Any], stop: int, examples: slice
) -> Float[Tensor, "*index place example"]:
    """The effects of the last positions up to `stop`, added up (without an axis) or at some places; 0 before them."""
    if places == [None]:
        return effects.sum(-2)
    effects = torch.nn.functional.pad(effects, (0, 0, stop - effects.shape[-2], 0))
    return torch.stack([_at(effects, place, examples) for place in places], -2)


def labelled_estimates(
    plan: Plan, found: dict[str, Tensor], per_example: bool, seconds: float, **attrs: Any
) -> list[xr.DataArray]:
    """Estimates as scores, kind by kind."""
    metrics = [kind.name for kind in plan.experiment.metrics] if plan.several else None
    return [
        labelled(
            plan.experiment,
            found[kind],
            plan.axes[kind].dims,
            plan.axes[kind].coords,
            metrics,
            per_example,
            nodes=kind,
            by_position=plan.by_position,
            seconds=round(seconds / len(plan.kinds), 4),
            interventions=0,
            settings={name: value for name, value in plan.settings.items() if value},
            **attrs,
        )
        for kind in plan.kinds
    ]


def _along_inputs(batch: Batch, number: int, values: dict, steps: int) -> dict[tuple[str, int], Tensor]:
    base, other = batch.embedded
    total: dict[tuple[str, int], Tensor] = {}
    for step in range(steps):
        embedded = base + (step + 0.5) / steps * (other - base)
        for at, flow in batch.backward(number, batch.plan.sites, embedded=embedded).gradients.items():
            total[at] = total[at] + flow / steps if at in total else flow / steps
    return total


def _along_activations(batch: Batch, number: int, values: dict, steps: int) -> dict[tuple[str, int], Tensor]:
    """For each layer and kind, all steps as rows of one pass that begins at the layer."""
    places = [(site_of(kind), layer) for kind in batch.plan.kinds for layer in batch.plan.axes[kind].layers]
    return {at: along_activation(batch, number, values, at, steps) for at in places}


def along_activation(
    batch: Batch, number: int, values: Mapping[tuple[str, int], Tensor], at: tuple[str, int], steps: int
) -> Tensor:
    """What flows back to one site of one layer, averaged over the way there from the base run to the other.

    Args:
        batch: The examples.
        number: Of the plan's metrics.
        values: The base run's activations at the site and at ``resid_pre``.
        at: The site and the layer.
        steps: How many midpoints, all of them rows of one pass that begins at the layer.
    """
    count, layer = len(batch.base), at[1]
    share = ((torch.arange(steps, device=batch.base.device) + 0.5) / steps).repeat_interleave(count)
    step = (batch.other[at] - values[at]).repeat(steps, *[1] * (values[at].dim() - 1))
    step = step * share.view(-1, *[1] * (step.dim() - 1)).to(step.dtype)
    flow = batch.backward(
        number,
        {at[0]},
        steps,
        embedded=values["resid_pre", layer].repeat(steps, 1, 1),
        first_layer=layer,
        replace={at: lambda x: x.detach() + step},
    )
    return flow.gradients[at].unflatten(0, (steps, count)).mean(0)


def _at(x: Tensor, place: int | Tensor, examples: slice) -> Tensor:
    """Effects "*index pos example" at one position, the same or one for each example."""
    stop = x.shape[-2]
    if isinstance(place, int):
        return x[..., place, :] if place < stop else torch.zeros_like(x[..., 0, :])
    where = place[examples].to(x.device)
    inside = where < stop
    return x[..., where.clamp(max=stop - 1), torch.arange(x.shape[-1], device=x.device)] * inside


def room(plan: Plan, kind: str, batch: Batch | None = None) -> Float[Tensor, "*node example metric"]:
    """Room for the estimates of all examples, or of a batch's."""
    count = len(plan.task if batch is None else batch.base)
    return torch.empty(*plan.axes[kind].shape, count, len(plan.experiment.metrics))


def _bytes_per_example(parts: Parts, length: int) -> int:
    """An upper estimate of what one example keeps for the backward pass, and of its recorded activations."""
    graph = parts.graph
    heads = graph.n_heads * graph.d_head
    block = 20 * graph.d_model + 20 * heads + 14 * graph.d_mlp + 14 * graph.n_heads * length
    return parts.dtype.itemsize * (graph.n_layers * length * block + 4 * graph.d_vocab)
