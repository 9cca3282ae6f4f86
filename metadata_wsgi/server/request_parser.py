# SPDX-License-Identifier: Apache-2.0
"""Reads the requests of a connection, one after the other, within limits of size and time.

Nearly every request of an instance is a GET without a body, and its header arrives in one segment. ``parse_simple``
converts such a header to environ keys (``http.head_parser``). gunicorn's parser handles all other requests:

- with a body, ``Expect``, a repeated header, a header name with an underscore, or a target that is not a path;
- pipelined requests;
- incomplete or malformed headers.

For a request that ``parse_simple`` accepts, gunicorn's parser gives the same result:
``tests/unit/server/test_request_parser.py`` compares them.

All instances of an image send the same 28 requests in a boot, byte for byte. So the results of ``parse_simple`` are
cached (``parse_repeated``). A namespace proxy adds the id of the request, so its requests never repeat.
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
from gunicorn.http.errors import InvalidHeader, InvalidHTTPVersion, NoMoreData, UnsupportedTransferCoding
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser
from gunicorn.http.unreader import SocketUnreader

from metadata_wsgi import limits
from metadata_wsgi.http.head_parser import IncompleteError, ParseError, parse_request

_LIST_SEPARATOR = re.compile(r'[ \t]*,[ \t]*')

_SIMPLE_METHODS = {b'GET': 'GET', b'HEAD': 'HEAD'}
_SIMPLE_TARGET = re.compile(rb'/(?!/)[!"$-~]*\Z')  # printable, no fragment, and not //host
_SIMPLE_NAME = re.compile(rb'[0-9A-Za-z-]+\Z')
_NOT_SIMPLE = frozenset({b'content-length', b'content-type', b'transfer-encoding', b'expect', b'upgrade', b'te'})
_MAX_LENGTH_DIGITS = 18
_CACHED_REQUESTS = 256
_MAX_CACHED_REQUEST_BYTES = 1024
"""The result of a larger request is not cached, so that the cache of a worker has at most half a MiB."""
_MUST_CLOSE = {'keep-alive': False, 'close': True}


class ParsedRequest:
    """A request with a complete header.

    ``fields`` are its environ keys. ``must_close``: the connection must be closed after this request.
    ``expects_continue``: the client sends the body only after a 100 response. ``body`` is gunicorn's body object, None
    for a simple request.
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
        """Whether the header announces a body."""
        if self.body is None:
            return False
        reader = self.body.reader
        return isinstance(reader, ChunkedReader) or reader.length > 0

    @property
    def has_unread_body(self) -> bool:
        """Whether a part of the body was not read. Then the start of the next request is unknown."""
        return self.body is not None and _has_unread(self.body)


class RequestStream:
    """The requests of one connection.

    ``settings`` are gunicorn's. ``address`` is the peer's address, in the form of accept(). It is needed for settings
    that trust some peers. ``parse`` is ``parse_simple`` or ``parse_repeated``.
    """

    def __init__(
        self,
        settings: Any,
        connection: Any,
        address: Any,
        parse: Callable[[bytes], ParsedRequest | None] | None = None,
    ) -> None:
        self._parse = parse or parse_simple
        self._settings = settings
        self._connection = connection
        self._address = address
        self._parser: Parser | None = None
        self._last: ParsedRequest | None = None
        self._data = b''

    def wait_for_data(self) -> bool:
        """Wait for the first byte of the next request. Returns False if the connection can have no further request."""
        if self._last is not None and (self._last.must_close or self._last.has_unread_body):
            return False
        self._data = self._parser.unreader.take_buffered() if self._parser else b''
        self._data = self._data or self._connection.recv(limits.RECV_BYTES)
        return bool(self._data)

    def next(self) -> ParsedRequest | None:
        """Read the header of the next request. Call ``wait_for_data`` before.

        Returns None if the connection ends inside the header. Raises gunicorn's ParseException for a malformed header.
        """
        self._last = self._read()
        return self._last

    def _read(self) -> ParsedRequest | None:
        data, self._data = self._data, b''
        simple = self._parse(data)
        if simple is not None:
            return simple
        if self._parser is None:
            self._parser = Parser(self._settings, self._connection, self._address)
        self._parser.unreader.unread(data)
        try:
            return _from_gunicorn(next(self._parser))
        except (StopIteration, NoMoreData):
            return None


def parse_simple(data: bytes) -> ParsedRequest | None:
    """Parse ``data`` if it is exactly one simple request, else return None."""
    return _parsed_request(_simple_fields(data))


def parse_repeated(data: bytes) -> ParsedRequest | None:
    """Like ``parse_simple``, with a cache for requests that are sent again byte for byte."""
    return _parsed_request((_cached_fields if len(data) <= _MAX_CACHED_REQUEST_BYTES else _simple_fields)(data))


def _parsed_request(found: tuple[dict[str, Any], bool] | None) -> ParsedRequest | None:
    if found is None:
        return None
    fields, must_close = found
    return ParsedRequest({**fields, 'wsgi.input': io.BytesIO()}, must_close=must_close)


def _simple_fields(data: bytes) -> tuple[dict[str, Any], bool] | None:
    """The environ keys of a simple request, and whether the connection must be closed after it. None for others."""
    try:
        parsed = parse_request(data)
    except (IncompleteError, ParseError):
        return None
    target = parsed['path']
    method = _SIMPLE_METHODS.get(parsed['method'])
    if method is None or parsed['minor_version'] != 1 or parsed['consumed'] != len(data):
        return None
    if not _SIMPLE_TARGET.match(target) or data[0] == 13:  # an empty line before the request
        return None
    uri = target.decode('ascii')
    path, _, query = uri.partition('?')
    fields: dict[str, Any] = {
        'REQUEST_METHOD': method,
        'PATH_INFO': unquote_to_bytes(path).decode('latin-1') if '%' in path else path,
        'QUERY_STRING': query,
        'RAW_URI': uri,
        'SERVER_PROTOCOL': 'HTTP/1.1',
    }
    for name, value in parsed['headers']:
        key = _simple_key(name)
        if key is None or key in fields:
            return None
        fields[key] = value.decode('latin-1')
    must_close = False
    if 'HTTP_CONNECTION' in fields:
        known = _MUST_CLOSE.get(fields['HTTP_CONNECTION'].lower())
        if known is None:
            return None
        must_close = known
    return fields, must_close


_cached_fields = functools.lru_cache(maxsize=_CACHED_REQUESTS)(_simple_fields)


@functools.lru_cache(maxsize=256)
def _simple_key(name: bytes) -> str | None:
    if not _SIMPLE_NAME.match(name) or name.lower() in _NOT_SIMPLE:
        return None
    return 'HTTP_' + name.decode('ascii').upper().replace('-', '_')


def _from_gunicorn(request: Any) -> ParsedRequest:
    """Convert a request of gunicorn's parser to a ParsedRequest."""
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
    """gunicorn's request, with a limit for the whole header and RFC 9112's rules for the end of a connection."""

    def parse(self, unreader: Any) -> Any:
        """Called by gunicorn to read the header. Sets a limit for the size of the whole header.

        gunicorn's own limit is the largest number of fields times the largest size of a field: megabytes. A header of
        this size would cost much CPU time, because gunicorn parses an incomplete header again after every recv().
        """
        self.max_buffer_headers = limits.MAX_REQUEST_HEADER_BYTES
        rest = super().parse(unreader)
        # gunicorn's Python parser accepts any HTTP/1.x, gunicorn_h1c only 1.0 and 1.1.
        if self.version not in ((1, 0), (1, 1)):
            raise InvalidHTTPVersion(self.version)
        return rest

    def set_body_reader(self) -> None:
        """Called by gunicorn when the header is complete.

        Raises UnsupportedTransferCoding for any transfer coding except ``chunked``, because this package does not
        decode other codings (RFC 9112, 6.1 and 6.3). gunicorn would also accept ``identity`` and compressions.
        """
        codings = [value.strip(' \t').lower() for name, value in self.headers if name == 'TRANSFER-ENCODING']
        if codings not in ([], ['chunked']):
            raise UnsupportedTransferCoding(', '.join(codings))
        # gunicorn's Python parser accepts any number of digits, gunicorn_h1c only 64 bits.
        if any(name == 'CONTENT-LENGTH' and len(value) > _MAX_LENGTH_DIGITS for name, value in self.headers):
            raise InvalidHeader('CONTENT-LENGTH')
        super().set_body_reader()
        # gunicorn does not find ``close`` if the header lists several options.
        if any(
            name == 'CONNECTION' and 'close' in _LIST_SEPARATOR.split(value.lower()) for name, value in self.headers
        ):
            self.force_close()

    def must_close_after(self) -> bool:
        """Whether the header of this request requires that the connection is closed after it."""
        return bool(super().should_close())

    def should_close(self) -> bool:
        """Like ``must_close_after``, but also True if a part of the body was not read."""
        return self.must_close_after() or _has_unread(self.body)


class YieldingUnreader(SocketUnreader):
    """Yields to other greenlets before each recv().

    A large body in chunks of one byte takes seconds to parse. recv() itself yields only if no data is available. If the
    client sends fast, data is always available, and the other connections would wait until the body is complete.
    """

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Called by gunicorn to receive the next data."""
        gevent.sleep(0)
        return bytes(super().chunk(size_hint))


class Parser(RequestParser):
    """gunicorn's parser for the requests of one connection."""

    mesg_class = StrictRequest

    def __init__(self, settings: Any, connection: Any, address: Any) -> None:
        super().__init__(settings, connection, address)
        self.unreader = YieldingUnreader(connection)


class Body:
    """``wsgi.input`` with a timeout for the complete body.

    The body must arrive within ``limits.BODY_TIMEOUT_S`` after the first read, and before ``deadline_s`` (a time of
    time.monotonic()). Otherwise a read raises TimeoutError. ``on_first_read`` is called before the first read.
    ``on_progress`` is called after each read, even if it failed.
    """

    def __init__(
        self, body: Any, *, deadline_s: float, on_first_read: Callable[[], None], on_progress: Callable[[], None]
    ) -> None:
        self._body = body
        self._on_first_read: Callable[[], None] | None = on_first_read
        self._on_progress = on_progress
        self._deadline_s = deadline_s

    def _with_deadline(self, method: Any, *args: Any) -> Any:
        if self._on_first_read is not None:
            self._deadline_s = min(self._deadline_s, time.monotonic() + limits.BODY_TIMEOUT_S)
            self._on_first_read()
            self._on_first_read = None
        late = TimeoutError('the request body did not arrive in time')
        try:
            with gevent.Timeout(max(0.001, self._deadline_s - time.monotonic()), late):
                return method(*args)
        finally:
            self._on_progress()

    def read(self, size: int | None = None) -> bytes:
        """See PEP 3333."""
        return self._with_deadline(self._body.read, size)

    def readline(self, size: int | None = None) -> bytes:
        """See PEP 3333."""
        return self._with_deadline(self._body.readline, size)

    def readlines(self, size: int | None = None) -> list[bytes]:
        """See PEP 3333."""
        return self._with_deadline(self._body.readlines, size)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b'')


def _has_unread(body: Any) -> bool:
    if body.failed:
        return True
    reader = body.reader
    return reader.length > 0 if isinstance(reader, LengthReader) else reader.parser is not None
