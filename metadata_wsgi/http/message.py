# SPDX-License-Identifier: Apache-2.0
"""What goes to the next hop and what comes back, as values; and how they look from WSGI.

Target, status, header values and body pass as the bytes they are. What belongs to one connection only
(RFC 9110, 7.6.1) is dropped in both directions; a redirect is an answer like any other.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from metadata_wsgi.errors import BadRequest
from metadata_wsgi.http import header_names

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

Headers = list[tuple[str, str]]

SAFE_METHODS = frozenset({'GET', 'HEAD'})
"""Methods that may be repeated: they change nothing (Nova takes every method on an ordinary path as GET,
but a PUT or DELETE may mean more to whatever stands in its place)."""

_PERSISTENCE = frozenset({'close', 'keep-alive'})

# What would end the request line early, or begin another one.
_FORBIDDEN = re.compile(r'[\x00-\x20\x7f]')


class TooLarge(BadRequest):
    """The body is longer than the limit."""


@dataclass(frozen=True, slots=True)
class Request:
    """What goes to the next hop. ``target`` is the raw request target, its bytes as latin-1."""

    method: str
    target: str
    headers: Headers
    body: bytes = b''

    @property
    def is_retryable(self) -> bool:
        """Whether it may be sent twice."""
        return self.method in SAFE_METHODS and not self.body


@dataclass(frozen=True, slots=True)
class Response:
    """What came back: end-to-end headers only, and the body in one piece or as it comes."""

    status: int
    reason: str
    headers: Headers
    body: Iterable[bytes]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Give it to the guest, as a WSGI application."""
        start_response(f'{self.status} {self.reason}'.rstrip() if self.reason else f'{self.status} ', self.headers)
        return self.body


def target(environ: WSGIEnvironment) -> str:
    """The request target in origin form, undecoded; BadRequest where there is none.

    gunicorn keeps the raw one in RAW_URI; other servers decode, and quoting again is the best there
    is. An absolute URI (RFC 9112, 3.2.2) loses its authority: who answers here is not the guest's say.
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
    if _FORBIDDEN.search(raw):
        raise BadRequest('The request target has a character that no target may have.')
    return raw


def headers(environ: WSGIEnvironment) -> Headers:
    """The request's end-to-end headers, in the server's order."""
    sent = [(name, environ[key]) for key in environ if (name := _header(key))]
    if environ.get('CONTENT_TYPE'):
        sent.append(('content-type', environ['CONTENT_TYPE']))
    return end_to_end(sent)


@functools.lru_cache(maxsize=256)
def _header(key: str) -> str:
    """The header of an environ key, '' for what is none."""
    return key[5:].replace('_', '-').lower() if key.startswith('HTTP_') else ''


def end_to_end(sent: Headers) -> Headers:
    """``sent`` without what belongs to the connection, by RFC or because ``Connection`` names it. Names in lower case.

    A header that says who somebody is stays, whatever ``Connection`` says: it is ours; a guest's was deleted
    at the door.
    """
    named = [token.strip().lower() for name, value in sent if name == 'connection' for token in value.split(',')]
    dropped = header_names.HOP_BY_HOP
    if any(token not in _PERSISTENCE for token in named):
        dropped = dropped.union(name for name in named if not header_names.is_reserved(name))
    return [header for header in sent if header[0] not in dropped]


def body(environ: WSGIEnvironment, limit: int) -> bytes:
    """The whole request body. TooLarge above ``limit`` bytes, BadRequest when it is malformed or ends half way."""
    declared = environ.get('CONTENT_LENGTH') or ''
    if declared and int(declared) > limit:
        raise TooLarge(f'A request body may have at most {limit} bytes.')
    stream = environ['wsgi.input']
    if declared:
        content = _read(stream, int(declared))
        if len(content) < int(declared):
            raise BadRequest('The request body ended before its Content-Length.')
        return content
    if not environ.get('wsgi.input_terminated'):
        return b''
    content = _read(stream, limit + 1)
    if len(content) > limit:
        raise TooLarge(f'A request body may have at most {limit} bytes.')
    return content


def _read(stream: Any, size: int) -> bytes:
    try:
        content: bytes = stream.read(size)
    except Exception as error:  # each server raises what it likes for a malformed, late or broken body
        raise BadRequest('The request body is malformed or did not come in time.') from error
    return content
