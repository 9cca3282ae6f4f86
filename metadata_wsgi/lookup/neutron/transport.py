# SPDX-License-Identifier: Apache-2.0
"""No request of a session outlives the deadline of the lookup that needs it, and no answer is endless.

keystoneauth sends requests of its own (discovery, tokens, redirects) and passes one fixed timeout, which
requests applies to each single wait for bytes. So the deadline is set around the call (``within``), and
this adapter, through which every request goes, gives each wait what is left of it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import requests
import urllib3
from keystoneauth1.session import TCPKeepAliveAdapter

from metadata_wsgi.deadline import Deadline

LONGEST_ANSWER = 16 << 20
"""In bytes. A thousand ports with our fields are 0.4 MB."""
PIECE = 1 << 16

# One for each thread and greenlet. There is no argument of keystoneauth's that reaches a token request.
_DEADLINE: ContextVar[Deadline] = ContextVar('metadata_wsgi.lookup.neutron.transport')


@contextmanager
def within(deadline: Deadline) -> Iterator[None]:
    """Requests of this thread (or greenlet) inside the block end before ``deadline``."""
    before = _DEADLINE.set(deadline)
    try:
        yield
    finally:
        _DEADLINE.reset(before)


class BoundedAdapter(TCPKeepAliveAdapter):
    """Sends requests within the deadline around the call; reads the whole answer before it returns."""

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Raises requests' exceptions; Timeout when the deadline is over. ``stream`` and ``timeout`` have no say."""
        deadline = _DEADLINE.get()
        response: requests.Response = super().send(
            request, stream=True, timeout=_left_s(deadline), verify=verify, cert=cert, proxies=proxies
        )
        try:
            response.raw = io.BytesIO(_body(response.raw, deadline))
        except urllib3.exceptions.TimeoutError as error:
            raise requests.exceptions.ReadTimeout(error, request=request) from error
        except urllib3.exceptions.HTTPError as error:
            raise requests.exceptions.ConnectionError(error, request=request) from error
        return response


def _left_s(deadline: Deadline) -> float:
    left_s = deadline.remaining_s()
    if not left_s:
        raise requests.exceptions.ReadTimeout('the deadline is over')
    return left_s


def _body(raw: urllib3.response.BaseHTTPResponse, deadline: Deadline) -> bytes:
    """All of it; a connection on which something remains unread is not used again."""
    pieces: list[bytes] = []
    length = 0
    try:
        while True:
            connected = getattr(raw.connection, 'sock', None)
            if connected is not None:
                connected.settimeout(_left_s(deadline))
            piece = raw.read1(PIECE, decode_content=True)
            if not piece:
                return b''.join(pieces)
            _left_s(deadline)
            pieces.append(piece)
            length += len(piece)
            if length > LONGEST_ANSWER:
                raise requests.exceptions.ConnectionError(f'the answer is longer than {LONGEST_ANSWER} bytes')
    except BaseException:
        raw.close()
        raise
