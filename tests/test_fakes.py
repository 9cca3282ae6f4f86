# SPDX-License-Identifier: Apache-2.0
"""A fake that differs from what it stands for proves nothing."""

from __future__ import annotations

import inspect

import pytest

from metadata_wsgi import directories, hop, upstream
from metadata_wsgi.filters import rate_limit
from metadata_wsgi.memory import own, shared
from metadata_wsgi.namespace_proxy import app as namespace_proxy
from tests import fakes


@pytest.mark.parametrize(
    ('protocol', 'fake'),
    [
        (directories.Directory, fakes.FakeDirectory),
        (own.Behind, fakes.FakeBehind),
        (own.Behind, shared.Shared),
        (rate_limit.Counters, fakes.FakeCounters),
        (upstream.Hop, fakes.FakeHop),
        (namespace_proxy.Hop, fakes.FakeHop),
    ],
)
def test_a_fake_has_the_methods_of_its_protocol(protocol, fake):
    for name, method in inspect.getmembers(protocol, inspect.isfunction):
        if not name.startswith('_'):
            wanted, given = inspect.signature(method), inspect.signature(getattr(fake, name))
            assert list(given.parameters) == list(wanted.parameters)


@pytest.mark.parametrize('protocol', [upstream.Hop, namespace_proxy.Hop])
def test_the_real_hop_takes_what_the_protocol_gives(protocol):
    """It may take more, with defaults."""
    wanted = list(inspect.signature(protocol.exchange).parameters)
    real = inspect.signature(hop.Hop.exchange).parameters
    assert list(real)[: len(wanted)] == wanted
    assert all(parameter.default is not inspect.Parameter.empty for parameter in list(real.values())[len(wanted) :])
