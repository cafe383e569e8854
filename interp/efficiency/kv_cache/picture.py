"""A picture of what a cache keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from interp.efficiency.kv_cache.policies import described, entries

if TYPE_CHECKING:
    from interp.efficiency.kv_cache.plan import KVPlan

__all__ = ["kept_entries"]


def kept_entries(plan: KVPlan) -> go.Figure:
    """Entries by layer and key-value head as a heatmap.

    Args:
        plan: The plan; without a length of its own, 2,048 tokens are taken.
    """
    length = plan.length or 2048
    layers = sorted({layer for layer, _, _ in plan.heads})
    heads = sorted({head for _, head, _ in plan.heads})
    kept = np.full((len(heads), len(layers)), np.nan)
    words = np.full(kept.shape, "", dtype=object)
    for layer, head, index in plan.heads:
        at = heads.index(head), layers.index(layer)
        kept[at] = entries(plan.policies[index], length)
        words[at] = described(plan.policies[index])
    figure = go.Figure(
        go.Heatmap(
            z=kept,
            x=layers,
            y=heads,
            text=words,
            zmin=0,
            zmax=length,
            colorscale="Viridis",
            colorbar={"title": "entries"},
            hovertemplate="layer %{x}, key-value head %{y}: %{z} entries, %{text}<extra></extra>",
        )
    )
    title = f"{plan.method} at {plan.budget:.0%}: entries kept of {length:,} tokens, {plan.model}"
    figure.update_yaxes(dtick=max(1, len(heads) // 8))
    return figure.update_layout(title=title, xaxis_title="layer", yaxis_title="key-value head")
