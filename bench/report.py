"""Tables and plots of the results. Plots are plain SVG: a few bars and lines need no library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
WIDTH, LEFT, RIGHT, LINE = 720, 150, 90, 26


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def bars(title: str, values: Mapping[str, float], unit: str) -> str:
    most = max(values.values()) or 1
    height = 44 + LINE * len(values)
    parts = [text(10, 24, title, size=15)]
    for number, (name, value) in enumerate(values.items()):
        y = 40 + LINE * number
        width = (WIDTH - LEFT - RIGHT) * value / most
        colour = "#0b6472" if name.startswith("sluice") else "#b9b4a6"
        parts.append(text(LEFT - 8, y + 14, name, anchor="end"))
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="18" fill="{colour}"/>')
        parts.append(text(LEFT + width + 6, y + 14, f"{value:,.4g} {unit}"))
    return svg(height, parts)


def lines(title: str, points: Sequence[tuple[float, float]], across: str, unit: str) -> str:
    """Return an SVG plot of a line. Points are evenly spaced, whatever their x values."""
    most = max(y for _, y in points) * 1.15 or 1
    height, bottom, top = 260, 216, 48
    step = (WIDTH - LEFT - RIGHT) / max(1, len(points) - 1)
    places = [
        (LEFT + step * n, bottom - (bottom - top) * y / most) for n, (_, y) in enumerate(points)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [
        text(10, 24, title, size=15),
        f'<line x1="{LEFT}" y1="{bottom}" x2="{WIDTH - RIGHT}" y2="{bottom}" stroke="#b9b4a6"/>',
        f'<polyline points="{path}" fill="none" stroke="#0b6472" stroke-width="2"/>',
        text((LEFT + WIDTH - RIGHT) / 2, 250, across, anchor="middle"),
    ]
    for (x, y), (count, value) in zip(places, points, strict=True):
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="#0b6472"/>')
        parts.append(text(x, y - 10, f"{value:.3g} {unit}", anchor="middle"))
        parts.append(text(x, bottom + 16, f"{count:,.0f}", anchor="middle"))
    return svg(height, parts)


def text(x: float, y: float, words: str, *, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'fill="#3c3a34">{escape(words)}</text>'
    )


def svg(height: int, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif"><rect width="100%" height="100%" fill="#fffefb"/>'
    )
    return "\n".join([head, *parts, "</svg>\n"])
