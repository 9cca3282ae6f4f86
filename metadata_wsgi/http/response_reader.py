# SPDX-License-Identifier: Apache-2.0
"""Reads a response from a connection of the HTTP client: header, body framing (RFC 9112) and streamed body.

``head_parser`` parses the header, as in the server. A response with an ambiguous header or length is an error.
"""

from __future__ import annotations

import functools
import re
import ssl
from collections.abc import Iterator
from typing import Any, NamedTuple

from metadata_wsgi import limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.http import header_names
from metadata_wsgi.http.head_parser import IncompleteError, ParseError, parse_response
from metadata_wsgi.http.message import Headers, connection_options, without_named
from metadata_wsgi.http.raw_socket import from_gevent_socket

_CHUNK_SIZE = re.compile(rb'[0-9A-Fa-f]{1,15}\Z')


class ResponseHeader(NamedTuple):
    """The header of a response. ``headers`` are the end-to-end headers, with names in lower case.

    ``codings`` are its transfer codings, ``length`` its Content-Length. ``is_last``: the server closes the connection
    after this response.
    """

    status: int
    reason: str
    headers: Headers
    codings: list[str]
    length: str | None
    is_last: bool


class ClientConnection:
    """A connection and the bytes that were received and not parsed yet.

    ``used_at_s``: when its last request started, a time of the deadline's clock.
    """

    def __init__(self, sock: Any) -> None:
        self._sock: Any = from_gevent_socket(sock)
        self._data = b''
        self.reused = False
        self.used_at_s = 0.0
        self.received_any = False
        self.reusable = True
        self.deadline: Deadline | None = None

    def __del__(self) -> None:
        # Needed for a streamed response that nobody reads: a retry replaced it, or the client closed its connection.
        self._sock.close()

    @property
    def has_surplus_data(self) -> bool:
        """Whether bytes were received after the end of the response. They belong to no request."""
        return bool(self._data)

    def is_reusable(self) -> bool:
        """Whether an idle connection is open and no byte has arrived on it.

        Such a byte would be read as the start of the next response.
        """
        self._sock.settimeout(0)
        try:
            self._sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def send(self, data: bytes) -> None:
        while data:
            self._sock.settimeout(self._timeout_s())
            data = data[self._sock.send(data) :]

    def close(self) -> None:
        self.reusable = False
        self._sock.close()

    def read_header(self) -> ResponseHeader:
        """Receive the header. Raises ValueError if it is malformed or too long, or the body's length is ambiguous."""
        self._fill()
        while True:
            try:
                parsed = parse_response(self._data)
            except IncompleteError:
                if len(self._data) > limits.MAX_RESPONSE_HEADER_BYTES:
                    raise ValueError('the header of the response is too long') from None
                self._fill()
                continue
            except ParseError as error:
                raise ValueError('the response is not HTTP') from error
            self._data = self._data[parsed['consumed'] :]
            if parsed['status'] >= 200:
                break
            if not self._data:
                self._fill()
        headers: Headers = []
        lengths: list[str] = []
        codings: list[str] = []
        connection = ''
        for name_bytes, value_bytes in parsed['headers']:
            name, value = _lower_name(name_bytes), value_bytes.decode('latin-1')
            if name == 'content-length':
                if not lengths:
                    headers.append((name, value))
                lengths.append(value)
            elif name == 'connection':
                connection = f'{connection},{value}' if connection else value
            elif name == 'transfer-encoding':
                codings.append(value.strip().lower())
            elif not name:
                raise ValueError('a header of the response is folded')
            elif name not in header_names.HOP_BY_HOP:
                headers.append((name, value))
        if parsed['minor_version'] == 0 and codings:
            raise ValueError('the response is HTTP/1.0 and has a Transfer-Encoding')
        options = connection_options(connection)
        headers = without_named(headers, options)
        length = _one_length(lengths) if lengths else None
        if length is not None and ('content-length', length) not in headers:
            # The header had a list of equal lengths, or was dropped because Connection names it.
            headers = [*(header for header in headers if header[0] != 'content-length'), ('content-length', length)]
        return ResponseHeader(
            parsed['status'],
            parsed['message'].decode('latin-1'),
            headers,
            codings=codings,
            length=length,
            is_last='close' in options or (parsed['minor_version'] == 0 and 'keep-alive' not in options),
        )

    def read_body(self, method: str, header: ResponseHeader) -> Iterator[bytes]:
        """The body, piece by piece as it arrives. Raises ValueError if its length is ambiguous (RFC 9112, 6.3)."""
        if method == 'HEAD' or header.status in (204, 304):
            return iter(())
        if header.codings:
            if header.length is not None:
                raise ValueError('the response has both Transfer-Encoding and Content-Length')
            if header.codings != ['chunked']:
                codings = ', '.join(header.codings)[:80]
                raise ValueError(f'the transfer coding of the response is not chunked: {codings}')
            return self._chunks()
        if header.length is None:
            self.reusable = False
            return self._until_closed()
        length = int(header.length)
        if 0 < length == len(self._data):  # the usual response: all of it came with its header
            body, self._data = self._data, b''
            return iter((body,))
        return self._exactly(length)

    def _exactly(self, remaining: int) -> Iterator[bytes]:
        while remaining:
            if not self._data:
                self._fill()
            piece, self._data = self._data[:remaining], self._data[remaining:]
            remaining -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        while size := self._chunk_size():
            yield from self._exactly(size)
            if self._line():
                raise ValueError('a chunk of the response is longer than its size')
        while self._line():  # trailers are hop-by-hop
            pass

    def _chunk_size(self) -> int:
        digits = self._line().partition(b';')[0].rstrip(b' \t')
        if not _CHUNK_SIZE.match(digits):  # int() accepts signs and underscores too
            raise ValueError('a chunk of the response has no size')
        return int(digits, 16)

    def _until_closed(self) -> Iterator[bytes]:
        while True:
            if self._data:
                yield self._data
                self._data = b''
            self._sock.settimeout(self._timeout_s())
            self._data = self._sock.recv(limits.CHUNK_BYTES)
            if not self._data:
                return

    def _line(self) -> bytes:
        while b'\r\n' not in self._data:
            if len(self._data) > limits.MAX_RESPONSE_HEADER_BYTES:
                raise ValueError('a line of the response is too long')
            self._fill()
        line, _, self._data = self._data.partition(b'\r\n')
        return line

    def _fill(self) -> None:
        """Receive at least one more byte."""
        self._sock.settimeout(self._timeout_s())
        piece = self._sock.recv(limits.CHUNK_BYTES)
        if not piece:
            raise ConnectionResetError('the connection was closed before the response was complete')
        self.received_any = True
        self._data += piece

    def _timeout_s(self) -> float:
        """Timeout of the next recv or send: the time to the deadline, or a constant in a streamed body."""
        remaining_s = limits.READ_WRITE_TIMEOUT_S if self.deadline is None else self.deadline.remaining_s()
        if remaining_s <= 0:
            raise TimeoutError('the response was not complete in time')
        return remaining_s


class StreamedBody:
    """The body of a large response: first the part that was already received, then the rest as it arrives."""

    def __init__(self, buffered: list[bytes], pieces: Iterator[bytes], connection: ClientConnection) -> None:
        self._buffered = buffered
        self._pieces = pieces
        self._connection = connection

    def __iter__(self) -> Iterator[bytes]:
        self._connection.deadline = None
        yield from self._buffered
        yield from self._pieces

    def close(self) -> None:
        """Called by the server (PEP 3333), even if the client has closed its connection."""
        self._connection.close()


def _one_length(values: list[str]) -> str:
    """The value of one or several Content-Length headers. Equal values count as one (RFC 9112, 6.3).

    Raises ValueError for different values, or a value that is not a number.
    """
    if len(values) == 1 and values[0].isascii() and values[0].isdigit():
        return values[0]
    lengths = {part.strip() for value in values for part in value.split(',')}
    length = lengths.pop()
    if lengths:
        raise ValueError('the response has several different lengths')
    if not (length.isascii() and length.isdigit()):
        raise ValueError('the Content-Length of the response is not a number')
    return length


@functools.lru_cache(maxsize=256)
def _lower_name(name: bytes) -> str:
    return name.decode('latin-1').lower()
