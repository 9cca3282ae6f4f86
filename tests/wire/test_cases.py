# SPDX-License-Identifier: Apache-2.0
"""Each file of valid/ and invalid/ at each hop: Nova hears the sender, nobody else, and never one request too many."""

import pytest

from tests.wire.cases import HOPS, REFUSALS, REFUSED, cases
from tests.wire.conftest import is_the_sender


@pytest.mark.parametrize('hop', HOPS)
@pytest.mark.parametrize('case', cases(), ids=lambda case: case.name)
def test_nobody_is_another(hops, case, hop):
    expect, most = case.expected(hop)
    status, said = hops.send(hop, case.data(hop))
    heard = hops.heard()
    for one in heard:
        is_the_sender(one)
        assert 'smuggled' not in one.target or most > 1
    if expect == REFUSED:
        assert status is None or status in REFUSALS, said
        assert heard == []
    else:
        assert status == int(expect), said
        assert len(heard) == most
        assert said.count(b'HTTP/1.1 ') + said.count(b'HTTP/1.0 ') >= 1
