"""A bar chart as SVG, of figures that differ by orders of magnitude."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

_WIDTH, _LABELS, _BAR, _GAP, _TOP = 760, 240, 18, 8, 46
_OURS, _THEIRS, _TEXT = "#2563eb", "#9ca3af", "#6b7280"


def draw(
    figures: Mapping[str, float], baseline: str, title: str = "One `true` on a peer, median, ms (log scale)"
) -> str:
    """The chart, smallest figure first.

    :param figures: name to milliseconds, each more than 0
    :param baseline: the name of the one that the others are compared with
    """
    rows = sorted(figures.items(), key=lambda item: item[1])
    low, high = 10 ** math.floor(math.log10(rows[0][1])), 10 ** math.ceil(math.log10(rows[-1][1]))
    space = _WIDTH - _LABELS - 130

    def place(value: float) -> float:
        return space * math.log10(value / low) / math.log10(high / low)

    height = _TOP + len(rows) * (_BAR + _GAP) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="sans-serif" font-size="13" fill="{_TEXT}">',
        f'<text x="10" y="20" font-weight="bold">{escape(title)}</text>',
    ]
    tick = low
    while tick <= high:
        x = _LABELS + place(tick)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{height - 10}" stroke="#d1d5db"/>')
        parts.append(f'<text x="{x:.1f}" y="{_TOP - 12}" text-anchor="middle" font-size="11">{tick:g}</text>')
        tick *= 10
    for index, (name, value) in enumerate(rows):
        y = _TOP + index * (_BAR + _GAP)
        colour = _OURS if name.startswith(("d ", "peerd")) else _THEIRS
        parts.append(f'<text x="{_LABELS - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{_LABELS}" y="{y}" width="{place(value):.1f}" height="{_BAR}" fill="{colour}"/>')
        text = f"{value:.1f} ({value / figures[baseline]:.2f} x)"
        parts.append(f'<text x="{_LABELS + place(value) + 6:.1f}" y="{y + 14}">{text}</text>')
    return "\n".join([*parts, "</svg>", ""])
