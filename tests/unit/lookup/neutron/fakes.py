# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for Keystone (behind a keystoneauth session), for the grant and for the API."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from metadata_wsgi.lookup.neutron.auth import FOREVER_S, Grant


class FakeToken:
    """What keystoneauth knows of a token."""

    def __init__(self, expires, roles=('service',), project_id='service-project'):
        self.expires = expires
        self.role_names = list(roles)
        self.project_id = project_id


class FakeKeystone:
    """A session and its plugin in one. Each token lasts ``lasts_s`` of ``clock``; ``fails`` is raised while it is set.

    ``before`` is called whenever a token is fetched.
    """

    def __init__(self, clock, lasts_s=3600.0, endpoint='http://neutron'):
        self.clock = clock
        self.lasts_s = lasts_s
        self.endpoint = endpoint
        self.fails = None
        self.before = lambda: None
        self.fetched = 0
        self.invalidated = 0
        self.can_renew = True
        self.auth = self
        self.auth_ref = None
        self.sought = []

    def now(self):
        return datetime.fromtimestamp(self.clock(), UTC)

    def get_auth_headers(self):
        self.before()
        if self.fails:
            raise self.fails
        self.fetched += 1
        self.auth_ref = FakeToken(self.now() + timedelta(seconds=self.lasts_s))
        return {'X-Auth-Token': f'token-{self.fetched}'}

    def get_endpoint(self, **where):
        self.sought.append(where)
        return self.endpoint

    def invalidate(self):
        self.invalidated += 1
        return self.can_renew


class FakeAccess:
    """Gives the next of ``grants``, another one only to who says that the last was refused."""

    def __init__(self, *grants):
        self.grants = list(grants) or [grant()]
        self.distrusted = []

    def grant(self, deadline, refused=None):
        if refused is self.grants[0] and len(self.grants) > 1:
            self.grants.pop(0)
        return self.grants[0]

    def distrust(self, grant, why):
        self.distrusted.append((grant, why))


class FakeApi:
    """Answers each question with the next of ``outcomes``: ports, or an exception to raise; the last one for ever."""

    def __init__(self, *outcomes, access=None):
        self._outcomes = list(outcomes)
        self.access = access or FakeAccess()
        self.asked = []
        self.closed = False

    def ports(self, query, deadline, on_query, pages=100):
        self.asked.append(query)
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        on_query('asked', 0.0, len(outcome))
        return outcome

    def close(self):
        self.closed = True


def grant(token='token-1', endpoint='http://neutron', roles=('service',), project_id='service-project'):
    return Grant(endpoint, {'X-Auth-Token': token}, frozenset(roles), project_id, FOREVER_S, FOREVER_S)


def port(**fields):
    """A guest's port as Quantum gives it."""
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
