"""Dashboards of features: one page for each, which needs nothing but itself, and an index to search them."""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.engine.progress import track
from interp.plots import style
from interp.plots.page import page
from interp.results.files import write_text
from interp.results.folders import together

if TYPE_CHECKING:
    from interp.features.interpretation.interpretations import Interpretation, Interpretations
    from interp.features.reading.readings import Context, FeatureReadings

__all__ = ["dashboards", "feature_page"]

_ASSETS = Path(__file__).parent / "assets"
_WORDS = 24
"""Active tokens of a feature that the index can find."""
_PREVIEW = 40
"""Characters to each side of the token in the index."""


def dashboards(
    readings: FeatureReadings,
    directory: str | os.PathLike[str],
    title: str = "",
    explanations: Interpretations | None = None,
) -> Path:
    """Writes ``index.html`` and ``features/NUMBER.html`` for each feature; all work offline, without a server.

    They are put in place together, when the last one is written.

    Args:
        readings: What `interp.features.read_features` gave.
        directory: Where to write; pages of these names are replaced.
        title: Of the index; by default the place and the model.
        explanations: What features are said to be about, shown on their pages with its scores.

    Returns:
        The path of the index.

    Raises:
        InterpError: A page can't be written.
    """
    folder = Path(directory)
    with together(folder) as aside, track(len(readings.features), "writing pages") as advance:
        for feature in readings.features.tolist():
            said = explanations[feature] if explanations is not None and feature in explanations else None
            write_text(aside / "features" / f"{feature}.html", feature_page(readings, feature, said))
            advance(1)
        write_text(aside / "index.html", _index(readings, title or _place(readings)))
    return folder / "index.html"


def feature_page(readings: FeatureReadings, feature: int, said: Interpretation | None = None) -> str:
    """The dashboard of one feature as a complete HTML page, with its explanation if one is given.

    Raises:
        UsageError: A feature that was not read.
    """
    about, density = readings.about, readings.density(feature)
    rare = f"active on {density:.3%} of {about['n_tokens']:,} tokens" if density else "never active"
    head = [
        f"<h1>Feature {feature}</h1>",
        f'<p class="about">{_text(_place(readings))}; {rare} · <a href="../index.html">all features</a></p>',
    ]
    if said is not None:
        head.append(_titled("Explanation", _explanation(said)))
    effects = readings.logits(feature)
    sides = [
        _titled("Activations above zero", _histogram(readings, feature)),
        _titled("Raises most", _effects(effects.promoted)),
        _titled("Lowers most", _effects(effects.suppressed)),
        _titled("Active together with", _together(readings, feature)),
    ]
    peak = readings.peak(feature)
    contexts = [_titled("Top contexts", _contexts(readings.top(feature), peak))]
    for band, some in reversed(list(enumerate(readings.samples(feature)))):
        edges = f"{band / about['quantiles']:.0%} to {(band + 1) / about['quantiles']:.0%}"
        contexts.append(_titled(f"At random from the quantiles {edges}", _contexts(some, peak)))
    foot = (
        f"<footer>Effects on logits are for an activation of 1, before the final norm divides. Phi is the correlation "
        f"of being active. One top context from each row. Shades go from zero to this feature's highest activation"
        f"{', ' + style.number(peak, 4) if peak else ''}.</footer>"
    )
    body = [*head, f'<div class="sides">{"".join(sides)}</div>', *contexts, foot]
    return _page(f"Feature {feature} of {_place(readings)}", "\n".join(part for part in body if part))


def _index(readings: FeatureReadings, title: str) -> str:
    entries = [_entry(readings, feature) for feature in readings.features.tolist()]
    stored = json.dumps({"features": entries}, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    body = (
        f'<h1>{_text(title)}</h1>\n<p class="about">{_text(readings.summary())}</p>\n'
        '<div class="bar"><input type="search" id="find" placeholder="Token, word or number" aria-label="Search" '
        'autocomplete="off"><label>Order <select id="order"><option value="id">number</option><option value="density">'
        'most often active</option><option value="rare">most rarely active</option><option value="peak">highest '
        'activation</option></select></label><output id="count"></output></div>\n'
        '<div class="table"><table class="index"><thead><tr><th class="n">feature</th><th class="n">active</th>'
        '<th class="tall">raises</th><th class="tall">active on</th><th>strongest context</th></tr></thead>'
        "<tbody></tbody></table></div>\n"
        f'<script type="application/json" id="data">{stored}</script>\n'
        f"<script>{(_ASSETS / 'dashboard.js').read_text(encoding='utf-8')}</script>"
    )
    return _page(title, body)


def _entry(readings: FeatureReadings, feature: int) -> list[Any]:
    """Number, density, peak, promoted tokens, tokens that it is active on, and the strongest context in three parts."""
    top = readings.top(feature)
    promoted = [style.literal(token) for token, _ in readings.logits(feature).promoted]
    active = [c.token for c in top]
    active += [t for c in top for t, v in zip(c.tokens, c.activations, strict=True) if v >= c.value / 2]
    words = list(dict.fromkeys(style.literal(token) for token in active))[:_WORDS]
    preview: list[str] = []
    if top:
        best, at = top[0], top[0].at
        parts = (best.tokens[:at], best.tokens[at : at + 1], best.tokens[at + 1 :])
        before, token, after = (style.literal("".join(part)) for part in parts)
        preview = [before[-_PREVIEW:], token, after[:_PREVIEW]]
    density, peak = (float(f"{v:.4g}") for v in (readings.density(feature), readings.peak(feature)))
    return [feature, density, peak, promoted, words, preview]


def _page(title: str, body: str) -> str:
    css = (_ASSETS / "dashboard.css").read_text(encoding="utf-8")
    whole = page(style.literal(title), body, with_plotly=False)
    head, rest = whole.split("</style>", 1)
    return head + css + "</style>" + rest.replace("<body>", '<body class="features">', 1)


def _place(readings: FeatureReadings) -> str:
    about = readings.about
    where = about["reads"] if about["reads"] == about["writes"] else f"{about['reads']} to {about['writes']}"
    return f"{where} of {about['model']}"


def _titled(title: str, inner: str) -> str:
    return f"<div><h2>{title}</h2>{inner}</div>" if inner else ""


def _explanation(said: Interpretation) -> str:
    """The explanation, and its scores beside those of both controls."""
    if not said.explanation:
        return f"<p>none: {_text(said.note)}</p>"
    frame = said.to_frame()
    rows = ""
    for name, values in zip(frame.index, frame.to_numpy(), strict=True):
        cells = "".join(f'<td class="n">{_score(value)}</td>' for value in values)
        rows += f"<tr><td>{_text(name)}</td>{cells}</tr>"
    control = f"that of feature {said.other}" if said.other is not None else "another's"
    names = ("score", "this", control, "a random feature and its own")
    head = "".join(f'<th class="n">{name}</th>' if at else f"<th>{name}</th>" for at, name in enumerate(names))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<p><code>{_text(said.explanation)}</code></p>{table}"


def _score(value: float) -> str:
    return f"{value:.2f}".replace("-", "−") if math.isfinite(value) else "–"


def _effects(pairs: Sequence[tuple[str, float]]) -> str:
    rows = (
        f'<tr><td><code>{_text(token)}</code></td><td class="n">{f"{value:.2f}".replace("-", "−")}</td></tr>'
        for token, value in pairs
    )
    return f"<table><tbody>{''.join(rows)}</tbody></table>" if pairs else ""


def _together(readings: FeatureReadings, feature: int) -> str:
    table = readings.together(feature)
    if table.empty:
        return ""
    linked = set(readings.features.tolist())
    rows = (
        f'<tr><td class="n">{f"<a href={int(other)}.html>{int(other)}</a>" if int(other) in linked else int(other)}'
        f'</td><td class="n">{phi:.2f}</td><td class="n">{share:.0%}</td></tr>'
        for other, share, phi in zip(table["feature"], table["share"], table["phi"], strict=True)
    )
    head = '<tr><th class="n">feature</th><th class="n">phi</th><th class="n">of its tokens</th></tr>'
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _histogram(readings: FeatureReadings, feature: int, width: int = 360, height: int = 150) -> str:
    """Bars of a height by the logarithm of their count, as an SVG."""
    edges, counts = readings.histogram(feature)
    if not len(counts):
        return ""
    left, foot, above = 44, 18, 8
    most = int(counts.max())
    high, wide = math.log10(most) + 0.3, (width - left - 30) / float(edges[-1])
    tall = (height - foot - above) / high

    def y(count: float) -> float:
        return height - foot - tall * (math.log10(count) + 0.3)

    bars = "".join(
        f'<rect x="{left + wide * a:.1f}" y="{y(n):.1f}" width="{wide * (b - a) * 0.92:.2f}" '
        f'height="{height - foot - y(n):.1f}"><title>{a:.3g} to {b:.3g}: {n:,} tokens</title></rect>'
        for a, b, n in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
        if n
    )
    ticks = "".join(
        f'<text x="{left + wide * t:.1f}" y="{height - 4}" text-anchor="middle">{style.number(t, 4)}</text>'
        for t in style.nice_ticks(0.0, float(edges[-1]))
    )
    powers = [10**p for p in range(int(math.log10(most)) + 1)]
    levels = "".join(
        f'<text x="{left - 5}" y="{y(level) + 4:.1f}" text-anchor="end">{level:,}</text>'
        for level in [*powers, *([most] if most >= 3 * powers[-1] else [])]
    )
    axis = f'<line x1="{left}" x2="{width}" y1="{height - foot}" y2="{height - foot}"/>'
    label = f"Histogram of {int(counts.sum()):,} activations, tokens on a logarithmic scale"
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"{bars}{axis}{ticks}{levels}</svg>"
    )


def _contexts(contexts: Sequence[Context], peak: float) -> str:
    rows = (f"<li><b>{style.number(c.value, 4)}</b><span class=tokens>{_tokens(c, peak)}</span></li>" for c in contexts)
    return f"<ol>{''.join(rows)}</ol>" if contexts else ""


def _tokens(context: Context, peak: float) -> str:
    """The tokens, shaded by their activation; the one that the context is about has a frame."""
    shown = []
    for at, (token, value) in enumerate(zip(context.tokens, context.activations, strict=True)):
        text = _text(token)
        if value > 0:
            text = f'<i style="--a:{max(0.08, 0.85 * value / peak):.2f}" title="{value:.4g}">{text}</i>'
        shown.append(f"<b>{text}</b>" if at == context.at else text)
    return "".join(shown)


def _text(text: object) -> str:
    return html.escape(style.literal(text))
