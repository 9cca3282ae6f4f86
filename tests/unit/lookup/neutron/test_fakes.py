# SPDX-License-Identifier: Apache-2.0
"""A fake that differs from what it stands for proves nothing."""

import inspect

import pytest
from keystoneauth1.session import Session

from metadata_wsgi.lookup.neutron import auth, lookup, ports_api

from . import fakes


@pytest.mark.parametrize('stands', [auth.Access, fakes.FakeAccess])
def test_who_keeps_the_grant(stands):
    takes_at_least(stands, lookup.CurrentGrant)


@pytest.mark.parametrize('stands', [ports_api.PortsApi, fakes.FakeApi])
def test_who_lists_ports(stands):
    takes_at_least(stands, lookup.Api)


@pytest.mark.parametrize('name', ['get_auth_headers', 'get_endpoint', 'invalidate'])
def test_the_fake_keystone_can_be_called_as_a_session_is(name):
    """It takes no more than a real session does."""
    fake = inspect.signature(getattr(fakes.FakeKeystone, name)).parameters
    assert set(fake) - {'where'} <= set(inspect.signature(getattr(Session, name)).parameters)


def takes_at_least(stands, protocol):
    for name, method in inspect.getmembers(protocol, inspect.isfunction):
        if not name.startswith('_'):
            wanted = list(inspect.signature(method).parameters)
            assert list(inspect.signature(getattr(stands, name)).parameters)[: len(wanted)] == wanted
