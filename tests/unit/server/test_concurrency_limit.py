# SPDX-License-Identifier: Apache-2.0
import gevent
import pytest

from metadata_wsgi.server.concurrency_limit import PerClientConcurrency


def test_concurrent_requests_of_a_client_are_limited_and_the_others_wait_in_order():
    slots, order = PerClientConcurrency(2), []

    def request(number):
        assert slots.acquire('red', 5)
        order.append(number)
        gevent.sleep(0.001)
        order.append(-number)
        slots.release('red')

    gevent.joinall([gevent.spawn(request, number) for number in range(1, 7)], raise_error=True)
    running, most = 0, 0
    for number in order:
        running += 1 if number > 0 else -1
        most = max(most, running)
    assert most == 2
    assert [number for number in order if number > 0] == [1, 2, 3, 4, 5, 6]
    assert len(slots) == 0


def test_another_client_has_slots_of_its_own():
    slots = PerClientConcurrency(1)
    assert slots.acquire('red', 0)
    assert slots.acquire('blue', 0)
    assert not slots.acquire('red', 0)
    assert len(slots) == 2


def test_a_timeout_while_waiting_takes_no_slot():
    slots = PerClientConcurrency(1)
    assert slots.acquire('red', 0)
    assert not slots.acquire('red', 0.001)
    slots.release('red')
    assert len(slots) == 0
    assert slots.acquire('red', 0)


def test_a_released_slot_goes_to_the_request_that_has_waited_longest():
    """A client that sends its next request at once does not overtake it."""
    slots, order = PerClientConcurrency(1), []
    assert slots.acquire('red', 0)

    def wait():
        assert slots.acquire('red', 5)
        order.append('waited')
        slots.release('red')

    waiting = gevent.spawn(wait)
    gevent.sleep(0)
    for number in range(3):
        slots.release('red')
        assert slots.acquire('red', 5)
        order.append(number)
    slots.release('red')
    waiting.get()
    assert order == ['waited', 0, 1, 2]


@pytest.mark.parametrize('released_first', [False, True])
def test_a_killed_request_that_waits_leaves_no_slot_behind(released_first):
    slots = PerClientConcurrency(1)
    assert slots.acquire('red', 0)

    def request():
        if slots.acquire('red', 5):
            slots.release('red')

    waiting = gevent.spawn(request)
    gevent.sleep(0)
    if released_first:
        slots.release('red')
    waiting.kill()
    if not released_first:
        slots.release('red')
    assert len(slots) == 0
