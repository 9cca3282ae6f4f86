# SPDX-License-Identifier: Apache-2.0
"""A fake has the interface of the class that it replaces."""

import inspect

import pytest
from keystoneauth1.access import AccessInfoV3
from keystoneauth1.access.service_catalog import ServiceCatalog
from keystoneauth1.identity.base import BaseIdentityPlugin
from keystoneauth1.plugin import BaseAuthPlugin

from metadata_wsgi.lookup.neutron import auth, lookup, ports_api

from . import fakes


@pytest.mark.parametrize('implementation', [auth.Authenticator, fakes.FakeAuthenticator])
def test_a_token_provider_has_the_methods_of_the_protocol(implementation):
    check_signatures(implementation, lookup.TokenProvider)


@pytest.mark.parametrize('implementation', [ports_api.PortsApi, fakes.FakeApi])
def test_a_ports_client_has_the_methods_of_the_protocol(implementation):
    check_signatures(implementation, lookup.PortsClient)


@pytest.mark.parametrize(
    ('real', 'fake'),
    [
        (BaseIdentityPlugin.get_auth_ref, fakes.FakeKeystone.get_auth_ref),
        (BaseAuthPlugin.get_headers, fakes.FakeBasicAuth.get_headers),
        (ServiceCatalog.get_endpoints_data, fakes.FakeCatalog.get_endpoints_data),
    ],
)
def test_a_fake_of_keystoneauth_has_no_argument_that_the_real_one_does_not_have(real, fake):
    assert set(inspect.signature(fake).parameters) <= set(inspect.signature(real).parameters)


def test_the_fake_access_info_has_the_fields_of_a_real_token():
    real = {name for name in dir(AccessInfoV3) if not name.startswith('_')}
    catalog = fakes.FakeCatalog()
    assert set(vars(fakes.FakeAccessInfo('token', None, None, catalog))) - {'auth_token'} <= real
    assert hasattr(AccessInfoV3('token', {}), '_auth_token')


def check_signatures(implementation, protocol):
    for name, method in inspect.getmembers(protocol, inspect.isfunction):
        if not name.startswith('_'):
            wanted = list(inspect.signature(method).parameters)
            assert list(inspect.signature(getattr(implementation, name)).parameters)[: len(wanted)] == wanted
