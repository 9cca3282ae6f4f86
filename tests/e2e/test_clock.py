# SPDX-License-Identifier: Apache-2.0
"""A host whose clock is wrong, or is set while the agent runs (libfaketime): lookups, tokens, workers are as before."""

import contextlib
import glob
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from tests.clients.fake_openstack import PASSWORD, FakeOpenStack, port
from tests.e2e.conftest import UnixConnection, eventually, request

LIBRARY = next(iter(glob.glob('/usr/lib/*/faketime/libfaketimeMT.so.1')), None)
IDENTITY = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Network-ID': 'network-a'}

pytestmark = pytest.mark.skipif(not LIBRARY, reason='libfaketime is missing (Debian: faketime)')


@pytest.fixture
def openstack(cloud):
    """A Keystone and a Neutron whose clock is right."""
    with FakeOpenStack([port('network-a', 'compute:nova', 'instance-a', 'project-a', '10.1.1.2')]) as made:
        cloud.configure(
            directory='neutron', auth_url=f'http://127.0.0.1:{made.listen_port}/v3', admin_user='service',
            admin_password=PASSWORD, admin_tenant_name='service',
        )  # fmt: skip
        yield made


@pytest.fixture
def clock(tmp_path, monkeypatch):
    """Sets the clock of programs that are started after it: by an offset such as +1d, also while they run."""
    file = tmp_path / 'clock'
    file.write_text('+0')
    # libfaketime 0.9.10 fails with EINVAL in clock_nanosleep(2), which Python's sleep calls with an absolute time.
    (tmp_path / 'sitecustomize.py').write_text(
        'import select, time\ntime.sleep = lambda seconds: select.select([], [], [], seconds) and None\n'
    )
    for name, value in {
        'LD_PRELOAD': LIBRARY, 'FAKETIME_TIMESTAMP_FILE': str(file), 'FAKETIME_NO_CACHE': '1',
        'FAKETIME_DONT_FAKE_MONOTONIC': '1', 'PYTHONPATH': str(tmp_path),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)

    def set_clock(offset):
        new = file.with_suffix('.new')
        new.write_text(offset)
        new.replace(file)

    return set_clock


def status_of_read(cloud):
    return request(UnixConnection(cloud.socket), 'GET', '/openstack/latest/meta_data.json', headers=IDENTITY)[0]


def days_ahead(cloud):
    """By how many days the clock of the agent is ahead, according to the Date header of a response."""
    with contextlib.closing(UnixConnection(cloud.socket)) as connection:
        connection.request('GET', '/')
        date = parsedate_to_datetime(connection.getresponse().headers['Date'])
    return round((date - datetime.now(UTC)).total_seconds() / 86400)


def wake_ups(pid):
    """How often the process has waited: the master does, and looks after its workers, once a second."""
    lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith('voluntary_ctxt_switches')))


@pytest.mark.parametrize(('offset', 'words'), [('+1d', 'ahead of'), ('-1d', 'behind')])
def test_a_clock_that_is_wrong_by_a_day_costs_one_token_and_one_warning(agent, cloud, openstack, clock, offset, words):
    clock(offset)
    program = agent()
    assert [status_of_read(cloud) for _ in range(20)] == [200] * 20
    assert len(openstack.roles_by_token) == 1
    skews = [line for line in program.text().splitlines() if "Keystone's clock" in line]
    assert len(skews) == 1, program.text()
    assert f" s {words} Keystone's clock" in skews[0]


def test_a_clock_that_is_set_while_the_agent_runs_ends_no_worker_and_fails_no_request(agent, cloud, openstack, clock):
    program = agent()
    assert status_of_read(cloud) == 200
    workers = program.workers()
    for offset, days in (('+1d', 1), ('-1d', -1), ('+0', 0)):
        clock(offset)
        eventually(lambda days=days: days_ahead(cloud) == days, 'the clock of the agent was set')
        seen = wake_ups(program.pid)
        eventually(lambda seen=seen: wake_ups(program.pid) >= seen + 3, 'the master looks after its workers')
        assert [status_of_read(cloud) for _ in range(20)] == [200] * 20
    assert program.workers() == workers
    assert len(openstack.roles_by_token) == 1
