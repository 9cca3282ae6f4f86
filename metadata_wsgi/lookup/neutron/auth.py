# SPDX-License-Identifier: Apache-2.0
"""The Keystone token and the Neutron endpoint: fetched once for all threads of a worker, renewed early.

keystoneauth sends the requests. This module adds what a thousand instances that boot at once need:

- One thread renews a token ``RENEW_BEFORE_EXPIRY_S`` before it expires; the others use the old one meanwhile. While
  Keystone is unavailable the old one stays in use until it expires.
- A token that Neutron rejects (401) is renewed once, not once by each thread that received a 401.
- A thread waits for another thread's renewal until its own deadline, no longer.
- An error that a retry does not repair, such as a wrong password, is cached for ``NEGATIVE_CACHE_S``: Keystone may
  lock an account after some failed attempts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from keystoneauth1 import exceptions

from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import InstanceLookupError, LookupUnavailable
from metadata_wsgi.lookup.neutron.transport import deadline_scope

RENEW_BEFORE_EXPIRY_S = 120.0
EXPIRY_MARGIN_S = 5.0
"""A token is not used in its last seconds: Neutron rejects it about 2 s before it expires (tried with Neutron 29)."""
NEGATIVE_CACHE_S = 5.0
NEVER_S = float('inf')

UNAVAILABLE_ERRORS = (
    exceptions.ConnectionError, exceptions.RetriableConnectionFailure, exceptions.DiscoveryFailure,
    exceptions.InvalidResponse, exceptions.HttpServerError, exceptions.TooManyRequests, exceptions.RequestTimeout,
)  # fmt: skip
"""A retry may succeed."""


@dataclass(frozen=True, slots=True, eq=False)
class Token:
    """What a request to Neutron needs. ``headers`` hold the token and are never logged.

    ``roles`` is empty and ``project_id`` None without Keystone. Times are of the authenticator's clock.
    """

    endpoint: str
    headers: Mapping[str, str]
    roles: frozenset[str]
    project_id: str | None
    renew_at_s: float
    expires_at_s: float

    def __repr__(self) -> str:
        return f'<Token for {self.endpoint}>'


class Authenticator:
    """Holds the current token. Shared by all threads of a worker.

    ``session`` is a keystoneauth session with its plugin. ``endpoint_filter`` selects the endpoint in the catalogue:
    ``service_type``, ``interface`` and so on, as ``Session.get_endpoint`` takes them. ``endpoint`` replaces the
    catalogue.
    """

    def __init__(
        self,
        session: Any,
        *,
        endpoint_filter: Mapping[str, Any],
        endpoint: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._session = session
        self._endpoint_filter = dict(endpoint_filter)
        self._endpoint = endpoint
        self._clock = clock
        self._now = now
        self._renewal_lock = threading.Lock()
        self._token: Token | None = None
        self._renew_at_s = 0.0
        self._cached_error = ('', 0.0)

    def token(self, deadline: Deadline, rejected: Token | None = None) -> Token:
        """Return the current token, but never ``rejected``.

        Raises LookupUnavailable when Keystone is unavailable, InstanceLookupError when it rejects the credentials.
        """
        current, now_s = self._token, self._clock()
        valid = current if current and current is not rejected and now_s < current.expires_at_s else None
        if valid and now_s < self._renew_at_s:
            return valid
        if not self._renewal_lock.acquire(timeout=0.0 if valid else deadline.remaining_s()):
            if valid:
                return valid
            raise LookupUnavailable('the deadline passed before Keystone had given a token to another request')
        try:
            return self._renew(deadline, rejected)
        finally:
            self._renewal_lock.release()

    def invalidate(self, token: Token, reason: str) -> None:
        """Discard ``token``. Until a new one may be fetched, every caller gets InstanceLookupError with ``reason``.

        Does nothing while another thread fetches a token: the caller may have no time to wait for it.
        """
        if not self._renewal_lock.acquire(blocking=False):
            return
        try:
            if self._token is token:
                self._token = None
                self._session.invalidate()
                self._cached_error = (reason, self._clock() + NEGATIVE_CACHE_S)
        finally:
            self._renewal_lock.release()

    def _renew(self, deadline: Deadline, rejected: Token | None) -> Token:
        current, now_s = self._token, self._clock()
        valid = current if current and current is not rejected and now_s < current.expires_at_s else None
        if valid and now_s < self._renew_at_s:
            return valid
        reason, until_s = self._cached_error
        if now_s < until_s:
            raise InstanceLookupError(reason)
        if rejected is not None and rejected is current and not self._session.invalidate():
            raise InstanceLookupError(
                'Neutron rejects the configured credentials (401), and there is no token to renew'
            )
        try:
            self._token = self._fetch(deadline)
        except LookupUnavailable:
            if valid is None:
                raise
            self._renew_at_s = now_s + NEGATIVE_CACHE_S
            return valid
        except InstanceLookupError as error:
            self._cached_error = (str(error), now_s + NEGATIVE_CACHE_S)
            raise
        self._renew_at_s = self._token.renew_at_s
        return self._token

    def _fetch(self, deadline: Deadline) -> Token:
        try:
            with deadline_scope(deadline):
                headers = self._session.get_auth_headers()
                endpoint = self._endpoint or self._session.get_endpoint(skip_discovery=True, **self._endpoint_filter)
            if headers is None:
                raise InstanceLookupError('there are no credentials for Neutron in the configuration')
            if not endpoint:
                raise InstanceLookupError(f"Keystone's catalogue has no endpoint of {self._filter_text()}")
            return self._make_token(endpoint, headers)
        except UNAVAILABLE_ERRORS as error:
            raise LookupUnavailable(f'Keystone gives no token now: {_one_line(error)}') from error
        except exceptions.Unauthorized as error:
            raise InstanceLookupError(
                'Keystone rejects the credentials (401): compare user, password and project'
            ) from error
        except exceptions.EndpointNotFound as error:
            raise InstanceLookupError(f"Neutron is not in Keystone's catalogue: {_one_line(error)}") from error
        except exceptions.ClientException as error:
            raise InstanceLookupError(f'Keystone gives no token: {_one_line(error)}') from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # keystoneauth parses a response without checks: the response was not Keystone's.
            raise LookupUnavailable(f'The response of Keystone is not a token ({error!r:.100})') from error

    def _filter_text(self) -> str:
        return ', '.join(f'{name} {value}' for name, value in self._endpoint_filter.items() if value)

    def _make_token(self, endpoint: str, headers: Mapping[str, str]) -> Token:
        access_info = getattr(self._session.auth, 'auth_ref', None)
        if access_info is None:
            return Token(endpoint, headers, frozenset(), None, NEVER_S, NEVER_S)
        lifetime_s = (access_info.expires - self._now()).total_seconds()
        margin_s = min(RENEW_BEFORE_EXPIRY_S, lifetime_s / 5)
        now_s = self._clock()
        return Token(
            endpoint, headers, frozenset(access_info.role_names), access_info.project_id,
            now_s + lifetime_s - margin_s, now_s + max(0.0, lifetime_s - EXPIRY_MARGIN_S),
        )  # fmt: skip


def _one_line(error: Exception) -> str:
    """The text of keystoneauth's ``error`` on one line. It contains URLs and reasons, no credentials."""
    return ' '.join(str(error).split())[:300] or type(error).__name__
