# SPDX-License-Identifier: Apache-2.0
"""How a request is read from a connection: gunicorn's parser, held to one request, to a size and to a time."""

from __future__ import annotations

import re
import time
from collections.abc import Hashable, Iterator
from typing import Any

import gevent
from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.http.message import Request
from gunicorn.http.parser import RequestParser

from metadata_wsgi.shares import Shares

HEAD_BYTES = 1 << 15
BODY_S = 30.0

OPTION = re.compile(r'[ \t]*,[ \t]*')


class OneRequest(Request):
    """A request, and where it ends."""

    # gunicorn's own bound is the number of fields times the size of each: megabytes, looked through again with
    # every byte that comes.
    max_buffer_headers = property(lambda self: HEAD_BYTES, lambda self, computed: None)

    def set_body_reader(self) -> None:
        """Called by gunicorn when the head is complete."""
        super().set_body_reader()
        # gunicorn sees it only where it stands alone.
        if any(name == 'CONNECTION' and 'close' in OPTION.split(value.lower()) for name, value in self.headers):
            self.force_close()

    def should_close(self) -> bool:
        """Also where the body was not read to its end: what follows is no request."""
        return bool(super().should_close()) or unread(self)


class Parser(RequestParser):
    """The requests of one connection."""

    mesg_class = OneRequest


def parser(cfg: Any, client: Any, addr: Any) -> Parser:
    """The requests that ``client`` sends, one after the other."""
    return Parser(cfg, client, addr)


class Turn:
    """While it is entered it is the guest's turn, to say something or to take it."""

    def __init__(self, shares: Shares, client: Any, keys: tuple[Hashable, ...]) -> None:
        self._shares = shares
        self._client = client
        self._keys = keys

    def __enter__(self) -> None:
        if self._keys:
            self._shares.waits(self._client, self._keys)

    def __exit__(self, *exc: object) -> None:
        if self._keys:
            self._shares.speaks(self._client)


class Body:
    """``wsgi.input``: a body that must be there in ``within_s``, however steadily it drips."""

    def __init__(self, body: Any, turn: Turn, within_s: float = BODY_S) -> None:
        self._body = body
        self._turn = turn
        self._until = time.monotonic() + within_s

    def _within(self, method: Any, *args: Any) -> Any:
        late = TimeoutError('the body came too slowly')
        with self._turn, gevent.Timeout(max(0.001, self._until - time.monotonic()), late):
            return method(*args)

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


def expects_body(request: Any) -> bool:
    """Whether the head says that a body follows."""
    reader = request.body.reader
    return isinstance(reader, ChunkedReader) or reader.length > 0


def unread(request: Any) -> bool:
    """Whether it is not known where the next request begins, because this one's body was not read to its end."""
    reader = request.body.reader
    if request.body.failed:
        return True
    return reader.length > 0 if isinstance(reader, LengthReader) else reader.parser is not None
