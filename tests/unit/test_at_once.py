# SPDX-License-Identifier: Apache-2.0
import gevent

from metadata_wsgi.at_once import AtOnce


def test_so_many_of_a_guest_at_a_time_and_the_others_in_turn():
    at_once, order = AtOnce(2), []

    def ask(number):
        assert at_once.enter('red', 5)
        order.append(number)
        gevent.sleep(0.001)
        order.append(-number)
        at_once.leave('red')

    gevent.joinall([gevent.spawn(ask, number) for number in range(1, 7)], raise_error=True)
    served, most = 0, 0
    for number in order:
        served += 1 if number > 0 else -1
        most = max(most, served)
    assert most == 2
    assert [number for number in order if number > 0] == [1, 2, 3, 4, 5, 6]
    assert len(at_once) == 0


def test_a_neighbour_does_not_wait_for_them():
    at_once = AtOnce(1)
    assert at_once.enter('red', 0)
    assert at_once.enter('blue', 0)
    assert not at_once.enter('red', 0)
    assert len(at_once) == 2


def test_who_gave_up_waiting_took_no_place():
    at_once = AtOnce(1)
    assert at_once.enter('red', 0)
    assert not at_once.enter('red', 0.001)
    at_once.leave('red')
    assert len(at_once) == 0
    assert at_once.enter('red', 0)
