# SPDX-License-Identifier: Apache-2.0
"""The checker catches a cache that ignores the router, in a run with the real programs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak import history
from tests.soak.checker import Bounds, check

pytestmark = [
    pytest.mark.not_traced,
    pytest.mark.chaos,
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason='makes network namespaces: run it as root'),
]
SHIPPED = Path(__file__).parents[2] / 'etc' / 'api-paste.ini'
BUG = 'use = egg:metadata_wsgi#lookup_cache', 'paste.filter_factory = tests.soak.cache_without_router:filter_factory'


def soak(tmp_path, *argv):
    """The history of a short run, and its output."""
    file = tmp_path / 'history'
    command = [sys.executable, '-m', 'tests.soak', '--minutes', '0.25', '--seed', '7', '--no-faults', '--history', file]
    done = subprocess.run([*command, *argv], capture_output=True, text=True, check=False, timeout=400)
    return done.returncode, history.load(file), done.stdout + done.stderr


def test_a_cache_that_ignores_the_router_is_caught(tmp_path):
    paste = tmp_path / 'api-paste.ini'
    text = SHIPPED.read_text().replace('header_source instance', 'header_source lookup_cache instance')
    paste.write_text(text.replace(*BUG))
    code, recorded, output = soak(tmp_path, '--paste', str(paste))
    assert code == 1, output
    found = check(recorded, Bounds())
    assert found
    assert 'what remains of the history' in output
    assert all('which did not have this place' in str(one) for one in found if one.request.outcome == 'ok')
    assert any(one.request.outcome == 'ok' for one in found)
