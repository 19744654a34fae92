"""Charts as inline SVG: axes, grid, lines with bands, bars and dots; colours by CSS class, so that dark mode and print follow.

Every text is escaped here; what comes out is safe to put into a page. Tooltips are ``<title>`` elements, so no script is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup

from kd_runtime.evaluation.scales import Scale, extent, log_ticks, nice_ticks, short

WIDTH, HEIGHT = 460.0, 270.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 28.0, 44.0
HOVER_BANDS = 80
MARKED_POINTS = 40
"""Lines of at most this many points get a dot at each."""

Format = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """One line: ``color`` is a CSS class of the report (teacher, baseline, student, kd, ce, …)."""

    label: str
    color: str
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """An axis: its title, how numbers are written, whether it is logarithmic, and values that it must cover."""

    title: str
    format: Format = short
    log: bool = False
    cover: tuple[float, ...] = field(default=())


@dataclass(frozen=True)
class Bar:
    """One horizontal bar, with an interval where there is one."""

    label: str
    color: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Group:
    """One line of a histogram: how many items of a group fall into each bin."""

    label: str
    color: str
    counts: Sequence[int]


def line_chart(series: Sequence[Series], x: Axis, y: Axis, description: str) -> Markup:
    """Lines over a common x axis, with a band where a series has ``lows`` and ``highs``.

    ``description`` is what a screen reader says instead of the picture.
    """
    x_ticks = _ticks(x, [v for s in series for v in s.xs])
    y_ticks = _ticks(y, [v for s in series for v in (*s.ys, *s.lows, *s.highs)])
    x_low, x_high = extent([v for s in series for v in s.xs] + list(x.cover))
    if x.log:
        x_low, x_high = min(x_low, x_ticks[0]), max(x_high, x_low * 1.5)
    across = Scale(x_low, x_high, LEFT, WIDTH - RIGHT, x.log)
    up = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP, y.log)
    parts = [_grid(x, [t for t in x_ticks if x_low <= t <= x_high * 1.0001], across, y, y_ticks, up)]
    parts += [_band(s, across, up) for s in series if s.lows]
    parts += [_line(s, across, up) for s in series]
    parts.append(_hover(series, across, x, y))
    return _svg(Markup("").join(parts), WIDTH, HEIGHT, description)


def bar_chart(bars: Sequence[Bar], axis: Axis, description: str) -> Markup:
    """Horizontal bars from zero, their values written at the end, their intervals as whiskers."""
    row, top, left = 34.0, 6.0, 92.0
    height = top + row * len(bars) + 40
    ticks = _ticks(axis, [0.0, *(v for b in bars for v in (b.value, b.high) if v is not None)])
    across = Scale(ticks[0], ticks[-1], left, WIDTH - 64)
    parts = [_vertical_grid(axis, ticks, across, top, top + row * len(bars), left, WIDTH - 64)]
    for number, bar in enumerate(bars):
        parts.append(_bar(bar, axis, across, top + row * number, row))
    return _svg(Markup("").join(parts), WIDTH, height, description)


def histogram_chart(groups: Sequence[Group], bins: Sequence[str], title: str, description: str) -> Markup:
    """One small histogram a group over the same bins, each bar with its count; heights are shares of the group."""
    row, top, left = 66.0, 4.0, 92.0
    bottom = top + row * len(groups)
    step = (WIDTH - RIGHT - left) / len(bins)
    parts = [_histogram(group, bins, left, step, top + row * i, row) for i, group in enumerate(groups)]
    parts += [_text(left + step * (i + 0.5), bottom + 16, name, "tick") for i, name in enumerate(bins)]
    parts.append(_text((left + WIDTH - RIGHT) / 2, bottom + 34, title, "label"))
    return _svg(Markup("").join(parts), WIDTH, bottom + 40, description)


def legend(entries: Sequence[tuple[str, str]], dashed: Sequence[str] = ()) -> Markup:
    """A legend as HTML, so that it wraps on narrow screens: (label, CSS class) pairs."""
    items = [
        Markup('<li><i class="key c-{}{}"></i>{}</li>').format(color, " dashed" if label in dashed else "", label)
        for label, color in entries
    ]
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))


def _ticks(axis: Axis, values: Sequence[float]) -> list[float]:
    low, high = extent([*values, *axis.cover])
    return log_ticks(low, high) if axis.log else nice_ticks(low, high)


def _svg(body: Markup, width: float, height: float, description: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        f"{width:g}", f"{height:g}", description, body
    )


def _text(x: float, y: float, text: str, kind: str, anchor: str = "middle") -> Markup:
    return Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(_n(x), _n(y), kind, anchor, text)


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _grid(x: Axis, x_ticks: Sequence[float], across: Scale, y: Axis, y_ticks: Sequence[float], up: Scale) -> Markup:
    parts = []
    for tick in y_ticks:
        at = up(tick)
        parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(_n(LEFT), _n(at), _n(WIDTH - RIGHT)))
        parts.append(_text(LEFT - 7, at + 4, y.format(tick), "tick", "end"))
    for tick in _thin(x_ticks):
        parts.append(_text(across(tick), HEIGHT - BOTTOM + 18, x.format(tick), "tick"))
    parts.append(Markup('<path class="axis" d="M{} {}H{}"/>').format(_n(LEFT), _n(HEIGHT - BOTTOM), _n(WIDTH - RIGHT)))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x.title, "label"))
    parts.append(_text(2, 13, y.title, "label", "start"))
    return Markup("").join(parts)


def _thin(ticks: Sequence[float]) -> Sequence[float]:
    return ticks[:: max(1, -(-len(ticks) // 9))]


def _vertical_grid(
    axis: Axis,
    ticks: Sequence[float],
    across: Callable[[float], float],
    top: float,
    bottom: float,
    left: float,
    right: float,
) -> Markup:
    parts = [Markup('<path class="grid" d="M{} {}V{}"/>').format(_n(across(t)), _n(top), _n(bottom)) for t in ticks]
    parts += [_text(across(t), bottom + 16, axis.format(t), "tick") for t in _thin(ticks)]
    parts.append(_text((left + right) / 2, bottom + 34, axis.title, "label"))
    return Markup("").join(parts)


def _runs(xs: Sequence[float], ys: Sequence[float]) -> list[list[tuple[float, float]]]:
    """The points in stretches without NaN, so that a gap in the data is a gap in the line."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in zip(xs, ys, strict=True):
        if math.isfinite(point[1]):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _line(series: Series, across: Scale, up: Scale) -> Markup:
    dashed = " dashed" if series.dashed else ""
    parts = []
    for run in _runs(series.xs, series.ys):
        path = "L".join(f"{_n(across(x))} {_n(up(y))}" for x, y in run)
        parts.append(Markup('<path class="line c-{}{}" d="M{}"/>').format(series.color, dashed, path))
    if len(series.xs) <= MARKED_POINTS:
        parts += [
            Markup('<circle class="dot c-{}" cx="{}" cy="{}" r="2.6"/>').format(series.color, _n(across(x)), _n(up(y)))
            for x, y in zip(series.xs, series.ys, strict=True)
            if math.isfinite(y)
        ]
    return Markup("").join(parts)


def _band(series: Series, across: Scale, up: Scale) -> Markup:
    upper = [f"{_n(across(x))} {_n(up(y))}" for x, y in zip(series.xs, series.highs, strict=True)]
    lower = [f"{_n(across(x))} {_n(up(y))}" for x, y in zip(series.xs, series.lows, strict=True)]
    return Markup('<path class="band c-{}" d="M{}Z"/>').format(series.color, "L".join([*upper, *reversed(lower)]))


def _hover(series: Sequence[Series], across: Scale, x: Axis, y: Axis) -> Markup:
    """Invisible bands over the plot, each with a tooltip that names every series' value there."""
    xs = sorted({v for s in series for v in s.xs})
    xs = xs[:: max(1, -(-len(xs) // HOVER_BANDS))]
    values = [dict(zip(s.xs, s.ys, strict=True)) for s in series]
    edges = [LEFT, *((across(a) + across(b)) / 2 for a, b in pairwise(xs)), WIDTH - RIGHT]
    parts = []
    for number, at in enumerate(xs):
        lines = [f"{x.title}: {x.format(at)}"]
        lines += [f"{s.label}: {y.format(v[at])}" for s, v in zip(series, values, strict=True) if at in v]
        parts.append(
            Markup('<rect class="hover" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
                _n(edges[number]),
                _n(TOP),
                _n(max(edges[number + 1] - edges[number], 0.5)),
                _n(HEIGHT - BOTTOM - TOP),
                "\n".join(lines),
            )
        )
    return Markup("").join(parts)


def _bar(bar: Bar, axis: Axis, across: Scale, top: float, row: float) -> Markup:
    zero, end, middle = across(0.0), across(bar.value), top + row / 2
    parts = [
        _text(84, middle + 4, bar.label, "name", "end"),
        Markup('<rect class="bar c-{}" x="{}" y="{}" width="{}" height="{}" rx="2"><title>{}</title></rect>').format(
            bar.color, _n(min(zero, end)), _n(top + 7), _n(max(abs(end - zero), 1)), _n(row - 14), _bar_title(bar, axis)
        ),
    ]
    right = end
    if bar.low is not None and bar.high is not None:
        low, high = across(bar.low), across(bar.high)
        right = max(end, high)
        parts.append(
            Markup('<path class="whisker" d="M{0} {2}H{1}M{0} {3}V{4}M{1} {3}V{4}"/>').format(
                _n(low), _n(high), _n(middle), _n(middle - 4), _n(middle + 4)
            )
        )
    parts.append(_text(right + 6, middle + 4, axis.format(bar.value), "value", "start"))
    return Markup("").join(parts)


def _bar_title(bar: Bar, axis: Axis) -> str:
    between = (
        f" ({axis.format(bar.low)} to {axis.format(bar.high)})" if bar.low is not None and bar.high is not None else ""
    )
    return f"{bar.label}: {axis.format(bar.value)}{between}{' · ' + bar.note if bar.note else ''}"


def _histogram(group: Group, bins: Sequence[str], left: float, step: float, top: float, row: float) -> Markup:
    floor, total = top + row - 4, max(sum(group.counts), 1)
    parts = [
        _text(left - 8, floor - 6, group.label, "name", "end"),
        Markup('<path class="axis" d="M{} {}H{}"/>').format(_n(left), _n(floor), _n(left + step * len(bins))),
    ]
    for number, (name, count) in enumerate(zip(bins, group.counts, strict=True)):
        if not count:
            continue
        height = max(count / total * (row - 24), 1.5)
        x = left + step * number + step * 0.14
        parts.append(
            Markup('<rect class="bar c-{}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
                group.color,
                _n(x),
                _n(floor - height),
                _n(step * 0.72),
                _n(height),
                f"{group.label}, {name}: {count} of {total}",
            )
        )
        parts.append(_text(left + step * (number + 0.5), floor - height - 4, str(count), "value"))
    return Markup("").join(parts)


def inline_bar(share: float, color: str = "neutral") -> Markup:
    """A bar for a table's cell: ``share`` of its width is filled. Only a picture of the number beside it."""
    filled = 0.0 if not math.isfinite(share) else min(max(share, 0.0), 1.0)
    return Markup(
        '<svg class="inline-bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="8"/><rect class="bar c-{}" width="{}" height="8"/></svg>'
    ).format(color, _n(100 * filled))
