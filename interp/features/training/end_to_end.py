"""End to end: a dictionary is finetuned for what the model computes on its reconstruction.

The dictionary is spliced into the model, and its weights follow the gradient of KL(clean || spliced) of the next-token
distributions through the rest of the model. The loop, its checkpoints and its reports are those of `train`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.forward import Recorder
from interp.engine.identity import identity
from interp.engine.parts import Parts
from interp.engine.verify import verified
from interp.errors import UsageError, unknown_name
from interp.features.activations.rows import described
from interp.features.architectures.dictionary import Batch, Dictionary, Step
from interp.features.judging.judge import texts
from interp.features.judging.splice import CleanRun, counted, places
from interp.features.overlap import sketch
from interp.features.training.loop import Training, train
from interp.features.training.settings import TrainSettings
from interp.gradients import gradients
from interp.tasks import sized

__all__ = ["VARIANTS", "EndToEnd", "Texts", "finetune"]

VARIANTS: dict[str, dict[str, float]] = {
    "kl+mse": {"kl": 0.5, "mse": 0.5},
    "e2e": {"kl": 1.0},
    "e2e+downstream": {"kl": 0.5, "downstream": 0.5},
}
"""Weights of the terms of the loss, beside the dictionary's own penalties."""


@gradients()
def finetune(
    model: TransformerBridge,
    dictionary: Dictionary,
    source: str | Path | Sequence[str] | Int[Tensor, "text pos"] = "sotu",
    steps: int = 200,
    *,
    variant: str = "kl+mse",
    balance: bool = True,
    n: int | None = None,
    length: int | None = None,
    batch: int = 4,
    skip: int = 0,
    seed: int = 0,
    settings: TrainSettings | None = None,
    directory: str | os.PathLike[str] | None = None,
    resume: bool = True,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Training:
    """Finetunes a trained dictionary, in place, for the model's predictions on its reconstruction.

    Each step runs the model forwards and, behind the dictionary, backwards; its weights are not changed. The logits of
    a batch are held about four times.

    Args:
        model: Any bridge.
        dictionary: One that reads and writes one place of it; its own penalties stay in the loss.
        source: The texts: see `interp.tasks.corpus`; also token ids.
        steps: How many batches.
        variant: ``kl+mse``, ``e2e`` (KL alone) or ``e2e+downstream`` (KL and the squared errors of all later residual
            streams).
        balance: Multiply KL and the downstream errors by detached numbers that make each as large as the squared error
            of the reconstruction, so that penalties and learning rates of ordinary training keep their meaning.
        n: How many texts; 256, or all rows of token ids. They are gone through again in another order as long as it
            takes.
        length: Tokens in each; 128, or all of the token ids.
        batch: Texts of a step.
        skip: So many positions at the start of each text are left as they are and do not count.
        seed: Of the texts and their order.
        settings: How; by default a learning rate of 1e-4 that falls to zero.
        directory: As in `train`; with the same `resume`.
        resume: Go on from the checkpoint in the directory, if there is one.
        report: Called with each report: ``kl`` is in nats a token, ``mse`` and ``downstream`` are squared errors, all
            without their weights.

    Returns:
        The run. The dictionary is in evaluation mode.

    Raises:
        UsageError: An unknown variant, a dictionary that does not fit the model, too little text, or bfloat16.
        InterpError: The loss became NaN or infinite.

    Reference:
        Braun et al. 2024 (arXiv:2405.12241), section 2, for ``e2e`` and ``e2e+downstream``; Karvonen 2025
        (arXiv:2503.17272) for ``kl+mse`` at the end of ordinary training, ``(MSE + a KL) / 2`` with
        ``a = MSE / KL`` detached. Deviation: the balance is used in all variants; ``balance=False`` leaves it out.

    Example:
        >>> finetune(model, dictionary, "sotu", 200)     # doctest: +SKIP
    """
    settings = TrainSettings(lr=1e-4, warmup=0.05, decay=0.95, centre=False) if settings is None else settings
    if settings.bf16:
        raise UsageError("finetuning runs the model in its own precision; leave bf16 out of the settings")
    if batch < 1:
        raise UsageError(f"a step needs 1 text at least, got batch={batch}")
    objective = EndToEnd(model, dictionary, variant, balance=balance, skip=skip)
    tokens = texts(source, model, *sized(source, n, length, 256, 128), seed)
    counted(tokens, model, skip)
    with _frozen(model):
        return train(
            dictionary,
            Texts(tokens.to(objective.parts.device), batch, seed, described(source)),
            steps,
            settings=settings,
            directory=directory,
            resume=resume,
            report=report,
            objective=objective,
        )


class Texts(Iterator[Any]):
    """Batches of texts without end, each time through in another order.

    Args:
        tokens: Token ids.
        batch: Texts of a batch.
        seed: Of the orders.
        source: What the texts are called.
    """

    def __init__(self, tokens: Int[Tensor, "text pos"], batch: int, seed: int = 0, source: str = "token ids") -> None:
        self.tokens, self.batch, self.seed, self.source, self.given = tokens, batch, seed, source, 0
        self.device = tokens.device
        self._about = {
            "texts": hashlib.sha256(tokens.cpu().numpy().tobytes()).hexdigest(),
            "batch": batch,
            "seed": seed,
        }

    def __next__(self) -> Int[Tensor, "batch pos"]:
        chosen = [self._at(self.given + at) for at in range(self.batch)]
        self.given += self.batch
        return self.tokens[chosen]

    def _at(self, number: int) -> int:
        epoch, at = divmod(number, len(self.tokens))
        return int(np.random.default_rng([self.seed, epoch]).permutation(len(self.tokens))[at])

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on behind the last batch given."""
        return {**self._about, "given": self.given}

    def sign(self, dictionary: Dictionary) -> None:
        """Writes into a dictionary that it was trained on these texts, too, where the others are known."""
        if dictionary.text is not None:
            ids, width = self.tokens.cpu().numpy(), self.tokens.shape[1]
            dictionary.text |= sketch([(ids.ravel(), np.repeat(np.arange(len(ids)), width))], self.source)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where a state was taken.

        Raises:
            UsageError: The state is of other texts or batches.
        """
        for name, mine in self._about.items():
            if state.get(name) != mine:
                raise UsageError(f"the checkpoint is of batches with {name} {state.get(name)!r}, here it is {mine!r}")
        self.given = int(state["given"])


@dataclass(frozen=True, eq=False)
class _Spliced:
    """A batch of texts: what is read and to be written, scaled, and how the clean model goes on."""

    x: Float[Tensor, "token d_in"]
    target: Float[Tensor, "token d_out"]
    run: CleanRun
    clean: Float[Tensor, "text pos vocab"]
    later: dict[tuple[str, int], Tensor]


class EndToEnd:
    """The objective of `finetune`, for `train`: batches are token ids "text pos".

    Args:
        model: Any bridge.
        dictionary: One that reads and writes one place of it.
        variant: One of `VARIANTS`.
        balance: See `finetune`.
        skip: See `finetune`.

    Raises:
        UsageError: An unknown variant, or a dictionary that does not fit the model.
    """

    def __init__(
        self,
        model: TransformerBridge,
        dictionary: Dictionary,
        variant: str = "kl+mse",
        *,
        balance: bool = True,
        skip: int = 0,
    ) -> None:
        if variant not in VARIANTS:
            raise unknown_name("variant", variant, VARIANTS)
        self.parts: Parts = verified(model)
        self.reads, self.writes = places(dictionary, self.parts.graph)
        self.dictionary, self.weights, self.balance, self.skip = dictionary, VARIANTS[variant], balance, skip
        self.settings = {"variant": variant, "balance": balance, "skip": skip, "model": identity(model)}
        first = self.writes.layer + (self.writes.site == "resid_post")
        self.later = range(first, self.parts.graph.n_layers) if "downstream" in self.weights else range(0)
        if "downstream" in self.weights and not self.later:
            raise UsageError(f"no residual stream comes after {self.writes}; use the variant e2e")

    @torch.no_grad()
    def batch(self, item: Int[Tensor, "text pos"]) -> _Spliced:
        run, later = CleanRun(self.parts, item, self.reads, self.writes), Recorder({"resid_post"})
        final = run.final(watch=later if self.later else None)
        clean = torch.log_softmax(self.parts.logits(final[:, self.skip :]).float(), -1)
        like, own = self.dictionary.b_dec, self.dictionary
        x, target = (side[:, self.skip :].flatten(0, 1).to(like) for side in (run.read, run.written))
        return _Spliced(x * own.units(like), target * own.units(like, out=True), run, clean, later.kept)

    def step(self, batch: _Spliced, sparsity: float, dead: Tensor) -> Step:
        own = self.dictionary.step(Batch(batch.x, batch.target), sparsity, dead)
        errors = {"mse": own.terms["mse"]} | self._errors(batch, batch.target - own.missed)
        terms = {name: term for name, term in own.terms.items() if name != "mse"}
        for name, weight in self.weights.items():
            unit = (errors["mse"] / errors[name].clamp_min(1e-8)).detach() if self.balance else 1.0
            terms[f"{name}_weighted"] = weight * unit * errors[name]
        return Step(terms, own.codes, own.missed, errors)

    def _errors(self, batch: _Spliced, written: Tensor) -> dict[str, Tensor]:
        """KL and downstream errors of a reconstruction in the dictionary's units."""
        new = (written / self.dictionary.units(written, out=True)).to(batch.run.written)
        kept = batch.run.written[:, : self.skip]
        watch = Recorder({"resid_post"})
        final = batch.run.final(torch.cat([kept, new.unflatten(0, (len(kept), -1))], 1), watch if self.later else None)
        spliced = torch.log_softmax(self.parts.logits(final[:, self.skip :]).float(), -1)
        found = {"kl": (batch.clean.exp() * (batch.clean - spliced)).sum(-1).mean()}
        if self.later:
            off = [watch.kept["resid_post", layer] - batch.later["resid_post", layer] for layer in self.later]
            found["downstream"] = torch.stack([one[:, self.skip :].square().sum(-1).mean() for one in off]).mean()
        return found


@contextmanager
def _frozen(model: torch.nn.Module) -> Iterator[None]:
    """Takes no gradients of the model's weights."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, required, grad in before:
            parameter.requires_grad_(required)
            parameter.grad = grad
