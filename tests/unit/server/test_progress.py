# SPDX-License-Identifier: Apache-2.0
"""When a worker sends its heartbeat."""

import pytest

from metadata_wsgi import limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.pipeline import environ_keys
from metadata_wsgi.server.progress import Progress
from tests.fakes import FakeClock


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def progress(clock):
    return Progress(clock)


def environ_at(clock, timeout_s=None):
    """Of a request that was received now; the deadline filter has set ``timeout_s``, if given."""
    environ = {environ_keys.RECEIVED_AT_S: clock.now_s}
    if timeout_s is not None:
        environ[environ_keys.DEADLINE] = Deadline.after(timeout_s, clock)
    return environ


def test_heartbeat_of_an_idle_worker_is_sent(progress, clock):
    clock.sleep(86_400)
    assert progress.is_made()


@pytest.mark.parametrize('timeout_s', [None, 9.0, 600.0])
def test_heartbeat_stops_when_a_request_is_stuck_behind_its_deadline(progress, clock, timeout_s):
    progress.start(environ_at(clock, timeout_s))
    clock.sleep((timeout_s or limits.REQUEST_TIMEOUT_S) + limits.STUCK_REQUEST_S - 1)
    assert progress.is_made()
    clock.sleep(2)
    assert not progress.is_made()


def test_heartbeat_is_sent_while_other_requests_end(progress, clock):
    """One leaked request must not end a worker that serves all others."""
    progress.start(environ_at(clock))
    for _ in range(100):
        clock.sleep(10)
        other = environ_at(clock)
        progress.start(other)
        progress.end(other)
        assert progress.is_made()
    clock.sleep(limits.STUCK_REQUEST_S + 1)
    assert not progress.is_made()


def test_heartbeat_is_sent_again_when_the_stuck_request_ends(progress, clock):
    stuck = environ_at(clock)
    progress.start(stuck)
    clock.sleep(600)
    assert not progress.is_made()
    progress.end(stuck)
    assert (progress.is_made(), len(progress)) == (True, 0)
