# SPDX-License-Identifier: Apache-2.0
"""Every request to Keystone and Neutron ends before the deadline of the lookup that needs it, with a bounded response.

keystoneauth sends requests of its own (discovery, tokens, redirects) with one fixed timeout, which requests applies
to each single read. So the caller sets the deadline around the call (``deadline_scope``), and this adapter, which
sends every request, limits each connect and each read to the time that remains.
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

MAX_RESPONSE_BYTES = 16 << 20
"""A thousand ports with the fields of our queries are 0.4 MB."""
CHUNK_BYTES = 1 << 16

# One value for each thread and greenlet. No argument of keystoneauth's reaches a token request.
_DEADLINE: ContextVar[Deadline] = ContextVar('metadata_wsgi.lookup.neutron.transport')


@contextmanager
def deadline_scope(deadline: Deadline) -> Iterator[None]:
    """Requests that this thread (or greenlet) sends inside the block end before ``deadline``."""
    previous = _DEADLINE.set(deadline)
    try:
        yield
    finally:
        _DEADLINE.reset(previous)


class DeadlineAdapter(TCPKeepAliveAdapter):
    """Sends requests within the deadline of the scope; reads the whole response before it returns."""

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Raises the exceptions of requests; Timeout after the deadline. ``stream`` and ``timeout`` are ignored."""
        deadline = _DEADLINE.get()
        response: requests.Response = super().send(
            request, stream=True, timeout=_remaining_s(deadline), verify=verify, cert=cert, proxies=proxies
        )
        try:
            response.raw = io.BytesIO(_read_body(response.raw, deadline))
        except urllib3.exceptions.TimeoutError as error:
            raise requests.exceptions.ReadTimeout(error, request=request) from error
        except urllib3.exceptions.HTTPError as error:
            raise requests.exceptions.ConnectionError(error, request=request) from error
        return response


def _remaining_s(deadline: Deadline) -> float:
    remaining_s = deadline.remaining_s()
    if not remaining_s:
        raise requests.exceptions.ReadTimeout('the deadline passed')
    return remaining_s


def _read_body(raw: urllib3.response.BaseHTTPResponse, deadline: Deadline) -> bytes:
    """Read the whole body. A connection with unread bytes is closed, not reused."""
    chunks: list[bytes] = []
    length = 0
    try:
        while True:
            sock = getattr(raw.connection, 'sock', None)
            if sock is not None:
                sock.settimeout(_remaining_s(deadline))
            chunk = raw.read1(CHUNK_BYTES, decode_content=True)
            if not chunk:
                return b''.join(chunks)
            _remaining_s(deadline)
            chunks.append(chunk)
            length += len(chunk)
            if length > MAX_RESPONSE_BYTES:
                raise requests.exceptions.ConnectionError(f'the response is longer than {MAX_RESPONSE_BYTES} bytes')
    except BaseException:
        raw.close()
        raise
