"""Lines in a coordinate system of two logarithmic axes, as SVG. No dependencies."""

from __future__ import annotations

import math
from html import escape

#: A line: what it is called, and its points.
Line = tuple[str, list[tuple[float, float]]]

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 50

#: In this order; told apart with any kind of colour vision, on white and on black.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


class Axis:
    """A logarithmic axis, from one power of ten to another."""

    def __init__(self, values: list[float], start: float, end: float) -> None:
        self.low = math.floor(math.log10(min(values)))
        self.high = max(self.low + 1, math.ceil(math.log10(max(values))))
        self.start = start
        self.end = end

    def place(self, value: float) -> float:
        part = (math.log10(value) - self.low) / (self.high - self.low)
        return round(self.start + part * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]


def text(x: float, y: float, said: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{more}>{escape(said)}</text>'


def rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#8884"/>'


def said(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def log_log(title: str, x_title: str, y_title: str, lines: list[Line]) -> str:
    """The picture of lines that have at least one point each."""
    points = [point for _, line in lines for point in line]
    across = Axis([x for x, _ in points], LEFT, WIDTH - RIGHT)
    up = Axis([y for _, y in points], HEIGHT - BOTTOM, TOP)
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' font-family="sans-serif" font-size="12" fill="#888">',
        f"<title>{escape(title)}</title>",
        text(middle, 18, title, more=' font-size="14"'),
        text(middle, HEIGHT - 8, x_title),
        text(16, HEIGHT / 2, y_title, more=f' transform="rotate(-90 16 {HEIGHT / 2})"'),
    ]
    for tick in across.ticks():
        x = across.place(tick)
        parts += [rule(x, TOP, x, HEIGHT - BOTTOM), text(x, HEIGHT - BOTTOM + 16, said(tick))]
    for tick in up.ticks():
        y = up.place(tick)
        parts += [rule(LEFT, y, WIDTH - RIGHT, y), text(LEFT - 6, y + 4, said(tick), "end")]
    for index, (name, line) in enumerate(lines):
        color = COLORS[index % len(COLORS)]
        places = [(across.place(x), up.place(y)) for x, y in line]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>' for x, y in places]
        # The names stand above each other in the lower right, where a line seldom is.
        y = HEIGHT - BOTTOM - 12 - 18 * (len(lines) - 1 - index)
        parts.append(f'<circle cx="{WIDTH - RIGHT - 132}" cy="{y - 4}" r="4" fill="{color}"/>')
        parts.append(text(WIDTH - RIGHT - 122, y, name, "start"))
    return "\n".join([*parts, "</svg>", ""])
