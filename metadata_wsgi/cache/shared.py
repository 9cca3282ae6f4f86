# SPDX-License-Identifier: Apache-2.0
"""The memory that workers and hosts share: memcached or Redis, chosen by ``cache_url``, spoken to by dogpile.cache.

Values travel as JSON, so nobody who can write there runs code here; keys are hashed, so none is too long
and none says whose it is. Each entry says when it was made and is judged by that here, whatever the
server keeps; hosts whose clocks differ more than a second or two should not share one.

A server that is away is a slow path: a question to it ends within ``TIMEOUT_S``, and after a failure nobody
asks it for ``RETRY_AFTER_FAILURE_S``, then one does. Nothing in here raises.

Who can write there can say who a guest is, and who can read there can read what guests are told. Let nobody
but the agents reach it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Hashable
from typing import Any
from urllib.parse import urlsplit

from dogpile.cache import make_region, register_backend
from dogpile.cache.api import NO_VALUE
from dogpile.cache.backends.memcached import PyMemcacheBackend
from oslo_config import cfg

from metadata_wsgi import limits
from metadata_wsgi.cache.local import Ttl
from metadata_wsgi.errors import ConfigError
from metadata_wsgi.throttle import Throttle

LOG = logging.getLogger(__name__)

OPTS = [
    cfg.StrOpt(
        'cache_url',
        default='memory://',
        secret=True,
        help='Where the caches are shared: memcached://host:11211 (several hosts, separated by commas), '
        'memcached:///path/of/socket, redis://host:6379/0, rediss://... By default each worker has its own memory.',
    ),
]

TIMEOUT_S = 0.25
RETRY_AFTER_FAILURE_S = 5.0
CONNECTIONS = 256
HEADROOM_S = 5.0


class SharedCache:
    """Entries of one ``kind`` in ``region``. ``pack`` makes a value JSON can carry, ``unpack`` the other way."""

    def __init__(
        self,
        region: Any,
        kind: str,
        *,
        pack: Callable[[Any], Any],
        unpack: Callable[[Any], Any],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._region = region
        self._kind = kind
        self._pack = pack
        self._unpack = unpack
        self._clock = clock
        self._now = now
        self._ask_after_s = float('-inf')
        self._is_away = False
        self._seldom = Throttle(limits.LOG_INTERVAL_S, clock)

    def get(self, key: Hashable) -> tuple[Any, float, Ttl] | None:
        """(value, its age in seconds, the lives it had when it was new), or None where it cannot be had."""
        found = self._try(lambda: self._region.get(self._name(key)))
        if not isinstance(found, dict):
            return None
        try:
            age_s = self._now() - float(found['made'])
            lives = Ttl(float(found['fresh']), float(found['usable']))
            if not (age_s >= -1.0 and math.isfinite(lives.fresh_s) and math.isfinite(lives.usable_s)):
                return None
            return self._unpack(found['value']), max(0.0, age_s), lives
        except (KeyError, TypeError, ValueError):
            return None

    def put(self, key: Hashable, value: Any, lives: Ttl) -> None:
        """Keep it, if the server can."""
        made = {'value': self._pack(value), 'made': self._now(), 'fresh': lives.fresh_s, 'usable': lives.usable_s}
        self._try(lambda: self._region.set(self._name(key), made))

    def forget(self, key: Hashable) -> None:
        """Keep it no longer, if the server can hear it."""
        self._try(lambda: self._region.delete(self._name(key)))

    def _name(self, key: Hashable) -> str:
        return f'metadata_wsgi:{self._kind}:{hashlib.sha256(json.dumps(key).encode()).hexdigest()}'

    def _try(self, call: Callable[[], Any]) -> Any:
        now_s = self._clock()
        if now_s < self._ask_after_s:
            return None
        if self._is_away:
            self._ask_after_s = now_s + RETRY_AFTER_FAILURE_S  # the others wait for what this one sees
        try:
            result = call()
        except Exception as error:  # each client library has a tree of its own
            self._is_away = True
            self._ask_after_s = self._clock() + RETRY_AFTER_FAILURE_S
            if self._seldom.allow():
                LOG.warning('The shared cache is away, so each worker goes by its own: %s', error or type(error))
            return None
        self._is_away = False
        self._ask_after_s = float('-inf')
        return None if result is NO_VALUE else result


def connect(url: str, *, longest_s: float) -> Any:
    """The region of dogpile.cache that ``url`` names, whose server drops entries after ``longest_s``; None for
    ``memory://``. Nothing is sent yet. ConfigError says what is wrong with the URL."""
    parts = urlsplit(url)
    keeps_s = math.ceil(longest_s + HEADROOM_S)
    if parts.scheme == 'memory':
        return None
    if parts.scheme == 'memcached':
        register_backend('metadata_wsgi.memcached', __name__, 'PooledMemcached')
        servers = [host for host in parts.netloc.split(',') if host] or [f'unix:{parts.path}']
        name, arguments = 'metadata_wsgi.memcached', {'url': servers, 'memcached_expire_time': keeps_s}
    elif parts.scheme in ('redis', 'rediss', 'unix'):
        name, arguments = (
            'dogpile.cache.redis',
            {
                'url': url, 'redis_expiration_time': keeps_s, 'socket_timeout': TIMEOUT_S,
                'connection_kwargs': {'socket_connect_timeout': TIMEOUT_S, 'retry': None},
            },
        )  # fmt: skip
    else:
        raise ConfigError(
            f'cache_url has the scheme {parts.scheme or "none"}; write memory://, memcached://host:11211 or '
            'redis://host:6379/0'
        )
    region = make_region(serializer=_dumps, deserializer=json.loads)
    try:
        return region.configure(name, arguments=arguments)
    except ImportError as error:
        library = 'pymemcache' if parts.scheme == 'memcached' else 'redis'
        raise ConfigError(f'cache_url = {parts.scheme}://...: the library {library} is not installed') from error


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(',', ':')).encode()


class _Bytes:
    """pymemcache's own serde would unpickle what the server says is a pickle."""

    def serialize(self, key: Any, value: bytes) -> tuple[bytes, int]:
        return value, 0

    def deserialize(self, key: Any, value: bytes, flags: int) -> bytes:
        return value


class PooledMemcached(PyMemcacheBackend):
    """dogpile's backend with a pool in the place of one connection for each greenlet, and with an end to waiting."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__(arguments)
        self._pooled = self._create_client()

    @property
    def client(self) -> Any:
        """One client for all threads and greenlets."""
        return self._pooled

    def _create_client(self) -> Any:
        from pymemcache.client.hash import HashClient

        return HashClient(
            self.url, serde=_Bytes(), connect_timeout=TIMEOUT_S, timeout=TIMEOUT_S, no_delay=True, use_pooling=True,
            max_pool_size=CONNECTIONS, retry_attempts=0, dead_timeout=1, default_noreply=False,
        )  # fmt: skip
