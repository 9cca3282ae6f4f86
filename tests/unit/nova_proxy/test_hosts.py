# SPDX-License-Identifier: Apache-2.0
import contextlib

import pytest

from metadata_wsgi import limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import BadRequest, MaybeSent, NoResponse, NotSent
from metadata_wsgi.http import message
from metadata_wsgi.nova_proxy.hosts import Hosts
from tests.fakes import FakeClock, FakeHttpClient

GET, POST = message.Request('GET', '/', []), message.Request('POST', '/', [])
MALFORMED = message.Request('GET', '/', [('x-instance-id', 'a\r\nx-tenant-id: b')])
"""A tenant may set the device_id of a port, which is the instance id."""
REFUSED = NotSent('refused')


def attempts(hosts, clock, count, within_s=9.0):
    for _ in range(count):
        with contextlib.suppress(NoResponse):
            hosts.send_request(GET, Deadline.after(within_s, clock))


@pytest.mark.parametrize('connected', [200, 500, MaybeSent('broken')])
def test_only_failures_to_connect_in_a_row_open_the_circuit(connected):
    clock, few = FakeClock(), limits.CIRCUIT_OPEN_FAILURES - 1
    nova = FakeHttpClient(*[REFUSED] * few, connected, REFUSED)
    hosts = Hosts([nova], clock)
    attempts(hosts, clock, 2 * few + 1)
    assert hosts.allows_attempt(GET, Deadline.after(9.0, clock))
    attempts(hosts, clock, 5)
    assert not hosts.allows_attempt(GET, Deadline.after(9.0, clock))
    assert len(nova.requests) == 2 * few + 2


def test_an_open_circuit_raises_the_error_of_the_last_attempt_without_one():
    clock, nova = FakeClock(), FakeHttpClient(REFUSED)
    hosts = Hosts([nova], clock)
    attempts(hosts, clock, limits.CIRCUIT_OPEN_FAILURES)
    with pytest.raises(NotSent, match=r'^refused$'):
        hosts.send_request(GET, Deadline.after(9.0, clock))
    assert len(nova.requests) == limits.CIRCUIT_OPEN_FAILURES


def test_the_circuit_of_one_host_does_not_stop_another():
    clock, dead, alive = FakeClock(), FakeHttpClient(REFUSED), FakeHttpClient(200)
    hosts = Hosts([dead, alive], clock)
    for _ in range(20):
        assert hosts.send_request(GET, Deadline.after(9.0, clock)).status == 200
        clock.sleep(limits.NOVA_HOST_BACKOFF_S)
    assert len(dead.requests) == 20


@pytest.mark.parametrize('error', [NotSent('no time was left to connect'), MaybeSent('timed out')])
def test_a_host_is_not_set_aside_after_an_attempt_with_too_little_time(error, caplog):
    """A client may shorten the deadline of its own request."""
    clock, first, second = FakeClock(), FakeHttpClient(error, 200), FakeHttpClient(error, 200)
    hosts = Hosts([first, second], clock)
    attempts(hosts, clock, 1, within_s=limits.CIRCUIT_MIN_TIME_S)
    attempts(hosts, clock, 1)
    assert (len(first.requests), len(second.requests)) == (2, 1)
    assert not caplog.records


def test_an_open_circuit_is_not_kept_open_by_requests_with_too_little_time():
    clock, nova = FakeClock(), FakeHttpClient(*[REFUSED] * limits.CIRCUIT_OPEN_FAILURES, 200)
    hosts = Hosts([nova], clock)
    attempts(hosts, clock, limits.CIRCUIT_OPEN_FAILURES)
    clock.sleep(limits.CIRCUIT_PROBE_INTERVAL_S)
    attempts(hosts, clock, 3, within_s=0.5)
    assert len(nova.requests) == limits.CIRCUIT_OPEN_FAILURES
    assert hosts.send_request(GET, Deadline.after(9.0, clock)).status == 200


def test_an_open_circuit_is_not_kept_open_by_requests_that_cannot_be_sent():
    clock, nova = FakeClock(), FakeHttpClient(*[REFUSED] * limits.CIRCUIT_OPEN_FAILURES, 200)
    hosts = Hosts([nova], clock)
    attempts(hosts, clock, limits.CIRCUIT_OPEN_FAILURES)
    clock.sleep(limits.CIRCUIT_PROBE_INTERVAL_S)
    for _ in range(2):
        with pytest.raises(BadRequest):
            hosts.send_request(MALFORMED, Deadline.after(9.0, clock))
    assert hosts.send_request(GET, Deadline.after(9.0, clock)).status == 200


def test_a_request_that_cannot_be_sent_does_not_delay_the_attempt_at_a_backed_off_host():
    clock = FakeClock()
    first, second = FakeHttpClient(MaybeSent('timed out'), 200), FakeHttpClient(200)
    hosts = Hosts([first, second], clock)
    attempts(hosts, clock, 1)
    clock.sleep(limits.NOVA_HOST_BACKOFF_S)
    with pytest.raises(BadRequest):
        hosts.send_request(MALFORMED, Deadline.after(9.0, clock))
    attempts(hosts, clock, 1)
    assert (len(first.requests), len(second.requests)) == (2, 1)


def test_a_deadline_that_is_nearly_over_opens_no_circuit():
    clock = FakeClock()
    hosts = Hosts([FakeHttpClient(REFUSED)], clock)
    for _ in range(20):
        attempts(hosts, clock, 1, within_s=0.5)
        clock.sleep(1)
    assert hosts.allows_attempt(GET, Deadline.after(9.0, clock))
    attempts(hosts, clock, 3)
    assert hosts.allows_attempt(GET, Deadline.after(9.0, clock))


class HungHost:
    """Accepts connections and never responds. ``meanwhile`` is called while a request waits."""

    name = 'hung'

    def __init__(self):
        self.requests = 0
        self.meanwhile = lambda: None

    def send_request(self, request, deadline):
        self.requests += 1
        self.meanwhile()
        raise MaybeSent('timed out')


def test_host_that_hangs_gets_one_request_at_a_time_after_its_backoff():
    """Each of its requests waits for seconds."""
    clock, hung = FakeClock(), HungHost()
    hosts = Hosts([hung, FakeHttpClient(200)], clock)
    attempts(hosts, clock, 1)
    for number in (2, 3):
        clock.sleep(limits.NOVA_HOST_BACKOFF_S)
        hung.meanwhile = lambda: attempts(hosts, clock, 10)
        attempts(hosts, clock, 1)
        assert hung.requests == number


@pytest.mark.parametrize(
    ('request_', 'within_s'), [(POST, 9.0), (GET, limits.CIRCUIT_MIN_TIME_S)], ids=['POST', 'little time']
)
def test_host_that_hung_is_tried_by_a_request_that_can_be_retried(request_, within_s):
    """A password that is sent to a host that hangs may be lost."""
    clock, hung = FakeClock(), HungHost()
    hosts = Hosts([hung, FakeHttpClient(200)], clock)
    attempts(hosts, clock, 1)
    clock.sleep(limits.NOVA_HOST_BACKOFF_S)
    assert hosts.send_request(request_, Deadline.after(within_s, clock)).status == 200
    assert hung.requests == 1
    attempts(hosts, clock, 1)
    assert hung.requests == 2


def test_host_that_fails_for_long_is_logged_once_in_each_interval(caplog):
    clock = FakeClock()
    hosts = Hosts([HungHost(), FakeHttpClient(200)], clock)
    for _ in range(3):
        attempts(hosts, clock, 5)
        clock.sleep(limits.LOG_INTERVAL_S)
    assert caplog.messages == ['Nova at hung fails: timed out'] * 3


def test_all_requests_go_to_the_first_host_again_after_it_has_responded():
    clock, first = FakeClock(), FakeHttpClient(MaybeSent('timed out'), 200)
    hosts = Hosts([first, FakeHttpClient(200)], clock)
    attempts(hosts, clock, 3)
    clock.sleep(limits.NOVA_HOST_BACKOFF_S)
    attempts(hosts, clock, 3)
    assert len(first.requests) == 4


def test_host_that_hangs_stays_last_if_one_request_gets_500_from_the_other_host():
    """Nova responds 500 to some requests of one instance. Passwords of others must not go to the host that hangs."""
    clock, hung = FakeClock(), HungHost()
    hosts = Hosts([hung, FakeHttpClient(200, 500, 200)], clock)
    attempts(hosts, clock, 2)
    requests = hung.requests
    assert hosts.send_request(POST, Deadline.after(9.0, clock)).status == 200
    assert hung.requests == requests


def test_no_host_is_set_aside_if_all_respond_500_to_one_request(caplog):
    clock = FakeClock()
    first, second = FakeHttpClient(500, 200), FakeHttpClient(500)
    hosts = Hosts([first, second], clock)
    assert hosts.send_request(GET, Deadline.after(9.0, clock)).status == 500
    assert hosts.send_request(GET, Deadline.after(9.0, clock)).status == 200
    assert (len(first.requests), len(second.requests)) == (2, 1)
    assert not caplog.messages


def test_host_that_responds_503_stays_last_while_it_does():
    clock, first, second = FakeClock(), FakeHttpClient(503), FakeHttpClient(200, 500, 200)
    hosts = Hosts([first, second], clock)
    attempts(hosts, clock, 2)
    assert len(first.requests) == 2
    attempts(hosts, clock, 3)
    assert len(first.requests) == 2
