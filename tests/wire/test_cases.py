# SPDX-License-Identifier: Apache-2.0
"""Each file of valid/ and invalid/ at each server.

Every request that Nova receives identifies its sender and no other instance, and Nova never receives a hidden one.
Every response has a request id.
"""

import re

import pytest

from tests.wire.cases import REFUSED, REFUSED_STATUSES, SERVERS, cases
from tests.wire.conftest import assert_identifies_sender

pytestmark = pytest.mark.not_traced


@pytest.mark.parametrize('server', SERVERS)
@pytest.mark.parametrize('case', cases(), ids=lambda case: case.name)
def test_a_request_identifies_only_its_sender(servers, case, server):
    expect, most = case.expected(server)
    status, response = servers.send(server, case.data(server))
    received = servers.received()
    # A closed connection is no refusal if its cause is a bug.
    assert not servers.tracebacks()
    assert status is None or re.search(rb'(?i)\r\nx-openstack-request-id: req-[0-9a-f-]{36}\r\n', response)
    for request in received:
        assert_identifies_sender(request)
        assert 'smuggled' not in request.target or most > 1
    if expect == REFUSED:
        assert status is None or status in REFUSED_STATUSES, response
        assert received == []
    else:
        assert status == int(expect), response
        assert len(received) == most
        assert response.count(b'HTTP/1.1 ') + response.count(b'HTTP/1.0 ') >= 1
