"""Trade-offs: quality against real cost, of plans, of the dense model, and of what plans have to beat, in one run.

Beside every plan stand a random plan of the same budget and, where it rests on a finding, the plan of the inverted
finding; where a plan has neither, the table says why. Repetitions of all rows are interleaved, so that a machine that
slows down slows all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel, StaticCache

from interp.efficiency.controls import control
from interp.efficiency.cost import Cost
from interp.efficiency.deployment import deploy, deployment
from interp.efficiency.kv_cache.running import cache_plan
from interp.efficiency.method import CONTROLS
from interp.efficiency.plan import Plan
from interp.efficiency.quality import Keys, Quality, Text, in_words
from interp.engine.identity import versions
from interp.engine.progress import track
from interp.engine.spread import elsewhere, in_order, spread
from interp.errors import UsageError

if TYPE_CHECKING:
    from interp.plots.picture import Picture

__all__ = ["Row", "Tradeoff", "tradeoff"]

DENSE, STATIC = "dense", "dense, static cache"
_ABOUT = ("kind", "of", "budget", "simulated", "control")
"""What a table says of a row before its quantities."""


@dataclass(frozen=True)
class Row:
    """What is measured: a plan, or the dense model.

    Args:
        name: Of the row.
        kind: ``dense``, ``plan``, ``random`` or ``inverted``.
        of: The row that this one is a control of; itself for others.
        plan: None for the dense model.
        control: Of a plan: the kinds of its controls that stand beside it, or ``none, because ...``.
    """

    name: str
    kind: str
    of: str
    plan: Plan | None = None
    control: str = ""

    @property
    def real(self) -> bool:
        """Whether its seconds mean something."""
        return self.plan is None or self.plan.real


@dataclass(frozen=True, eq=False)
class Tradeoff:
    """What a trade-off found.

    Args:
        rows: What was measured.
        values: One row a number: ``row``, ``group`` (``quality`` or ``cost``), ``quantity``, ``repetition``, ``value``.
        better: Of each quantity: ``higher`` or ``lower``.
        about: Model, settings, versions, and each plan's ledger.
    """

    rows: tuple[Row, ...]
    values: pd.DataFrame
    better: Mapping[str, str]
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One row a plan: its kind, budget and controls, and each quantity's median over the repetitions.

        Seconds of simulated plans are missing; ``simulated`` says so.
        """
        wide = self.values.pivot_table(index="row", columns="quantity", values="value", aggfunc="median", sort=False)
        wide = wide.reindex([row.name for row in self.rows])
        about = pd.DataFrame(
            {
                "kind": [row.kind for row in self.rows],
                "of": [row.of for row in self.rows],
                "budget": [1.0 if row.plan is None else row.plan.budget for row in self.rows],
                "simulated": [not row.real for row in self.rows],
                "control": [row.control for row in self.rows],
            },
            index=wide.index,
        )
        return pd.concat([about, wide], axis=1)

    def spread(self) -> pd.DataFrame:
        """One row a plan and quantity of cost: ``low``, ``median`` and ``high`` over the repetitions."""
        cost = self.values[self.values["group"] == "cost"]
        found = cost.groupby(["row", "quantity"], sort=False)["value"].agg(["min", "median", "max", "size"])
        return found.rename(columns={"min": "low", "max": "high", "size": "repetitions"})

    def pareto(self, quality: str, cost: str = "cache_bytes") -> list[str]:
        """The rows that no other row beats in both a quality and a cost, cheapest first."""
        frame = self.to_frame()
        for name in (quality, cost):
            if name not in frame:
                there = ", ".join(frame.columns[len(_ABOUT) :])
                raise UsageError(f"no quantity {name!r} was measured; there are {there}")
        sign = 1 if self.better.get(quality, "higher") == "higher" else -1
        best, found = float("-inf"), []
        ordered = frame.dropna(subset=[quality, cost]).assign(_q=lambda f: sign * f[quality])
        for label, row in ordered.sort_values([cost, "_q"], ascending=[True, False], kind="stable").iterrows():
            if row["_q"] > best:
                best = row["_q"]
                found.append(str(label))
        return found

    def picture(self, quality: str = "keys1.recall", cost: str = "cache_bytes") -> Picture:
        """Quality against cost, controls beside their plans, the Pareto front marked."""
        from interp.plots.tradeoff import tradeoff_plot

        return tradeoff_plot(self, quality, cost)

    def save(self, directory: str | os.PathLike[str], quality: str | None = None, cost: str = "cache_bytes") -> None:
        """Writes ``tradeoff.csv``, ``tradeoff.json`` and, of one quality, ``tradeoff.html`` and ``tradeoff.png``."""
        from interp.efficiency.tradeoff_files import save

        save(self, directory, quality, cost)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Tradeoff:
        """Reads what `save` wrote: the folder, or its ``tradeoff.json``.

        Raises:
            InterpError: No trade-off there, one of another version, or a damaged one.
        """
        from interp.efficiency.tradeoff_files import load

        return load(path)


def tradeoff(
    model: PreTrainedModel,
    plans: Mapping[str, Any] | Sequence[Any],
    quality: Sequence[Quality] | None = None,
    cost: Cost | None = None,
    *,
    controls: bool | Collection[str] = True,
    repetitions: int = 3,
    draws: int = 1,
    seed: int = 0,
) -> Tradeoff:
    """Measures plans beside the dense model and beside what they have to beat, in one run.

    Args:
        model: A deployed model.
        plans: Plans, or methods, which make one; by name, or in a list and then called by their methods' names. What
            needs no finding (sink and window, SnapKV, magnitude, ...) is given as a method like any other.
        quality: What is measured on each; by default `Text` and `Keys` with one key and with four.
        cost: How cost is measured; by default `Cost` on 2,048 tokens.
        controls: Give each plan its random plan and its inverted plan, made as it says that it was made; or the names
            of the plans that get them.
        repetitions: Of the cost; their median counts.
        draws: Random plans of each method.
        seed: Of the random plans.

    Returns:
        The trade-off. Quantities of quality are called after it, as ``keys1.recall``.

    Raises:
        UsageError: Two rows of one name, or a plan for another model.

    Example:
        >>> found = interp.efficiency.tradeoff(model, [RetrievalHeadCache(heads, sinks=sinks, budget=0.15)])
        >>> found.to_frame()
    """
    about = deployment(model)
    if repetitions < 1 or draws < 1:
        raise UsageError(f"repetitions and draws must be at least 1, got {repetitions} and {draws}")
    rows = [Row(DENSE, "dense", DENSE), *_rows(model, plans, controls, draws, seed)]
    if len({row.name for row in rows}) < len(rows):
        raise UsageError("two plans have one name; give them by name: tradeoff(model, {'a': plan, 'b': other})")
    quality = (Text(), Keys(1), Keys(4)) if quality is None else tuple(quality)
    cost = Cost() if cost is None else cost
    values: list[tuple[str, str, str, int, float]] = []
    with track(len(rows) * (len(quality) + repetitions), "trade-off") as advance:
        if elsewhere() is None:
            for one in quality:
                one.prepare(model)
        here = partial(_measured, model, quality, advance)
        for row, each in zip(rows, in_order(spread(rows, here, _begin, model, (quality,))), strict=True):
            for one, found in zip(quality, each, strict=True):
                values += [(row.name, "quality", f"{one.name}.{name}", 0, v) for name, v in found.items()]
            if elsewhere() is not None:
                advance(len(quality))
        cost.prepare(model)
        static = cache_plan(model) is None  # a model whose plan is permanent has a cache of its own
        for repetition in range(repetitions):
            turn = repetition % len(rows)
            for row in (*rows[turn:], *rows[:turn]):
                with _in_force(row, model):
                    found = _seconds_if_real(cost.measure(model), row.real)
                    if cost.peak and not repetition:
                        found["peak_bytes"] = cost.peak_bytes(model)
                values += [(row.name, "cost", name, repetition, value) for name, value in found.items()]
                advance(1)
            if static:
                whole = StaticCache(config=model.config, max_cache_len=cost.length + cost.steps + 1)
                found = cost.measure(model, whole)
                values += [(STATIC, "cost", name, repetition, value) for name, value in found.items()]
    if static:
        rows.insert(1, Row(STATIC, "dense", DENSE))
    frame = pd.DataFrame(values, columns=["row", "group", "quantity", "repetition", "value"])
    better = {f"{one.name}.{name}": way for one in quality for name, way in one.better.items()}
    ledgers = {
        row.name: row.plan.ledger(model, cost.length, cost.batch).to_frame().reset_index().to_dict("records")
        for row in rows
        if row.plan is not None
    }
    settings = {
        "model": about.name,
        "fingerprint": about.fingerprint,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "cost": {"length": cost.length, "steps": cost.steps, "batch": cost.batch, "source": in_words(cost.source)},
        "quality": {one.name: one.about() for one in quality},
        "repetitions": repetitions,
        "seed": seed,
        "versions": versions(),
        "ledgers": ledgers,
    }
    return Tradeoff(tuple(rows), frame, {**better, **Cost.better}, settings)


def _rows(model: PreTrainedModel, plans: Any, controls: bool | Collection[str], draws: int, seed: int) -> list[Row]:
    named = plans.items() if isinstance(plans, Mapping) else ((None, plan) for plan in plans)
    rows: list[Row] = []
    for given, one in named:
        if not isinstance(one, Plan) and not hasattr(one, "plan"):
            raise UsageError(f"give plans or methods, which have .plan(model); got {type(one).__name__}")
        plan, method = (one, None) if isinstance(one, Plan) else (one.plan(model), one)
        plan.check(model)
        name = given or plan.method
        wanted = controls if isinstance(controls, bool) else name in controls
        beside, words = _beside(name, plan, method, model, draws, seed) if wanted else ([], "none, not asked for")
        rows += [Row(name, "plan", name, plan, words), *beside]
    return rows


def _beside(name: str, plan: Plan, method: Any, model: PreTrainedModel, draws: int, seed: int) -> tuple[list[Row], str]:
    """The rows of a plan's controls, and in words which there are, or why there is none."""
    rows: list[Row] = []
    why = f"no plan of {plan.method} decides otherwise"
    for kind in CONTROLS:
        for draw in range(draws if kind == "random" else 1):
            suffix = "" if draws == 1 or kind != "random" else f" {draw + 1}"
            try:
                beside = control(plan, kind, model, seed + draw, method)
            except UsageError as error:
                beside, why = None, str(error)
            if beside is not None:
                rows.append(Row(f"{name}, {kind}{suffix}", kind, name, beside))
    return rows, ", ".join(dict.fromkeys(row.kind for row in rows)) or f"none, because {why}"


def _begin(model: TransformerBridge, quality: Sequence[Quality]) -> Callable[[Row], list[dict[str, float]]]:
    """Measures quality on a worker's own model. Seconds are measured in one process, where they can be compared."""
    deployed = deploy(model)
    for one in quality:
        one.prepare(deployed)
    return partial(_measured, deployed, quality, lambda done: None)


def _measured(
    model: PreTrainedModel, quality: Sequence[Quality], advance: Callable[[float], Any], row: Row
) -> list[dict[str, float]]:
    found = []
    with _in_force(row, model):
        for one in quality:
            found.append(one.measure(model))
            advance(1)
    return found


def _in_force(row: Row, model: PreTrainedModel) -> Any:
    return nullcontext() if row.plan is None else row.plan.applied(model)


def _seconds_if_real(found: dict[str, float], real: bool) -> dict[str, float]:
    return found if real else {name: float("nan") if "seconds" in name else value for name, value in found.items()}
