# SPDX-License-Identifier: Apache-2.0
"""Which Keystone credentials work for the agent, and the messages for those that do not."""

import json

import pytest

from tests.e2e.conftest import eventually
from tests.openstack.services import REGION, SHARED_SECRET

pytestmark = [pytest.mark.openstack, pytest.mark.netns]

META_DATA = '/openstack/latest/meta_data.json'


@pytest.mark.parametrize('user', ['metadata', 'service'])
def test_roles_admin_and_service_work(host, seed, user):
    host.restart_agent(host.grizzly_configuration(user))
    assert json.loads(host.curl_until_served('a', META_DATA).body)['uuid'] == seed['a'].instance_id
    checked = host.metadata_wsgi_until('\nok\n', 'check-config')
    assert (checked.returncode, checked.stdout.splitlines()[-1]) == (0, 'ok'), checked.stderr
    assert 'shows ports of other projects' in checked.stdout


def test_role_without_visibility_gives_503_not_404(host):
    """Neutron responds 200 with an empty list, as for a router without guests."""
    host.restart_agent(host.grizzly_configuration('reader'))
    for _ in range(2):
        response = host.curl('a', META_DATA)
        assert (response.status, response.headers['retry-after']) == (503, '1')
    eventually(
        lambda: host.curl('a', META_DATA).status == 503 and 'give the user the role service' in host.log_text(),
        host.log_text,
    )
    checked = host.metadata_wsgi_until('give the user the role service', 'check-config')
    assert checked.returncode == 1
    assert 'give the user the role service (or admin)' in checked.stderr


def test_wrong_password_gives_503_and_a_message_without_the_password(host):
    host.restart_agent(host.grizzly_configuration(admin_password='wrongpass', debug=True))
    assert host.curl('a', META_DATA).status == 503
    checked = host.metadata_wsgi_until('Keystone rejects the credentials (401)', 'check-config')
    assert checked.returncode == 1
    assert 'Keystone rejects the credentials (401)' in checked.stderr
    assert 'wrongpass' not in host.log_text() + checked.stdout + checked.stderr


def test_region_option_selects_the_endpoint(host):
    """Nothing listens at the endpoint of RegionTwo, which is a temporary failure for the guest."""
    host.restart_agent(host.grizzly_configuration(auth_region='RegionTwo'))
    eventually(lambda: host.curl('a', META_DATA).status == 503 and '127.0.0.1:9' in host.log_text(), host.log_text)


@pytest.mark.parametrize('group', ['quantum', 'neutron'])
def test_application_credential(host, seed, services, group):
    credential = seed.application_credential
    host.restart_agent(host.configuration({}, f"""
[{group}]
auth_type = v3applicationcredential
auth_url = {services.keystone}
application_credential_id = {credential['id']}
application_credential_secret = {credential['secret']}
region_name = {REGION}
valid_interfaces = internal
"""))  # fmt: skip
    assert json.loads(host.curl_until_served('b', META_DATA).body)['uuid'] == seed['b'].instance_id
    checked = host.metadata_wsgi_until('\nok\n', 'check-config')
    assert (checked.returncode, checked.stdout.splitlines()[-1]) == (0, 'ok'), checked.stderr


def test_keystoneauth_password_plugin(host, seed, services):
    host.restart_agent(host.configuration({}, f"""
[quantum]
auth_type = password
auth_url = {services.keystone}
username = service
password = password of service
project_name = service
user_domain_id = default
project_domain_id = default
region_name = {REGION}
"""))  # fmt: skip
    assert json.loads(host.curl_until_served('b', META_DATA).body)['uuid'] == seed['b'].instance_id


def test_explain_shows_the_pipeline_and_no_secret(host, seed):
    host.configure(host.grizzly_configuration())
    done = host.metadata_wsgi_until(
        'response      200', 'explain', '--router-id', seed['a'].router_id, '10.1.1.2', '--send'
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith('header_source') and seed['a'].router_id in line for line in lines)
    assert any(line.startswith('instance') and seed['a'].instance_id in line for line in lines)
    assert sum('GET /v2.0/ports?' in line for line in lines) >= 2
    assert any(line.startswith('response      200') for line in lines)
    assert seed['a'].hostname in done.stdout
    assert '(masked)' in done.stdout
    for secret in ('password of service', SHARED_SECRET, 'gAAAA'):
        assert secret not in done.stdout + done.stderr


def test_explain_without_send(host, seed):
    host.configure(host.grizzly_configuration())
    done = host.metadata_wsgi_until(
        seed['isolated'].instance_id, 'explain', '--network-id', seed['isolated'].network_id, '10.1.1.2'
    )
    assert done.returncode == 0, done.stderr
    assert seed['isolated'].instance_id in done.stdout
    assert 'not sent' in done.stdout


def test_no_token_or_password_in_the_log(host):
    """Fernet tokens of Keystone begin with gAAAA."""
    host.restart_agent(host.grizzly_configuration(debug=True, verbose=True))
    assert host.curl_until_served('a', META_DATA).status == 200
    assert 'GET /v2.0/ports?' in host.log_text()
    for secret in ('password of service', SHARED_SECRET, 'gAAAA'):
        assert secret not in host.log_text()
