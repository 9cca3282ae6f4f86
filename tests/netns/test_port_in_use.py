# SPDX-License-Identifier: Apache-2.0
"""Another program listens on the metadata port of a router's namespace, e.g. Neutron's haproxy."""

import socket
import sys
from pathlib import Path

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper.attachments_client import AttachmentsClient
from metadata_wsgi.netns.target import ROUTER, AttachTarget
from tests.e2e.conftest import BIN, eventually

pytestmark = pytest.mark.netns

LISTEN = 'import socket, time; s = socket.create_server(("", 9697)); print("listening", flush=True); time.sleep(600)'


@pytest.fixture
def listening(start, topology):
    """A program in the namespace that listens on port 9697."""
    program = start('listening', 'ip', 'netns', 'exec', topology.router, sys.executable, '-c', LISTEN)
    eventually(lambda: 'listening' in program.text(), program.text)
    return program


def expected(listening, topology):
    name = Path(f'/proc/{listening.pid}/comm').read_text().strip()
    return (
        f'metadata_port: port 9697 in {topology.router} is used by pid {listening.pid} ({name}): '
        'stop it, or use --metadata-port 9698'
    )


def test_port_in_use_is_reported_by_the_namespace_proxy(start, cloud, topology, listening):
    program = start(
        'proxy', 'ip', 'netns', 'exec', topology.router, BIN / 'quantum-ns-metadata-proxy', '--nodaemonize',
        '--router_id=router-a', f'--state_path={cloud.state_path}', '--metadata_port=9697',
    )  # fmt: skip
    assert program.wait() == 1
    assert program.text() == f'quantum-ns-metadata-proxy: router-a: {expected(listening, topology)}\n'
    assert listening.process.poll() is None


def test_port_in_use_is_reported_by_a_client_of_the_keeper(start, cloud, topology, listening):
    start('keeper', BIN / 'metadata-wsgi', 'keeper', '--config-file', cloud.conf_file)

    def accepts():
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            return probe.connect_ex(str(cloud.state_path / 'keeper')) == 0

    eventually(accepts, 'the keeper accepts connections')
    with pytest.raises(NetnsError) as raised:
        AttachmentsClient(str(cloud.state_path)).attach(
            AttachTarget(ROUTER, 'router-a', topology.router), 'shared', 9697, ['']
        )
    assert str(raised.value) == expected(listening, topology)
