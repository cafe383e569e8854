"""How well the estimates of each method agree with exact patching, and what they cost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.rules import rules
from interp.errors import UsageError, unknown_name
from interp.graph import site_of
from interp.patching.activation import activation
from interp.patching.atp_star import star_estimates
from interp.patching.estimates import Plan, estimates, labelled_estimates
from interp.patching.methods import METHODS
from interp.tasks import Task

__all__ = ["KINDS", "METHODS", "Agreement", "agreement", "compare", "exact"]

KINDS = ("resid_pre", "attn_out", "mlp_out", "heads", "heads by position")
"""The kinds of node that are compared if no others are asked for."""

TOP = 10


@dataclass(frozen=True, eq=False)
class Agreement:
    """Estimates beside exact effects.

    Attributes:
        table: One row for each method and kind: ``pearson``, ``spearman``, ``top10`` (the share of the ten nodes with
            the largest absolute exact effects that are among the ten with the largest estimates), ``nodes`` (how many
            are compared), ``seconds`` and ``peak_bytes`` (beyond what was in use before) of the method's passes for
            all kinds, and the seconds of exact patching.
        exact: The exact effects of each kind.
        estimates: The estimates, by method and kind.
    """

    table: pd.DataFrame
    exact: dict[str, xr.DataArray]
    estimates: dict[tuple[str, str], xr.DataArray]

    def markdown(self) -> str:
        """The table in Markdown: a row for each method, a column with Pearson's r for each kind."""
        wide = self.table.pivot(index="method", columns="kind", values="pearson")
        wide = wide.loc[self.table.method.unique(), self.table.kind.unique()]
        cost = self.table.groupby("method")[["seconds", "peak_bytes"]].first()
        lines = ["| method | " + " | ".join(wide.columns) + " | seconds | peak MiB |"]
        lines.append("|---|" + "---|" * (len(wide.columns) + 2))
        for (method, row), (_, (seconds, peak)) in zip(wide.iterrows(), cost.loc[wide.index].iterrows(), strict=True):
            cells = " | ".join(f"{r:.3f}" for r in row)
            lines.append(f"| {method} | {cells} | {seconds:.2f} | {peak / 2**20:.0f} |")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return self.table.to_html(index=False, float_format=lambda value: f"{value:.3f}")


def agreement(
    model: TransformerBridge,
    task: Task,
    methods: Sequence[str] = ("attribution", "relp", "secant", "atp*", "ig-inputs-5"),
    kinds: Sequence[str] = KINDS,
    against: Mapping[str, xr.DataArray] | None = None,
    *,
    mode: Literal["denoising", "noising"] = "denoising",
    max_memory: int | None = None,
) -> Agreement:
    """Compares methods with exact patching, node by node.

    Cells that provably have no effect are left out, since they would only push every correlation up: positions
    before the first at which the prompts differ, positions after the last that is read, and, where a node reaches
    the logits through its own position only (the last block), positions that are not read.

    Args:
        model: Any bridge; it is only read.
        task: The prompt pairs.
        methods: Names in `METHODS`.
        kinds: A kind of node of `activation`, by position; ``heads`` and ``neurons`` alone are all positions at
            once, ``heads by position`` each.
        against: Exact effects of each kind, from `exact`; computed if not given.
        mode: As in `activation`.
        max_memory: As in `activation`.

    Returns:
        The table and all scores.

    Raises:
        UsageError: Unknown methods or kinds, or exact effects of another shape or task.
    """
    for method in methods:
        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
    specs = {kind: _spec(kind) for kind in kinds}
    found = dict(against) if against is not None else exact(model, task, kinds, mode=mode, max_memory=max_memory)
    if missing := set(kinds) - set(found):
        raise UsageError(f"against has no exact effects of {', '.join(sorted(missing))}")
    rows: list[dict[str, Any]] = []
    scores: dict[tuple[str, str], xr.DataArray] = {}
    for method in methods:
        each, seconds, peak = _measured(partial(_run, method, model, task, specs, mode, max_memory))
        for kind in kinds:
            scores[method, kind] = each[kind]
            rows.append(
                {
                    "method": method,
                    "kind": kind,
                    **compare(each[kind], found[kind], task),
                    "seconds": seconds,
                    "peak_bytes": peak,
                    "exact_seconds": found[kind].attrs.get("seconds", np.nan),
                }
            )
    return Agreement(pd.DataFrame(rows), {kind: found[kind] for kind in kinds}, scores)


def exact(
    model: TransformerBridge,
    task: Task,
    kinds: Sequence[str] = KINDS,
    *,
    mode: Literal["denoising", "noising"] = "denoising",
    max_memory: int | None = None,
) -> dict[str, xr.DataArray]:
    """Exact effects of each kind, to hand to `agreement` more than once."""
    specs = {kind: _spec(kind) for kind in kinds}
    return {
        kind: activation(model, task, nodes, by_position, mode, max_memory=max_memory)
        for kind, (nodes, by_position) in specs.items()
    }


def compare(estimate: xr.DataArray, truth: xr.DataArray, task: Task) -> dict[str, float]:
    """Correlations and top-k overlap of two arrays of scores, over the cells that can have an effect.

    Raises:
        UsageError: The arrays have different dims or labels, or belong to different tasks.
    """
    if estimate.dims != truth.dims or estimate.shape != truth.shape:
        raise UsageError(
            f"estimates {dict(estimate.sizes)} and exact effects {dict(truth.sizes)} are not of the same nodes"
        )
    for key in ("task", "n", "seed", "mode", "fingerprint", "metric"):
        if estimate.attrs.get(key) != truth.attrs.get(key):
            raise UsageError(
                f"estimates and exact effects differ in {key}: {estimate.attrs.get(key)!r}, {truth.attrs.get(key)!r}"
            )
    chosen = able(truth, task)
    x, y = estimate.values[chosen].astype(float), truth.values[chosen].astype(float)
    k = min(TOP, len(x))
    top = len(set(np.argsort(-np.abs(x))[:k]) & set(np.argsort(-np.abs(y))[:k])) / k
    varied = x.std() > 0 and y.std() > 0
    return {
        "pearson": float(np.corrcoef(x, y)[0, 1]) if varied else float("nan"),
        "spearman": float(stats.spearmanr(x, y).statistic) if varied else float("nan"),
        f"top{TOP}": top,
        "nodes": len(x),
    }


_LOCAL_IN_LAST = ("resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "pattern", "post")


def able(truth: xr.DataArray, task: Task) -> np.ndarray:
    """The cells that are not provably zero."""
    able = xr.ones_like(truth, dtype=bool)
    if "position" not in truth.dims:
        return able.values
    ends, position = task.positions["end"], truth.position
    able &= (position >= int(task.first_difference.min())) & (position <= int(ends.max()))
    if site_of(str(truth.attrs["nodes"])) in _LOCAL_IN_LAST:
        last = int(truth.layer.max())
        able &= (truth.layer < last) | (position >= int(ends.min()))
    return able.transpose(*truth.dims).values


def _spec(kind: str) -> tuple[str, bool]:
    """The kind of node, and whether by position."""
    nodes, separate, _ = kind.partition(" by position")
    return nodes, bool(separate) or site_of(nodes) not in ("z", "post")


def _run(method, model, task, specs, mode, max_memory) -> dict[str, xr.DataArray]:
    """All kinds of node from as few passes as can be: one plan, whose positions are added up where asked."""
    sites = list(dict.fromkeys(nodes for nodes, _ in specs.values()))
    if method == "atp*" or len({by_position for _, by_position in specs.values()}) == 1:
        found: dict[str, xr.DataArray] = {}
        for by_position in {by_position for _, by_position in specs.values()}:
            wanted = {kind: nodes for kind, (nodes, by) in specs.items() if by == by_position}
            plan = Plan(model, task, list(dict.fromkeys(wanted.values())), by_position, mode, max_memory=max_memory)
            each = dict(zip(plan.kinds, _labelled(method, plan), strict=True))
            found |= {kind: each[nodes] for kind, nodes in wanted.items()}
        return found
    plan = Plan(model, task, sites, True, mode, max_memory=max_memory)
    each = dict(zip(sites, _labelled(method, plan), strict=True))
    return {
        kind: each[nodes] if by_position else each[nodes].sum("position", keep_attrs=True)
        for kind, (nodes, by_position) in specs.items()
    }


def _labelled(method: str, plan: Plan) -> list[xr.DataArray]:
    began = time.perf_counter()
    card = METHODS[method]
    chosen = rules(card.rules)
    found = star_estimates(plan, chosen) if card.star else estimates(plan, chosen, card.steps, card.along)
    return labelled_estimates(plan, found, False, time.perf_counter() - began, method=method)


def _measured(call: Callable[[], Any]) -> tuple[Any, float, int]:
    """What a call returns, its seconds, and the most resident memory beyond that before it, in bytes."""
    done, peak, before = threading.Event(), 0, _resident()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, _resident() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    began = time.perf_counter()
    watcher.start()
    try:
        result = call()
        seconds = time.perf_counter() - began
    finally:
        done.set()
        watcher.join()
    return result, seconds, max(peak, _resident() - before)


def _resident() -> int:
    """Resident memory of this process, in bytes; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0
