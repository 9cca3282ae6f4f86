# SPDX-License-Identifier: Apache-2.0
"""The agent checks at start, before any request, whether Neutron shows it every instance; nothing waits for it."""

import signal

import pytest

from tests.clients.fake_openstack import PASSWORD, FakeOpenStack, port
from tests.e2e.conftest import eventually, rejects_unidentified_request
from tests.rawserver import RawServer, closes_at_once, never_responds

SEES_ALL = 'shows ports of other projects; roles: service'
BLIND = 'No instance can be found, every request gets 503: Neutron shows no port of any other project to the roles '


@pytest.fixture
def openstack():
    with FakeOpenStack([port('network-a', 'compute:nova', 'instance-a', 'project-a', '10.1.1.2')]) as made:
        yield made


@pytest.fixture
def configure(cloud):
    """A function that makes the agent use the Keystone on this port, as this user."""

    def write(listen_port, user='service', **options):
        cloud.configure(
            directory='neutron', auth_url=f'http://127.0.0.1:{listen_port}/v3', admin_user=user,
            admin_password=PASSWORD, admin_tenant_name='service', **{'check_services_at_start': True, **options},
        )  # fmt: skip

    return write


def test_a_role_that_sees_every_instance_is_logged(agent, configure, openstack):
    """One of the workers checks, after each start and each SIGHUP."""
    configure(openstack.listen_port, metadata_workers=3)
    program = agent()
    eventually(lambda: SEES_ALL in program.text(), program.text)
    before = program.workers()
    program.kill(signal.SIGHUP)
    eventually(lambda: len(program.workers()) == 3 and not set(before) & set(program.workers()), 'the workers are new')
    eventually(lambda: program.text().count(SEES_ALL) == 2, program.text)
    assert len(openstack.roles_by_token) == 2


def test_a_role_that_sees_none_is_an_error_before_any_request(agent, configure, openstack):
    configure(openstack.listen_port, 'reader')
    program = agent()
    eventually(lambda: BLIND + 'reader; give the user the role service' in program.text(), program.text)


def test_check_services_at_start_false_switches_it_off(agent, cloud, configure, openstack):
    configure(openstack.listen_port, check_services_at_start=False)
    agent()
    assert rejects_unidentified_request(cloud.socket)
    assert openstack.roles_by_token == {}


@pytest.mark.parametrize('script', [closes_at_once, never_responds])
def test_an_unavailable_keystone_delays_no_request(agent, cloud, configure, script):
    keystone = RawServer(script)
    try:
        configure(keystone.port)
        program = agent()
        assert rejects_unidentified_request(cloud.socket)
        eventually(
            lambda: 'Cannot check yet whether the lookup directory shows every instance' in program.text(), program.text
        )
        assert rejects_unidentified_request(cloud.socket)
    finally:
        keystone.close()
