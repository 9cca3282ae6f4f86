# SPDX-License-Identifier: Apache-2.0
"""The right to ask Quantum: a token and where to ask, fetched once for all threads and renewed early.

keystoneauth fetches them. What is added is what a thousand booting guests need:

- A token is renewed ``RENEW_BEFORE_EXPIRY_S`` before its end by one thread while the others go on with the old one, and
  when Keystone is away the old one stays in use as long as it lasts. (Neutron stops taking a token
  2 s before its end.)
- When a token is refused (401), it is renewed once, not once by each thread that met the refusal.
- A thread waits for another's renewal until its own deadline, no longer.
- What asking again will not mend, such as a wrong password, is remembered for ``NEGATIVE_CACHE_S``: users get locked
  out for less than a boot storm of wrong passwords.
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
from metadata_wsgi.lookup.neutron.transport import within

RENEW_BEFORE_EXPIRY_S = 120.0
LAST_S = 5.0
"""A token's last seconds are not used: clocks differ."""
NEGATIVE_CACHE_S = 5.0
FOREVER_S = float('inf')

AWAY = (
    exceptions.ConnectionError, exceptions.RetriableConnectionFailure, exceptions.DiscoveryFailure,
    exceptions.InvalidResponse, exceptions.HttpServerError, exceptions.TooManyRequests, exceptions.RequestTimeout,
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Grant:
    """What a request needs. ``headers`` hold the token and are shown nowhere; ``roles`` is empty without Keystone."""

    endpoint: str
    headers: Mapping[str, str]
    roles: frozenset[str]
    project_id: str | None
    renew_at_s: float
    ends_at_s: float

    def __repr__(self) -> str:
        return f'<Grant for {self.endpoint}>'


class Access:
    """Keeps the current grant. Shared by all threads of a worker.

    ``session`` is a keystoneauth session with its plugin. ``where`` says which endpoint of the catalogue:
    ``service_type``, ``interface`` and so on, as ``Session.get_endpoint`` takes them; ``endpoint`` needs no catalogue.
    """

    def __init__(
        self,
        session: Any,
        *,
        where: Mapping[str, Any],
        endpoint: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._session = session
        self._where = dict(where)
        self._endpoint = endpoint
        self._clock = clock
        self._now = now
        self._renewing = threading.Lock()
        self._grant: Grant | None = None
        self._renew_at_s = 0.0
        self._distrusted = ('', 0.0)

    def grant(self, deadline: Deadline, refused: Grant | None = None) -> Grant:
        """The current grant; another one than ``refused``.

        Raises LookupUnavailable when Keystone gives none now, InstanceLookupError when it refuses to.
        """
        held, now_s = self._grant, self._clock()
        usable = held if held and held is not refused and now_s < held.ends_at_s else None
        if usable and now_s < self._renew_at_s:
            return usable
        if not self._renewing.acquire(timeout=0.0 if usable else deadline.remaining_s()):
            if usable:
                return usable
            raise LookupUnavailable('the time was over before Keystone had given a token to another request')
        try:
            return self._renew(deadline, refused)
        finally:
            self._renewing.release()

    def distrust(self, grant: Grant, why: str) -> None:
        """Let go of ``grant`` and answer everybody with ``why`` for a while, before a new one is fetched.

        Does nothing while another one is being fetched, which may take longer than who calls has time for.
        """
        if not self._renewing.acquire(blocking=False):
            return
        try:
            if self._grant is grant:
                self._grant = None
                self._session.invalidate()
                self._distrusted = (why, self._clock() + NEGATIVE_CACHE_S)
        finally:
            self._renewing.release()

    def _renew(self, deadline: Deadline, refused: Grant | None) -> Grant:
        held, now_s = self._grant, self._clock()
        usable = held if held and held is not refused and now_s < held.ends_at_s else None
        if usable and now_s < self._renew_at_s:
            return usable
        why, until_s = self._distrusted
        if now_s < until_s:
            raise InstanceLookupError(why)
        if refused is not None and refused is held and not self._session.invalidate():
            raise InstanceLookupError(
                'Quantum refuses the configured credentials (401), and there is no token to renew'
            )
        try:
            self._grant = self._fetch(deadline)
        except LookupUnavailable:
            if usable is None:
                raise
            self._renew_at_s = now_s + NEGATIVE_CACHE_S
            return usable
        except InstanceLookupError as error:
            self._distrusted = (str(error), now_s + NEGATIVE_CACHE_S)
            raise
        self._renew_at_s = self._grant.renew_at_s
        return self._grant

    def _fetch(self, deadline: Deadline) -> Grant:
        try:
            with within(deadline):
                headers = self._session.get_auth_headers()
                endpoint = self._endpoint or self._session.get_endpoint(skip_discovery=True, **self._where)
            if headers is None:
                raise InstanceLookupError('there are no credentials for Quantum in the configuration')
            if not endpoint:
                raise InstanceLookupError(f"Keystone's catalogue has no endpoint of {self._sought()}")
            return self._granted(endpoint, headers)
        except AWAY as error:
            raise LookupUnavailable(f'Keystone gives no token now: {_text(error)}') from error
        except exceptions.Unauthorized as error:
            raise InstanceLookupError(
                'Keystone refuses the credentials (401): compare user, password and project'
            ) from error
        except exceptions.EndpointNotFound as error:
            raise InstanceLookupError(f'Keystone knows no such Quantum: {_text(error)}') from error
        except exceptions.ClientException as error:
            raise InstanceLookupError(f'Keystone gives no token: {_text(error)}') from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # keystoneauth takes an answer apart without looking: something else than Keystone spoke.
            raise LookupUnavailable(f'Keystone answered with something that is no token ({error!r:.100})') from error

    def _sought(self) -> str:
        return ', '.join(f'{name} {value}' for name, value in self._where.items() if value)

    def _granted(self, endpoint: str, headers: Mapping[str, str]) -> Grant:
        token = getattr(self._session.auth, 'auth_ref', None)
        if token is None:
            return Grant(endpoint, headers, frozenset(), None, FOREVER_S, FOREVER_S)
        lasts_s = (token.expires - self._now()).total_seconds()
        early_s = min(RENEW_BEFORE_EXPIRY_S, lasts_s / 5)
        now_s = self._clock()
        return Grant(
            endpoint, headers, frozenset(token.role_names), token.project_id,
            now_s + lasts_s - early_s, now_s + max(0.0, lasts_s - LAST_S),
        )  # fmt: skip


def _text(error: Exception) -> str:
    """keystoneauth's words without line ends; they have URLs and reasons, no credentials."""
    return ' '.join(str(error).split())[:300] or type(error).__name__
