# SPDX-License-Identifier: Apache-2.0
"""Fakes of Keystone (behind a keystoneauth session), of the authenticator and of the ports API."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

from metadata_wsgi.cache.process_shared import SharedPause
from metadata_wsgi.lookup.neutron.auth import NEVER_S, Token


class FakeCatalog:
    """A service catalogue of ``endpoints``: (interface, region, URL)."""

    def __init__(self, *endpoints):
        self._entries = [
            SimpleNamespace(interface=interface, region_name=region, url=url) for interface, region, url in endpoints
        ]

    def get_endpoints_data(self, service_type=None, service_name=None):
        return {service_type: self._entries} if service_type == 'network' and service_name is None else {}


class FakeAccessInfo:
    """The fields of keystoneauth's AccessInfo that are used."""

    def __init__(self, auth_token, issued, expires, service_catalog):
        self.auth_token = auth_token
        self.issued = issued
        self.expires = expires
        self.service_catalog = service_catalog
        self.role_names = ['service']
        self.project_id = 'service-project'


class FakeKeystone:
    """A session and its plugin in one. Each token is valid for ``lifetime_s`` of ``clock``.

    ``error`` is raised while it is set. ``on_fetch`` is called before a token is fetched. The clock of Keystone is
    ``behind_s`` seconds behind that of this host.
    """

    def __init__(self, clock, lifetime_s=3600.0):
        self.clock = clock
        self.lifetime_s = lifetime_s
        self.catalog = FakeCatalog(('admin', 'RegionOne', 'http://neutron'))
        self.behind_s = 0.0
        self.error = None
        self.on_fetch = lambda: None
        self.fetched = 0
        self.auth = self

    def now(self):
        return datetime.fromtimestamp(self.clock(), UTC)

    def get_auth_ref(self, session):
        self.on_fetch()
        if self.error:
            raise self.error
        self.fetched += 1
        issued = self.now() - timedelta(seconds=self.behind_s)
        return FakeAccessInfo(
            f'token-{self.fetched}', issued, issued + timedelta(seconds=self.lifetime_s), self.catalog
        )


class FakeBasicAuth:
    """A session and its plugin without Keystone, as http_basic."""

    def __init__(self, headers):
        self._headers = headers
        self.auth = self

    def get_auth_ref(self, session):
        return None

    def get_headers(self, session):
        return self._headers

    def get_endpoint(self, skip_discovery=False, service_type=None, interface=None):
        return 'http://neutron'


class FakeAuthenticator:
    """Returns the first of ``tokens``, and the next one only after the first was rejected."""

    def __init__(self, *tokens):
        self.tokens = list(tokens) or [token()]
        self.invalidated = []
        self.rejection_pause = SharedPause()

    def token(self, deadline, rejected=None):
        if rejected is self.tokens[0] and len(self.tokens) > 1:
            self.tokens.pop(0)
        return self.tokens[0]

    def invalidate(self, token, reason):
        self.invalidated.append((token, reason))


class FakeApi:
    """Returns the next of ``outcomes`` for each query: ports, or an exception to raise. The last one is repeated."""

    def __init__(self, *outcomes, auth=None):
        self.outcomes = list(outcomes)
        self.auth = auth or FakeAuthenticator()
        self.queries = []
        self.owners = []
        self.closed = False

    def ports(self, query, deadline, on_query, pages=100):
        self.queries.append(query)
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        on_query('GET', 0.0, len(outcome))
        return outcome

    def network_owners(self, deadline, on_query):
        if isinstance(self.owners, Exception):
            raise self.owners
        return self.owners

    def close(self):
        self.closed = True


def token(
    value='token-1', endpoint='http://neutron', roles=('service',), project_id='service-project', expires_at_s=1e9
):
    return Token(endpoint, {'X-Auth-Token': value}, frozenset(roles), project_id, NEVER_S, expires_at_s)


def port(**fields):
    """An instance's port as Neutron returns it."""
    return {
        'id': 'port-1',
        'device_id': 'instance-1',
        'device_owner': 'compute:nova',
        'project_id': 'project-1',
        'network_id': 'network-1',
        'mac_address': 'fa:16:3e:00:00:01',
        'fixed_ips': [{'subnet_id': 'subnet-1', 'ip_address': '10.1.1.2'}],
        **fields,
    }
