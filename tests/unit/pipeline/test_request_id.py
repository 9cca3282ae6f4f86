# SPDX-License-Identifier: Apache-2.0
import contextvars
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.pipeline import request_id

VALID = 'req-1b4e28ba-2fa1-11d2-883f-0016d3cca427'
FORMAT = r'req-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}'


def begin(given):
    """The id of a request with this header, and the one of log lines from then on."""
    environ = {} if given is None else {'HTTP_X_OPENSTACK_REQUEST_ID': given}
    return contextvars.copy_context().run(lambda: (request_id.begin(environ), request_id.CURRENT.get()))


def test_a_valid_request_id_is_taken():
    assert begin(VALID) == (VALID, VALID)


@pytest.mark.parametrize(
    'given',
    [
        None, '', 'req-', VALID + '\n', VALID + ' ', ' ' + VALID, VALID.upper(), VALID[4:], VALID + ',' + VALID,
        VALID.replace('-', ''), 'req-ERROR', VALID[:-1], VALID + '0', VALID.replace('1', '\u0661'),
    ],
)  # fmt: skip
def test_any_other_request_id_is_replaced(given):
    made, logged = begin(given)
    assert re.fullmatch(FORMAT, made)
    assert made == logged != given


@given(st.text(max_size=60))
def test_a_request_id_is_always_hexadecimal_digits(given):
    assert re.fullmatch(FORMAT, begin(given)[0])


def test_request_ids_are_unique():
    assert len({request_id.make() for _ in range(10_000)}) == 10_000


def started(headers, *exc_info):
    seen = []
    request_id.added_to(lambda *args: seen.append(args), VALID)('200 OK', headers, *exc_info)
    return seen[0]


def test_the_request_id_is_added_to_a_response_without_one():
    given = [('Content-Type', 'text/plain')]
    assert started(given) == ('200 OK', [('Content-Type', 'text/plain'), ('X-Openstack-Request-Id', VALID)])
    assert given == [('Content-Type', 'text/plain')]
    assert started([], 'exc_info') == ('200 OK', [('X-Openstack-Request-Id', VALID)], 'exc_info')


@pytest.mark.parametrize('name', ['X-Openstack-Request-Id', 'x-openstack-request-id', 'X-OPENSTACK-REQUEST-ID'])
def test_the_request_id_of_nova_stays(name):
    assert started([(name, 'req-nova')]) == ('200 OK', [(name, 'req-nova')])
