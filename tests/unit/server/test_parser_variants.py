# SPDX-License-Identifier: Apache-2.0
"""gunicorn's parser in Python is as strict as the one with gunicorn_h1c, and reads requests in the same way.

It is stricter in one point: gunicorn_h1c accepts several spaces in a request line.
"""

import io

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import NoMoreData, ParseException
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metadata_wsgi.server import master, request_parser
from tests.wire.cases import cases

pytest.importorskip('gunicorn_h1c')


class FakeSocket:
    """A socket on which ``data`` arrives, then the end."""

    def __init__(self, data):
        self._data = io.BytesIO(data)

    def recv(self, size):
        return self._data.read(size)


def requests(data, http_parser):
    """The requests in ``data``: (environ keys, whether the connection must close), each followed by its body."""
    settings = Config()
    for name, value in {**master.STRICT, 'http_parser': http_parser}.items():
        settings.set(name, value)
    stream = request_parser.RequestStream(settings, FakeSocket(data), '')
    found = []
    try:
        while stream.wait_for_data():
            # gunicorn's parser for every request, also for the simple ones.
            stream._data = b'\r\n' + stream._data if stream._data[:2] != b'\r\n' else stream._data
            request = stream.next()
            if request is None:
                break
            body = request.fields.pop('wsgi.input')
            found.append((request.fields, request.must_close))
            found.append(body.read())
    except (ParseException, NoMoreData):
        # Malformed, or incomplete: gunicorn_h1c finds some errors before the line is complete.
        pass
    return found


def check(data):
    python, fast = requests(data, 'python'), requests(data, 'fast')
    assert python == fast[: len(python)], data
    return len(python) == len(fast)


@pytest.mark.parametrize('case', cases(), ids=lambda case: case.name)
def test_both_parsers_treat_a_wire_case_in_the_same_way(case):
    assert check(case.data('proxy'))


CASES = [case.data('proxy') for case in cases() if len(case.text) < 1000]
PIECES = st.one_of(
    st.sampled_from([b'\r', b'\n', b'\r\n', b' ', b'\t', b':', b'\0', b'\x7f', b'\xe9', b'\r\n ', b'/1.2', b'_', b'']),
    st.binary(max_size=3),
)


@st.composite
def mutated(draw):
    data = draw(st.sampled_from(CASES))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        data = data[:place] + draw(PIECES) + data[place + draw(st.integers(0, 3)) :]
    return data


@pytest.mark.not_traced
@given(mutated())
@example(b'GET / HTTP/1.2\r\n\r\n')
@settings(max_examples=1000, deadline=None)
def test_the_python_parser_accepts_no_request_that_gunicorn_h1c_refuses_or_reads_differently(data):
    check(data)
