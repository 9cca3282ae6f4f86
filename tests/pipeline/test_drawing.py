# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi show-pipeline`` draws the pipelines of the shipped paste file; the README shows one drawing."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from metadata_wsgi.cli import main, pipeline_drawing
from metadata_wsgi.pipeline import environ_keys

ROOT = Path(__file__).parents[2]
FILTERS = [
    'catch_errors',
    'request_id',
    'peer_credentials',
    'deadline',
    'header_source',
    'instance',
    'signature',
    'upstream',
]
CONFIGURATION = ROOT / 'tests' / 'pipeline' / 'drawing.ini'


@pytest.fixture
def draw(capsys):
    """A function: the drawing of a pipeline of the shipped paste file."""

    def run(format_, *words):
        assert main.main(['show-pipeline', '-f', format_, '--config-file', str(CONFIGURATION), *words]) == 0
        return capsys.readouterr().out

    return run


def texts(svg):
    """The texts of an SVG, in their order. Raises if it is not well-formed."""
    return [element.text for element in ElementTree.fromstring(svg).iter('{http://www.w3.org/2000/svg}text')]


def test_the_picture_of_the_readme_is_the_drawing_of_the_shipped_pipeline(draw):
    assert '](doc/pipeline.svg)' in (ROOT / 'README.md').read_text()
    command = next(line for line in CONFIGURATION.read_text().splitlines() if 'show-pipeline' in line)
    assert (ROOT / 'doc' / 'pipeline.svg').read_text() == draw('svg'), f'renew it: {command.strip("# ")}'


def test_svg_shows_two_tenants_with_one_address_and_the_filters_in_order(draw):
    shown = texts(draw('svg'))
    assert shown.count('instance 10.1.1.2') == 2
    assert {'tenant red', 'tenant blue', 'network namespace of router A', 'network namespace of router B'} <= {*shown}
    assert [text for text in shown if text in FILTERS] == FILTERS
    assert {'Neutron', 'Nova :8775', 'unix socket'} <= {*shown}


def test_svg_of_one_hop_has_no_namespace_proxy(draw):
    shown = texts(draw('svg', '--pipeline', 'one_hop'))
    assert shown.count('listening socket of the agent') == 2
    assert not {'namespace proxy', 'unix socket'} & {*shown}


def test_mermaid_has_the_same_filters_in_the_same_order(draw):
    drawing = draw('mermaid')
    assert drawing.startswith('flowchart TB\n')
    names = re.findall(r'^ +step\d+\["(\w+)', drawing, re.MULTILINE)
    assert names == FILTERS
    assert 'step5 --> service5["Neutron"]' in drawing
    assert 'step7 --> service7["Nova :8775"]' in drawing


def test_format_json_lists_what_each_filter_reads_and_provides(draw):
    rows = json.loads(draw('json'))
    assert [row['filter'] for row in rows] == FILTERS
    assert rows[5] == {
        'filter': 'instance', 'reads': ['metadata_wsgi.deadline', 'metadata_wsgi.source'],
        'provides': ['metadata_wsgi.instance'],
    }  # fmt: skip


class Unusual:
    """A filter of another package."""

    REQUIRES = frozenset()
    PROVIDES = frozenset({environ_keys.INSTANCE})


Unusual.__qualname__ = 'A<b>&"c"'


def test_a_name_with_markup_is_text_in_both_drawings():
    svg = pipeline_drawing.svg([Unusual()] * 12)
    assert sum('A<b>&"c"' in (text or '') for text in texts(svg)) == 12
    assert '"c"' not in pipeline_drawing.mermaid([Unusual()])


def test_every_shape_of_a_long_pipeline_is_inside_the_svg():
    root = ElementTree.fromstring(pipeline_drawing.svg([Unusual()] * 20))
    _, _, width, height = map(float, root.attrib['viewBox'].split())
    boxes = list(root.iter('{http://www.w3.org/2000/svg}rect'))
    assert len(boxes) > 20
    for box in (box.attrib for box in boxes):
        assert 0 <= float(box.get('x', 0)) <= float(box.get('x', 0)) + float(box['width']) <= width
        assert 0 <= float(box.get('y', 0)) <= float(box.get('y', 0)) + float(box['height']) <= height
