"""What each head does: all kinds of heads from one pass over a text, one over repeated tokens, and the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.attention.detectors import Detector, DoesNotApply, known
from interp.attention.ioi import IndirectObjects
from interp.attention.ov import OV
from interp.attention.patterns import Patterns, stream
from interp.engine.identity import identity, versions
from interp.engine.parts import Parts
from interp.engine.verify import verified
from interp.errors import UsageError
from interp.results import HeadKinds, scores
from interp.tasks import corpus, task
from interp.tasks.corpora import longest_input, sized
from interp.tasks.splits import half_of_corpus
from interp.tasks.tokens import Encoder

__all__ = ["heads", "separators", "survey"]

_REPEATED = 96
_WORDS = 1000
_TOGETHER = 2048
"""Tokens that are run together."""


def heads(
    model: TransformerBridge,
    kinds: str | Sequence[str | Detector] = "all",
    text: str | Path | Sequence[str] | Int[Tensor, "text pos"] | None = None,
    *,
    n: int | None = None,
    length: int | None = None,
    seed: int = 0,
    split: str | None = None,
) -> HeadKinds:
    """Scores every head for every kind.

    All kinds that read the same input share one pass over it, in which attention patterns are reduced as they come.

    Args:
        model: any bridge.
        kinds: names out of `interp.attention.DETECTORS`, detectors of one's own, or ``all``, which leaves out those
            that the model is not made for (such as days of the week without a tokenizer).
        text: what the kinds that read plain text are measured on; see `interp.tasks.corpus`. By default ``prose``, and
            ``random`` for a toy model whose vocabulary has fewer than 1,000 tokens.
        n: how many stretches of it, of repeated random tokens, and of indirect-object prompts; 8, or as many as there
            are rows of token ids.
        length: tokens in a stretch of text; 256, or as many as the model has positions, or all of the token ids.
        seed: of all random choices.
        split: of a shipped corpus's documents and of the indirect objects' names, places and things, for a finding
            that is tried on the other one; None takes all. Text that is given is not split.

    Returns:
        The finding: scores "kind layer head". Shares of attention lie in [0, 1].

    Raises:
        UsageError: an unknown kind, one that this model is not made for, or too little text.

    Reference: see each detector's `source`; Zheng et al. 2024, "Attention Heads of Large Language Models: A Survey".

    Example:
        >>> found = heads(model, ["induction", "previous_token"])    # doctest: +SKIP
        >>> found.top("induction")                                   # doctest: +SKIP
    """
    lenient = isinstance(kinds, str) and kinds == "all"
    text = text if text is not None else "prose" if int(model.cfg.d_vocab) >= _WORDS else "random"
    n, length = sized(text, n, length, 8, min(256, longest_input(model) or 256))
    chosen = known(kinds)
    parts = verified(model)
    measured: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    for reads, source in _inputs(model, parts, text, n, length, seed, split).items():
        wanted = [detector for detector in chosen if detector.reads == reads]
        try:
            given = source() if wanted else None
        except UsageError as error:
            if not lenient or reads == "text":
                raise
            left_out |= {detector.name: str(error) for detector in wanted}
            continue
        for name, found in _measured(parts, model, wanted, given, lenient):
            if isinstance(found, str):
                left_out[name] = found
            else:
                measured[name] = found
    kept = [detector for detector in chosen if detector.name in measured]
    values = torch.stack([measured[detector.name].detach().float().cpu() for detector in kept])
    array = scores(
        values,
        ("kind", "layer", "head"),
        {"kind": [detector.name for detector in kept]},
        name="kinds of heads",
        units={detector.name: detector.units for detector in kept},
        definition={detector.name: detector.definition for detector in kept},
        source={detector.name: detector.source for detector in kept},
        stage={detector.name: detector.stage for detector in kept},
        model=str(model.cfg.model_name),
    )
    return HeadKinds(
        model=str(model.cfg.model_name),
        fingerprint=identity(model),
        evidence={"scores": array},
        settings={
            "text": text if isinstance(text, str) else type(text).__name__,
            "n": n,
            "length": length,
            "seed": seed,
            "split": split,
            "left_out": left_out,
            "versions": versions(),
        },
    )


def survey(found: HeadKinds, k: int = 5) -> pd.DataFrame:
    """What there is in a model, one row for each kind: its definition, where its heads are, and who described it.

    Args:
        found: of `heads`.
        k: how many heads are named.

    Returns:
        Columns ``kind``, ``definition``, ``units``, ``stage``, ``layers`` (of the heads named), ``top heads`` with
        their scores, ``source``.
    """
    rows = []
    for kind in found.kinds:
        values, top = found.kind(kind), found.top(kind, k)
        layers = [layer for layer, _ in top]
        about = {name: values.attrs[name][kind] for name in ("definition", "units", "stage", "source")}
        rows.append(
            {
                "kind": kind,
                "definition": about["definition"],
                "units": about["units"],
                "stage": about["stage"],
                "layers": f"{min(layers)}–{max(layers)}",
                "top heads": ", ".join(f"{a}.{b} ({float(values[a, b]):.2f})" for a, b in top),
                "source": about["source"],
            }
        )
    return pd.DataFrame(rows)


def separators(model: Any, tokens: Int[Tensor, "row pos"]) -> Bool[Tensor, "row pos"] | None:
    """Which tokens have neither letter nor digit, the first position left out; None without a tokenizer."""
    encoder = Encoder(model)
    if encoder.tokenizer is None:
        return None
    ids = tokens.unique().tolist()
    bare = [token for token, word in zip(ids, encoder.decode(tuple(ids)), strict=True) if _is_bare(word)]
    mask = torch.isin(tokens, torch.tensor(bare, device=tokens.device, dtype=tokens.dtype))
    mask[:, 0] = False
    return mask


def _is_bare(word: str) -> bool:
    return not any(letter.isalnum() for letter in word)


def _inputs(
    model: Any, parts: Parts, text: Any, n: int, length: int, seed: int, split: str | None
) -> dict[str, Callable[[], Any]]:
    """What each group of detectors reads, made when it is needed."""
    prefix, longest = len(Encoder(model).prefix), longest_input(model) or 1 << 20
    return {
        "text": lambda: corpus(text, model, n, length, seed, split=half_of_corpus(text, split)),
        "repeated": lambda: corpus("repeated", model, n, min(_REPEATED + prefix, longest), seed),
        "weights": lambda: OV(model, seed=seed),
        "ioi": lambda: IndirectObjects(model, task("ioi", model, n=n, seed=seed, split=split)),
    }


def _measured(parts: Parts, model: Any, wanted: list[Detector], given: Any, lenient: bool) -> Any:
    """Name and scores of each detector, or the reason why it does not apply."""
    if not wanted:
        return
    if isinstance(given, Tensor):
        yield from _Means(parts, model, wanted, lenient).over(given)
        return
    for detector in wanted:
        try:
            yield detector.name, detector.measure(given)
        except DoesNotApply as error:
            if not lenient:
                raise
            yield detector.name, str(error)


class _Means:
    """Means over queries of what detectors measure, as the patterns pass by."""

    def __init__(self, parts: Parts, model: Any, wanted: list[Detector], lenient: bool) -> None:
        self.parts, self.model, self.wanted, self.lenient = parts, model, list(wanted), lenient
        self.sums: dict[str, list[Any]] = {detector.name: [0.0] * parts.graph.n_layers for detector in wanted}
        self.counts: dict[str, list[Any]] = {detector.name: [0.0] * parts.graph.n_layers for detector in wanted}
        self.left_out: dict[str, str] = {}

    def over(self, tokens: Int[Tensor, "row pos"]) -> Any:
        marks = separators(self.model, tokens)
        together = max(1, _TOGETHER // tokens.shape[1])
        for rows, marked in zip(
            tokens.split(together), [None] * len(tokens) if marks is None else marks.split(together), strict=False
        ):
            stream(self.parts, rows, self.see, marks={} if marked is None else {"separator": marked})
        for detector in self.wanted:
            name = detector.name
            counts = torch.stack(self.counts[name])
            if not counts.amax() > 0:
                yield name, self._refused(detector, f"no query of {tokens.shape[1]} tokens counts for {name} heads")
                continue
            yield name, self._finished(detector, torch.stack(self.sums[name]) / counts.clamp(min=1))
        yield from self.left_out.items()

    def see(self, seen: Patterns) -> None:
        for detector in tuple(self.wanted):
            try:
                values = detector.measure(seen)
            except DoesNotApply as error:
                if not self.lenient:
                    raise
                self.left_out[detector.name] = str(error)
                self.wanted.remove(detector)
                continue
            counted = ~torch.isnan(values)
            self.sums[detector.name][seen.layer] += values.nansum((0, 2)).double()
            self.counts[detector.name][seen.layer] += counted.sum((0, 2)).double()

    def _refused(self, detector: Detector, reason: str) -> str:
        if not self.lenient:
            raise DoesNotApply(f"{reason}; ask for longer texts")
        return reason

    @staticmethod
    def _finished(detector: Detector, means: Float[Tensor, "layer head *bin"]) -> Float[Tensor, "layer head"]:
        return means if detector.finish is None else detector.finish(means)
