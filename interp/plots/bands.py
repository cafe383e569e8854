"""Curves with bands or bars, one small plot a quantity, over a few values that stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import plotly.graph_objects as go
from matplotlib.backends.backend_agg import FigureCanvasAgg

from interp.plots import style
from interp.plots.picture import Picture
from interp.plots.static import Figure, drawable, settings

__all__ = ["Curve", "Panel", "bands"]

_PANEL, _GAP, _LEFT, _RIGHT, _HEIGHT, _FOOT = 250, 50, 46, 20, 235, 58
_LEGEND, _LETTER, _MARK = 26, 6.6, 52
_PT, _DODGE = 0.75, 0.07


@dataclass(frozen=True)
class Curve:
    """One line of a panel.

    Args:
        name: in the legend; the curves of all panels have the same names in the same order.
        style: its colour, and its marker in matplotlib and in plotly, as `interp.plots.curves.LINES` has them.
        mean: "x".
        low: "x", the lower edge of its band or bar.
        high: "x", the upper edge.
    """

    name: str
    style: tuple[str, str, str]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Panel:
    """One quantity.

    Args:
        label: above it.
        curves: what is drawn.
        limits: of the vertical axis.
    """

    label: str
    curves: tuple[Curve, ...]
    limits: tuple[float, float]

    @classmethod
    def around(cls, label: str, curves: Sequence[Curve], limits: tuple[float, float] | None = None) -> Panel:
        """A panel with a little room around its bands, or around the limits given."""
        low, high = limits or (min(c.low.min() for c in curves), max(c.high.max() for c in curves))
        pad = (high - low) * 0.05 or 0.05
        return cls(label, tuple(curves), (low - pad, high + pad))


def bands(
    panels: Sequence[Panel],
    x: Sequence[str],
    *,
    across: str,
    band: str,
    title: str,
    subtitle: str = "",
    bars: bool = False,
) -> Picture:
    """Draws panels side by side.

    Args:
        panels: with the same curves.
        x: what stands below each place of the curves.
        across: what that is.
        band: what a band is, in a word, as in ``draws 0.1 to 0.3``.
        title: above the picture.
        subtitle: below the title.
        bars: draw bars, each curve a little beside the other, instead of bands, of which few can overlap.
    """
    parts = (tuple(panels), list(x), across, band, title, subtitle, bars)
    return Picture(title, draw=lambda: _paper(*parts), plotly=_screen(*parts))


def _sheet(panels: tuple[Panel, ...], subtitle: str) -> tuple[int, int, int]:
    """Width and height of the sheet, and where the panels begin below its top."""
    width = _LEFT + len(panels) * (_PANEL + _GAP) - _GAP + _RIGHT
    rows = -(-len(panels[0].curves) // _columns(panels, width))
    top = 34 + (18 if subtitle else 0) + _LEGEND + 19 * (rows - 1) + 28
    return width, top + _HEIGHT + _FOOT, top


def _columns(panels: tuple[Panel, ...], width: int) -> int:
    """How many names stand in a row of the legend."""
    names = [len(curve.name) for curve in panels[0].curves]
    return min(len(names), max(1, int((width - _LEFT) // (_MARK + _LETTER * max(names)))))


def _places(number: int, count: int, places: int, bars: bool) -> np.ndarray:
    """Where the points of a curve stand from left to right."""
    return np.arange(places) + (_DODGE * (number - (count - 1) / 2) if bars else 0.0)


def _screen(
    panels: tuple[Panel, ...], ks: list[str], across: str, band: str, title: str, subtitle: str, bars: bool
) -> go.Figure:
    width, height, top = _sheet(panels, subtitle)
    figure, layout = go.Figure(), {}
    for number, panel in enumerate(panels):
        suffix = "" if number == 0 else str(number + 1)
        axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        for at, curve in enumerate(panel.curves):
            x = _places(at, len(panel.curves), len(ks), bars).tolist()
            (colour, _, marker), name = curve.style, style.escape(curve.name)
            red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
            if not bars:
                figure.add_scatter(
                    x=[*x, *x[::-1]], y=[*curve.high, *curve.low[::-1]], fill="toself", mode="lines",
                    line={"width": 0}, fillcolor=f"rgba({red},{green},{blue},0.18)", hoverinfo="skip",
                    showlegend=False, **axes,
                )  # fmt: skip
            ends = {"array": curve.high - curve.mean, "arrayminus": curve.mean - curve.low}
            figure.add_scatter(
                x=x, y=curve.mean, mode="lines+markers", name=name, legendgroup=curve.name, showlegend=number == 0,
                line={"color": colour, "width": 2.2},
                marker={"symbol": marker, "size": 7, "line": {"color": "white", "width": 1}},
                error_y={**ends, "color": colour, "thickness": 1.2, "width": 0} if bars else None,
                customdata=np.stack([np.array(ks, dtype=object), curve.low, curve.high], 1),
                hovertemplate=f"%{{customdata[0]}} {name}<br>{style.escape(panel.label)} <b>%{{y:.4~g}}</b>"
                f"<br>{band} %{{customdata[1]:.4~g}} to %{{customdata[2]:.4~g}}<extra></extra>", **axes,
            )  # fmt: skip
        left = _LEFT + number * (_PANEL + _GAP)
        bare = {"showgrid": False, "zeroline": False, "showline": True, "linecolor": style.GRID, "ticks": "outside",
                "ticklen": 4, "tickcolor": style.GRID}  # fmt: skip
        layout[f"xaxis{suffix}"] = {
            **bare, "domain": [left / width, (left + _PANEL) / width], "anchor": f"y{suffix}",
            "tickvals": list(range(len(ks))), "ticktext": ks, "range": [-0.25, len(ks) - 0.75],
            "title": {"text": style.escape(across), "font": {"size": style.SIZES["axis"]}},
        }  # fmt: skip
        layout[f"yaxis{suffix}"] = {
            **bare, "domain": [_FOOT / height, (_FOOT + _HEIGHT) / height], "anchor": f"x{suffix}",
            "range": list(panel.limits), "tickvals": style.nice_ticks(*panel.limits),
        }  # fmt: skip
        figure.add_annotation(
            x=left / width, y=1 - (top - 8) / height, xref="paper", yref="paper", xanchor="left", yanchor="bottom",
            text=f"<b>{style.escape(panel.label)}</b>", showarrow=False, font={"size": style.SIZES["panel"]},
        )  # fmt: skip
    small = f"font-size:{style.SIZES['subtitle']}px;color:{style.MUTED}"
    heading = f"<b>{style.escape(title)}</b>"
    heading += f'<br><span style="{small}">{style.escape(subtitle)}</span>' if subtitle else ""
    figure.update_layout(
        template=go.layout.Template(), width=width, height=height, paper_bgcolor="white", plot_bgcolor="white",
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        font={"family": style.FONT, "size": style.SIZES["tick"], "color": style.INK},
        title={"text": heading, "x": _LEFT / width, "xanchor": "left", "y": 1 - 12 / height, "yanchor": "top",
               "font": {"size": style.SIZES["title"]}},
        legend={"x": _LEFT / width, "xanchor": "left", "y": 1 - (top - 32) / height, "yanchor": "bottom",
                "orientation": "h", "font": {"size": style.SIZES["axis"]}, "bgcolor": "rgba(0,0,0,0)"},
        hoverlabel={"font": {"family": style.FONT, "size": 12.5}, "align": "left"}, **layout,
    )  # fmt: skip
    return figure


def _paper(
    panels: tuple[Panel, ...], ks: list[str], across: str, band: str, title: str, subtitle: str, bars: bool
) -> Figure:
    width, height, top = _sheet(panels, subtitle)
    with matplotlib.rc_context(settings()):
        figure = Figure(figsize=(width / 96, height / 96), facecolor="white")
        FigureCanvasAgg(figure)
        lines = []
        for number, panel in enumerate(panels):
            left = _LEFT + number * (_PANEL + _GAP)
            axes = figure.add_axes((left / width, _FOOT / height, _PANEL / width, _HEIGHT / height))
            for at, curve in enumerate(panel.curves):
                colour, marker, _ = curve.style
                x = _places(at, len(panel.curves), len(ks), bars)
                if bars:
                    axes.vlines(x, curve.low, curve.high, color=colour, linewidth=0.9, zorder=3)
                else:
                    axes.fill_between(x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
                lines += axes.plot(
                    x, curve.mean, color=colour, linewidth=1.7, marker=marker, markersize=5.5,
                    label=drawable(curve.name), markeredgecolor="white", markeredgewidth=0.8, clip_on=False, zorder=4,
                )  # fmt: skip
            look: dict[str, Any] = {"fontsize": style.SIZES["axis"] * _PT, "color": style.INK}
            axes.set_xticks(range(len(ks)), ks)
            axes.set_xlim(-0.25, len(ks) - 0.75)
            axes.set_ylim(*panel.limits)
            axes.set_yticks(style.nice_ticks(*panel.limits))
            axes.set_xlabel(drawable(across), labelpad=5, **look)
            axes.set_title(
                drawable(panel.label), loc="left", fontsize=style.SIZES["panel"] * _PT, weight="bold", color=style.INK
            )
            axes.tick_params(labelsize=style.SIZES["tick"] * _PT, color=style.GRID, labelcolor=style.INK)
            for side, spine in axes.spines.items():
                spine.set_visible(side in ("left", "bottom"))
                spine.set_color(style.GRID)
        figure.legend(
            handles=lines[: len(panels[0].curves)], loc="lower left", ncols=_columns(panels, width), frameon=False,
            bbox_to_anchor=((_LEFT - 6) / width, 1 - (top - 34) / height), fontsize=style.SIZES["axis"] * _PT,
            handlelength=2.6, borderpad=0, columnspacing=2.0, borderaxespad=0,
        )  # fmt: skip
        margin = _LEFT / width
        figure.text(
            margin, 1 - 14 / height, drawable(title), va="top", weight="bold", color=style.INK,
            fontsize=style.SIZES["title"] * _PT,
        )  # fmt: skip
        if subtitle:
            figure.text(
                margin, 1 - 36 / height, drawable(subtitle), va="top", color=style.MUTED,
                fontsize=style.SIZES["subtitle"] * _PT,
            )  # fmt: skip
    return figure
