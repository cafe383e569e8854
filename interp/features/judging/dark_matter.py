"""The dark matter of a dictionary: how much of its error is a linear function of the activation, and what that costs.

The error e(x) = x - x^ is split into the part that least squares predicts from the activation, fitted on other texts,
and the rest, the nonlinear error. Each part is put into the model alone, to see what share of the loss it costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.identity import identity
from interp.engine.parts import Parts
from interp.engine.progress import track
from interp.engine.verify import verified
from interp.features.judging.baselines import Moments, beside
from interp.features.judging.judge import compared, fitted, halves
from interp.features.judging.splice import CleanRun, counted, placed, places, rebuilt
from interp.features.overlap import overlap
from interp.results import scores

__all__ = ["ErrorModel", "dark_matter"]

METRICS = {
    "r2_error": "share of the error vector's variance that is linear in the activation, on texts not fitted",
    "r2_norm": "the same of the error's squared norm",
    "unexplained": "share of the activation's variance in the error",
    "linear": "share of the activation's variance in the linear error: unexplained - nonlinear",
    "nonlinear": "share of the activation's variance that reconstruction and linear error leave unexplained",
    "ce_increase": "nats a token, of the reconstruction over the clean run",
    "ce_increase_linear": "nats a token, where only the linear error is missing",
    "ce_increase_nonlinear": "nats a token, where only the nonlinear error is missing",
    "ce_share_linear": "the loss for the linear error, as a share of that for the whole error",
    "ce_share_nonlinear": "the loss for the nonlinear error, as a share of that for the whole error",
}
"""What is measured, and in what units."""


class ErrorModel:
    """Predicts a dictionary's error, and its squared norm, as linear functions of what the dictionary reads.

    Args:
        dictionary: Anything with `encode` and `decode`.
        d_in: Numbers that it reads.
        d_out: Numbers that it writes.
        device: Where sums are kept.
    """

    def __init__(self, dictionary: Any, d_in: int, d_out: int, device: torch.device | str = "cpu") -> None:
        self.dictionary, self.moments = dictionary, Moments(d_in, d_out + 1, device)
        self.matrix: Tensor | None = None
        self.constant: Tensor | None = None

    def add(self, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"]) -> None:
        """Counts some tokens for the fit."""
        error = (y - rebuilt(self.dictionary, x[None])[0]).double()
        self.moments.add(x.double(), torch.cat([error, error.square().sum(-1, keepdim=True)], 1))

    def fit(self) -> None:
        """Least squares over what was added.

        Raises:
            UsageError: Too few tokens.
        """
        self.matrix, self.constant = self.moments.regression()

    def predict(self, x: Float[Tensor, "*batch d_in"]) -> tuple[Float[Tensor, "*batch d_out"], Float[Tensor, "*batch"]]:
        """Predicted error and predicted squared norm of the error."""
        if self.matrix is None or self.constant is None:
            self.fit()
        assert self.matrix is not None
        assert self.constant is not None
        both = x.double() @ self.matrix + self.constant
        return both[..., :-1], both[..., -1]


@torch.no_grad()
def dark_matter(
    model: TransformerBridge,
    dictionary: Any,
    source: str | Path | Sequence[str] | Int[Tensor, "text pos"] = "prose",
    n: int | None = None,
    length: int | None = None,
    *,
    seed: int = 0,
    fit_share: float = 0.5,
    skip: int = 1,
    special: bool = True,
    batch: int = 4,
) -> xr.DataArray:
    """Splits a dictionary's error into what is linear in the activation and what is not.

    Args:
        skip: So many positions at the start of each text are left as they are and not counted: by default the first,
            whose activation is so large in many models that it would be all that a least-squares fit sees. (The paper
            leaves out the first 200 of each text.)
        The rest as in `interp.features.judge`. The fit has a number a channel for each output: give it ten
        tokens a channel or more, or what it finds will not hold on the texts that are not fitted.

    Returns:
        "method metric", for the dictionary, random directions and principal components of its size. What each metric
        is stands in the attribute ``units``. The error of principal components is linear in the activation by
        construction, which makes them the check of the numbers: ``r2_error`` 1, ``nonlinear`` 0.

    Raises:
        UsageError: The dictionary does not fit the model, or the texts do not suffice.

    Reference: Engels, Riggs and Tegmark 2024, "Decomposing the Dark Matter of Sparse Autoencoders", arXiv:2410.14670:
    linear prediction of the error vector and of its squared norm; fraction of variance unexplained by the
    reconstruction plus the linear prediction; loss of inserting each part. Here all fits have a constant.

    Example:
        >>> dark_matter(model, dictionary).sel(metric="r2_error")     # doctest: +SKIP
    """
    parts = verified(model)
    reads, writes = places(dictionary, parts.graph)
    dictionary = placed(dictionary, parts.device)
    tokens, begin = halves(source, model, n, length, seed, fit_share)
    counts = counted(tokens, model, skip, special)
    seen = overlap(dictionary, tokens[begin:])
    moments, l0 = fitted(parts, dictionary, tokens[:begin], counts[:begin], batch)
    methods = beside(dictionary, moments, l0, seed)
    widths = reads.width(parts.graph), writes.width(parts.graph)
    errors = {name: ErrorModel(method, *widths, device=parts.device) for name, method in methods.items()}
    with track(len(tokens), "splitting errors") as advance:
        for first in range(0, begin, batch):
            some = slice(first, min(first + batch, begin))
            run, at = CleanRun(parts, tokens[some], reads, writes), counts[some]
            for error in errors.values():
                error.add(run.read[at], run.written[at])
            advance(some.stop - some.start)
        sums = {name: _Sums(widths[1], parts.device) for name in methods}
        for first in range(begin, len(tokens), batch):
            some = slice(first, min(first + batch, len(tokens)))
            _split(parts, CleanRun(parts, tokens[some], reads, writes), tokens[some], counts[some], errors, sums)
            advance(some.stop - some.start)
    table = np.array([[found[metric] for metric in METRICS] for found in (sums[name].measures() for name in methods)])
    return scores(
        table,
        ("method", "metric"),
        {"method": list(methods), "metric": list(METRICS)},
        name="value",
        allow_nan=True,
        units=dict(METRICS),
        model=str(model.cfg.model_name),
        fingerprint=identity(model),
        reads=str(reads),
        writes=str(writes),
        source=source if isinstance(source, str) else type(source).__name__,
        overlap=seen,
        tokens=int(counts[begin:].sum()),
        tokens_fitted=moments.n,
        length=tokens.shape[1],
        skip=skip,
        special=special,
        seed=seed,
    )


class _Sums:
    """Sums in float64 for one dictionary, on texts that are not fitted."""

    def __init__(self, d_out: int, device: torch.device | str) -> None:
        self.n, self.predicted = 0, 0
        self.mean = {name: torch.zeros(d_out, dtype=torch.float64, device=device) for name in ("error", "activation")}
        self.squares = dict.fromkeys(("error", "activation", "left", "norm", "norm_left", "norm_mean"), 0.0)
        self.ce = dict.fromkeys(("clean", "whole", "linear", "nonlinear"), 0.0)

    def add(self, y: Tensor, error: Tensor, guess: Tensor, norm_guess: Tensor) -> None:
        norm = error.square().sum(-1)
        self.n += len(y)
        self.mean["error"] += error.sum(0)
        self.mean["activation"] += y.sum(0)
        found = {"error": norm, "activation": y.square().sum(-1), "left": (error - guess).square().sum(-1)}
        found |= {"norm": norm.square(), "norm_left": (norm - norm_guess).square(), "norm_mean": norm}
        for name, values in found.items():
            self.squares[name] += float(values.sum())

    def measures(self) -> dict[str, float]:
        s, n = self.squares, self.n
        spread = {name: s[name] - float(total.square().sum()) / n for name, total in self.mean.items()}
        norm_spread = s["norm"] - s["norm_mean"] ** 2 / n
        ce = {name: total / max(1, self.predicted) for name, total in self.ce.items()}
        rise = {name: ce[name] - ce["clean"] for name in ("whole", "linear", "nonlinear")}
        lost = rise["whole"] if rise["whole"] > 0 else float("nan")
        return {
            "r2_error": 1 - s["left"] / spread["error"] if spread["error"] > 0 else float("nan"),
            "r2_norm": 1 - s["norm_left"] / norm_spread if norm_spread > 0 else float("nan"),
            "unexplained": s["error"] / spread["activation"],
            "linear": (s["error"] - s["left"]) / spread["activation"],
            "nonlinear": s["left"] / spread["activation"],
            "ce_increase": rise["whole"],
            "ce_increase_linear": rise["linear"],
            "ce_increase_nonlinear": rise["nonlinear"],
            "ce_share_linear": rise["linear"] / lost,
            "ce_share_nonlinear": rise["nonlinear"] / lost,
        }


def _split(
    parts: Parts,
    run: CleanRun,
    tokens: Int[Tensor, "batch pos"],
    counts: Bool[Tensor, "batch pos"],
    errors: dict[str, ErrorModel],
    sums: dict[str, _Sums],
) -> None:
    """Adds some texts to the sums of every method."""
    finals, y = {"clean": run.final()}, run.written.double()
    for name, error in errors.items():
        whole = y - rebuilt(error.dictionary, run.read).double()
        guess, norm = error.predict(run.read)
        sums[name].add(y[counts], whole[counts], guess[counts], norm[counts])
        for part, missing in (("whole", whole), ("linear", guess), ("nonlinear", whole - guess)):
            new = (y - missing).to(run.written.dtype)
            finals[f"{name} {part}"] = run.final(torch.where(counts[..., None], new, run.written))
    at = counts[:, :-1].cpu()
    losses = {name: float(pair[0][at].sum()) for name, pair in compared(parts, finals, tokens[:, 1:]).items()}
    for name, total in sums.items():
        total.predicted += int(at.sum())
        total.ce["clean"] += losses["clean"]
        for part in ("whole", "linear", "nonlinear"):
            total.ce[part] += losses[f"{name} {part}"]
