"""Training on the Bigram-Backcopy task, with an eye on the head: how it comes to rest where nothing is to be copied."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from interp.attention.sinks.backcopy import BackcopyModel, BackcopyTask
from interp.engine.progress import track
from interp.errors import UsageError, unknown_name
from interp.gradients import gradients
from interp.results import scores

__all__ = ["BackcopyTraining", "train_backcopy"]

KINDS = (
    "attention, trigger",
    "attention, other",
    "attention back, trigger",
    "value norm, delimiter",
    "value norm, other",
    "residual norm, delimiter",
    "residual norm, other",
    "excess loss, trigger",
    "excess loss, other",
)
"""What is measured while training, see `train_backcopy`."""


@dataclass(frozen=True, eq=False)
class BackcopyTraining:
    """A trained model, and what was seen on the way.

    Args:
        task: the task.
        model: the model, in evaluation mode.
        scores: "step kind", see `train_backcopy`.
        seconds: how long it took.
    """

    task: BackcopyTask
    model: BackcopyModel
    scores: xr.DataArray
    seconds: float

    def bridge(self) -> Any:
        """The model as a TransformerLens bridge, for every analysis of this package; softmax attention only."""
        from interp.attention.sinks.backcopy_bridge import bridge

        return bridge(self.model, self.task.words)

    def plot(self, **options: Any) -> Any:
        """The scores over training, as curves."""
        from interp.plots.sinks import training_curves

        return training_curves(self.scores, **options)


@gradients()
def train_backcopy(
    steps: int = 2000,
    *,
    task: BackcopyTask | None = None,
    attn: str = "softmax",
    optimizer: str = "adam",
    lr: float | None = None,
    width: int = 64,
    length: int = 64,
    batch: int = 64,
    every: int = 50,
    seed: int = 0,
) -> BackcopyTraining:
    """Trains a one-layer transformer on the Bigram-Backcopy task and watches its head while it learns.

    Args:
        steps: of the optimizer.
        task: the task, by default that of 32 tokens with 3 triggers.
        attn: how attention is made of scores, see `BackcopyModel`.
        optimizer: ``adam`` (AdamW, weight decay 1e-4 as in the paper's code) or ``sgd`` (momentum 0.9).
        lr: learning rate; by default 0.003 for Adam and 0.1 for SGD, constant.
        width: of the residual stream.
        length: tokens of a sequence.
        batch: sequences a step, always fresh ones.
        every: steps between two measurements on 64 sequences that are the same each time.
        seed: of weights and data.

    Returns:
        The model and its scores "step kind". ``attention, trigger`` and ``attention, other``: mean attention to the
        delimiter from queries that are triggers and from others; ``attention back, trigger``: from a trigger to the
        token before it; ``value norm``, ``residual norm`` (behind the layer): of the delimiter and, median, of other
        tokens; ``excess loss``: cross-entropy above that of the best possible prediction, in nats, behind triggers and
        elsewhere. Queries from the third position on count.

    Raises:
        UsageError: an unknown choice, or fewer than one step.

    Reference: Guo et al. 2024, arXiv:2410.13835, sections 2 and 3: with ReLU attention, and with SGD for three
    layers, the extreme tokens are reported to be less or gone.
    """
    for what, name, known in (("attention", attn, ("softmax", "relu")), ("optimizer", optimizer, ("adam", "sgd"))):
        if name not in known:
            raise unknown_name(what, name, known)
    if steps < 1 or every < 1 or batch < 1:
        raise UsageError(f"steps, every and batch must be 1 at least, got {steps}, {every} and {batch}")
    task = task or BackcopyTask()
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    fixed = task.draw(64, length, torch.Generator().manual_seed(seed + 1_000_003))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BackcopyModel(task.n_tokens, length, width, attn)
    rate = lr if lr is not None else {"adam": 0.003, "sgd": 0.1}[optimizer]
    update: torch.optim.Optimizer
    if optimizer == "adam":
        update = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.99), weight_decay=1e-4)
    else:
        update = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=1e-4)
    seen, at = [_measure(task, model, fixed)], [0]
    with track(steps, "training on Bigram-Backcopy") as advance:
        for step in range(1, steps + 1):
            tokens = task.draw(batch, length, generator)
            loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            update.zero_grad(set_to_none=True)
            loss.backward()
            update.step()
            if step % every == 0 or step == steps:
                seen.append(_measure(task, model, fixed))
                at.append(step)
            advance(1)
    return BackcopyTraining(task, model.eval(), _labelled(seen, at, locals()), time.perf_counter() - began)


def _labelled(seen: Sequence[Sequence[float]], at: list[int], given: dict[str, Any]) -> xr.DataArray:
    settings = {name: given[name] for name in ("attn", "optimizer", "width", "length", "batch", "seed")}
    return scores(
        torch.tensor(seen),
        ("step", "kind"),
        {"step": at, "kind": list(KINDS)},
        name="while training",
        lr=given["rate"],
        n_tokens=given["task"].n_tokens,
        n_triggers=given["task"].n_triggers,
        **settings,
    )


@torch.no_grad()
def _measure(task: BackcopyTask, model: BackcopyModel, tokens: Int[Tensor, "text pos"]) -> list[float]:
    """The values of `KINDS` on fixed sequences."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    found = model.run(inputs)
    loss = F.cross_entropy(found["logits"].transpose(1, 2), targets, reduction="none").double()
    excess = loss - task.losses(tokens)
    trigger = task.is_trigger(inputs)
    counted = torch.arange(inputs.shape[1]).expand_as(inputs) >= 2
    kinds = (trigger & counted, ~trigger & counted)
    to_first = found["pattern"][:, :, 0]
    back = F.pad(found["pattern"].diagonal(-1, 1, 2), (1, 0))
    norms = [found[name].norm(dim=-1) for name in ("v", "resid_post")]
    values = [
        *(to_first[kind].mean() for kind in kinds),
        back[kinds[0]].mean(),
        *(value for norm in norms for value in (norm[:, 0].mean(), norm[:, 1:].median())),
        *(excess[kind].mean() for kind in kinds),
    ]
    return [float(value) for value in values]
