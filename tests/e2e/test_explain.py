# SPDX-License-Identifier: Apache-2.0
"""What an operator reads when a guest has no keys."""

import re
import subprocess

import pytest

from tests.e2e.conftest import BIN


@pytest.fixture
def explain(cloud):
    """(exit code, lines without what they took) of ``metadata-wsgi explain``."""

    def run(*words):
        argv = [BIN / 'metadata-wsgi', 'explain', '--config-file', cloud.conf_file, *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return done.returncode, [re.sub(r' +\(\d+\.\d ms\)$', '', line) for line in done.stdout.splitlines()]

    return run


def test_each_filter_says_what_it_found(explain, cloud):
    code, lines = explain('--router-id=router-a', '10.1.1.2')
    assert code == 0
    assert lines[:6] == [
        'catch_errors  -',
        'peer_credentials -',
        lines[2],
        'source        10.1.1.2 behind router router-a',
        'instance      instance-a of project project-a, port port-a',
        'signature     -',
    ]
    assert re.fullmatch(r'deadline      \d\.\d s are left', lines[2])
    assert lines[6] == 'request       GET /openstack/latest/meta_data.json'
    assert lines[-1] == 'not sent; --send sends it'
    assert cloud.nova.seen == []


def test_it_ends_where_nobody_is_found(explain):
    code, lines = explain('--router-id=router-a', '10.1.1.3')
    assert code == 1
    assert 'source        10.1.1.3 behind router router-a' in lines
    assert not any(line.startswith('instance') for line in lines)
    assert any(line.startswith('answer        404') for line in lines)


def test_with_send_it_shows_novas_answer(explain, cloud):
    code, lines = explain('--network-id=network-c', '10.1.1.2', '--send')
    assert (code, len(cloud.nova.seen)) == (0, 1)
    assert 'instance      instance-c of project project-c, port port-c' in lines
    assert any(line.startswith('answer        200') for line in lines)
