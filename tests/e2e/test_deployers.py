# SPDX-License-Identifier: Apache-2.0
"""``neutron-metadata-agent-wsgi`` starts with the files of each deployer of OpenStack, and serves Neutron's haproxy.

The files are ours, written after the facts of the deployers' templates: which options stand in which file.
"""

from pathlib import Path

import pytest

from tests.clients.fake_openstack import PASSWORD, FakeOpenStack, port
from tests.cloud import SECRET
from tests.e2e.conftest import UnixConnection, eventually, rejects_unidentified_request, request

FILES = Path(__file__).parents[1] / 'unit' / 'cli' / 'deployers'
ROUTER, NETWORK = '0b7a7b2c-0000-4000-8000-000000000001', '0b7a7b2c-0000-4000-8000-000000000002'
TWO_FILES = '--config-file neutron.conf --config-file metadata_agent.ini'
# The command line of each, and its socket below the state path.
COMMANDS = {
    'kolla_ansible': (TWO_FILES, 'metadata_proxy'),
    'openstack_ansible': (TWO_FILES, 'metadata_proxy'),
    'openstack_helm': (
        f'{TWO_FILES} --config-dir neutron.conf.d',
        'openstack-helm/metadata_proxy',
    ),
    'rhoso': (
        f'--config-file neutron-dist.conf {TWO_FILES} --config-dir common --config-dir agent --log-file agent.log',
        'metadata_proxy',
    ),
    'debian': ('--config-file=neutron.conf --config-file=metadata_agent.ini --log-file agent.log', 'metadata_proxy'),
}


def write_files(deployer, directory, values):
    """Write the configuration files of a deployer to ``directory``, with the keys of ``values`` replaced."""
    for source in FILES.joinpath(deployer).rglob('*'):
        if source.is_file():
            text = source.read_text()
            for name, value in values.items():
                text = text.replace(name, str(value))
            target = directory / source.relative_to(FILES / deployer)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            target.chmod(0o600)


@pytest.fixture
def openstack():
    ports = [
        port(NETWORK, 'network:router_interface', ROUTER, 'project-a', '10.1.1.1'),
        port(NETWORK, 'compute:nova', 'instance-a', 'project-a', '10.1.1.2'),
    ]
    with FakeOpenStack(ports) as made:
        yield made


@pytest.fixture
def start(programs, cloud, openstack, tmp_path):
    """A function: name of a deployer -> its program and the path of its socket."""

    def run(deployer):
        values = {
            '@DIR@': tmp_path, '@STATE@': cloud.state_path, '@SECRET@': SECRET, '@PASSWORD@': PASSWORD,
            '@KEYSTONE@': f'http://127.0.0.1:{openstack.listen_port}/v3',
            '@NOVA_HOST@': '127.0.0.1', '@NOVA_PORT@': cloud.server.server_port,
        }  # fmt: skip
        write_files(deployer, tmp_path, values)
        command, socket = COMMANDS[deployer]
        program = programs('neutron-metadata-agent-wsgi', *command.split(), cwd=tmp_path)
        path = cloud.state_path / socket
        eventually(lambda: program.process.poll() is not None or rejects_unidentified_request(path), program.text)
        assert program.process.poll() is None, program.text()
        return program, path

    return run


def as_haproxy(path, prefix='X-Neutron', **ids):
    """The request that haproxy in the router's namespace sends for an instance at 10.1.1.2."""
    headers = {'X-Forwarded-For': '10.1.1.2', **{f'{prefix}-{name}-ID': value for name, value in ids.items()}}
    return request(UnixConnection(path), 'GET', '/openstack/latest/meta_data.json', headers)


@pytest.mark.parametrize('deployer', COMMANDS)
def test_the_agent_serves_haproxy_with_the_files_of_a_deployer(start, cloud, deployer):
    _, path = start(deployer)
    status, _, body = as_haproxy(path, Router=ROUTER)
    assert (status, b'instance-a' in body) == (200, True)
    assert as_haproxy(path, Network=NETWORK)[0] == 200
    assert [seen['HTTP_X_INSTANCE_ID'] for seen in cloud.nova.seen if seen['HTTP_X_TENANT_ID'] == 'project-a'] == [
        'instance-a'
    ] * 2


def test_only_the_prefix_x_neutron_is_trusted(start):
    """haproxy deletes the X-Neutron headers of an instance, but no others."""
    _, path = start('debian')
    assert as_haproxy(path, 'X-Quantum', Router=ROUTER)[0] == 400
    assert as_haproxy(path, 'X-OVN', Network=NETWORK)[0] == 400
