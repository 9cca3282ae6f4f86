# SPDX-License-Identifier: Apache-2.0
"""gunicorn_h1c and the parser in Python, for where it is not installed, give the same result."""

import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metadata_wsgi.http import head_parser

gunicorn_h1c = pytest.importorskip('gunicorn_h1c')

CLOUD_INIT = (
    b'GET /openstack/latest/meta_data.json HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: Cloud-Init/25.1\r\n'
    b'Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\n\r\n'
)
NOVA = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1700\r\nX-Empty:\r\n'
    b'Date: Fri, 27 Nov 2026 09:00:00 GMT\r\nConnection: keep-alive\r\n\r\n{"uuid": '
)
MALFORMED, INCOMPLETE = 'malformed', 'incomplete'


def result(parse, data):
    """The parsed header, or what is wrong with it."""
    try:
        return parse(data)
    except (gunicorn_h1c.IncompleteError, head_parser._IncompleteError):
        return INCOMPLETE
    except (gunicorn_h1c.ParseError, head_parser._ParseError):
        return MALFORMED


def mutated(data):
    """``data`` with up to three replaced pieces, and cut anywhere."""
    piece = st.one_of(
        st.sampled_from(
            [b'\r', b'\n', b'\r\n', b' ', b'\t', b':', b'\0', b'\x7f', b'\xe9', b'\r\n x', b'HTTP/1.2', b'']
        ),
        st.binary(max_size=3),
    )

    def apply(changes, cut):
        changed = data
        for place, length, replacement in changes:
            changed = changed[: place % len(data)] + replacement + changed[place % len(data) + length :]
        return changed[: len(changed) - cut]

    changes = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 3), piece), max_size=3)
    return st.builds(apply, changes, st.sampled_from([0, 0, 0, 1, 2, 3, 40]))


def test_a_request_of_cloud_init_and_a_response_of_nova():
    for parse, reference, data in (
        (head_parser._parse_request, gunicorn_h1c.parse_request, CLOUD_INIT),
        (head_parser._parse_response, gunicorn_h1c.parse_response, NOVA),
    ):
        assert result(parse, data) == result(reference, data)
        assert result(parse, data)['headers']


@pytest.mark.not_traced
@given(mutated(NOVA))
@example(NOVA.replace(b'\r\n', b'\n'))
@example(NOVA.replace(b'\r\nDate', b'\r\n  folded\r\nDate'))
@example(NOVA.replace(b'\r\nDate', b'\r\n\tfolded\r\nDate'))
@example(b'HTTP/1.1 200 OK\r\nA: bX\r\n\r\n')
@example(b'HTTP/1.1 200 OK\r\nA: b \t\r\n\r\n')
@example(b'HTTP/1.1 200 XOK\r\n\r\n')
@example(b'HTTP/1.1 200 \tOK\r\n\r\n')
@example(b'HTTP/1.1 200\r\n\r\n')
@example(b'HTTP/1.1 200 \r\n\r\n')
@example(b'HTTP/1.1  200   two  words  \r\n\r\n')
@example(b'HTTP/1.1 200\tOK\r\n\r\n')
@example(b'HTTP/1.1 2000 OK\r\n\r\n')
@example(b'HTTP/1.1 200 OK\r\n folded first\r\n\r\n')
@example(b'HTTP/1.1 200 OK\r\nA : b\r\n\r\n')
@example(b'HTTP/1.1 200 OK\r\n: b\r\n\r\n')
@example(b'HTTP/1.1 200 OK\r\n' + b'A: b\r\n' * 256 + b'\r\n')
@example(b'HTTP/1.1 200 OK\r\n' + b'A: b\r\n' * 257 + b'\r\n')
@settings(max_examples=1000, deadline=None)
def test_both_parsers_read_a_response_in_the_same_way(data):
    expected, actual = result(gunicorn_h1c.parse_response, data), result(head_parser._parse_response, data)
    # gunicorn_h1c finds an error before the line is complete.
    assert actual == expected or (actual, expected) == (INCOMPLETE, MALFORMED)


@pytest.mark.not_traced
@given(mutated(CLOUD_INIT))
@example(CLOUD_INIT + CLOUD_INIT)
@example(b'GET / HTTP/1.1\r\n\r\n')
@example(b'GET / HTTP/1.1\r\nA:\t\r\n\r\n')
@example(b'GET / HTTP/1.1\r\nA: b \t\r\n\r\n')
@example(b'GET / HTTP/1.1\r\nA: bX\r\n\r\n')
@example(b'GET / HTTP/1.1\r\n' + b'A: b\r\n' * 257 + b'\r\n')
@settings(max_examples=1000, deadline=None)
def test_the_python_parser_accepts_only_requests_that_gunicorn_h1c_reads_in_the_same_way(data):
    actual = result(head_parser._parse_request, data)
    if actual not in (MALFORMED, INCOMPLETE):
        assert actual == result(gunicorn_h1c.parse_request, data)


@pytest.mark.parametrize(
    ('parse', 'line'),
    [(head_parser._parse_request, b'GET / HTTP/1.1\r\n'), (head_parser._parse_response, b'HTTP/1.1 200 OK\r\n')],
)
def test_the_number_of_header_lines_is_limited(parse, line):
    assert len(parse(line + b'A: b\r\n' * 256 + b'\r\n')['headers']) == 256
    with pytest.raises(head_parser._ParseError, match=r'^too many headers$'):
        parse(line + b'A: b\r\n' * 257 + b'\r\n')


@pytest.mark.parametrize(
    ('data', 'error', 'text'),
    [
        (b'HTTP/1.1 2000 OK\r\n', head_parser._ParseError, r"^malformed line: b'HTTP/1.1 2000 OK\\r\\n'$"),
        (b'\nHTTP/1.1 200 OK\r\n\r\n', head_parser._ParseError, r"^malformed line: b'\\nHTTP/1.1 200 OK"),
        (b'x' * 100 + b'\n', head_parser._ParseError, r"^malformed line: b'x{80}'$"),
        (b'HTTP/1.1 200 OK\r\nA: b', head_parser._IncompleteError, r'^the header is incomplete$'),
    ],
)
def test_an_error_names_the_line(data, error, text):
    with pytest.raises(error, match=text) as raised:
        head_parser._parse_response(data)
    assert type(raised.value) is error


def test_without_gunicorn_h1c_the_python_parser_is_used():
    code = (
        'import sys\nsys.modules["gunicorn_h1c"] = None\n'
        'from metadata_wsgi.http import head_parser\n'
        'print(head_parser.parse_response is head_parser._parse_response)\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == 'True\n'
