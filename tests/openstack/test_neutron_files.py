# SPDX-License-Identifier: Apache-2.0
"""Configuration files of Neutron and of its deployers, credentials and rights, with the real services."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import BIN, UnixConnection, eventually, programs_in, rejects_unidentified_request, request
from tests.e2e.test_deployers import COMMANDS, write_files
from tests.openstack.deployment import warm_up
from tests.openstack.seed import Admin
from tests.openstack.services import REGION, SHARED_SECRET

pytestmark = [pytest.mark.openstack]

KILO = """[DEFAULT]
auth_uri = {keystone}
auth_url = {keystone}
auth_plugin = password
project_domain_id = default
user_domain_id = default
project_name = service
username = service
password = password of service
nova_metadata_ip = 127.0.0.1
nova_metadata_port = {nova_port}
metadata_proxy_shared_secret = {secret}
state_path = {directory}
"""


@pytest.fixture
def write(tmp_path, services):
    """A function: files (name: text) -> their arguments for a command line."""

    def write_files(**texts):
        argv = []
        for name, text in texts.items():
            path = tmp_path / f'{name}.conf'
            path.write_text(
                text.format(
                    keystone=services.keystone, nova_port=services.port('nova'), secret=SHARED_SECRET,
                    directory=tmp_path,
                )
            )  # fmt: skip
            path.chmod(0o600)
            argv += ['--config-file', str(path)]
        return argv

    return write_files


@pytest.fixture
def start(tmp_path):
    """A function: program, arguments, its socket -> the socket, when the agent listens."""
    with programs_in(tmp_path) as programs:

        def run(name, argv, socket, cwd=None):
            program = programs(name, BIN / name, *argv, cwd=cwd)
            eventually(
                lambda: program.process.poll() is not None or rejects_unidentified_request(socket), program.text, 60
            )
            assert program.process.poll() is None, program.text()
            return socket

        yield run


def check_config(*argv, code):
    """Repeat check-config until it ends with ``code``: on a busy machine a service may need longer than it waits."""
    done = []

    def has_code():
        done[:] = [subprocess.run([BIN / 'metadata-wsgi', 'check-config', *argv], capture_output=True, text=True)]
        return done[0].returncode == code

    eventually(has_code, lambda: f'{done[0].returncode}: {done[0].stdout}{done[0].stderr}', 120)
    return done[0]


def serves(socket, instance, prefix='X-Neutron'):
    """Wait until the instance gets its metadata; services that were just started may be slower than the deadline."""
    found = []

    def responds():
        found[:] = [uuid_of(socket, instance, prefix)]
        return found[0] != 503

    eventually(responds, 'a response of the services', 120)
    return found[0] == instance.instance_id


def uuid_of(socket, instance, prefix='X-Neutron'):
    headers = {'X-Forwarded-For': '10.1.1.2', f'{prefix}-Router-ID': instance.router_id}
    status, _, body = request(UnixConnection(socket), 'GET', '/openstack/latest/meta_data.json', headers)
    return json.loads(body)['uuid'] if status == 200 else status


@pytest.mark.parametrize('deployer', COMMANDS)
def test_the_agent_serves_an_instance_with_the_files_of_a_deployer(start, seed, services, tmp_path, deployer):
    values = {
        '@DIR@': tmp_path, '@STATE@': tmp_path / 'state', '@SECRET@': SHARED_SECRET,
        '@PASSWORD@': 'password of service', '@KEYSTONE@': services.keystone,
        '@NOVA_HOST@': '127.0.0.1', '@NOVA_PORT@': services.port('nova'),
        'region_name = One': f'region_name = {REGION}',
    }  # fmt: skip
    write_files(deployer, tmp_path, values)
    (tmp_path / 'region.conf').write_text(f'[DEFAULT]\nauth_region = {REGION}\n')
    command, socket = COMMANDS[deployer]
    argv = [*command.split(), '--config-file', 'region.conf']
    socket = start('neutron-metadata-agent-wsgi', argv, Path(tmp_path / 'state', socket), tmp_path)
    assert serves(socket, seed['a'])
    assert serves(socket, seed['b'])


METADATA_AGENT = """[DEFAULT]
nova_metadata_host = 127.0.0.1
nova_metadata_port = {nova_port}
metadata_proxy_shared_secret = {secret}
state_path = {directory}
metadata_workers = 0
"""


def test_the_neutron_conf_of_a_real_server_is_enough(start, seed, services, write, tmp_path):
    """It is the file that this Neutron itself was started with; its credentials are used."""
    argv = ['--config-file', str(services.top / 'neutron' / 'neutron.conf'), *write(metadata_agent=METADATA_AGENT)]
    socket = start('neutron-metadata-agent-wsgi', argv, tmp_path / 'metadata_proxy')
    assert serves(socket, seed['a'])
    # 1: every user may read these files.
    checked = check_config('--neutron', *argv, code=1)
    assert 'in [keystone_authtoken] of ' in checked.stdout
    assert 'api-paste.ini is not used: the file has no [pipeline:agent]' in checked.stdout


def test_credentials_of_kilo(start, seed, write, tmp_path):
    argv = write(kilo=KILO.replace('[DEFAULT]\n', f'[DEFAULT]\nauth_region = {REGION}\n'))
    socket = start('quantum-metadata-agent', argv, tmp_path / 'metadata_proxy')
    assert serves(socket, seed['a'], 'X-Quantum')
    check_config(*argv, code=0)


def test_without_a_region_the_regions_of_the_catalogue_are_named(start, seed, write, tmp_path):
    argv = write(kilo=KILO)
    checked = check_config(*argv, code=1)
    assert 'network endpoints in the regions RegionOne and RegionTwo; set auth_region' in checked.stderr
    socket = start('quantum-metadata-agent', argv, tmp_path / 'metadata_proxy')
    assert uuid_of(socket, seed['a'], 'X-Quantum') == 503


@pytest.mark.parametrize(('user', 'sees_others'), [('metadata', True), ('service', True), ('reader', False)])
def test_neutron_shows_the_use_of_other_projects_networks_to_roles_that_see_every_port(services, user, sees_others):
    """What check-config relies on in a cloud without ports."""
    client = Admin(services, user, f'password of {user}', 'service')
    found = client.neutron('GET', 'network-ip-availabilities?fields=project_id')['network_ip_availabilities']
    own = Admin(services).keystone('GET', 'projects?name=service')['projects'][0]['id']
    assert any(network['project_id'] != own for network in found) == sees_others
    client.close()


@pytest.fixture
def blind_policy(services):
    """Neutron does not know the role service, as before 2023.2."""
    policy = services.top / 'neutron' / 'policy.yaml'
    services.stop('neutron')
    policy.write_text('"service_api": "role:nobody"\n')
    services.start('neutron')
    warm_up(services)
    yield
    services.stop('neutron')
    policy.unlink()
    services.start('neutron')
    warm_up(services)


@pytest.mark.usefixtures('blind_policy')
def test_a_role_service_that_the_policy_does_not_know_is_503_never_404(start, seed, write, tmp_path):
    argv = write(kilo=KILO.replace('[DEFAULT]\n', f'[DEFAULT]\nauth_region = {REGION}\n'))
    checked = check_config(*argv, code=2)
    assert 'cannot tell whether the agent sees every instance' in checked.stderr
    assert 'shows no ports of other projects to the roles' in checked.stderr
    socket = start('quantum-metadata-agent', argv, tmp_path / 'metadata_proxy')
    assert uuid_of(socket, seed['a'], 'X-Quantum') == 503


def test_a_token_of_system_scope_is_503_never_404(start, seed, services, write, tmp_path):
    admin = Admin(services)
    user = admin.keystone('GET', 'users?name=service')['users'][0]['id']
    role = admin.keystone('GET', 'roles?name=admin')['roles'][0]['id']
    admin.keystone('PUT', f'system/users/{user}/roles/{role}')
    text = KILO.replace('project_name = service\n', 'system_scope = all\n').replace('project_domain_id = default\n', '')
    argv = write(kilo=text.replace('[DEFAULT]\n', f'[DEFAULT]\nauth_region = {REGION}\n'))
    try:
        check_config(*argv, code=1)
        socket = start('quantum-metadata-agent', argv, tmp_path / 'metadata_proxy')
        assert uuid_of(socket, seed['a'], 'X-Quantum') == 503
    finally:
        admin.keystone('DELETE', f'system/users/{user}/roles/{role}')
        admin.close()


def test_without_an_admin_endpoint_the_internal_one_is_used(start, seed, services, write, tmp_path):
    admin = Admin(services)
    listed = admin.keystone('GET', f'endpoints?interface=admin&region_id={REGION}')['endpoints']
    endpoints = [endpoint for endpoint in listed if endpoint['url'] == services.neutron]
    assert endpoints
    for endpoint in endpoints:
        admin.keystone('PATCH', f'endpoints/{endpoint["id"]}', {'endpoint': {'enabled': False}})
    argv = write(kilo=KILO.replace('[DEFAULT]\n', f'[DEFAULT]\nauth_region = {REGION}\n'))
    try:
        socket = start('quantum-metadata-agent', argv, tmp_path / 'metadata_proxy')
        assert serves(socket, seed['a'], 'X-Quantum')
        explicit = check_config(*argv, *write(admin='[DEFAULT]\nendpoint_type = adminURL\n'), code=1)
        assert 'with interface admin; it has internal and public: set endpoint_type' in explicit.stderr
    finally:
        for endpoint in endpoints:
            admin.keystone('PATCH', f'endpoints/{endpoint["id"]}', {'endpoint': {'enabled': True}})
        admin.close()
