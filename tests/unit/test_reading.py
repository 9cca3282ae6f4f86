# SPDX-License-Identifier: Apache-2.0
"""The worker's requests: bodies, heads, and where one ends; ``tests/wire`` and ``tests/e2e`` have the whole."""

import io

import gevent
import pytest
from gunicorn.config import Config
from gunicorn.http.errors import LimitRequestHeaders

from metadata_wsgi import reading, server
from metadata_wsgi.shares import Shares


class Dripping:
    """A body that is still coming."""

    def read(self, size=None):
        gevent.sleep(60)


class Connection:
    """A socket that says ``data``, so much at a time."""

    def __init__(self, data, at_once=8192):
        self._data = io.BytesIO(data)
        self._at_once = at_once

    def recv(self, size):
        return self._data.read(min(size, self._at_once))

    def shutdown(self, how):
        pass


@pytest.fixture
def turn():
    shares = Shares(each=1, total=1)
    return reading.Turn(shares, Connection(b''), shares.take(None, '10.1.1.2'))


def requests(data, **kwargs):
    cfg = Config()
    for name, value in server.STRICT.items():
        cfg.set(name, value)
    return reading.parser(cfg, Connection(data, **kwargs), '')


def test_a_body_that_drips_too_long_ends(turn):
    with pytest.raises(TimeoutError):
        reading.Body(Dripping(), turn, within_s=0.01).read(5)


def test_a_body_is_read_in_each_way_that_pep_3333_knows(turn):
    def body():
        return reading.Body(io.BytesIO(b'a\nb\nc'), turn)

    assert body().read() == b'a\nb\nc'
    assert body().readline() == b'a\n'
    assert body().readlines() == [b'a\n', b'b\n', b'c']
    assert list(body()) == [b'a\n', b'b\n', b'c']


POST = b'POST / HTTP/1.1\r\nHost: x\r\n'


@pytest.mark.parametrize(
    ('data', 'read', 'closes'),
    [
        (POST + b'Content-Length: 5\r\n\r\nhello', 5, False),
        (POST + b'Content-Length: 5000\r\n\r\n' + b'a' * 5000, 3, True),
        (POST + b'Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n', 6, False),
        (POST + b'Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n', 0, True),
        (POST + b'\r\n', 0, False),
        (POST + b'Connection: x , Close\r\n\r\n', 0, True),
        (POST + b'Connection: x\r\nConnection: close\r\n\r\n', 0, True),
        (POST + b'Connection: closed\r\n\r\n', 0, False),
    ],
)
def test_a_connection_goes_on_only_where_the_next_request_begins_at_a_known_place(data, read, closes):
    request = next(requests(data))
    request.body.read(read)
    assert request.should_close() is closes


def test_a_head_is_bounded_as_a_whole():
    """Not by the number of fields times the size of each."""
    with pytest.raises(LimitRequestHeaders):
        next(requests(POST + b'X-A: ' + b'a' * 16000 + b'\r\n' + (b'X-B: ' + b'b' * 16000 + b'\r\n') * 5))
