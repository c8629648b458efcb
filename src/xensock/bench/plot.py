"""Throughput against write size as a picture: a small SVG, without any library."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 46, 50
STYLE = (
    "text{font:12px sans-serif;fill:#333}.t{font-size:15px}.g{stroke:#ddd}"
    ".a{fill:none;stroke-width:2}"
)


@dataclass(frozen=True, slots=True)
class Line:
    """One side: its name, its colour, and a figure for each size."""

    name: str
    colour: str
    figures: Sequence[float]


def nice_top(most: float) -> float:
    """The end of an axis that reaches `most`: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(most)) if most > 0 else 1.0
    return next(step * power for step in (1, 2, 5, 10) if step * power >= most)


def size_name(size: int) -> str:
    """Bytes as they are written on an axis."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if size >= unit and size % unit == 0:
            return f"{size // unit}{name}"
    return str(size)


def svg(title: str, sizes: Sequence[int], lines: Sequence[Line]) -> str:
    """The picture: sizes on a logarithmic axis, Gbit/s on a linear one from 0 on."""
    top = nice_top(max(max(line.figures) for line in lines))
    first, last = math.log2(sizes[0]), math.log2(sizes[-1])

    def x(size: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log2(size) - first) / ((last - first) or 1)

    def y(figure: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * figure / top

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text class="t" x="{LEFT}" y="20">{escape(title)}</text>',
    ]
    for step in range(6):
        figure = top * step / 5
        at = y(figure)
        out += [
            f'<line class="g" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>',
            f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{figure:g}</text>',
        ]
    for size in sizes:
        out.append(
            f'<text x="{x(size):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
            f"{size_name(size)}</text>"
        )
    out.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
        "bytes of a write</text>"
    )
    out.append(f'<text x="14" y="{TOP - 10}">Gbit/s</text>')
    for number, line in enumerate(lines):
        points = " ".join(
            f"{x(size):.1f},{y(figure):.1f}"
            for size, figure in zip(sizes, line.figures, strict=True)
        )
        at_x = LEFT + 120 + 130 * number
        out += [
            f'<polyline class="a" stroke="{line.colour}" points="{points}"/>',
            f'<line class="a" stroke="{line.colour}" x1="{at_x}" x2="{at_x + 24}"'
            f' y1="{TOP - 14}" y2="{TOP - 14}"/>',
            f'<text x="{at_x + 30}" y="{TOP - 10}">{escape(line.name)}</text>',
        ]
    return "\n".join([*out, "</svg>", ""])
