"""Plots of the results as plain SVG: dots and lines need no library."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

WIDTH, LEFT, RIGHT = 860, 200, 170
LANE, GAP = 17, 12
"""The heights of a dot's lane and of the space between two groups, in pixels."""
COLOURS = ("#0b6472", "#b4552d", "#6b4fa0", "#6f7a12", "#3c3a34")
"""The colours of the series, in their order."""
INK, FAINT, GRID = "#3c3a34", "#6d695e", "#e4dfd2"


class Value(NamedTuple):
    """A median with its range."""

    median: float
    low: float
    high: float


class Line(NamedTuple):
    name: str
    points: Sequence[tuple[float, Value]]


def dots(
    title: str,
    groups: Mapping[str, Mapping[str, Value]],
    axis: str,
    *,
    reference: str = "",
    bold: str = "",
    form: Callable[[float], str] | None = None,
) -> str:
    """Return a plot with a logarithmic axis: in each group, a dot and its range for each series.

    Args:
        groups: by the name of a group, the values by the name of their series. Groups are drawn in
            this order.
        axis: the label of the axis, with its unit.
        reference: the label of a line at 1; none if empty.
        bold: groups whose name begins with this are bold.
        form: the text of a value; by default that of a ratio.
    """
    form = form or ratio_text
    series = list(dict.fromkeys(name for values in groups.values() for name in values))
    colours = dict(zip(series, COLOURS, strict=False))
    every = [number for values in groups.values() for v in values.values() for number in v]
    low, high = decade(min(every)), decade(max(every), up=True)
    top = 74 + 12 * bool(reference)

    def x_of(value: float) -> float:
        share = math.log(value / low) / math.log(high / low)
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    lanes = sum(len(values) for values in groups.values())
    bottom = top + LANE * lanes + GAP * len(groups)
    parts = [text(14, 26, title, size=16, weight="bold"), *legend(series, colours, 50)]
    parts += [grid_line(x_of(tick), top - 6, bottom, number(tick)) for tick in ticks(low, high)]
    if reference and low <= 1 <= high:
        parts.append(rule(x_of(1), top - 6, x_of(1), bottom, INK, dashed=True))
        parts.append(text(x_of(1), top - 11, reference, anchor="middle", fill=FAINT, size=11))
    y = top + GAP / 2
    for name, values in groups.items():
        middle = y + LANE * len(values) / 2 + 4
        weight = "bold" if bold and name.startswith(bold) else "normal"
        parts.append(text(LEFT - 12, middle, name, anchor="end", size=13, weight=weight))
        for one, value in values.items():
            parts += dot(x_of, value, y + LANE / 2, colours[one], form)
            y += LANE
        y += GAP
        parts.append(rule(14, y - GAP / 2, WIDTH - 14, y - GAP / 2, GRID))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, bottom + 40, axis, anchor="middle", size=13))
    return svg(bottom + 54, title, parts)


def dot(
    x_of: Callable[[float], float],
    value: Value,
    y: float,
    colour: str,
    form: Callable[[float], str],
) -> list[str]:
    said = form(value.median)
    if form(value.low) != form(value.high):
        said += f" ({form(value.low)} to {form(value.high)})"
    return [
        rule(x_of(value.low), y, x_of(value.high), y, colour, width=3, opacity=0.35),
        circle(x_of(value.median), y, colour),
        text(WIDTH - RIGHT + 14, y + 4, said, fill=colour),
    ]


def lines(
    title: str,
    several: Sequence[Line],
    across: str,
    unit: str,
    *,
    aim: tuple[float, str] | None = None,
) -> str:
    """Return a plot of lines over a logarithmic axis.

    Args:
        across: the label of the horizontal axis.
        unit: the label of the vertical axis, which begins at 0.
        aim: a value that is drawn as a horizontal line, and the line's label.
    """
    left, right, top, bottom = 78, 40, 92, 326
    places = sorted({x for line in several for x, _ in line.points})
    most = max(v.high for line in several for _, v in line.points)
    step = nice(max(most, aim[0] if aim else 0) / 5)
    most = step * math.ceil(max(most, aim[0] if aim else 0) * 1.02 / step)

    def x_of(x: float) -> float:
        share = math.log(x / places[0]) / math.log(places[-1] / places[0]) if len(places) > 1 else 0
        return left + 30 + (WIDTH - left - right - 60) * share

    def y_of(y: float) -> float:
        return bottom - (bottom - top) * y / most

    colours = dict(zip((line.name for line in several), COLOURS, strict=False))
    parts = [
        text(14, 26, title, size=16, weight="bold"),
        *legend([line.name for line in several], colours, 50),
        text(left - 8, top - 14, unit, anchor="start", fill=FAINT),
    ]
    for n in range(round(most / step) + 1):
        y = y_of(n * step)
        parts.append(rule(left, y, WIDTH - right, y, GRID))
        parts.append(text(left - 8, y + 4, number(n * step), anchor="end", fill=FAINT))
    parts += [text(x_of(x), bottom + 18, number(x), anchor="middle", fill=FAINT) for x in places]
    parts.append(text((left + WIDTH - right) / 2, bottom + 40, across, anchor="middle", size=13))
    if aim is not None:
        y = y_of(aim[0])
        parts.append(rule(left, y, WIDTH - right, y, INK, dashed=True))
        parts.append(text(WIDTH - right, y - 6, aim[1], anchor="end", fill=FAINT, size=11))
    heights = label_heights(several, y_of, bottom)
    for line in several:
        colour = colours[line.name]
        path = " ".join(f"{x_of(x):.1f},{y_of(v.median):.1f}" for x, v in line.points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, value in line.points:
            place = x_of(x)
            parts.append(
                rule(place, y_of(value.low), place, y_of(value.high), colour, width=3, opacity=0.35)
            )
            parts.append(circle(place, y_of(value.median), colour))
            y = heights[line.name, x]
            label = number(float(f"{value.median:.3g}"))
            parts.append(text(place, y, label, anchor="middle", fill=colour))
    return svg(bottom + 54, title, parts)


def label_heights(
    several: Sequence[Line], y_of: Callable[[float], float], bottom: float
) -> dict[tuple[str, float], float]:
    """Return where each point's label is written: above the upper line, and below the others.

    A label that has no room above the axis is above its point, or, if another point is there, above
    that one.
    """
    found = {}
    for x in {x for line in several for x, _ in line.points}:
        here = [(v, line.name) for line in several for at, v in line.points if at == x]
        *others, (top, top_name) = sorted(here)
        top_y = y_of(top.high) - 9
        for value, name in others:
            above, below = y_of(value.high) - 9, y_of(value.low) + 19
            if below <= bottom - 4:
                found[name, x] = below
            elif above - top_y >= 26:
                found[name, x] = above
            else:
                found[name, x] = top_y
                top_y -= 14
        found[top_name, x] = top_y
    return found


def legend(names: Iterable[str], colours: Mapping[str, str], y: float) -> list[str]:
    parts, x = [], 20.0
    for name in names:
        parts += [circle(x, y - 4, colours[name]), text(x + 10, y, name, fill=colours[name])]
        x += 34 + 7 * len(name)
    return parts


def decade(value: float, *, up: bool = False) -> float:
    """Return the end of the axis: 1, 2 or 5 times a power of ten, below or above the value."""
    steps = [m * 10.0**e for e in range(-4, 8) for m in (1, 2, 5)]
    if up:
        return next(step for step in steps if step >= value * 1.05)
    return next(step for step in reversed(steps) if step <= value * 0.95)


def ticks(low: float, high: float) -> list[float]:
    every = [m * 10.0**e for e in range(-4, 8) for m in (1, 2, 5)]
    found = [tick for tick in every if low * 0.99 <= tick <= high * 1.01]
    return found if len(found) <= 9 else [tick for tick in found if f"{tick:e}".startswith("1")]


def nice(step: float) -> float:
    """Return the next round number: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * 0.999)


def ratio_text(value: float) -> str:
    return f"{value:.2f}" if value >= 0.095 else f"{value:.3f}"


def duration_text(milliseconds: float) -> str:
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.1f} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.10g}"


def grid_line(x: float, top: float, bottom: float, label: str) -> str:
    return rule(x, top, x, bottom, GRID) + text(x, bottom + 18, label, anchor="middle", fill=FAINT)


def rule(
    x: float,
    y: float,
    x2: float,
    y2: float,
    colour: str,
    *,
    width: float = 1,
    dashed: bool = False,
    opacity: float = 1,
) -> str:
    more = ' stroke-dasharray="4 3"' if dashed else ""
    more += f' stroke-opacity="{opacity}"' if opacity < 1 else ""
    return (
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}" stroke-linecap="round"{more}/>'
    )


def circle(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>'


def text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    size: int = 12,
    fill: str = INK,
    weight: str = "normal",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}" fill="{fill}">{escape(words)}</text>'
    )


def svg(height: float, title: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'width="{WIDTH}" height="{height:.0f}" font-family="sans-serif" role="img" '
        f'aria-label="{escape(title)}"><rect width="100%" height="100%" fill="#fffefb"/>'
    )
    return "\n".join([head, *parts, "</svg>\n"])
