# SPDX-License-Identifier: Apache-2.0
"""Draws the panels of a Grafana dashboard as one HTML page, where there is no Grafana: lines, or the last values."""

from __future__ import annotations

import html
from collections.abc import Callable

Series = tuple[str, list[tuple[float, float]]]
"""A legend, and (seconds since 1970, value) pairs."""

COLUMN, ROW, MARGIN = 58, 34, 6
COLORS = ('#1f60c4', '#e02f44', '#37872d', '#fa6400', '#8f3bb8', '#0d9488', '#b8860b', '#555555')


def draw(panels: list[dict], series_of: Callable[[dict], list[Series]]) -> str:
    """The page. ``series_of`` gives the series of a panel."""
    parts = [_panel(panel, series_of(panel)) for panel in panels]
    height = max(panel['gridPos']['y'] + panel['gridPos']['h'] for panel in panels) * ROW
    return (
        '<!DOCTYPE html><meta charset="utf-8"><body style="margin:0;background:#f4f5f5">'
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{24 * COLUMN}" height="{height}" '
        f'font-family="sans-serif" font-size="11">{"".join(parts)}</svg>'
    )


def _panel(panel: dict, series: list[Series]) -> str:
    grid = panel['gridPos']
    width, height = grid['w'] * COLUMN - MARGIN, grid['h'] * ROW - MARGIN
    unit = panel['fieldConfig']['defaults']['unit']
    body = _stat(series, width, height, unit) if panel['type'] == 'stat' else _lines(series, width, height, unit)
    return (
        f'<g transform="translate({grid["x"] * COLUMN},{grid["y"] * ROW})">'
        f'<rect width="{width}" height="{height}" fill="white" stroke="#ddd"/>'
        f'<text x="8" y="16" font-weight="bold">{html.escape(panel["title"])}</text>{body}</g>'
    )


def _stat(series: list[Series], width: int, height: int, unit: str) -> str:
    lines = [f'{_text(values[-1][1], unit)} {html.escape(legend)}' for legend, values in series] or ['no data']
    return ''.join(
        f'<text x="{width / 2}" y="{height / 2 + 8 + 20 * number}" text-anchor="middle" font-size="18">{line}</text>'
        for number, line in enumerate(lines)
    )


def _lines(series: list[Series], width: int, height: int, unit: str) -> str:
    if not series:
        return f'<text x="{width / 2}" y="{height / 2}" text-anchor="middle">no data</text>'
    left, top, right, bottom = 48, 26, width - 8, height - 34
    times = [at for _, values in series for at, _ in values]
    most = max((value for _, values in series for _, value in values), default=0) or 1
    start, end = min(times), max(*times, min(times) + 1)
    drawn = [
        f'<text x="{left - 4}" y="{y + 4}" text-anchor="end">{_text(value, unit)}</text>'
        f'<line x1="{left}" x2="{right}" y1="{y}" y2="{y}" stroke="#eee"/>'
        for value, y in ((0, bottom), (most / 2, (top + bottom) / 2), (most, top))
    ]
    x_legend = left
    for number, (legend, values) in enumerate(series):
        color = COLORS[number % len(COLORS)]
        points = ' '.join(
            f'{left + (at - start) / (end - start) * (right - left):.1f},{bottom - value / most * (bottom - top):.1f}'
            for at, value in values
        )
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        drawn.append(f'<text x="{x_legend}" y="{height - 8}" fill="{color}">{html.escape(legend)}</text>')
        x_legend += 7 * len(legend) + 14
    return ''.join(drawn)


def _text(value: float, unit: str) -> str:
    if unit == 'percentunit':
        return f'{100 * value:.1f} %'
    if unit == 's':
        return f'{1000 * value:.0f} ms' if value < 1 else f'{value:.1f} s'
    return f'{value:.3g}'
