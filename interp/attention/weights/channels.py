"""Turning single channels of a head up and down: singular components of its W_OV, scaled.

W_OV = sum_i s_i u_i v_i^T: the head reads along v_i and writes along u_i. Scaling component i by c means

    W_OV' = (1 + (c - 1) u_i u_i^T) W_OV

and nothing else of the head, its attention included. As u_i lies in the span of the head's output matrix O, the same is
done inside the head, z' = z T with a matrix T of d_head by d_head, or in the weights, O' = T O. Keys and values, which
a group of heads may share, are not touched. What the value's bias adds passes through O and is scaled along u_i with
the rest. Where a norm follows attention, u_i is a direction behind the norm's weight, and its scale adapts.

Merullo et al. 2024, "Talking Heads", arXiv:2406.09519, section 5, edit models in this way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.attention.weights.matrices import Head, head_weights, ov_components, parse_head
from interp.engine.edges import output_matrices
from interp.engine.parts import Parts
from interp.engine.sweep import Patch
from interp.engine.verify import verified
from interp.errors import UsageError
from interp.graph import Node
from interp.patching.experiment import Experiment
from interp.results import scores
from interp.tasks import Metric, Task

__all__ = ["ACCURACY", "channel_function", "edited_channel", "scale_channels"]

_SMALLEST = 1e-6
"""Components below this share of the largest are rounding, not channels."""


def _prefers_right(logits: Tensor, right: Tensor, wrong: Tensor, reference: Tensor | None = None) -> Tensor:
    def best(ids: Tensor) -> Tensor:
        return logits.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf).amax(1)

    return (best(right) > best(wrong)).to(logits.dtype)


ACCURACY = Metric("accuracy", "share of examples", True, "answers", "best of R above best of W", _prefers_right)
"""Whether the best right answer is preferred to the best wrong one, as a metric of each example."""


@torch.no_grad()
def scaling_matrix(
    parts: Parts, head: Head, components: int | Sequence[int], scale: float
) -> Float[Tensor, "d_head d_head"]:
    """The matrix T with which z T writes what z wrote, but for the components, which are scaled.

    From u = O^T V v / s follows u_i = O^T a_i with a_i = V v_i / s_i, so T = 1 + (c - 1) sum_i (O u_i) a_i^T.

    Raises:
        UsageError: A head or component that there is not; the message says how many components the head has.
    """
    layer, index = parse_head(parts, head)
    weights = head_weights(parts, layer)
    found = ov_components(weights, index)
    chosen = [components] if isinstance(components, int) else list(components)
    rank = int((found.sizes > _SMALLEST * found.sizes[0]).sum()) if found.sizes[0] > 0 else 0
    for component in chosen:
        if not 0 <= component < rank:
            raise UsageError(
                f"component {component} is out of range: W_OV of a{layer}.h{index} has {rank} components that are not "
                f"zero, counted from 0"
            )
    onto = weights.o[index] @ found.left[chosen].mT
    within = found.right[chosen] @ weights.v[index].mT / found.sizes[chosen, None]
    return torch.eye(len(weights.o[index]), device=onto.device, dtype=onto.dtype) + (scale - 1) * onto @ within


def channel_function(
    model: TransformerBridge | Parts, head: Head, components: int | Sequence[int], scale: float
) -> Callable[[Tensor], Tensor]:
    """The edit as a function of the head's z, for `interp.patching.intervene` or a visitor of one's own.

    Args:
        model: any bridge, or its verified parts.
        head: such as ``a20.h0``.
        components: one component of W_OV or several, 0 for the largest.
        scale: what they are multiplied by; 0 removes them, 1 changes nothing.

    Returns:
        A function of z "... d_head".

    Raises:
        UsageError: a head or component that there is not.

    Example:
        >>> intervene(model, task, {"a20.h0": channel_function(model, "a20.h0", 0, scale=2)})   # doctest: +SKIP
    """
    parts = model if isinstance(model, Parts) else verified(model)
    matrix = scaling_matrix(parts, head, components, scale)
    return lambda z: (z.to(matrix.dtype) @ matrix).to(z.dtype)


@contextmanager
def edited_channel(
    model: TransformerBridge, head: Head, components: int | Sequence[int], scale: float
) -> Iterator[None]:
    """The model with components of one head's W_OV scaled, for as long as the context lasts.

    The head's rows of the output projection are replaced, and restored bit by bit on leaving, whatever is raised
    within. Contexts may be nested. Args and errors are those of `channel_function`.

    Example:
        >>> with edited_channel(model, "a20.h0", 0, scale=2):               # doctest: +SKIP
        ...     model.generate("I need to pack")
    """
    parts = verified(model)
    layer, index = parse_head(parts, head)
    matrix = scaling_matrix(parts, head, components, scale)
    with torch.no_grad():
        rows = output_matrices(parts.blocks[layer], parts.graph.n_heads)[index]
        kept = rows.clone()
        rows.copy_(matrix @ kept.to(matrix.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            rows.copy_(kept)


def scale_channels(
    model: TransformerBridge,
    task: Task,
    head: Head,
    components: Sequence[int | Sequence[int]],
    scales: Sequence[float] = (0.0, 0.5, 1.0, 2.0, 4.0),
    *,
    max_memory: int | None = None,
) -> xr.DataArray:
    """How a task goes on its clean prompts with channels of one head turned up or down, one channel at a time.

    Args:
        model: any bridge; it is only read.
        task: its clean prompts are run.
        head: such as ``a20.h0``.
        components: components of the head's W_OV; a sequence within it is several that are scaled together.
        scales: what they are multiplied by.
        max_memory: bytes for the rows that are run together.

    Returns:
        Means over the examples with dims ``metric`` (the task's own, and ``accuracy``), ``channel`` (the components'
        place in `components`, with their numbers as ``name``) and ``step`` (of the scales, which are ``scale``).

    Raises:
        UsageError: a head or component that there is not, or nothing to scale.

    Reference: Merullo et al. 2024, arXiv:2406.09519, section 5.
    """
    if not components or not scales:
        raise UsageError("give one component and one scale at least")
    parts = verified(model)
    layer, index = parse_head(parts, head)
    functions = [[channel_function(parts, head, part, scale) for scale in scales] for part in components]
    began = time.perf_counter()
    metrics: Any = [task.measure, ACCURACY]
    experiment = Experiment(model, task, mode="noising", metrics=metrics, max_memory=max_memory)
    cells = [[Patch(Node("z", layer, index), function=function)] for row in functions for function in row]
    changed = experiment.effects(cells).mean(1).unflatten(0, (len(components), len(scales)))
    plain = experiment.baselines["clean"].cpu().mean(0)
    return scores(
        (changed + plain).movedim(-1, 0),
        ("metric", "channel", "step"),
        {
            "metric": [task.measure.name, ACCURACY.name],
            "channel": range(len(components)),
            "name": ("channel", [_named(part) for part in components]),
            "scale": ("step", [float(scale) for scale in scales]),
        },
        name="metric",
        units={task.measure.name: task.measure.units, ACCURACY.name: ACCURACY.units},
        clean=dict(zip((task.measure.name, ACCURACY.name), plain.tolist(), strict=True)),
        head=f"a{layer}.h{index}",
        task=task.name,
        n=len(task),
        seed=task.seed,
        split=task.split,
        model=str(model.cfg.model_name),
        fingerprint=experiment.fingerprint,
        seconds=round(time.perf_counter() - began, 3),
    )


def _named(part: int | Sequence[int]) -> str:
    return str(part) if isinstance(part, int) else "+".join(map(str, part))
