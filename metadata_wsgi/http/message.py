# SPDX-License-Identifier: Apache-2.0
"""Requests and responses of the HTTP client as values, and functions that make them from a WSGI environ.

Target, status, header values and body are passed on unchanged. Hop-by-hop headers (RFC 9110, 7.6.1) are dropped in both
directions. Redirects are not followed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import gevent
from gevent import monkey

from metadata_wsgi import limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import BadRequest, RequestTimeout
from metadata_wsgi.http import header_names

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Headers = list[tuple[str, str]]

SAFE_METHODS = frozenset({'GET', 'HEAD'})
"""Methods that may be retried because they change nothing.

Nova handles every method on an ordinary path as GET. But another metadata service may handle PUT and DELETE.
"""

_PERSISTENCE_OPTIONS = frozenset({'', 'close', 'keep-alive'})

# Characters that would end the request target or the request line.
_FORBIDDEN_IN_TARGET = re.compile(r'[\x00-\x20\x7f]')


class TooLarge(BadRequest):
    """The request body is longer than the limit (413)."""


@dataclass(slots=True)  # not frozen: __init__ would take twice the time
class Request:
    """A request to the agent or to Nova. ``target`` is the raw request target, its bytes as latin-1."""

    method: str
    target: str
    headers: Headers
    body: bytes = b''

    @property
    def is_retryable(self) -> bool:
        """Whether the request may be sent again although it may already have been received."""
        return self.method in SAFE_METHODS and not self.body


@dataclass(slots=True)  # not frozen: __init__ would take twice the time
class Response:
    """A response of the agent or of Nova. ``headers`` are the end-to-end headers.

    ``body`` is one piece, or streamed if it is large. A streamed body has a method ``close``.
    """

    status: int
    reason: str
    headers: Headers
    body: Iterable[bytes]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Send the response to the client. So a Response is a WSGI application."""
        start_response(f'{self.status} {self.reason}'.rstrip() if self.reason else f'{self.status} ', self.headers)
        return self.body


def target(environ: WSGIEnvironment) -> str:
    """The request target in origin form, not decoded. Raises BadRequest if the target is not a path or a URL.

    gunicorn has the raw target in RAW_URI. Other servers have only the decoded path, which is quoted again here. The
    host of an absolute URI (RFC 9112, 3.2.2) is dropped: a client cannot choose the host.
    """
    raw: str | None = environ.get('RAW_URI')
    if raw is None:
        raw = quote(
            (environ.get('SCRIPT_NAME', '') + environ.get('PATH_INFO', '')).encode('latin-1'), safe="/:@!$&'()*+,;=~"
        )
        if environ.get('QUERY_STRING'):
            raw += '?' + environ['QUERY_STRING']
    if not raw.startswith('/'):
        scheme, separator, rest = raw.partition('://')
        if not separator or scheme.lower() not in ('http', 'https'):
            raise BadRequest('The request target must be a path.')
        path = re.search(r'[/?].*', rest, re.DOTALL)
        raw = '/' + path[0].removeprefix('/') if path else '/'
    if _FORBIDDEN_IN_TARGET.search(raw):
        raise BadRequest('The request target has a character that no target may have.')
    return raw


def headers(environ: WSGIEnvironment, name_of: Callable[[str], str] = header_names.end_to_end_name) -> Headers:
    """The end-to-end headers of the request, with names in lower case, in the order of ``environ``.

    ``name_of`` returns the name of the header for an environ key, '' if the header is not wanted.
    """
    found = [(name, environ[key]) for key in environ if (name := name_of(key))]
    if environ.get('CONTENT_TYPE'):
        found.append(('content-type', environ['CONTENT_TYPE']))
    return without_named(found, connection_options(environ.get('HTTP_CONNECTION', '')))


@functools.lru_cache(maxsize=32)
def connection_options(value: str) -> frozenset[str]:
    """The options of a ``Connection`` header, in lower case."""
    return frozenset(option.strip().lower() for option in value.split(','))


def without_named(end_to_end: Headers, options: frozenset[str]) -> Headers:
    """``end_to_end`` (names in lower case) without the headers that ``options`` of the ``Connection`` header name.

    A reserved header is kept even if ``Connection`` names it: a client must not be able to remove reserved headers.
    """
    if options <= _PERSISTENCE_OPTIONS:
        return end_to_end
    return [header for header in end_to_end if header[0] not in options or header_names.is_reserved(header[0])]


def body(environ: WSGIEnvironment, limit: int, deadline: Deadline | None = None) -> bytes:
    """The whole request body. Waits at most ``limits.BODY_DEADLINE_FRACTION`` of the time to ``deadline``.

    Raises TooLarge for more than ``limit`` bytes, RequestTimeout if the body does not arrive in time, and BadRequest
    for a malformed or incomplete body.
    """
    declared = _content_length(environ)
    if declared is not None and declared > limit:
        raise TooLarge(f'A request body may have at most {limit} bytes.')
    stream = environ['wsgi.input']
    if declared is not None:
        content = _read(stream, declared, deadline)
        if len(content) < declared:
            raise BadRequest('The request body ended before its Content-Length.')
        return content
    if not environ.get('wsgi.input_terminated'):
        return b''
    content = _read(stream, limit + 1, deadline)
    if len(content) > limit:
        raise TooLarge(f'A request body may have at most {limit} bytes.')
    return content


def _content_length(environ: WSGIEnvironment) -> int | None:
    text = environ.get('CONTENT_LENGTH') or ''
    try:
        return int(text) if text else None
    except ValueError:  # not a number, or thousands of digits
        raise BadRequest('The Content-Length is not a number.') from None


def _read(stream: Any, size: int, deadline: Deadline | None) -> bytes:
    if isinstance(stream, io.BytesIO):  # in memory: nothing to wait for
        return stream.read(size)
    try:
        with _time_limit(deadline):
            content: bytes = stream.read(size)
    except TimeoutError as error:
        raise RequestTimeout('The request body did not arrive in time.') from error
    except Exception as error:  # each server has its own exceptions for a malformed or broken body
        raise BadRequest('The request body is malformed or incomplete.') from error
    return content


def _time_limit(deadline: Deadline | None) -> contextlib.AbstractContextManager[Any]:
    """A context that raises TimeoutError in its block when the time for the body is over. Without gevent: no limit.

    Not used for a body that is already in memory, because the timer costs 10 microseconds of CPU time.
    """
    if deadline is None or not monkey.is_module_patched('socket'):
        return contextlib.nullcontext()
    seconds = deadline.fraction(limits.BODY_DEADLINE_FRACTION).remaining_s()
    return gevent.Timeout(max(0.001, seconds), TimeoutError('timed out'))
