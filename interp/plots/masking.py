"""What masking k heads does, one small plot a metric: retrieval heads against others."""

from __future__ import annotations

import numpy as np
import xarray as xr

from interp.errors import UsageError
from interp.plots import style
from interp.plots.bands import Curve, Panel, bands
from interp.plots.curves import LINES
from interp.plots.picture import Picture

__all__ = ["masking_curve"]

_LABELS = {
    "recall": "needle recall",
    "answer_kl": "KL of the answer's tokens (nats)",
    "text_loss": "loss on plain text (nats)",
}
_NAMES = {
    "retrieval": "strongest retrieval heads",
    "random": "random other heads",
    "same layers": "other heads of the same layers",
}
_STYLES = {"retrieval": LINES[1], "random": ("#8b9199", "o", "circle"), "same layers": ("#2166ac", "^", "triangle-up")}


def masking_curve(effects: xr.DataArray, *, title: str | None = None, subtitle: str | None = None) -> Picture:
    """Draw what is lost by the number of heads masked.

    Args:
        effects: "kind k metric example" of `interp.attention.retrieval_causality`. Lines are means over the
            draws (``example``), bands reach from the lowest to the highest draw.
        title: above the picture.
        subtitle: below the title.

    Returns:
        A picture for `interp.plots.save` and for reports.

    Raises:
        UsageError: other dims, or values that are not finite.
    """
    if set(effects.dims) != {"kind", "k", "metric", "example"}:
        raise UsageError(f"effects of masking have the dims kind, k, metric and example, got {tuple(effects.dims)}")
    if not np.isfinite(effects.values).all():
        raise UsageError("the effects of masking have values that are not finite")
    of = effects.attrs.get("model")
    used, text = effects.attrs.get("samples_used"), effects.attrs.get("text_tokens")
    heading = style.literal(title if title is not None else f"Heads masked{f' in {of}' if of else ''}")
    below = f"{used} needles that the whole model finds, {text} tokens of plain text" if used and text else ""
    below = style.literal(subtitle if subtitle is not None else below)
    return bands(
        [_panel(effects.sel(metric=metric)) for metric in effects["metric"].values],
        [f"{int(k)}" for k in effects["k"].values],
        across="heads masked",
        band="draws",
        title=heading,
        subtitle=below,
    )


def _panel(effects: xr.DataArray) -> Panel:
    name = str(effects["metric"].item())
    curves = []
    for kind in map(str, effects["kind"].values):
        draws = effects.sel(kind=kind).transpose("example", "k").values.astype(float)
        label, look = _NAMES.get(kind, style.literal(kind)), _STYLES.get(kind, LINES[2])
        curves.append(Curve(label, look, draws.mean(0), draws.min(0), draws.max(0)))
    label = _LABELS.get(name, style.literal(name))
    return Panel.around(label, curves, (0.0, 1.0) if name == "recall" else None)
