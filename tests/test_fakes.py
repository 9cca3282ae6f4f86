# SPDX-License-Identifier: Apache-2.0
"""The fakes have the methods of their protocols. A test with a fake that differs proves nothing."""

from __future__ import annotations

import inspect

import pytest

from metadata_wsgi.cache import local, shared
from metadata_wsgi.filters.optional import rate_limit
from metadata_wsgi.http import client
from metadata_wsgi.lookup import protocol as lookup
from tests import fakes


@pytest.mark.parametrize(
    ('protocol', 'fake'),
    [
        (lookup.InstanceLookup, fakes.FakeLookup),
        (local.Backend, fakes.FakeBackend),
        (local.Backend, shared.SharedCache),
        (rate_limit.Counters, fakes.FakeCounters),
        (client.HttpClient, fakes.FakeHttpClient),
        (client.HttpClient, client.PooledHttpClient),
    ],
)
def test_a_fake_has_the_methods_of_its_protocol(protocol, fake):
    for name, method in inspect.getmembers(protocol, inspect.isfunction):
        if not name.startswith('_'):
            wanted, given = inspect.signature(method), inspect.signature(getattr(fake, name))
            assert list(given.parameters) == list(wanted.parameters)
