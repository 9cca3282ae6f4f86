# SPDX-License-Identifier: Apache-2.0
"""Notifications to systemd: start, status, watchdog."""

import os

import pytest

from metadata_wsgi.net.sd_notify import Notifier
from tests.fake_systemd import FakeSystemd
from tests.fakes import FakeClock


@pytest.fixture(params=['{}/notify', '@{}'], ids=['path', 'abstract'])
def address(request, tmp_path):
    return request.param.format(tmp_path)


@pytest.fixture
def systemd(address):
    receiver = FakeSystemd(address)
    yield receiver
    receiver.close()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def notifier(systemd, address, clock):
    made = Notifier(address, watchdog_s=60, clock=clock)
    yield made
    made.close()


def test_sd_notify_ready_is_sent_once_and_later_ones_are_the_status(notifier, systemd):
    notifier.ready('1 of 2 workers serve')
    notifier.ready('1 of 2 workers serve')
    notifier.ready('2 of 2 workers serve')
    assert systemd.received() == [
        ('READY=1', 'STATUS=1 of 2 workers serve'),
        ('STATUS=2 of 2 workers serve',),
    ]


def test_sd_notify_status_is_one_line_and_bounded(notifier, systemd):
    """A line break would begin another notification."""
    notifier.status('not reloaded:\nWATCHDOG=1\n' + 'x' * 5000)
    ((line,),) = systemd.received()
    assert line.startswith('STATUS=not reloaded: WATCHDOG=1 xxx')
    assert len(line) < 300


def test_sd_notify_feeds_the_watchdog_several_times_in_its_interval_not_at_each_progress(notifier, systemd, clock):
    for _ in range(600):
        notifier.progress()
        clock.sleep(0.1)
    assert systemd.received() == [('WATCHDOG=1',)] * 4


def test_sd_notify_without_progress_the_watchdog_is_not_fed(notifier, systemd, clock):
    notifier.ready('serving')
    clock.sleep(600)
    notifier.status('0 of 2 workers serve')
    assert ('WATCHDOG=1',) not in systemd.received()


def test_sd_notify_reads_its_variables_and_removes_them(systemd, address):
    """A child process must not notify in the name of the service."""
    environ = {'NOTIFY_SOCKET': address, 'WATCHDOG_USEC': '60000000', 'WATCHDOG_PID': str(os.getpid()), 'HOME': '/'}
    notifier = Notifier.from_environ(environ)
    assert environ == {'HOME': '/'}
    assert notifier
    notifier.progress()
    notifier.close()
    assert systemd.received() == [('WATCHDOG=1',)]


@pytest.mark.parametrize(
    'watchdog',
    [{}, {'WATCHDOG_USEC': 'x'}, {'WATCHDOG_USEC': '0'}, {'WATCHDOG_USEC': '60000000', 'WATCHDOG_PID': '1'}],
    ids=['none', 'no number', 'zero', 'of another process'],
)
def test_sd_notify_feeds_no_watchdog_that_is_not_its_own(systemd, address, watchdog):
    notifier = Notifier.from_environ({'NOTIFY_SOCKET': address, **watchdog})
    notifier.progress()
    notifier.close()
    assert systemd.received() == []


def test_sd_notify_outside_of_a_unit_does_nothing():
    notifier = Notifier.from_environ({})
    assert not notifier
    notifier.ready('serving')
    notifier.progress()
    notifier.stopping()
    assert not notifier.send('READY=1')


def test_sd_notify_without_a_socket_at_the_address_is_logged_and_the_service_starts(tmp_path, caplog):
    assert not Notifier.from_environ({'NOTIFY_SOCKET': str(tmp_path / 'none')})
    assert 'systemd cannot be notified' in caplog.text


def test_sd_notify_that_fails_is_logged_once(notifier, systemd, caplog):
    systemd.close()
    notifier.status('a')
    notifier.status('b')
    assert caplog.text.count('could not be sent to systemd') == 1
