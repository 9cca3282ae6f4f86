# SPDX-License-Identifier: Apache-2.0
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from tests.cloud import Cloud
from tests.e2e.conftest import BIN, eventually, programs_in, rejects_unidentified_request

from .router_topology import RouterTopology
from .switched_network import Host, SwitchedNetwork

CHECKOUT = Path(__file__).parent.parent.parent
OPEN_DIRECTORY = r"""
set -e
new=$1 closed=$2; shift 2
mount -t tmpfs -o mode=755 tmpfs "$new"
while [ "$1" != -- ]; do mkdir -p "$new${1#"$closed"}"; mount --bind "$1" "$new${1#"$closed"}"; shift; done
shift
mount --move "$new" "$closed"
exec "$@"
"""


def pytest_collection_modifyitems(items):
    for item in items:
        if 'netns' in item.keywords and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason='makes network namespaces: run it as root'))


@pytest.fixture
def topology():
    """A router with a guest and an outside network: see router_topology."""
    topology = RouterTopology()
    try:
        topology.make()
        yield topology
    finally:
        topology.remove()


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


def opened_for_other_users(directory):
    """A command prefix for programs that another user runs: it makes checkout and interpreter reachable for all users.

    A checkout in root's home (mode 0700) is not. There the program gets a mount namespace in which that directory is a
    tmpfs (mode 0755), with only the checkout and the interpreter mounted into it.
    """
    needed = {CHECKOUT, Path(sys.prefix), Path(sys.base_prefix)}
    closed = {parent for path in needed for parent in path.parents if not parent.stat().st_mode & 0o001}
    prefix = []
    for number, outermost in enumerate(path for path in closed if not closed & set(path.parents)):
        inside = [path for path in needed if outermost in path.parents and not needed & set(path.parents)]
        new = directory / f'opened-{number}'
        new.mkdir()
        prefix += ['unshare', '--mount', 'sh', '-c', OPEN_DIRECTORY, 'sh', new, outermost, *inside, '--']
    return prefix


@pytest.fixture
def for_other_users(directory):
    """See :func:`opened_for_other_users`."""
    return opened_for_other_users(directory)


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
            lambda: (
                program.process.poll() is not None
                or (program.has_workers() and rejects_unidentified_request(cloud.socket))
            ),
            program.text,
        )
        assert program.process.poll() is None, program.text()
        return program

    return started


@pytest.fixture
def wire():
    wire = SwitchedNetwork()
    try:
        yield wire
    finally:
        wire.remove()


@pytest.fixture
def start_host(tmp_path):
    with contextlib.ExitStack() as stack:

        def start(program):
            host = Host(tmp_path, program)
            stack.callback(host.close)
            return host

        yield start


@pytest.fixture
def interrupt():
    """Sends SIGINT to this process, as Ctrl-C does. The signal is ignored in a process that a shell started with &."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, former)
