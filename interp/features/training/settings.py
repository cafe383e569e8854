"""How a dictionary is trained: rates, schedules and intervals."""

from __future__ import annotations

from dataclasses import dataclass

from interp.errors import UsageError

__all__ = ["TrainSettings"]


@dataclass(frozen=True)
class TrainSettings:
    """How a dictionary is trained.

    Args:
        lr: Adam's learning rate at its height.
        betas: Adam's decay rates.
        warmup: Share of the steps over which the learning rate rises linearly.
        decay: Share of the steps, the last ones, over which it falls linearly to zero.
        sparsity_warmup: Share of the steps over which sparsity penalties rise linearly to full weight.
        clip: Largest norm of the whole gradient, or None.
        bf16: Make large products in bfloat16; of TopK only the selection is rounded.
        centre: Start ``b_dec`` at the mean of the first batch.
        dead_after: A latent is dead when it has not fired for this many tokens.
        resample_every: Steps after which dead latents get new weights, or None; not during the decay.
        log_every: Steps between reports.
        checkpoint_every: Steps between checkpoints.
        seed: Of resampling.

    Raises:
        UsageError: A value makes no sense.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = 0.05
    decay: float = 0.2
    sparsity_warmup: float = 0.1
    clip: float | None = None
    bf16: bool = False
    centre: bool = True
    dead_after: int = 200_000
    resample_every: int | None = None
    log_every: int = 50
    checkpoint_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("warmup", "decay", "sparsity_warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is a share of the steps, from 0 to 1; got {getattr(self, name)}")
        for name in ("lr", "clip", "dead_after", "resample_every", "log_every", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"{name} must be positive, got {value}")

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        rising = (step + 1) / max(1.0, self.warmup * steps)
        falling = (steps - step) / max(1.0, self.decay * steps)
        return self.lr * min(1.0, rising, falling)

    def resamples_at(self, step: int, steps: int) -> bool:
        """Whether dead latents get new weights behind a step, counted from 1."""
        every = self.resample_every
        return every is not None and step % every == 0 and step < steps - self.decay * steps

    def agree(self, made: int, steps: int, other: int) -> bool:
        """Whether the first `made` steps are the same in a run of `steps` and in one of `other`."""
        lengths = (steps, other)
        return all(
            len({(self.lr_at(at, n), self.sparsity_at(at, n), self.resamples_at(at + 1, n)) for n in lengths}) == 1
            for at in range(made)
        )

    def sparsity_at(self, step: int, steps: int) -> float:
        """The share of sparsity penalties in force at a step."""
        return min(1.0, (step + 1) / max(1.0, self.sparsity_warmup * steps))
