# SPDX-License-Identifier: Apache-2.0
"""The Keystone token and the Neutron endpoint: fetched once for all threads of a worker, renewed early.

keystoneauth sends the requests. This module keeps their number small if a thousand instances boot at once:

- One thread renews a token ``RENEW_BEFORE_EXPIRY_S`` before it expires (a fifth of the lifetime, if that is less).
  Other threads use the old token meanwhile. If the renewal fails, the old token is used until ``EXPIRY_MARGIN_S``
  before it expires. This early renewal takes at most ``EARLY_RENEWAL_TIMEOUT_S``, and at most half of the remaining
  time.
- If Neutron rejects a token (401), one thread renews it, even if several threads received a 401.
- A thread that has no valid token waits while another thread renews it, at most until its own deadline. A request for a
  token takes at most ``FETCH_TIMEOUT_S``, so a lost request of another thread leaves time for an attempt of its own.
- After some failures in a row, Keystone gets one request at a time, with pauses between them (circuit breaker). During
  a pause, a lookup without a valid token fails at once.
- An error after which a retry cannot help is cached for ``NEGATIVE_CACHE_S``.
- After Keystone has rejected the credentials, it gets no request during a pause. The pause doubles with each rejection,
  up to ``process_shared.MAX_PAUSE_S``. All workers of the agent share the pause (``rejection_pause``).

The lifetime of a token is the difference of two times from Keystone, ``expires_at`` and ``issued_at``. This host
measures the lifetime with its monotonic clock. So tokens are used correctly even if the date of this host is wrong.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from keystoneauth1 import exceptions
from keystoneauth1.session import Session

from metadata_wsgi import instruments, limits
from metadata_wsgi.cache.process_shared import SharedPause
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import InstanceLookupError, LookupUnavailable
from metadata_wsgi.http.circuit_breaker import CircuitBreaker
from metadata_wsgi.lookup.neutron.transport import deadline_scope, describe
from metadata_wsgi.throttle import Throttle

LOG = logging.getLogger(__name__)

RENEW_BEFORE_EXPIRY_S = 120.0
FETCH_TIMEOUT_S = 6.0
"""Timeout of a request for a token: the time of a first lookup attempt, two thirds of ``limits.REQUEST_TIMEOUT_S``. The
check at start has a longer deadline. Without this timeout, the requests that wait for its token could not retry."""
EARLY_RENEWAL_TIMEOUT_S = 2.0
EXPIRY_MARGIN_S = 5.0
"""A token is not used in the last seconds of its life: Neutron 29 rejected a token about 2 s before it expired."""
NEGATIVE_CACHE_S = 5.0
MAX_RENEWAL_PAUSE_S = 40.0
"""Longest pause between two early renewals that failed. The first pause is ``NEGATIVE_CACHE_S``; each doubles."""
REJECTED = 'Keystone rejects the credentials (401): compare user, password and project'
MAX_CLOCK_SKEW_S = 30.0
"""A larger difference between the clocks of this host and of Keystone is logged once."""
NEVER_S = float('inf')

UNAVAILABLE_ERRORS = (
    exceptions.ConnectionError, exceptions.RetriableConnectionFailure, exceptions.DiscoveryFailure,
    exceptions.InvalidResponse, exceptions.HttpServerError, exceptions.TooManyRequests, exceptions.RequestTimeout,
)  # fmt: skip
"""Errors of keystoneauth after which a retry may succeed."""


@dataclass(frozen=True, slots=True)
class EndpointFilter:
    """Selects Neutron's endpoint in Keystone's catalogue. The first interface of ``interfaces`` that exists is used.

    ``option_names`` are the names of the options for region and interface. Error texts contain them.
    """

    interfaces: tuple[str, ...]
    region_name: str | None = None
    service_type: str = 'network'
    service_name: str | None = None
    option_names: tuple[str, str] = ('auth_region', 'endpoint_type')


@dataclass(frozen=True, slots=True, eq=False)
class Token:
    """Endpoint and headers for requests to Neutron. ``headers`` contain the token and are never logged.

    Without Keystone ``roles`` is empty and ``project_id`` is None. ``renew_at_s`` and ``expires_at_s`` are times of the
    authenticator's clock.
    """

    endpoint: str
    headers: Mapping[str, str]
    roles: frozenset[str]
    project_id: str | None
    renew_at_s: float
    expires_at_s: float

    @property
    def is_from_keystone(self) -> bool:
        """Whether Keystone issued the token. False for the plugins ``none`` and ``http_basic``."""
        return self.expires_at_s != NEVER_S

    def __repr__(self) -> str:
        return f'<Token for {self.endpoint}>'


class KeystoneSession(Session):
    """A keystoneauth session that never authenticates a request itself.

    If Keystone responds 401 to the discovery of its versions, keystoneauth would request a token while it holds the
    lock of its plugin. A request for a token needs the same lock. So the thread would wait forever.
    """

    def get_auth_headers(self, auth: Any = None, **kwargs: Any) -> Any:
        """Called by keystoneauth for a request that needs a token. Raises DiscoveryFailure."""
        raise exceptions.DiscoveryFailure('Keystone rejects a request for its versions (401)')


class Authenticator:
    """Holds the current token. Shared by all threads of a worker.

    ``session`` is a keystoneauth session with its plugin. ``endpoint_filter`` selects the endpoint in the catalogue. If
    ``endpoint`` is set, the catalogue is not used.
    """

    def __init__(
        self,
        session: Any,
        *,
        endpoint_filter: EndpointFilter,
        endpoint: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._session = session
        self._endpoint_filter = endpoint_filter
        self._endpoint = endpoint
        self._clock = clock
        self._now = now
        self._renewal_lock = threading.Lock()
        self._token: Token | None = None
        self._renew_at_s = 0.0
        self._renewal_pause_s = NEGATIVE_CACHE_S
        self._cached_error = ('', 0.0)
        # Instances cannot cause failures of Keystone. So every failure counts, and not only failures to connect.
        self._circuit = CircuitBreaker(clock)
        self.rejection_pause = SharedPause(clock)
        self._renewal_log = Throttle(limits.LOG_INTERVAL_S, clock)
        self._skew_is_logged = False

    def token(self, deadline: Deadline, rejected: Token | None = None) -> Token:
        """Return the current token, or a new one if the current token must be renewed or is ``rejected``.

        Raises LookupUnavailable if Keystone is unavailable, InstanceLookupError if a retry cannot help.
        """
        current, now_s = self._token, self._clock()
        valid = current if current and current is not rejected and now_s < current.expires_at_s else None
        if valid and (now_s < self._renew_at_s or deadline.remaining_s() < limits.CIRCUIT_MIN_TIME_S):
            return valid
        if not self._renewal_lock.acquire(timeout=0.0 if valid else deadline.remaining_s()):
            if valid:
                return valid
            raise LookupUnavailable('the deadline passed while another request waited for a token from Keystone')
        try:
            return self._renew(deadline, rejected)
        finally:
            self._renewal_lock.release()

    def invalidate(self, token: Token, reason: str) -> None:
        """Discard ``token``. For ``NEGATIVE_CACHE_S``, :meth:`token` then raises InstanceLookupError with ``reason``.

        Does nothing while another thread fetches a token.
        """
        if not self._renewal_lock.acquire(blocking=False):
            return
        try:
            if self._token is token:
                self._token = None
                self._cached_error = (reason, self._clock() + NEGATIVE_CACHE_S)
        finally:
            self._renewal_lock.release()

    def _renew(self, deadline: Deadline, rejected: Token | None) -> Token:
        current, now_s = self._token, self._clock()
        valid = current if current and current is not rejected and now_s < current.expires_at_s else None
        if valid and now_s < self._renew_at_s:
            return valid
        reason, until_s = self._cached_error
        if valid is None and now_s < until_s:
            raise InstanceLookupError(reason)
        if self.rejection_pause.remaining_s():
            if valid:
                return valid
            raise InstanceLookupError(REJECTED)
        if rejected is not None and rejected is current and not rejected.is_from_keystone:
            raise InstanceLookupError(
                'Neutron rejects the configured credentials (401), and there is no token to renew'
            )
        if valid:
            deadline = Deadline(min(deadline.fraction(1 / 2).at_s, now_s + EARLY_RENEWAL_TIMEOUT_S), deadline.clock)
        else:
            deadline = Deadline(min(deadline.at_s, now_s + FETCH_TIMEOUT_S), deadline.clock)
        had_time = deadline.remaining_s() >= limits.CIRCUIT_MIN_TIME_S
        if valid is None and not self._circuit.allows_attempt(has_time=had_time):
            raise LookupUnavailable(self._circuit.last_error)
        self._circuit.start_attempt()
        try:
            self._token = self._fetch(deadline)
            instruments.TOKEN_RENEWALS.add('ok')
        except InstanceLookupError as error:
            now_s = self._clock()
            if isinstance(error, LookupUnavailable):
                instruments.TOKEN_RENEWALS.add('unavailable')
                self._circuit.record_failure(error, had_time=had_time)
            else:
                instruments.TOKEN_RENEWALS.add('rejected')
                self._circuit.record_connected()
                self._cached_error = (str(error), now_s + NEGATIVE_CACHE_S)
            if valid is None:
                raise
            # A Keystone that needs more time than an early renewal has gets few of them.
            self._renew_at_s = now_s + self._renewal_pause_s
            self._renewal_pause_s = min(2 * self._renewal_pause_s, MAX_RENEWAL_PAUSE_S)
            if self._renewal_log.allow():
                LOG.warning(
                    'The token is valid for another %d s and stays in use, but cannot be renewed: %s',
                    valid.expires_at_s - now_s,
                    error,
                )
            return valid
        self._circuit.record_connected()
        self.rejection_pause.reset()
        self._renew_at_s = self._token.renew_at_s
        self._renewal_pause_s = NEGATIVE_CACHE_S
        return self._token

    def _fetch(self, deadline: Deadline) -> Token:
        started_s = time.monotonic()
        outcome = 'error'
        try:
            with deadline_scope(deadline):
                token = self._fetch_token()
                outcome = 'ok'
                return token
        except UNAVAILABLE_ERRORS as error:
            raise LookupUnavailable(f'Keystone gives no token now: {describe(error)}') from error
        except exceptions.Unauthorized as error:
            self.rejection_pause.fail()
            raise InstanceLookupError(REJECTED) from error
        except exceptions.ClientException as error:
            raise InstanceLookupError(f'Keystone gives no token: {describe(error)}') from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # keystoneauth does not check a response: it may be from another service than Keystone.
            raise LookupUnavailable(f'The response of Keystone is not a token ({error!r:.100})') from error
        finally:
            instruments.SERVICE_SECONDS.observe(time.monotonic() - started_s, 'keystone', outcome)

    def _fetch_token(self) -> Token:
        # Session.get_token() is not used: it compares the token's expiry with the clock of this host. If this
        # clock is wrong, every call would fetch a token.
        access_info = self._session.auth.get_auth_ref(self._session)
        if access_info is None:
            return self._without_keystone()
        endpoint = self._endpoint or select_endpoint(access_info.service_catalog, self._endpoint_filter)
        self._log_clock_skew(access_info.issued)
        lifetime_s = max(0.0, (access_info.expires - access_info.issued).total_seconds())
        margin_s = min(RENEW_BEFORE_EXPIRY_S, lifetime_s / 5)
        now_s = self._clock()
        return Token(
            endpoint, {'X-Auth-Token': access_info.auth_token}, frozenset(access_info.role_names),
            access_info.project_id, now_s + lifetime_s - margin_s, now_s + max(0.0, lifetime_s - EXPIRY_MARGIN_S),
        )  # fmt: skip

    def _without_keystone(self) -> Token:
        headers = self._session.auth.get_headers(self._session)
        if headers is None:
            raise InstanceLookupError('there are no credentials for Neutron in the configuration')
        wanted = self._endpoint_filter
        endpoint = self._endpoint or self._session.get_endpoint(
            skip_discovery=True, service_type=wanted.service_type, interface=list(wanted.interfaces)
        )
        if not endpoint:
            raise InstanceLookupError('there is no endpoint of Neutron in the configuration: set endpoint')
        return Token(endpoint, headers, frozenset(), None, NEVER_S, NEVER_S)

    def _log_clock_skew(self, issued: datetime) -> None:
        skew_s = (self._now() - issued).total_seconds()
        if abs(skew_s) > MAX_CLOCK_SKEW_S and not self._skew_is_logged:
            self._skew_is_logged = True
            LOG.warning(
                "The clock of this host is %d s %s Keystone's clock. Tokens still work, but times in logs are "
                'wrong: check NTP on both hosts',
                abs(skew_s),
                'ahead of' if skew_s > 0 else 'behind',
            )


def select_endpoint(catalog: Any, wanted: EndpointFilter) -> str:
    """Return the URL of the endpoint that ``wanted`` selects in a keystoneauth service catalogue.

    Raises InstanceLookupError if no endpoint matches, or if no region is configured and the catalogue has endpoints in
    several regions. The Neutron of another region does not have the routers of this host. The error text lists the
    regions or interfaces of the catalogue.
    """
    found = catalog.get_endpoints_data(service_type=wanted.service_type, service_name=wanted.service_name)
    endpoints = [entry for entries in found.values() for entry in entries if entry.url]
    region_option, interface_option = wanted.option_names
    kind = f'{wanted.service_type} endpoint' + (f' named {wanted.service_name}' if wanted.service_name else '')
    if not endpoints:
        raise InstanceLookupError(
            f"Keystone's catalogue has no {kind}; without a project in the credentials it is empty"
        )
    regions = sorted({entry.region_name or '' for entry in endpoints})
    if wanted.region_name:
        endpoints = [entry for entry in endpoints if entry.region_name == wanted.region_name]
        if not endpoints:
            raise InstanceLookupError(
                f"Keystone's catalogue has no {kind} in region {wanted.region_name} ({region_option}); "
                f'it has some in {_list(regions)}'
            )
    elif len(regions) > 1:
        raise InstanceLookupError(
            f"Keystone's catalogue has {kind}s in the regions {_list(regions)}; set {region_option} to the one of "
            'this host'
        )
    for interface in wanted.interfaces:
        for entry in endpoints:
            if entry.interface in (interface, f'{interface}URL'):
                url: str = entry.url
                return url
    interfaces = sorted({str(entry.interface).removesuffix('URL') for entry in endpoints})
    raise InstanceLookupError(
        f"Keystone's catalogue has no {kind} with interface {_list(wanted.interfaces)}; it has {_list(interfaces)}: "
        f'set {interface_option}'
    )


def _list(names: Sequence[str]) -> str:
    return ' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))
