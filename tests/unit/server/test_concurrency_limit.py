# SPDX-License-Identifier: Apache-2.0
import gevent

from metadata_wsgi.server.concurrency_limit import PerClientConcurrency


def test_so_many_of_a_guest_at_a_time_and_the_others_in_turn():
    _slots, order = PerClientConcurrency(2), []

    def ask(number):
        assert _slots.enter('red', 5)
        order.append(number)
        gevent.sleep(0.001)
        order.append(-number)
        _slots.leave('red')

    gevent.joinall([gevent.spawn(ask, number) for number in range(1, 7)], raise_error=True)
    served, most = 0, 0
    for number in order:
        served += 1 if number > 0 else -1
        most = max(most, served)
    assert most == 2
    assert [number for number in order if number > 0] == [1, 2, 3, 4, 5, 6]
    assert len(_slots) == 0


def test_a_neighbour_does_not_wait_for_them():
    _slots = PerClientConcurrency(1)
    assert _slots.enter('red', 0)
    assert _slots.enter('blue', 0)
    assert not _slots.enter('red', 0)
    assert len(_slots) == 2


def test_who_gave_up_waiting_took_no_place():
    _slots = PerClientConcurrency(1)
    assert _slots.enter('red', 0)
    assert not _slots.enter('red', 0.001)
    _slots.leave('red')
    assert len(_slots) == 0
    assert _slots.enter('red', 0)
