# SPDX-License-Identifier: Apache-2.0
"""A fake that differs from what it stands for proves nothing."""

from __future__ import annotations

import inspect

import pytest

from metadata_wsgi.cache import local, shared
from metadata_wsgi.filters.optional import rate_limit
from metadata_wsgi.http import client
from metadata_wsgi.lookup import protocol as lookup
from metadata_wsgi.namespace_proxy import app as namespace_proxy
from metadata_wsgi.nova_proxy import upstream
from tests import fakes


@pytest.mark.parametrize(
    ('protocol', 'fake'),
    [
        (lookup.InstanceLookup, fakes.FakeLookup),
        (local.Backend, fakes.FakeBackend),
        (local.Backend, shared.SharedCache),
        (rate_limit.Counters, fakes.FakeCounters),
        (upstream.HttpClient, fakes.FakeHttpClient),
        (namespace_proxy.HttpClient, fakes.FakeHttpClient),
    ],
)
def test_a_fake_has_the_methods_of_its_protocol(protocol, fake):
    for name, method in inspect.getmembers(protocol, inspect.isfunction):
        if not name.startswith('_'):
            wanted, given = inspect.signature(method), inspect.signature(getattr(fake, name))
            assert list(given.parameters) == list(wanted.parameters)


@pytest.mark.parametrize('protocol', [upstream.HttpClient, namespace_proxy.HttpClient])
def test_the_real_hop_takes_what_the_protocol_gives(protocol):
    """It may take more, with defaults."""
    wanted = list(inspect.signature(protocol.send_request).parameters)
    real = inspect.signature(client.HttpClient.send_request).parameters
    assert list(real)[: len(wanted)] == wanted
    assert all(parameter.default is not inspect.Parameter.empty for parameter in list(real.values())[len(wanted) :])
