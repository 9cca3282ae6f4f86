# SPDX-License-Identifier: Apache-2.0
"""Fakes for unit tests. Each one replaces a Protocol or a callable on which the tested code depends."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from metadata_wsgi.cache.local import Ttl
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.http import message
from metadata_wsgi.pipeline.environ_keys import Instance, Source

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from metadata_wsgi.cache import local
    from metadata_wsgi.filters.optional import rate_limit
    from metadata_wsgi.http import client
    from metadata_wsgi.lookup import protocol


class FakeClock:
    """A clock in seconds that moves only by ``sleep``."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


class FakeCounters:
    """``amount`` requests of each client pass. Later ones get ``wait_s``. ``error``, if set, is always raised."""

    def __init__(self, amount: int = 0, wait_s: float = 1.0, error: Exception | None = None) -> None:
        self._amount, self._wait_s, self.error = amount, wait_s, error
        self.hits: list[str] = []

    def hit(self, client: str) -> float:
        self.hits.append(client)
        if self.error:
            raise self.error
        return 0.0 if self.hits.count(client) <= self._amount else self._wait_s


class FakeLookup:
    """A lookup with the given outcomes: instances, or an exception to raise. The last outcome is repeated."""

    def __init__(self, *outcomes: Sequence[Instance] | Exception) -> None:
        self._outcomes = list(outcomes)
        self.calls: list[tuple[Source, Deadline]] = []

    def find(self, source: Source, deadline: Deadline) -> Sequence[Instance]:
        self.calls.append((source, deadline))
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class FakeBackend:
    """A shared cache: entries are (value, age in seconds, TTL)."""

    def __init__(self, **entries: tuple[Any, float, Ttl]) -> None:
        self.entries: dict[Hashable, tuple[Any, float, Ttl]] = dict(entries)
        self.reads: list[Hashable] = []

    def get(self, key: Hashable) -> tuple[Any, float, Ttl] | None:
        self.reads.append(key)
        return self.entries.get(key)

    def set(self, key: Hashable, value: Any, ttl: Ttl, age_s: float) -> None:
        self.entries[key] = (value, age_s, ttl)

    def delete(self, key: Hashable) -> None:
        self.entries.pop(key, None)


class FakeHttpClient:
    """An HTTP client with the given outcomes: statuses, responses or exceptions. The last outcome is repeated.

    Each request takes ``takes_s`` of ``clock``. If the deadline is earlier, ``late`` is raised at the deadline.
    """

    def __init__(
        self,
        *outcomes: int | message.Response | Exception,
        name: str = 'fake',
        clock: FakeClock | None = None,
        takes_s: float = 0.0,
        late: Exception | None = None,
    ) -> None:
        self._outcomes: list[int | message.Response | Exception] = list(outcomes)
        self.name = name
        self.requests: list[message.Request] = []
        self._clock, self._takes_s, self._late = clock, takes_s, late

    def send_request(self, request: message.Request, deadline: Deadline) -> message.Response:
        self.requests.append(request)
        remaining_s = deadline.remaining_s()
        if self._clock:
            self._clock.now_s += min(self._takes_s, remaining_s)
        if self._late and self._takes_s > remaining_s:
            raise self._late
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, int):
            return message.Response(outcome, 'Fake', [('x-client', self.name)], [])
        return outcome


@dataclass
class FakeNova:
    """Authenticates requests with the checks of Nova's metadata API, in the same order, and records the requests.

    ``instances`` maps instance ids to project ids. The first requests get ``statuses``, one each. ``before`` is called
    before each response. ``headers`` are added to each response.
    """

    secret: bytes
    instances: Mapping[str, str]
    statuses: list[int] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    before: Callable[[], object] = lambda: None
    headers: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        body = environ['wsgi.input'].read(int(environ.get('CONTENT_LENGTH') or 0))
        self.before()
        with self.lock:
            self.seen.append({**environ, 'body': body})
            status = self.statuses.pop(0) if self.statuses else self._status(environ)
        content = json.dumps({'uuid': environ.get('HTTP_X_INSTANCE_ID'), 'path': environ['PATH_INFO']}).encode()
        headers = [('Content-Type', 'application/json'), ('Content-Length', str(len(content))), ('X-Nova', 'yes')]
        headers += self.headers
        start_response(f'{status} Nova', headers)
        return [] if environ['REQUEST_METHOD'] == 'HEAD' else [content]

    def _status(self, environ: WSGIEnvironment) -> int:
        names = ('HTTP_X_INSTANCE_ID', 'HTTP_X_INSTANCE_ID_SIGNATURE', 'HTTP_X_TENANT_ID')
        instance, signature, tenant = (environ.get(name) for name in names)
        if not instance or not signature or not tenant:
            return 400
        if signature != hmac.new(self.secret, instance.encode(), hashlib.sha256).hexdigest():
            return 403
        return 200 if self.instances.get(instance) == tenant else 404


if TYPE_CHECKING:  # checked by mypy; tests/test_fakes.py checks the signatures at run time
    _clock: Callable[[], float] = FakeClock()
    _sleep: Callable[[float], None] = FakeClock().sleep
    _lookup: protocol.InstanceLookup = FakeLookup()
    _backend: local.Backend = FakeBackend()
    _counters: rate_limit.Counters = FakeCounters()
    _client: client.HttpClient = FakeHttpClient()
    _nova: WSGIApplication = FakeNova(b'', {})
