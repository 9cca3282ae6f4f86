# SPDX-License-Identifier: Apache-2.0
"""A fake has the interface of the class that it replaces."""

import inspect

import pytest
from keystoneauth1.session import Session

from metadata_wsgi.lookup.neutron import auth, lookup, ports_api

from . import fakes


@pytest.mark.parametrize('implementation', [auth.Authenticator, fakes.FakeAuthenticator])
def test_a_token_provider_has_the_methods_of_the_protocol(implementation):
    check_signatures(implementation, lookup.TokenProvider)


@pytest.mark.parametrize('implementation', [ports_api.PortsApi, fakes.FakeApi])
def test_a_ports_client_has_the_methods_of_the_protocol(implementation):
    check_signatures(implementation, lookup.PortsClient)


@pytest.mark.parametrize('name', ['get_auth_headers', 'get_endpoint', 'invalidate'])
def test_the_fake_keystone_has_no_argument_that_a_session_does_not_have(name):
    fake = inspect.signature(getattr(fakes.FakeKeystone, name)).parameters
    assert set(fake) - {'endpoint_filter'} <= set(inspect.signature(getattr(Session, name)).parameters)


def check_signatures(implementation, protocol):
    for name, method in inspect.getmembers(protocol, inspect.isfunction):
        if not name.startswith('_'):
            wanted = list(inspect.signature(method).parameters)
            assert list(inspect.signature(getattr(implementation, name)).parameters)[: len(wanted)] == wanted
