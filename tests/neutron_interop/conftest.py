# SPDX-License-Identifier: Apache-2.0
"""Two kinds of proxy, two kinds of agent, and one Nova behind both agents, on loopback and unix sockets.

The proxy is our namespace proxy, or haproxy with the configuration that Neutron's driver writes. The agent is ours or
Neutron's. Neutron is the one that tests/openstack installs, or that of the Python interpreter that
``METADATA_WSGI_NEUTRON_PYTHON`` names. The guest's address is 127.0.0.1.
"""

from __future__ import annotations

import json
import os
import shutil
import socket

import pytest

from tests.cloud import INVENTORY, ROUTER, SECRET, SHIPPED
from tests.e2e.conftest import BIN, Program, accepts_connections, eventually, free_port, rejects_unidentified_request
from tests.openstack import deployment, install

PYTHON = os.environ.get('METADATA_WSGI_NEUTRON_PYTHON', '')

HAPROXY = """\
global
    maxconn 1024
defaults
    mode http
    option http-server-close
    option forwardfor
    retries 3
    timeout connect 30s
    timeout client 32s
    timeout server 32s
    timeout http-request 30s
listen metadata
    bind :::{port} v4v6
    server agent {socket}
    http-request del-header {other}
    http-request set-header {header} {uuid}
"""

PORTS = [
    {'network_id': 'network-a', 'device_owner': 'network:router_interface', 'device_id': ROUTER, 'fixed_ips': []},
    {
        'network_id': 'network-a',
        'device_owner': 'compute:nova',
        'device_id': 'instance-a',
        'project_id': 'project-a',
        'fixed_ips': [{'ip_address': '127.0.0.1'}],
    },
]


def neutron_python():
    """Path of a Python interpreter that can import Neutron."""
    return PYTHON or install.install(deployment.directory()) / 'bin' / 'python'


@pytest.fixture(scope='package')
def start_program(tmp_path_factory):
    """Starts programs by path; stops all of them at the end."""
    directory = tmp_path_factory.mktemp('programs')
    started = []

    def start(*argv):
        started.append(Program(directory / f'{len(started)}.log', *argv))
        return started[-1]

    yield start
    for program in started:
        program.end()


def accepts(port):
    with socket.socket() as probe:
        return probe.connect_ex(('127.0.0.1', port)) == 0


@pytest.fixture(scope='package')
def directory(tmp_path_factory):
    """The directory of configuration, sockets and inventory."""
    made = tmp_path_factory.mktemp('interop')
    (made / 'inventory.yaml').write_text(INVENTORY)
    return made


@pytest.fixture(scope='package')
def nova(start_program, directory):
    """The port of a gunicorn that serves the pipeline ``nova``."""
    conf_file, port = directory / 'nova.ini', free_port()
    conf_file.write_text(
        f'[DEFAULT]\nmetadata_proxy_shared_secret = {SECRET}\n'
        f'[metadata_app]\ninventory = {directory}/inventory.yaml\npassword_dir = {directory}/passwords\n'
    )
    program = start_program(
        BIN / 'gunicorn', '--paste', f'{SHIPPED}#nova', '--paste-global', f'config_file={conf_file}',
        '--worker-class', 'gevent', '--no-control-socket', '--bind', f'127.0.0.1:{port}',
    )  # fmt: skip
    eventually(lambda: accepts(port), f"the service in Nova's place listens: {program.text()}")
    return port


def write_conf(path, nova_port, *lines):
    """Write a configuration file with the options that both agents have; the path of the agent's socket."""
    state_path = path.parent / path.stem
    state_path.mkdir()
    common = [
        '[DEFAULT]',
        f'state_path = {state_path}',
        f'metadata_proxy_shared_secret = {SECRET}',
        'nova_metadata_host = 127.0.0.1',
        f'nova_metadata_port = {nova_port}',
        'metadata_workers = 1',
        'metadata_peer_users = nobody',
    ]
    path.write_text('\n'.join([*common, *lines, '']))
    return state_path / 'metadata_proxy'


@pytest.fixture(scope='package')
def our_agent(start_program, directory, nova):
    """The socket of our agent, which trusts the header prefix of Neutron's proxy."""
    conf_file = directory / 'ours.ini'
    static = ('[static]', f'inventory = {directory}/inventory.yaml')
    path = write_conf(conf_file, nova, 'directory = static', 'metadata_header_prefix = X-Neutron', *static)
    program = start_program(BIN / 'quantum-metadata-agent', '--config-file', conf_file)
    eventually(lambda: rejects_unidentified_request(path), f'our agent responds: {program.text()}')
    return path


@pytest.fixture(scope='package')
def neutron_agent(start_program, directory, nova):
    """The socket of Neutron's agent."""
    conf_file, ports = directory / 'neutron.ini', directory / 'ports.json'
    ports.write_text(json.dumps(PORTS))
    lock = ('[oslo_concurrency]', f'lock_path = {directory}')
    path = write_conf(conf_file, nova, 'transport_url = fake:///', '[AGENT]', 'report_interval = 0', *lock)
    launcher = os.path.join(os.path.dirname(__file__), 'neutron_agent.py')
    program = start_program(neutron_python(), '-W', 'ignore', launcher, ports, '--config-file', conf_file)
    eventually(lambda: program.process.poll() is not None or accepts_connections(path), "Neutron's agent listens", 60)
    assert program.process.poll() is None, program.text()
    # In a cloud the user neutron runs it. Here root does, and no namespace proxy of ours serves as root.
    shutil.chown(path, 'nobody')
    return path


@pytest.fixture(scope='package')
def proxy_port(start_program, directory, request):
    """(proxy, agent, kind) -> the port for guests of the router or network; started at the first call."""
    known = {}

    def start(proxy, agent, kind):
        path = request.getfixturevalue({'ours': 'our_agent', 'neutron': 'neutron_agent'}[agent])
        port, uuid = free_port(), {'router': ROUTER, 'network': 'network-a'}[kind]
        if proxy == 'ours':
            program = start_program(
                BIN / 'quantum-ns-metadata-proxy', '--nodaemonize', f'--{kind}_id={uuid}',
                f'--metadata_proxy_socket={path}', f'--metadata_port={port}', '--metadata_host=127.0.0.1',
                '--metadata_header_prefix=X-Neutron', f'--pid_file={directory}/{port}.pid',
            )  # fmt: skip
        else:
            if not shutil.which('haproxy'):
                pytest.skip('haproxy is not installed')
            headers = {'router': 'X-Neutron-Router-ID', 'network': 'X-Neutron-Network-ID'}
            header = headers.pop(kind)
            conf_file = directory / f'{port}.cfg'
            (other,) = headers.values()
            conf_file.write_text(HAPROXY.format(port=port, socket=path, header=header, other=other, uuid=uuid))
            program = start_program('haproxy', '-db', '-f', conf_file)
        eventually(lambda: program.process.poll() is not None or accepts(port), 'the proxy listens')
        assert program.process.poll() is None, program.text()
        return port

    def find(*which):
        if which not in known:
            known[which] = start(*which)
        return known[which]

    return find
