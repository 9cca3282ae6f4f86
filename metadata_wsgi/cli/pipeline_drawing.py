# SPDX-License-Identifier: Apache-2.0
"""Draws a pipeline, and the path to it from two instances with the same address, each behind its own router.

The drawing shows the filters of the loaded pipeline in their order. The text below the name of a filter says what the
filter finds out. An arrow leads to the service that the filter queries. A pipeline with ``socket_source`` is drawn
without a namespace proxy.

The positions of the shapes depend only on the number of filters and the length of their texts, so no layout library is
needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from metadata_wsgi.lookup import protocol
from metadata_wsgi.pipeline import environ_keys, order

ADDRESS = '10.1.1.2'
TENANTS = (('red', 'A'), ('blue', 'B'))
REQUEST = 'GET http://169.254.169.254/…'
FACTS = {
    environ_keys.REQUEST_ID: 'for every log line',
    environ_keys.DEADLINE: 'time limit',
    environ_keys.SOURCE: f'{ADDRESS}, router A or B',
    environ_keys.INSTANCE: 'which instance?',
    environ_keys.SIGNED_IDENTITY: 'HMAC signature',
}
"""The text below a filter, by the environ key that the filter provides."""


@dataclass(frozen=True, slots=True)
class Step:
    """A filter or the app at the end: its name, the text below it, and the service that it queries ('' for none)."""

    name: str
    fact: str
    service: str


def steps_of(links: Sequence[Any]) -> list[Step]:
    """The steps of a pipeline."""
    return [_step(link) for link in links]


def _step(link: Any) -> Step:
    name = order.name(link)
    provides: frozenset[str] = getattr(link, 'PROVIDES', frozenset())
    fact = next((text for key, text in FACTS.items() if key in provides), '')
    lookup = protocol.lookup_of(link)
    if name == 'upstream':
        return Step(name, fact, 'Nova :8775')
    if lookup is None:
        return Step(name, fact, '')
    return Step(name, fact, 'Neutron' if '.neutron' in type(lookup).__module__ else 'inventory')


def _in_namespace(steps: Iterable[Step]) -> tuple[str, str, str]:
    """Three texts: the process or socket in the namespace, what it does, and how the request reaches the host."""
    if any(step.name == 'socket_source' for step in steps):
        return 'listening socket of the agent', 'router: known from the socket', 'the same connection'
    return 'namespace proxy', f'adds “{ADDRESS}, router {{}}”', 'unix socket'


def mermaid(links: Sequence[Any]) -> str:
    """A flowchart for pages that render Mermaid."""
    steps = steps_of(links)
    inside, action, way = _in_namespace(steps)
    lines = ['flowchart TB']
    for tenant, router in TENANTS:
        text = f'redirect :80 → :9697<br>{inside}<br>{action.format(router)}'
        lines += [
            f'    {tenant}["instance {ADDRESS}<br>tenant {tenant}"]',
            f'    subgraph namespace{router}["network namespace of router {router}"]',
            f'        proxy{router}["{_mermaid_text(text)}"]',
            '    end',
            f'    {tenant} -- "{REQUEST}" --> proxy{router}',
        ]
    lines += ['    subgraph host["the host: agent"]', '        direction LR']
    lines += [f'        step{number}["{_label(step)}"]' for number, step in enumerate(steps)]
    lines += [f'        step{number} --> step{number + 1}' for number in range(len(steps) - 1)]
    lines += ['    end', f'    proxyA -- "{way}" --> step0', f'    proxyB -- "{way}" --> step0']
    for number, step in enumerate(steps):
        if step.service:
            lines.append(f'    step{number} --> service{number}["{step.service}"]')
    return '\n'.join(lines) + '\n'


def _label(step: Step) -> str:
    return _mermaid_text(step.name + (f'<br>{step.fact}' if step.fact else ''))


def _mermaid_text(text: str) -> str:
    return text.replace('"', '#quot;')


STYLE = """
    .paper { fill: #ffffff }
    .box { fill: #f8fafc; stroke: #475569 }
    .filter { fill: #ecfdf5; stroke: #047857 }
    .service { fill: #fefce8; stroke: #a16207 }
    .red { fill: #fef2f2; stroke: #b91c1c }
    .blue { fill: #eff6ff; stroke: #1d4ed8 }
    text { font: 13px sans-serif; fill: #0f172a; text-anchor: middle }
    .name { font-weight: bold }
    .small { font-size: 12px; fill: #334155 }
    .way { stroke: #334155; stroke-width: 1.5; fill: none; marker-end: url(#head) }
"""
ARROW_HEAD = (
    '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M 0 0 L 10 5 L 0 10 z" fill="#334155"/></marker>'
)
MARGIN, GAP, CHARACTER = 24, 26, 7.6
"""In pixels. CHARACTER is the width of a letter of the bold font, rounded up."""
GUEST_Y, NAMESPACE_Y, HOST_Y, SERVICE_Y = 16, 116, 304, 452
GUEST_HEIGHT, NAMESPACE_HEIGHT, HOST_HEIGHT, SERVICE_HEIGHT = 52, 132, 108, 36
COLUMN_WIDTH = 320


class _Svg:
    """Collects shapes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        self.lines.append(f'  <rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>')

    def text(self, x: float, y: float, text: str, kind: str = '') -> None:
        attribute = f' class="{kind}"' if kind else ''
        self.lines.append(f'  <text{attribute} x="{x:g}" y="{y:g}">{escape(text)}</text>')

    def way(self, *points: tuple[float, float]) -> None:
        """Draw an arrow through the points."""
        path = ' L '.join(f'{x:g} {y:g}' for x, y in points)
        self.lines.append(f'  <path class="way" d="M {path}"/>')


def svg(links: Sequence[Any]) -> str:
    """A complete SVG file. It has a white background, so that it can be read on a page with a dark background."""
    steps = steps_of(links)
    widths = [max(len(step.name), len(step.fact), len(step.service)) * CHARACTER + 18 for step in steps]
    row_width = sum(widths) + GAP * (len(steps) - 1)
    host_width = max(row_width + 2 * MARGIN, 2 * COLUMN_WIDTH + 3 * MARGIN)
    width, height = host_width + 2 * MARGIN, SERVICE_Y + SERVICE_HEIGHT + MARGIN
    drawing = _Svg()
    first_x = MARGIN + (host_width - row_width) / 2
    for number, (tenant, router) in enumerate(TENANTS):
        center = MARGIN + host_width * (1 + 2 * number) / 4
        _draw_tenant(drawing, center, tenant, router, steps)
    drawing.box(MARGIN, HOST_Y, host_width, HOST_HEIGHT, 'box')
    drawing.text(MARGIN + host_width / 2, HOST_Y + 20, 'the host: agent', 'name')
    _draw_steps(drawing, first_x, steps, widths)
    # The arrows of both tenants join above the first filter.
    joint = (first_x + widths[0] / 2, HOST_Y - 22)
    for number in range(len(TENANTS)):
        center = MARGIN + host_width * (1 + 2 * number) / 4
        drawing.way((center, NAMESPACE_Y + NAMESPACE_HEIGHT), (center, joint[1]), joint, (joint[0], HOST_Y + 36))
    drawing.text(MARGIN + host_width / 2, HOST_Y - 28, _in_namespace(steps)[2], 'small')
    return '\n'.join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img">',
            '  <title>The path of a request from two instances with the same address to Nova</title>',
            f'  <style>{STYLE}  </style>',
            f'  <defs>{ARROW_HEAD}</defs>',
            f'  <rect class="paper" width="{width:g}" height="{height:g}"/>',
            *drawing.lines,
            '</svg>\n',
        ]
    )


def _draw_tenant(drawing: _Svg, center: float, tenant: str, router: str, steps: Sequence[Step]) -> None:
    inside, action, _ = _in_namespace(steps)
    left = center - COLUMN_WIDTH / 2
    drawing.box(center - 90, GUEST_Y, 180, GUEST_HEIGHT, tenant)
    drawing.text(center, GUEST_Y + 22, f'instance {ADDRESS}', 'name')
    drawing.text(center, GUEST_Y + 40, f'tenant {tenant}', 'small')
    drawing.way((center, GUEST_Y + GUEST_HEIGHT), (center, NAMESPACE_Y))
    drawing.text(center + 104, (GUEST_Y + GUEST_HEIGHT + NAMESPACE_Y) / 2 + 4, REQUEST, 'small')
    drawing.box(left, NAMESPACE_Y, COLUMN_WIDTH, NAMESPACE_HEIGHT, tenant)
    drawing.text(center, NAMESPACE_Y + 22, f'network namespace of router {router}', 'name')
    drawing.text(center, NAMESPACE_Y + 44, 'redirect :80 → :9697', 'small')
    drawing.box(left + 30, NAMESPACE_Y + 60, COLUMN_WIDTH - 60, 56, 'filter')
    drawing.text(center, NAMESPACE_Y + 83, inside, 'name')
    drawing.text(center, NAMESPACE_Y + 103, action.format(router), 'small')


def _draw_steps(drawing: _Svg, x: float, steps: Sequence[Step], widths: Sequence[float]) -> None:
    top, height = HOST_Y + 36, 54
    for number, (step, width) in enumerate(zip(steps, widths, strict=True)):
        middle = x + width / 2
        drawing.box(x, top, width, height, 'filter')
        drawing.text(middle, top + (23 if step.fact else 32), step.name, 'name')
        if step.fact:
            drawing.text(middle, top + 42, step.fact, 'small')
        if step.service:
            service_width = max(len(step.service) * CHARACTER + 24, 90)
            drawing.way((middle, top + height), (middle, SERVICE_Y))
            drawing.box(middle - service_width / 2, SERVICE_Y, service_width, SERVICE_HEIGHT, 'service')
            drawing.text(middle, SERVICE_Y + 23, step.service, 'name')
        if number + 1 < len(steps):
            drawing.way((x + width, top + height / 2), (x + width + GAP, top + height / 2))
        x += width + GAP
