"""Curves as SVG: small, readable on a light and a dark page, with names that a screen reader reads.

The contract: a value ``v`` lies at the same share of the axis as ``v`` (or its logarithm) lies between the axis's
ends, so a curve can be read back from the file; points that are not finite, or not positive on a logarithmic axis, are
left out; every word is escaped.  Text and axes have the colour of the page's text, curves have colours that stand out
from white and from black alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from markupsafe import Markup, escape

#: Colours of curves: a contrast of at least 3 : 1 with white and with :data:`sfumato.reports.page.DARK`.
COLOURS = (
    "#3b7dd8", "#d9622b", "#2c9a55", "#c2479a", "#8b67d6", "#9c7d16", "#1f949c", "#d64545", "#737d8c", "#a0694b",
)  # fmt: skip
#: The ends of a scale of colours, for curves that have an order.
FIRST, LAST = (59, 125, 216), (217, 98, 43)
WIDTH, HEIGHT = 560, 310
LEFT, RIGHT, TOP, BOTTOM = 70, 16, 14, 46
#: A curve shows at most this many points, evenly spread.
MOST = 300
DASHES = ("", "6 3", "2 3")
#: A number of a log.
Number = float | int
#: ``(x, y)``.
Point = tuple[Number, Number]


@final
@dataclass(frozen=True)
class Line:
    """One curve: its name, its points, its colour (a number of the palette, or ``#rrggbb``) and whether it has dots."""

    name: str
    points: tuple[Point, ...]
    colour: int | str = 0
    dots: bool = True
    dash: int = 0

    @property
    def stroke(self) -> str:
        """The colour."""
        return self.colour if isinstance(self.colour, str) else COLOURS[self.colour % len(COLOURS)]


@final
@dataclass(frozen=True)
class Chart:
    """Curves with their axes.  ``level``: a value that is marked by a dotted line, and what it is; ``most``: the top of
    the y axis, where single values above it are not to set the scale.
    """

    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    log_x: bool = False
    log_y: bool = False
    level: tuple[Number, str] | None = None
    most: Number | None = None

    def shown(self) -> tuple[Line, ...]:
        """The curves with the points that can be drawn; none that has no point."""
        found = []
        for line in self.lines:
            kept = [p for p in line.points if self._drawable(p)]
            if kept:
                every = -(-len(kept) // MOST)
                # the last point is always there
                kept = kept[::-1][::every][::-1]
                found.append(Line(line.name, tuple(kept), line.colour, line.dots and len(kept) <= 40, line.dash))
        return tuple(found)

    def _drawable(self, point: Point) -> bool:
        x, y = point
        return math.isfinite(x) and math.isfinite(y) and (x > 0 or not self.log_x) and (y > 0 or not self.log_y)


def between(share: Number) -> str:
    """The colour at ``share`` (0 to 1) of the scale from first to last.

    >>> between(0.0)
    '#3b7dd8'
    """
    mixed = (round(a + (b - a) * share) for a, b in zip(FIRST, LAST, strict=True))
    return "#" + "".join(f"{v:02x}" for v in mixed)


@final
@dataclass(frozen=True)
class Axis:
    """Values between ``low`` and ``high`` on ``start``..``stop`` pixels; the ticks are inside."""

    low: Number
    high: Number
    log: bool
    start: Number
    stop: Number
    ticks: tuple[Number, ...]

    @staticmethod
    def of(values: Sequence[Number], log: bool, start: Number, stop: Number, most: Number | None = None) -> Axis:
        """The axis that holds the values, ending at ticks where that costs little room."""
        low, high = min(values), max(values)
        if most is not None and low < most < high:
            high = most
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1))
        ticks = _decades(low, high) if log else _even(low, high)
        inside = tuple(v for v in ticks if low <= v <= high)
        return Axis(low, high, log, start, stop, inside)

    def at(self, value: Number) -> float:
        """Where a value lies, in pixels; a value beyond the ends lies at the end."""
        low, high, v = (math.log(u) if self.log else u for u in (self.low, self.high, value))
        share = min(max((v - low) / (high - low), 0.0), 1.0)
        return float(self.start + share * (self.stop - self.start))


def _even(low: Number, high: Number) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    return [float(v) for v in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]


def _decades(low: Number, high: Number) -> list[Number]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1,) if last - first > 3 else (1, 2, 5)
    found = [m * 10.0**k for k in range(first, last + 1) for m in steps]
    return found if sum(low <= v <= high for v in found) > 1 else [low, high]


def number(value: Number) -> str:
    """A tick's text."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"


def svg(chart: Chart, name: str) -> Markup:
    """The chart as an ``svg`` element; ``name`` tells it apart from others of the page.  Without points, a sentence."""
    lines = chart.shown()
    if not lines:
        return Markup("<p>{}: nothing to show yet.</p>").format(chart.title)
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    if chart.level is not None and (chart.level[0] > 0 or not chart.log_y):
        ys.append(chart.level[0])
    across = Axis.of(xs, chart.log_x, LEFT, WIDTH - RIGHT)
    up = Axis.of(ys, chart.log_y, HEIGHT - BOTTOM, TOP, chart.most)
    parts = [*_frame(across, up), *_names(chart)]
    if chart.level is not None and up.low <= chart.level[0] <= up.high:
        y, text = up.at(chart.level[0]), escape(chart.level[1])
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT}" y="{y - 4:.1f}" text-anchor="end">{text}</text>')
    for line in lines:
        parts += _curve(line, across, up)
    described = _described(chart, lines)
    head = (
        f'<svg role="img" viewBox="0 0 {WIDTH} {HEIGHT}" aria-labelledby="{escape(name)}-t {escape(name)}-d">'
        f'<title id="{escape(name)}-t">{escape(chart.title)}</title><desc id="{escape(name)}-d">{described}</desc>'
    )
    return Markup(head + "".join(parts) + "</svg>")


def _described(chart: Chart, lines: Sequence[Line]) -> Markup:
    """What a reader who does not see the curves is told: where each begins and ends."""
    ends = [
        f"{line.name} from {line.points[0][1]:.4g} at {number(line.points[0][0])} to {line.points[-1][1]:.4g} at "
        f"{number(line.points[-1][0])}"
        for line in lines
    ]
    return escape(f"{chart.y} over {chart.x}: {'; '.join(ends)}.")


def _frame(across: Axis, up: Axis) -> list[str]:
    """Grid lines and the text of ticks."""
    parts = []
    for v in across.ticks:
        x = across.at(v)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{number(v)}</text>')
    for v in up.ticks:
        y = up.at(v)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(v)}</text>')
    return parts


def _names(chart: Chart) -> list[str]:
    middle, height = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    return [
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(chart.x)}</text>',
        f'<text transform="translate(13 {height}) rotate(-90)" text-anchor="middle">{escape(chart.y)}</text>',
    ]


def _curve(line: Line, across: Axis, up: Axis) -> list[str]:
    """One curve, and dots that say their values."""
    places = [(across.at(x), up.at(y)) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = f' stroke-dasharray="{DASHES[line.dash % len(DASHES)]}"' if line.dash else ""
    parts = [f'<polyline class="curve" stroke="{line.stroke}"{dash} points="{path}"/>']
    if line.dots or len(places) == 1:
        parts += [
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{line.stroke}"><title>{escape(line.name)}: {y:.5g} at '
            f"{number(x)}</title></circle>"
            for (px, py), (x, y) in zip(places, line.points, strict=True)
        ]
    return parts
