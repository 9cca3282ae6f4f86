# SPDX-License-Identifier: Apache-2.0
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.cloud import Cloud
from tests.e2e.conftest import BIN, eventually, nobody_is_refused, programs_in

from .router_topology import World


def pytest_collection_modifyitems(items):
    for item in items:
        if 'netns' in item.keywords and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason='makes network namespaces: run it as root'))


@pytest.fixture
def world():
    """A router with a guest and an outside network: see router_topology."""
    world = World()
    try:
        world.make()
        yield world
    finally:
        world.remove()


@pytest.fixture(params=['iptables-nft', 'iptables-legacy'])
def program(request):
    if not shutil.which(request.param):
        pytest.skip(f'{request.param} is not installed')
    return request.param


@pytest.fixture
def directory():
    """A directory that all users can traverse. pytest's tmp_path is closed, and parallel runs close it again."""
    with tempfile.TemporaryDirectory(prefix='metadata-wsgi-') as made:
        os.chmod(made, 0o755)
        yield Path(made)


@pytest.fixture
def start(directory):
    with programs_in(directory) as start:
        yield start


@pytest.fixture
def cloud(directory):
    with Cloud(directory) as made:
        made.conf_file.chmod(0o600)
        yield made


@pytest.fixture
def agent(start, cloud):
    """Starts an agent on the socket of ``cloud``; ``before`` is a command that runs it."""

    def started(*before):
        program = start('agent', *before, BIN / 'quantum-metadata-agent', '--config-file', cloud.conf_file)
        eventually(
            lambda: program.process.poll() is not None or (program.has_workers() and nobody_is_refused(cloud.socket)),
            'the agent responds',
        )
        assert program.process.poll() is None, program.text()
        return program

    return started
