# SPDX-License-Identifier: Apache-2.0
"""Fakes of Keystone (behind a keystoneauth session), of the authenticator and of the ports API."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from metadata_wsgi.lookup.neutron.auth import NEVER_S, Token


class FakeToken:
    """The fields of keystoneauth's AccessInfo that are used."""

    def __init__(self, expires, roles=('service',), project_id='service-project'):
        self.expires = expires
        self.role_names = list(roles)
        self.project_id = project_id


class FakeKeystone:
    """A session and its plugin in one. Each token is valid for ``lifetime_s`` of ``clock``.

    ``error`` is raised while it is set. ``on_fetch`` is called before a token is fetched.
    """

    def __init__(self, clock, lifetime_s=3600.0, endpoint='http://neutron'):
        self.clock = clock
        self.lifetime_s = lifetime_s
        self.endpoint = endpoint
        self.error = None
        self.on_fetch = lambda: None
        self.fetched = 0
        self.invalidations = 0
        self.can_renew = True
        self.auth = self
        self.auth_ref = None
        self.endpoint_filters = []

    def now(self):
        return datetime.fromtimestamp(self.clock(), UTC)

    def get_auth_headers(self):
        self.on_fetch()
        if self.error:
            raise self.error
        self.fetched += 1
        self.auth_ref = FakeToken(self.now() + timedelta(seconds=self.lifetime_s))
        return {'X-Auth-Token': f'token-{self.fetched}'}

    def get_endpoint(self, **endpoint_filter):
        self.endpoint_filters.append(endpoint_filter)
        return self.endpoint

    def invalidate(self):
        self.invalidations += 1
        return self.can_renew


class FakeAuthenticator:
    """Returns the first of ``tokens``, and the next one only after the first was rejected."""

    def __init__(self, *tokens):
        self.tokens = list(tokens) or [token()]
        self.invalidated = []

    def token(self, deadline, rejected=None):
        if rejected is self.tokens[0] and len(self.tokens) > 1:
            self.tokens.pop(0)
        return self.tokens[0]

    def invalidate(self, token, reason):
        self.invalidated.append((token, reason))


class FakeApi:
    """Returns the next of ``outcomes`` for each query: ports, or an exception to raise. The last one is repeated."""

    def __init__(self, *outcomes, auth=None):
        self._outcomes = list(outcomes)
        self.auth = auth or FakeAuthenticator()
        self.queries = []
        self.closed = False

    def ports(self, query, deadline, on_query, pages=100):
        self.queries.append(query)
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        on_query('GET', 0.0, len(outcome))
        return outcome

    def close(self):
        self.closed = True


def token(value='token-1', endpoint='http://neutron', roles=('service',), project_id='service-project'):
    return Token(endpoint, {'X-Auth-Token': value}, frozenset(roles), project_id, NEVER_S, NEVER_S)


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
