"""Quality against cost: each plan with its controls, families joined by lines, the Pareto front marked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib
import pandas as pd
import plotly.graph_objects as go
from matplotlib.backends.backend_agg import FigureCanvasAgg

from interp.plots import style
from interp.plots.curves import LINES
from interp.plots.picture import Picture
from interp.plots.static import Figure, drawable, settings

if TYPE_CHECKING:
    from interp.efficiency.tradeoff import Tradeoff

__all__ = ["tradeoff_plot"]

_WIDTH, _HEIGHT, _PT = 760, 520, 0.75
_LEFT, _RIGHT, _TOP, _FOOT = 70, 230, 62, 58
_CONTROLS = {"random": "#8b9199", "inverted": "#c9922e", "dense": style.INK}
_UNITS = {"bytes": (2**20, "MiB"), "seconds": (1e-3, "ms")}


def tradeoff_plot(found: Tradeoff, quality: str, cost: str = "cache_bytes", *, title: str = "") -> Picture:
    """Draws one quality against one cost, each row a mark; plans on the Pareto front are filled and joined.

    Args:
        found: A trade-off.
        quality: A quantity of quality, as ``keys1.recall``.
        cost: A quantity of cost, as ``cache_bytes`` or ``decode_seconds``.
        title: Above the picture.

    Raises:
        UsageError: A quantity that was not measured.
    """
    front = found.pareto(quality, cost)
    frame = found.to_frame().dropna(subset=[quality, cost])
    divisor, unit = next(((d, u) for end, (d, u) in _UNITS.items() if cost.endswith(end)), (1.0, ""))
    frame = frame.assign(x=frame[cost] / divisor, y=frame[quality], front=[name in front for name in frame.index])
    across = cost.replace("_", " ").removesuffix(" bytes").removesuffix(" seconds") + (f" ({unit})" if unit else "")
    up = f"{quality.replace('.', ': ').replace('_', ' ')} ({found.better.get(quality, 'higher')} is better)"
    title = title or f"{quality.replace('.', ': ').replace('_', ' ')} against {across}"
    about = found.about
    small = (
        f"{about.get('model', '')}, {about.get('dtype', '')}, on {about.get('device', '')}; medians; line: Pareto front"
    )
    parts = (frame, front, across, up, title, small)
    return Picture(style.literal(title), draw=lambda: _paper(*parts), plotly=_screen(*parts))


def _looks(frame: pd.DataFrame) -> dict[Any, tuple[str, str, str]]:
    """Colour and marks of each row: a plan has its own, controls take their plan's mark in their kind's colour."""
    plans = [name for name, row in frame.iterrows() if row["kind"] == "plan"]
    own = {name: LINES[i % len(LINES)] for i, name in enumerate(plans)}
    looks: dict[Any, tuple[str, str, str]] = {}
    for name, row in frame.iterrows():
        if row["kind"] == "plan":
            looks[name] = own[name]
        else:
            _, paper, screen = own.get(row["of"], ("", "X", "x"))
            looks[name] = (_CONTROLS[row["kind"]], paper, screen)
    return looks


def _screen(frame: pd.DataFrame, front: list[str], across: str, up: str, title: str, small: str) -> go.Figure:
    figure, looks = go.Figure(), _looks(frame)
    line = frame.loc[front].sort_values("x")
    figure.add_scatter(
        x=line["x"], y=line["y"], mode="lines", line={"color": style.GRID, "width": 1.2, "dash": "dot"},
        hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    for name, row in frame.iterrows():
        colour, _, marker = looks[name]
        label = style.escape(style.literal(str(name)))
        mark = marker if row["front"] else f"{marker}-open"
        figure.add_scatter(
            x=[row["x"]], y=[row["y"]], mode="markers", name=label,
            marker={"symbol": mark, "size": 10, "color": colour, "line": {"width": 1.6, "color": colour}},
            hovertemplate=f"{label}<br>%{{y:.4~g}} at %{{x:.4~g}}<extra></extra>",
        )  # fmt: skip
    axis = {"showgrid": False, "zeroline": False, "ticks": "outside", "ticklen": 4, "tickcolor": style.GRID,
            "linecolor": style.GRID, "showline": True}  # fmt: skip
    note = f"font-size:{style.SIZES['subtitle']}px;color:{style.MUTED}"
    heading = f'<b>{style.escape(title)}</b><br><span style="{note}">{style.escape(small)}</span>'
    figure.update_layout(
        template=go.layout.Template(), width=_WIDTH, height=_HEIGHT, paper_bgcolor="white", plot_bgcolor="white",
        margin={"l": _LEFT, "r": _RIGHT, "t": _TOP, "b": _FOOT},
        font={"family": style.FONT, "size": style.SIZES["tick"], "color": style.INK},
        title={"text": heading, "x": _LEFT / _WIDTH, "xanchor": "left", "y": 1 - 12 / _HEIGHT, "yanchor": "top",
               "font": {"size": style.SIZES["title"]}},
        legend={"x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top", "font": {"size": style.SIZES["axis"]}},
        xaxis={**axis, "rangemode": "tozero", "title": {"text": style.escape(across)}},
        yaxis={**axis, "title": {"text": style.escape(up)}},
        hoverlabel={"font": {"family": style.FONT, "size": 12.5}, "align": "left"},
    )  # fmt: skip
    return figure


def _paper(frame: pd.DataFrame, front: list[str], across: str, up: str, title: str, small: str) -> Figure:
    looks: dict[Any, tuple[str, str, str]] = _looks(frame)
    with matplotlib.rc_context(settings()):
        figure = Figure(figsize=(_WIDTH / 96, _HEIGHT / 96), facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_axes(
            (_LEFT / _WIDTH, _FOOT / _HEIGHT, 1 - (_LEFT + _RIGHT) / _WIDTH, 1 - (_TOP + _FOOT) / _HEIGHT)
        )
        line = frame.loc[front].sort_values("x")
        axes.plot(line["x"], line["y"], color=style.GRID, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
        for name, row in frame.iterrows():
            colour, marker, _ = looks[name]
            axes.plot(
                row["x"], row["y"], marker=marker, markersize=7, linestyle="none", markeredgecolor=colour,
                markerfacecolor=colour if row["front"] else "white", markeredgewidth=1.4, zorder=3,
                label=drawable(style.literal(str(name))), clip_on=False,
            )  # fmt: skip
        axes.set_xlim(0, float(frame["x"].max()) * 1.06)
        look: dict[str, Any] = {"fontsize": style.SIZES["axis"] * _PT, "color": style.INK}
        axes.set_xlabel(drawable(across), labelpad=6, **look)
        axes.set_ylabel(drawable(up), **look)
        axes.tick_params(labelsize=style.SIZES["tick"] * _PT, color=style.GRID, labelcolor=style.INK)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(style.GRID)
        axes.legend(
            loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=style.SIZES["axis"] * _PT,
            handlelength=1.2, labelspacing=0.5, borderpad=0,
        )  # fmt: skip
        words: dict[str, Any] = {"va": "top"}
        figure.text(
            _LEFT / _WIDTH, 1 - 14 / _HEIGHT, drawable(title), weight="bold", color=style.INK,
            fontsize=style.SIZES["title"] * _PT, **words,
        )  # fmt: skip
        figure.text(
            _LEFT / _WIDTH, 1 - 36 / _HEIGHT, drawable(small), color=style.MUTED,
            fontsize=style.SIZES["subtitle"] * _PT, **words,
        )  # fmt: skip
    return figure
