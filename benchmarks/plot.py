# SPDX-License-Identifier: Apache-2.0
"""Draws two kinds of plots as SVG: bars, and lines with logarithmic axes.

The background is transparent; all colours are readable on white and on black.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = {
    'neutron': '#d1605e',
    'two_hop': '#4f8fc0',
    'two_hop_cached': '#7bb3d9',
    'one_hop': '#3d9970',
    'one_hop_cached': '#71bf6e',
    'floor': '#9a9a9a',
    'no_cache': '#d1605e',
    'worker_caches': '#4f8fc0',
    'shared_cache': '#3d9970',
}
STYLE = (
    'text{font:13px system-ui,sans-serif;fill:#59636e}.t{font-weight:600;font-size:15px}.n{font-size:12px}'
    '.g{stroke:#8b949e;stroke-opacity:.35}.w{stroke:#8b949e}@media(prefers-color-scheme:dark){text{fill:#b1bac4}}'
)
WIDTH, LEFT, RIGHT = 760, 210, 120


def bars(title: str, values: Sequence[tuple[str, str, float, float, float, str]]) -> str:
    """A bar for each (peer, its name, median, minimum, maximum, label)."""
    longest = max(most for _, _, _, _, most, _ in values) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / longest
    parts = [_text(0, 18, title, 't')]
    for row, (peer, name, median, least, most, beside) in enumerate(values):
        y = 34 + 30 * row
        parts.append(_text(LEFT - 10, y + 15, name, anchor='end'))
        parts.append(
            f'<rect x="{LEFT}" y="{y}" width="{max(1.0, median * scale):.1f}" height="20" fill="{COLOURS[peer]}"/>'
        )
        if most > least:
            a, b = LEFT + least * scale, LEFT + most * scale
            parts.append(f'<path class="w" d="M{a:.1f} {y + 10}H{b:.1f}M{a:.1f} {y + 6}v8M{b:.1f} {y + 6}v8"/>')
        parts.append(_text(LEFT + most * scale + 8, y + 15, beside, 'n'))
    return _svg(parts, 44 + 30 * len(values))


def lines(
    panels: Sequence[tuple[str, Mapping[str, Sequence[tuple[float, float]]]]], names: Mapping[str, str], axis: str
) -> str:
    """Panels side by side, each with a title and points by peer; both axes are logarithmic."""
    parts = []
    width, height, top = (WIDTH - 20) / len(panels), 190, 40
    for number, (title, series) in enumerate(panels):
        points = [point for line in series.values() for point in line]
        low_x, high_x = _decades(x for x, _ in points)
        low_y, high_y = _decades(y for _, y in points)
        left, wide = number * width + 52, width - 72
        x_of = lambda x, a=low_x, b=high_x, o=left, w=wide: o + w * (math.log10(x) - a) / (b - a)  # noqa: E731
        y_of = lambda y, a=low_y, b=high_y: top + height * (b - math.log10(y)) / (b - a)  # noqa: E731
        parts.append(_text(number * width + 8, 18, title, 't'))
        for power in range(low_y, high_y + 1):
            parts.append(f'<path class="g" d="M{left:.1f} {y_of(10**power):.1f}h{wide:.1f}"/>')
            parts.append(_text(left - 6, y_of(10**power) + 4, f'{10**power:g}', 'n', 'end'))
        parts += [
            _text(x_of(10**power), top + height + 18, f'{10**power:,}', 'n', 'middle')
            for power in range(low_x, high_x + 1)
        ]
        parts.append(_text(left + wide / 2, top + height + 36, axis, 'n', 'middle'))
        for peer, line in series.items():
            where = [(x_of(x), y_of(y)) for x, y in sorted(line)]
            path = 'M' + 'L'.join(f'{x:.1f} {y:.1f}' for x, y in where)
            parts.append(f'<path d="{path}" fill="none" stroke="{COLOURS[peer]}" stroke-width="2.5"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{COLOURS[peer]}"/>' for x, y in where]
    peers = list(dict.fromkeys(peer for _, series in panels for peer in series))
    for number, peer in enumerate(peers):
        x, y = 20 + 240 * number, top + height + 62
        parts.append(f'<rect x="{x}" y="{y - 11}" width="14" height="14" rx="2" fill="{COLOURS[peer]}"/>')
        parts.append(_text(x + 20, y, names[peer], 'n'))
    return _svg(parts, top + height + 76)


def _decades(values: object) -> tuple[int, int]:
    numbers = [value for value in values if value > 0] or [1.0]  # type: ignore[attr-defined]
    low, high = math.floor(math.log10(min(numbers))), math.ceil(math.log10(max(numbers)))
    return low, max(high, low + 1)


def _text(x: float, y: float, text: str, kind: str = '', anchor: str = 'start') -> str:
    klass = f' class="{kind}"' if kind else ''
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{klass}>{escape(text)}</text>'


def _svg(parts: Sequence[str], height: float) -> str:
    size = f'viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return '\n'.join([head, f'<style>{STYLE}</style>', *parts, '</svg>']) + '\n'
