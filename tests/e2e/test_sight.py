# SPDX-License-Identifier: Apache-2.0
"""Whether Quantum shows every guest is known, and logged, before a guest asks; nothing waits for it."""

import signal

import pytest

from tests.clients.fake_openstack import PASSWORD, FakeOpenStack, port
from tests.e2e.conftest import eventually, nobody_is_refused
from tests.rawserver import RawServer, closes_at_once, stalls

SEES = 'shows ports of other projects; roles: service'
SEES_NONE = 'No guest will be found, all will be answered 503: Quantum shows no port of any other project to the roles '


@pytest.fixture
def openstack():
    with FakeOpenStack([port('network-a', 'compute:nova', 'instance-a', 'project-a', '10.1.1.2')]) as made:
        yield made


@pytest.fixture
def asking(cloud):
    """Makes the agent ask this Keystone, as this user."""

    def configure(listen_port, user='service', **options):
        cloud.configure(
            directory='quantum', auth_url=f'http://127.0.0.1:{listen_port}/v3', admin_user=user,
            admin_password=PASSWORD, admin_tenant_name='service', **options,
        )  # fmt: skip

    return configure


def test_a_role_that_sees_every_guest(agent, asking, openstack):
    """One of the workers asks, after each start and each SIGHUP."""
    asking(openstack.listen_port, metadata_workers=3)
    program = agent()
    eventually(lambda: SEES in program.text(), program.text)
    before = program.workers()
    program.kill(signal.SIGHUP)
    eventually(lambda: len(program.workers()) == 3 and not set(before) & set(program.workers()), 'the workers are new')
    eventually(lambda: program.text().count(SEES) == 2, program.text)
    assert len(openstack.roles_by_token) == 2


def test_a_role_that_sees_none_is_an_error_without_any_guest(agent, asking, openstack):
    asking(openstack.listen_port, 'reader')
    program = agent()
    eventually(lambda: SEES_NONE + 'reader; give the user the role service' in program.text(), program.text)


def test_not_where_it_is_switched_off(agent, cloud, asking, openstack):
    asking(openstack.listen_port, metadata_look_at_start=False)
    agent()
    assert nobody_is_refused(cloud.socket)
    assert openstack.roles_by_token == {}


@pytest.mark.parametrize('script', [closes_at_once, stalls])
def test_a_keystone_that_is_away_delays_nothing(agent, cloud, asking, script):
    keystone = RawServer(script)
    try:
        asking(keystone.port)
        program = agent()
        assert nobody_is_refused(cloud.socket)
        eventually(
            lambda: 'Cannot find out yet whether the directory shows every guest' in program.text(), program.text
        )
        assert nobody_is_refused(cloud.socket)
    finally:
        keystone.close()
