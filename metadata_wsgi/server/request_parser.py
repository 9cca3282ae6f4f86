# SPDX-License-Identifier: Apache-2.0
"""How requests are read from a connection: one after the other, held to a size and to a time.

Nearly every request of a guest is a GET whose head comes in one piece, with nothing behind it. Such a head goes from
picohttpparser (gunicorn_h1c) straight into the environ (``plain``). Whatever is not as plain as that (a body, an
expectation, a field twice, a name with an underscore, a target that is no path, a second request behind it, half a
head, a malformed one) is gunicorn's to read, to judge and to refuse: ``plain`` only ever says "not mine". What it
does take, gunicorn would read in the same way; ``tests/unit/test_reading.py`` compares the two.
"""

from __future__ import annotations

import functools
import io
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

import gevent
from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.errors import NoMoreData
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.http.unreader import SocketUnreader
from gunicorn_h1c import IncompleteError, ParseError, parse_request

from metadata_wsgi import limits

OPTION = re.compile(r'[ \t]*,[ \t]*')

_READS = {b'GET': 'GET', b'HEAD': 'HEAD'}
_PLAIN_TARGET = re.compile(rb'/(?!/)[!"$-~]*\Z')  # printable, no fragment, and nothing that looks like a host
_PLAIN_NAME = re.compile(rb'[0-9A-Za-z-]+\Z')
_NOT_PLAIN = frozenset({b'content-length', b'content-type', b'transfer-encoding', b'expect', b'upgrade', b'te'})
_PERSISTENCE = {'keep-alive': False, 'close': True}


class ParsedRequest:
    """A request whose head is complete. ``fields`` is its part of the environ.

    ``must_close``: nothing may follow on this connection. ``expects_continue``: the guest waits for a word of ours
    before it sends the body. ``body`` is gunicorn's, None where there is none.
    """

    __slots__ = ('body', 'expects_continue', 'fields', 'must_close')

    def __init__(
        self, fields: dict[str, Any], *, must_close: bool, expects_continue: bool = False, body: Any = None
    ) -> None:
        self.fields = fields
        self.must_close = must_close
        self.expects_continue = expects_continue
        self.body = body

    @property
    def expects_body(self) -> bool:
        """Whether the head says that a body follows."""
        if self.body is None:
            return False
        reader = self.body.reader
        return isinstance(reader, ChunkedReader) or reader.length > 0

    @property
    def unread(self) -> bool:
        """Whether it is not known where the next request begins, because this one's body was not read to its end."""
        return self.body is not None and _unread(self.body)


class RequestStream:
    """The requests that come on one connection."""

    def __init__(self, settings: Any, connection: Any, address: Any) -> None:
        self._settings = settings
        self._connection = connection
        self._address = address
        self._parser: Parser | None = None
        self._last: ParsedRequest | None = None

    def next(self) -> ParsedRequest | None:
        """The next one's head, None where none comes or may; gunicorn's ParseException for what is no request."""
        if self._last is not None and (self._last.must_close or self._last.unread):
            return None
        self._last = self._read()
        return self._last

    def _read(self) -> ParsedRequest | None:
        data = self._parser.unreader.take_buffered() if self._parser else b''
        data = data or self._connection.recv(limits.RECV_BYTES)
        if not data:
            return None
        head = parse_simple(data)
        if head is not None:
            return head
        if self._parser is None:
            self._parser = Parser(self._settings, self._connection, self._address)
        self._parser.unreader.unread(data)
        try:
            return _from_gunicorn(next(self._parser))
        except (StopIteration, NoMoreData):
            return None


def parse_simple(data: bytes) -> ParsedRequest | None:
    """The request that ``data`` is, if it is a plain one and all of it; else None, which judges nothing."""
    try:
        parsed = parse_request(data)
    except (IncompleteError, ParseError):
        return None
    target = parsed['path']
    method = _READS.get(parsed['method'])
    if method is None or parsed['minor_version'] != 1 or parsed['consumed'] != len(data):
        return None
    if not _PLAIN_TARGET.match(target) or data[0] == 13:  # an empty line before the request
        return None
    uri = target.decode('ascii')
    path, _, query = uri.partition('?')
    fields: dict[str, Any] = {
        'REQUEST_METHOD': method,
        'PATH_INFO': unquote_to_bytes(path).decode('latin-1') if '%' in path else path,
        'QUERY_STRING': query,
        'RAW_URI': uri,
        'SERVER_PROTOCOL': 'HTTP/1.1',
        'wsgi.input': io.BytesIO(),
    }
    for name, value in parsed['headers']:
        key = _plain_key(name)
        if key is None or key in fields:
            return None
        fields[key] = value.decode('latin-1')
    must_close = False
    if 'HTTP_CONNECTION' in fields:
        found = _PERSISTENCE.get(fields['HTTP_CONNECTION'].lower())
        if found is None:
            return None
        must_close = found
    return ParsedRequest(fields, must_close=must_close)


@functools.lru_cache(maxsize=256)
def _plain_key(name: bytes) -> str | None:
    if not _PLAIN_NAME.match(name) or name.lower() in _NOT_PLAIN:
        return None
    return 'HTTP_' + name.decode('ascii').upper().replace('-', '_')


def _from_gunicorn(request: Any) -> ParsedRequest:
    """What gunicorn has read, in the form of what is plain."""
    fields: dict[str, Any] = {
        'REQUEST_METHOD': request.method,
        'PATH_INFO': unquote_to_bytes(request.path.encode('latin-1')).decode('latin-1'),
        'QUERY_STRING': request.query or '',
        'RAW_URI': request.uri,
        'SERVER_PROTOCOL': f'HTTP/{request.version[0]}.{request.version[1]}',
        'wsgi.input': request.body,
    }
    for name, value in request.headers:
        key = name.replace('-', '_')
        if key in ('CONTENT_TYPE', 'CONTENT_LENGTH'):
            fields[key] = value
            continue
        key = 'HTTP_' + key
        fields[key] = f'{fields[key]},{value}' if key in fields else value
    return ParsedRequest(
        fields,
        must_close=request.must_close_after(),
        expects_continue=request._expected_100_continue,
        body=request.body,
    )


class StrictRequest(Request):
    """A request as gunicorn reads it, and where it ends."""

    # gunicorn's own bound is the number of fields times the size of each: megabytes, looked through again with
    # every byte that comes.
    max_buffer_headers = property(lambda self: limits.MAX_REQUEST_HEADER_BYTES, lambda self, computed: None)

    def set_body_reader(self) -> None:
        """Called by gunicorn when the head is complete."""
        super().set_body_reader()
        # gunicorn sees it only where it stands alone.
        if any(name == 'CONNECTION' and 'close' in OPTION.split(value.lower()) for name, value in self.headers):
            self.force_close()

    def must_close_after(self) -> bool:
        """Whether the head says that nothing follows."""
        return bool(super().should_close())

    def should_close(self) -> bool:
        """Also where the body was not read to its end: what follows is no request."""
        return self.must_close_after() or _unread(self.body)


class YieldingUnreader(SocketUnreader):
    """What comes on a connection. Before each piece others have their turn: a body in chunks of one byte is seconds of
    work, and where the guest is quick the next piece is always there already."""

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Called by gunicorn for the next piece."""
        gevent.sleep(0)
        return bytes(super().chunk(size_hint))


class Parser(RequestParser):
    """gunicorn's reader of the requests of one connection."""

    mesg_class = StrictRequest

    def __init__(self, settings: Any, connection: Any, address: Any) -> None:
        super().__init__(settings, connection, address)
        self.unreader = YieldingUnreader(connection)


class Body:
    """``wsgi.input``: a body that must be there in ``within_s``, however steadily it drips.

    ``over`` is called whenever a piece of it has come, or will not.
    """

    def __init__(self, body: Any, over: Callable[[], None], within_s: float = limits.BODY_TIMEOUT_S) -> None:
        self._body = body
        self._over = over
        self._until = time.monotonic() + within_s

    def _within(self, method: Any, *args: Any) -> Any:
        late = TimeoutError('the body came too slowly')
        try:
            with gevent.Timeout(max(0.001, self._until - time.monotonic()), late):
                return method(*args)
        finally:
            self._over()

    def read(self, size: int | None = None) -> bytes:
        """PEP 3333."""
        return self._within(self._body.read, size)

    def readline(self, size: int | None = None) -> bytes:
        """PEP 3333."""
        return self._within(self._body.readline, size)

    def readlines(self, size: int | None = None) -> list[bytes]:
        """PEP 3333."""
        return self._within(self._body.readlines, size)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b'')


def _unread(body: Any) -> bool:
    if body.failed:
        return True
    reader = body.reader
    return reader.length > 0 if isinstance(reader, LengthReader) else reader.parser is not None
