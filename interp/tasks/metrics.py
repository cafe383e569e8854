"""What is measured at the end of a prompt: one number an example from the logits there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jaxtyping import Float, Int

from interp.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["METRICS", "Metric", "metric"]


@dataclass(frozen=True)
class Metric:
    """One number an example from the logits at its end position.

    Args:
        name: how the metric is asked for.
        units: what the number is counted in.
        higher_is_clean: whether a model that behaves as on the clean prompt scores high.
        reads: `"answers"` if only the logits of the right and wrong answers are looked at, so that a caller may
            compute only those and re-index `right` and `wrong` into them; else `"vocabulary"`.
        formula: the definition in one line, R the right and W the wrong answers.
        function: `(logits, right, wrong, reference) -> values`, given logits in at least float32.
    """

    name: str
    units: str
    higher_is_clean: bool
    reads: Literal["answers", "vocabulary"]
    formula: str
    function: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

    def __call__(
        self,
        logits: Float[Tensor, "batch vocab"],
        right: Int[Tensor, "batch k"],
        wrong: Int[Tensor, "batch m"],
        reference: Float[Tensor, "batch vocab"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """The metric of each example, in `units`.

        Args:
            logits: logits at each example's end position.
            right: token ids of the right answers, padded with -1.
            wrong: token ids of the wrong answers, padded with -1.
            reference: logits that `kl` compares with (those of the clean prompt).

        Raises:
            UsageError: the shapes don't fit, or `kl` has no reference.
        """
        if logits.ndim != 2 or right.shape[0] != logits.shape[0] or wrong.shape[0] != logits.shape[0]:
            raise UsageError(
                f"metric {self.name!r} takes logits of shape [batch, vocab] and answers of shape [batch, k]; got "
                f"logits {list(logits.shape)}, right {list(right.shape)}, wrong {list(wrong.shape)}"
            )
        logits = at_least_float32(logits)
        right, wrong = right.to(logits.device), wrong.to(logits.device)
        if reference is not None:
            reference = at_least_float32(reference.to(logits.device))
        values = self.function(logits, right, wrong, reference)
        from torch import Tensor

        if not isinstance(values, Tensor) or values.shape != logits.shape[:1]:
            got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise UsageError(
                f"metric {self.name!r} must return one value an example, shape [{logits.shape[0]}]; got {got}"
            )
        return values


def metric(name_or_callable: str | Metric | Callable[[Tensor], Tensor]) -> Metric:
    """The metric of that name, or a user's function of the end logits as a `Metric`.

    Args:
        name_or_callable: a key of `METRICS`, a `Metric` (returned as it is), or a function from logits
            ("batch vocab") to values ("batch"), for which higher is taken to mean cleaner.

    Raises:
        UsageError: unknown name, or neither a name nor a function.
    """
    if isinstance(name_or_callable, Metric):
        return name_or_callable
    if isinstance(name_or_callable, str):
        if name_or_callable not in METRICS:
            raise unknown_name("metric", name_or_callable, METRICS)
        return METRICS[name_or_callable]
    if not callable(name_or_callable):
        raise UsageError(
            f"a metric is one of {', '.join(METRICS)} or a function of the end logits; got {name_or_callable!r}"
        )
    function = name_or_callable
    name = getattr(function, "__name__", type(function).__name__)
    formula = (getattr(function, "__doc__", None) or "given by the user").strip().splitlines()[0]
    return Metric(name, "value", True, "vocabulary", formula, lambda logits, *_: function(logits))


def at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.is_floating_point() and logits.element_size() >= 4 else logits.float()


def pick(values: Float[Tensor, "batch vocab"], ids: Int[Tensor, "batch k"], empty: float) -> Tensor:
    """`values` at `ids`, with `empty` where an id is the padding -1."""
    return values.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, empty)


def set_mean(logits: Tensor, ids: Tensor) -> Tensor:
    return pick(logits, ids, 0.0).sum(1) / (ids >= 0).sum(1).clamp(min=1)


def logit_diff(logits: Tensor, right: Tensor, wrong: Tensor, reference: Tensor | None = None) -> Tensor:
    return set_mean(logits, right) - set_mean(logits, wrong)


def prob_diff(logits: Tensor, right: Tensor, wrong: Tensor, reference: Tensor | None = None) -> Tensor:
    probabilities = logits.softmax(-1)
    return pick(probabilities, right, 0.0).sum(1) - pick(probabilities, wrong, 0.0).sum(1)


def kl(logits: Tensor, right: Tensor, wrong: Tensor, reference: Tensor | None = None) -> Tensor:
    if reference is None:
        raise UsageError("metric 'kl' compares with the clean logits: give them with task.with_reference(logits)")
    if reference.shape != logits.shape:
        raise UsageError(f"metric 'kl' got logits {list(logits.shape)} but a reference of {list(reference.shape)}")
    given, clean = logits.log_softmax(-1), reference.to(logits.dtype).log_softmax(-1)
    terms = (clean.exp() * (clean - given)).where(clean.exp() > 0, 0.0)
    return terms.sum(-1).clamp(min=0.0)


def cross_entropy(logits: Tensor, right: Tensor, wrong: Tensor, reference: Tensor | None = None) -> Tensor:
    return logits.logsumexp(-1) - pick(logits, right, -math.inf).logsumexp(-1)


def rank(logits: Tensor, right: Tensor, wrong: Tensor, reference: Tensor | None = None) -> Tensor:
    best = pick(logits, right, -math.inf).amax(1, keepdim=True)
    return (logits > best).sum(1).to(logits.dtype) + 1


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("logit_diff", "logits", True, "answers", "mean logit over R - mean logit over W", logit_diff),
        Metric("prob_diff", "probability", True, "vocabulary", "sum of p over R - sum of p over W", prob_diff),
        Metric("kl", "nats", False, "vocabulary", "KL(p_clean || p) = sum p_clean (ln p_clean - ln p)", kl),
        Metric("cross_entropy", "nats", False, "vocabulary", "-ln of the sum of p over R", cross_entropy),
        Metric("rank", "rank", False, "vocabulary", "1 + tokens above the best of R (1 = top)", rank),
    )
}
