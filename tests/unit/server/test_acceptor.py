# SPDX-License-Identifier: Apache-2.0
"""Real listening sockets, and who serves what arrives there."""

import errno
import logging
import socket
from typing import ClassVar

import gevent
import pytest
from gevent import socket as gevent_socket

from metadata_wsgi import limits
from metadata_wsgi.server import acceptor
from metadata_wsgi.server.acceptor import Acceptor, GreenletPool


class House:
    """A door on loopback; ``serve`` says in what order connections were begun and ended."""

    def __init__(self, limit=100, crew=None):
        self.crew = GreenletPool(limit) if crew is None else crew
        self.listening = socket.create_server(('127.0.0.1', 0))
        self.address = self.listening.getsockname()
        self.said = []
        self.hold = gevent.event.Event()
        self.door = Acceptor(self.listening, self.crew, self.serve)
        self.door.open()

    def serve(self, sock, address):
        self.said.append('begun')
        self.who = gevent.getcurrent()
        self.hold.wait()
        sock.send(b'!')
        sock.close()
        self.said.append('ended')

    def knock(self):
        # The kernel connects at once. gevent's own way would start a thread for the address, with a loop of its own.
        connected = socket.create_connection(self.address)
        return gevent_socket.socket(connected.family, connected.type, 0, connected.detach())


@pytest.fixture
def house():
    made = House()
    yield made
    made.door.close()


def heard(connection):
    with connection:
        return connection.recv(10)


def test_all_are_served_at_a_time_and_the_crew_counts_them(house):
    guests = [house.knock() for _ in range(40)]
    gevent.sleep(0.01)
    assert (len(house.crew), house.said) == (40, ['begun'] * 40)
    house.hold.set()
    assert [heard(guest) for guest in guests] == [b'!'] * 40
    gevent.sleep(0)
    assert len(house.crew) == 0


def test_who_has_served_stays_for_the_next(house):
    house.hold.set()
    assert heard(house.knock()) == b'!'
    first = house.who
    assert heard(house.knock()) == b'!'
    assert house.who is first


def test_no_more_stay_than_that(house, monkeypatch):
    monkeypatch.setattr(limits, 'MAX_IDLE_GREENLETS', 2)
    guests = [house.knock() for _ in range(5)]
    gevent.sleep(0.01)
    house.hold.set()
    assert [heard(guest) for guest in guests] == [b'!'] * 5
    gevent.sleep(0)
    assert len(house.crew._idle) == 2


def test_where_all_are_busy_the_next_one_waits_at_the_door():
    house = House(limit=2)
    guests = [house.knock() for _ in range(5)]
    gevent.sleep(0.01)
    assert house.said == ['begun'] * 2
    house.hold.set()
    assert [heard(guest) for guest in guests] == [b'!'] * 5
    house.door.close()


@pytest.mark.parametrize('first', [0, 1])
def test_where_all_are_busy_the_doors_take_turns(first):
    """One router's guests do not wait until nobody is left at another's."""
    crew, served = GreenletPool(2), []
    crowded, quiet = houses = [House(crew=crew), House(crew=crew)][:: 1 - 2 * first]

    def serve(sock, address):
        served.append(sock.getsockname()[1])
        gevent.sleep(0.001)
        sock.close()

    for house in houses:
        house.door._serve = serve
    guests = [crowded.knock() for _ in range(40)]
    gevent.sleep(0)
    guests.append(quiet.knock())
    assert [heard(guest) for guest in guests] == [b''] * 41
    assert served.index(quiet.address[1]) < 20
    for house in houses:
        house.door.close()


def test_a_connection_that_cannot_be_served_takes_nobody_along(caplog):
    house = House()

    def fail(sock, address):
        sock.close()
        raise RuntimeError('unforeseen')

    house.door._serve = fail
    for _ in range(3):
        assert heard(house.knock()) == b''
    assert (len(house.crew), len(house.crew._idle)) == (0, 1)
    assert caplog.text.count('RuntimeError: unforeseen') == 3
    house.door.close()


def test_who_is_ended_from_outside_leaves_his_place_to_the_next():
    house = House(limit=1)

    def end(sock, address):
        gevent.sleep(0)
        sock.close()
        raise gevent.GreenletExit

    house.door._serve = end
    guests = [house.knock() for _ in range(3)]
    assert [heard(guest) for guest in guests] == [b''] * 3
    assert len(house.crew) == 0
    house.door.close()


def test_what_one_connection_leaves_behind_costs_no_other(house):
    """Somebody's filter starts a timeout and forgets it: it strikes who waits for the next connection."""
    forget = gevent.Timeout(0.001)
    serve = house.door._serve
    house.hold.set()
    house.door._serve = lambda sock, address: (forget.start(), serve(sock, address))
    assert heard(house.knock()) == b'!'
    gevent.sleep(0.01)
    assert (forget.pending, len(house.crew._idle)) == (False, 0)
    house.door._serve = serve
    assert heard(house.knock()) == b'!'


def test_a_closed_door_lets_nobody_in_and_those_inside_stay(house):
    guest = house.knock()
    gevent.sleep(0.01)
    house.door.close()
    with pytest.raises(ConnectionRefusedError):
        house.knock()
    house.hold.set()
    assert heard(guest) == b'!'


class Failing:
    """A listening socket that fails with these errors first."""

    def __init__(self, listening, *errors):
        self._listening = listening
        self._errors = [OSError(number, '') for number in errors]
        self.family, self.type, self.proto = listening.family, listening.type, listening.proto

    def _accept(self):
        if self._errors:
            raise self._errors.pop(0)
        return self._listening._accept()


@pytest.mark.parametrize(('number', 'logged'), [(errno.EMFILE, 1), (errno.ENOMEM, 1), (errno.ECONNABORTED, 0)])
def test_a_fault_of_the_moment_closes_no_door(house, number, logged, caplog, monkeypatch):
    monkeypatch.setattr(limits, 'ACCEPT_ERROR_BACKOFF_S', 0.01)
    house.door._listening = Failing(house.listening, number, number)
    house.hold.set()
    assert heard(house.knock()) == b'!'
    assert len(caplog.records) == logged


def test_a_fault_is_logged_where_a_log_may_wait(house, monkeypatch):
    """For a lock, or for a socket of syslog's. The loop cannot."""

    class Waiting(logging.Handler):
        said: ClassVar[list[str]] = []

        def emit(self, record):
            gevent.sleep(0)
            self.said.append(record.getMessage())

    waiting = Waiting()
    acceptor.LOG.addHandler(waiting)
    monkeypatch.setattr(limits, 'ACCEPT_ERROR_BACKOFF_S', 0.01)
    house.door._listening = Failing(house.listening, errno.EMFILE)
    house.hold.set()
    assert heard(house.knock()) == b'!'
    acceptor.LOG.removeHandler(waiting)
    assert len(waiting.said) == 1
