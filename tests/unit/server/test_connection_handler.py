# SPDX-License-Identifier: Apache-2.0
"""One connection among others, over real sockets; ``tests/e2e`` has whole workers, ``tests/wire`` what is refused."""

import _socket
import socket

import gevent
import pytest
from gunicorn.config import Config

from metadata_wsgi import limits
from metadata_wsgi.server import connection_handler
from metadata_wsgi.server.acceptor import GreenletPool
from metadata_wsgi.server.connection_limits import ConnectionLimits

GET = b'GET /%s HTTP/1.1\r\nHost: x\r\n\r\n'
OK = [('Content-Length', '0')]


class Place:
    """Serves over socket pairs; ``asked`` are the paths in the order in which they reached the application."""

    def __init__(self, **shares):
        self.asked = []
        self.is_stopping = False
        self.shares = ConnectionLimits(**{'each': 10, 'total': 100, **shares})
        self.serving = connection_handler.ConnectionHandler(
            self.application, Config(), self.shares, any_destination=True, is_stopping=lambda: self.is_stopping
        )
        self.crew = GreenletPool(100)
        self.guests = []

    def close(self):
        for guest in self.guests:
            guest.close()

    def application(self, environ, start_response):
        self.asked.append(environ['PATH_INFO'])
        if environ['PATH_INFO'] == '/broken':
            start_response('200 OK', [('Content-Length', '9')])
            return iter_and_fail()
        if environ['PATH_INFO'] == '/silent':
            return [b'x']
        if environ['REQUEST_METHOD'] == 'POST':
            self.asked.append(len(environ['wsgi.input'].read()))
        start_response('200 OK', OK)
        return []

    def connect(self, data=b'', address=('10.1.1.2', 1)):
        """A guest that has sent ``data``; it is being served until it waits for something."""
        here, there = self.pair()
        there.sendall(data)
        self.serve(here, address)
        return there

    def pair(self):
        here, there = socket.socketpair()
        there.settimeout(5)
        self.guests.append(there)
        return here, there

    def serve(self, here, address=('10.1.1.2', 1)):
        sock = _socket.socket(here.family, here.type, here.proto, here.detach())

        def serve(sock, address):
            self.serving.serve(sock, address, 'router-a', {})

        gevent.get_hub().loop.run_callback(self.crew.take, serve, sock, address)
        gevent.sleep(0)


def iter_and_fail():
    yield b'half'
    raise RuntimeError('unforeseen')


def until(condition):
    with gevent.Timeout(10):
        while not condition():
            gevent.sleep(0.001)


@pytest.fixture
def make_place():
    made = []

    def make(**kwargs):
        made.append(Place(**kwargs))
        return made[-1]

    yield make
    for place in made:
        place.close()


@pytest.fixture
def place(make_place):
    return make_place()


def test_who_asks_without_a_pause_lets_others_have_their_turn(place):
    greedy = place.connect(b''.join(GET % b'greedy' for _ in range(100)))
    modest = place.connect(GET % b'modest')
    until(lambda: place.asked.count('/greedy') == 100)
    assert place.asked.index('/modest') < 50
    assert greedy.recv(1 << 20).count(b'200 OK') == 100
    assert modest.recv(1000).startswith(b'HTTP/1.1 200 OK')


def test_who_sends_a_body_in_crumbs_lets_others_have_their_turn(place):
    """Each of its chunks is work, and there is always another: the connection never waits."""
    here, there = place.pair()
    crumbs = b'1\r\nx\r\n' * 10_000 + b'0\r\n\r\n'
    there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    there.sendall(b'POST /crumbs HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n' + crumbs)
    place.serve(here)
    place.connect(GET % b'modest')
    until(lambda: 10_000 in place.asked)
    assert place.asked == ['/crumbs', '/modest', 10_000]


def test_what_has_come_before_it_is_let_go_of_is_answered(place):
    """A POST would have its effect, and the guest would not hear of it."""
    kept = place.connect(GET % b'x')
    until(lambda: place.asked == ['/x'])
    assert b'keep-alive' in kept.recv(1000)
    kept.sendall(GET % b'last')
    place.is_stopping = True
    place.serving.let_go()
    until(lambda: len(place.crew) == 0)
    assert place.asked == ['/x', '/last']
    assert b'Connection: close' in kept.recv(1000)


def test_what_is_kept_is_let_go_of_and_what_is_under_way_is_not(place):
    kept, new = place.connect(GET % b'x'), place.connect(b'GET /half')
    until(lambda: place.asked == ['/x'])
    place.is_stopping = True
    place.serving.let_go()
    until(lambda: len(place.crew) == 1)
    new.sendall(b' HTTP/1.1\r\n\r\n')
    until(lambda: len(place.crew) == 0)
    assert b'keep-alive' in kept.recv(1000)
    assert kept.recv(1000) == b''
    assert b'Connection: close' in new.recv(1000)
    assert place.asked == ['/x', '/half']


def test_one_that_waits_for_its_guest_is_closed_in_favour_of_another(make_place):
    place = make_place(total=2)
    guests = [place.connect(b'GET /half', (f'10.1.1.{number}', 1)) for number in (2, 3)]
    until(lambda: len(place.crew) == 2)
    place.connect(GET % b'x', ('10.1.1.4', 1))
    until(lambda: place.asked == ['/x'])
    guests[1].sendall(b' HTTP/1.1\r\n\r\n')
    until(lambda: place.asked == ['/x', '/half'])
    assert guests[0].recv(1000) == b''


def test_what_was_held_is_given_back(place):
    for end in (b'', GET % b'x', b'\0\r\n\r\n', GET % b'broken'):
        with place.connect(end, ('10.1.1.2', 1)):
            gevent.sleep(0.001)
        until(lambda: len(place.crew) == 0)
    assert (len(place.shares), place.shares._waiting, place.serving._kept) == (0, {}, set())


def test_an_answer_that_breaks_is_no_short_one(place, caplog):
    guest = place.connect((GET % b'broken') + GET % b'x')
    until(lambda: len(place.crew) == 0)
    said = guest.recv(1000)
    assert (said.endswith(b'half'), guest.recv(1000)) == (True, b'')
    assert 'The answer was cut' in caplog.text
    assert place.asked == ['/broken']


def test_an_application_that_says_no_status_gives_no_answer(place, caplog):
    guest = place.connect(GET % b'silent')
    until(lambda: len(place.crew) == 0)
    assert guest.recv(1000) == b''
    assert 'start_response was not called' in caplog.text


@pytest.mark.parametrize(('name', 'seconds'), [('HEADER_TIMEOUT_S', 0.02), ('READ_WRITE_TIMEOUT_S', 0.02)])
def test_half_a_head_is_not_waited_for_forever(place, name, seconds, monkeypatch):
    monkeypatch.setattr(limits, name, seconds)
    guest = place.connect(b'GET /')
    until(lambda: len(place.crew) == 0)
    assert guest.recv(1000) == b''
