# SPDX-License-Identifier: Apache-2.0
"""Parses the header of a request or a response: with gunicorn_h1c if it is installed, else in Python.

gunicorn_h1c (picohttpparser) is a C extension. Not every platform has a wheel of it, so it is optional (extra
``fast``). Both parsers have the same two functions, which return dictionaries with these keys
(``tests/unit/http/test_head_parser.py`` compares the parsers):

- ``parse_request(data)``: ``method``, ``path``, ``minor_version``, ``headers``, ``consumed``;
- ``parse_response(data)``: ``status``, ``message``, ``minor_version``, ``headers``, ``consumed``.

Header names, header values and the path are bytes. A continuation line of a folded header has the name b''.
``consumed`` is the length of the whole header in bytes. The functions raise IncompleteError if ``data`` ends inside the
header, and ParseError if the header is malformed.

The Python ``parse_request`` accepts only the usual form of a request, with CRLF at the end of every line. For other
forms it raises ParseError, and its caller then uses gunicorn's parser. The Python ``parse_response`` accepts the same
responses as gunicorn_h1c. If a malformed line is still incomplete, the Python functions raise IncompleteError.
"""

from __future__ import annotations

import re
from typing import Any

from metadata_wsgi import limits

__all__ = ['IncompleteError', 'ParseError', 'parse_request', 'parse_response']

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TEXT = rb'[\t\x20-\x7e\x80-\xff]*'
_REQUEST_LINE = re.compile(rb'([A-Z]{3,20}) (/[\x21-\x7e]*) HTTP/1\.([01])\r\n')
_REQUEST_HEADER = re.compile(rb'(%b):[\t ]*(%b)\r\n' % (_TOKEN, _TEXT))
_STATUS_LINE = re.compile(rb'HTTP/1\.([0-9]) +([0-9]{3})((?: %b)?)\r?\n' % _TEXT)
_RESPONSE_HEADER = re.compile(rb'(%b):[\t ]*(%b)\r?\n' % (_TOKEN, _TEXT))
_CONTINUATION = re.compile(rb'()([\t ]%b)\r?\n' % _TEXT)
_END = re.compile(rb'\r?\n')


class _ParseError(Exception):
    """The header is malformed."""


class _IncompleteError(_ParseError):
    """The data ends inside the header."""


def _parse_request(data: bytes) -> dict[str, Any]:
    line = _match(_REQUEST_LINE, data, 0)
    position, headers = line.end(), []
    while not data.startswith(b'\r\n', position):
        header = _match(_REQUEST_HEADER, data, position)
        headers.append((header[1], header[2].rstrip(b' \t')))
        position = header.end()
        if len(headers) > limits.MAX_HEADER_LINES:
            raise _ParseError('too many headers')
    return {
        'method': line[1],
        'path': line[2],
        'minor_version': int(line[3]),
        'headers': headers,
        'consumed': position + 2,
    }


def _parse_response(data: bytes) -> dict[str, Any]:
    line = _match(_STATUS_LINE, data, 0)
    position: int = line.end()
    headers: list[tuple[bytes, bytes]] = []
    while not (end := _END.match(data, position)):
        folded = headers and data[position : position + 1] in (b' ', b'\t')
        header = _match(_CONTINUATION if folded else _RESPONSE_HEADER, data, position)
        headers.append((header[1], header[2].rstrip(b' \t')))
        position = header.end()
        if len(headers) > limits.MAX_HEADER_LINES:
            raise _ParseError('too many headers')
    return {
        'status': int(line[2]),
        'message': line[3].lstrip(b' '),
        'minor_version': int(line[1]),
        'headers': headers,
        'consumed': end.end(),
    }


def _match(pattern: re.Pattern[bytes], data: bytes, position: int) -> re.Match[bytes]:
    """The match of ``pattern`` at ``position``. Raises _ParseError or, if the line is incomplete, _IncompleteError."""
    found = pattern.match(data, position)
    if found is None:
        if data.find(b'\n', position) >= 0:
            raise _ParseError(f'malformed line: {data[position : position + 80]!r}')
        raise _IncompleteError('the header is incomplete')
    return found


try:
    from gunicorn_h1c import IncompleteError, ParseError, parse_request, parse_response
except ImportError:
    IncompleteError, ParseError = _IncompleteError, _ParseError
    parse_request, parse_response = _parse_request, _parse_response
