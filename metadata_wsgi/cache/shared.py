# SPDX-License-Identifier: Apache-2.0
"""The cache that workers and hosts share: memcached or Redis, chosen by ``cache_url``, through dogpile.cache.

Values are stored as JSON, so a program that can write to the server cannot execute code in the agent. Keys are hashed,
so no key is too long and no key names an instance. Each entry contains its TTL and the time at which it was loaded. An
expired entry is not used even if the server still stores it. The clocks of hosts that share a cache must not differ by
more than one second. An entry that seems to be from a later time is not used.

An unavailable server must not delay requests: a connection attempt, a read and a write each end within ``TIMEOUT_S``.
After a failure the worker does not use the server for ``RETRY_AFTER_FAILURE_S``. Then one request tries again. If the
server responds that it does not execute a write, this is no failure. No method of SharedCache raises an exception.

If a program can write to the server, it can make the agent send one instance the metadata of another. If it can read
from the server, it can read cached responses. So only the agents may be able to connect to the server.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
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
        help='Server of the shared cache: memcached://host:11211 (several hosts, separated by commas), '
        'memcached:///path/of/socket, redis://host:6379/0, rediss://... By default each worker has its own cache.',
    ),
]

TIMEOUT_S = 0.25
RETRY_AFTER_FAILURE_S = 5.0
MAX_CONNECTIONS = 256
MAX_VALUE_BYTES = 1_000_000
"""A larger value is not stored. By default memcached refuses values above 1 MiB, and an instance chooses the size of
its user-data. Such an error must not count as an unavailable server."""
EXPIRY_MARGIN_S = 5.0
"""The server removes an entry this long after the longest TTL, because the clocks of hosts differ."""


class _TooLarge(ValueError):
    """A value has more than MAX_VALUE_BYTES."""


class SharedCache:
    """The entries of one ``kind`` in ``region``. ``pack`` converts a value to JSON types, ``unpack`` reverses it."""

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
        self._retry_at_s = float('-inf')
        self._is_down = False
        self._down_log = Throttle(limits.LOG_INTERVAL_S, clock)
        self._refused_log = Throttle(limits.LOG_INTERVAL_S, clock)

    def get(self, key: Hashable) -> tuple[Any, float, Ttl] | None:
        """(value, age in seconds, TTL with which the value was stored); None if not stored or if the server is down."""
        stored = self._guarded_call(lambda: self._region.get(self._hashed(key)))
        if not isinstance(stored, dict):
            return None
        # The names 'made', 'fresh' and 'usable' are kept because agents of version 1.0 read this JSON too.
        try:
            age_s = self._now() - float(stored['made'])
            ttl = Ttl(float(stored['fresh']), float(stored['usable']))
            if not (age_s >= -1.0 and math.isfinite(ttl.fresh_s) and math.isfinite(ttl.stale_s)):
                return None
            return self._unpack(stored['value']), max(0.0, age_s), ttl
        except (KeyError, TypeError, ValueError):
            return None

    def set(self, key: Hashable, value: Any, ttl: Ttl, age_s: float) -> None:
        """Store a value whose load began ``age_s`` seconds ago; without effect while the server is down."""
        made_s = self._now() - age_s
        stored = {'value': self._pack(value), 'made': made_s, 'fresh': ttl.fresh_s, 'usable': ttl.stale_s}
        self._write(lambda: self._region.set(self._hashed(key), stored))

    def delete(self, key: Hashable) -> None:
        """Remove the entry; without effect while the server is down."""
        self._write(lambda: self._region.delete(self._hashed(key)))

    def _write(self, write: Callable[[], object]) -> None:
        def guarded() -> None:
            try:
                write()
            except _TooLarge:
                pass
            except Exception as error:
                if not _is_refusal(error):
                    raise
                if self._refused_log.allow():
                    text = error.args[0] if error.args else type(error).__name__
                    LOG.warning(
                        'The shared cache refuses a write: %s', text.decode() if isinstance(text, bytes) else text
                    )

        self._guarded_call(guarded)

    def _hashed(self, key: Hashable) -> str:
        return f'metadata_wsgi:{self._kind}:{hashlib.sha256(json.dumps(key).encode()).hexdigest()}'

    def _guarded_call(self, call: Callable[[], Any]) -> Any:
        """The result of ``call``; None if the server fails now or failed within the last RETRY_AFTER_FAILURE_S."""
        now_s = self._clock()
        if now_s < self._retry_at_s:
            return None
        if self._is_down:
            self._retry_at_s = now_s + RETRY_AFTER_FAILURE_S  # other requests do not call the server meanwhile
        try:
            result = call()
        except Exception as error:  # each client library has an exception tree of its own
            self._is_down = True
            self._retry_at_s = self._clock() + RETRY_AFTER_FAILURE_S
            if self._down_log.allow():
                LOG.warning('The shared cache is unavailable, each worker uses its own: %s', error or type(error))
            return None
        self._is_down = False
        self._retry_at_s = float('-inf')
        return None if result is NO_VALUE else result


def _is_refusal(error: Exception) -> bool:
    """Whether the server has responded, and has not executed the write.

    An instance can cause this, because it chooses the size of its user-data.
    """
    with suppress(ImportError):
        from pymemcache.exceptions import MemcacheServerError, MemcacheUnexpectedCloseError

        if isinstance(error, MemcacheServerError):
            return not isinstance(error, MemcacheUnexpectedCloseError)
    with suppress(ImportError):
        from redis.exceptions import ResponseError

        return isinstance(error, ResponseError)
    return False


def connect(url: str, *, max_ttl_s: float) -> Any:
    """The dogpile.cache region for ``url``; None for ``memory://``. Every TTL must be at most ``max_ttl_s``.

    Opens no connection yet. Raises ConfigError for a wrong URL or a missing library.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _malformed(url) from None
    expires_s = math.ceil(max_ttl_s + EXPIRY_MARGIN_S)
    if parts.scheme == 'memory':
        return None
    if parts.scheme == 'memcached':
        register_backend('metadata_wsgi.memcached', __name__, 'PooledMemcached')
        servers = [host for host in parts.netloc.split(',') if host] or [f'unix:{parts.path}']
        name, arguments = 'metadata_wsgi.memcached', {'url': servers, 'memcached_expire_time': expires_s}
    elif parts.scheme in ('redis', 'rediss', 'unix'):
        name, arguments = (
            'dogpile.cache.redis',
            {
                'url': url, 'redis_expiration_time': expires_s, 'socket_timeout': TIMEOUT_S,
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
    except ValueError:
        raise _malformed(url) from None


def _malformed(url: str) -> ConfigError:
    """The text shows the scheme only. The URL, and the text of the library's ValueError, may contain a password."""
    scheme, separator, _ = url.partition('://')
    return ConfigError(
        f'cache_url = {scheme if separator else ""}://...: not a valid URL; write memcached://host:11211 or '
        'redis://:PASSWORD@host:6379/0, in the password %2F for /, %40 for @, %23 for #, %25 for %'
    )


def _dumps(value: Any) -> bytes:
    data = json.dumps(value, separators=(',', ':')).encode()
    if len(data) > MAX_VALUE_BYTES:
        raise _TooLarge
    return data


class _BytesSerde:
    """Stores and returns bytes. pymemcache's own serde would unpickle a value that the server marks as a pickle."""

    def serialize(self, key: Any, value: bytes) -> tuple[bytes, int]:
        return value, 0

    def deserialize(self, key: Any, value: bytes, flags: int) -> bytes:
        return value


class PooledMemcached(PyMemcacheBackend):
    """dogpile's memcached backend with timeouts and one connection pool instead of a connection per greenlet."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__(arguments)
        self._pooled = self._create_client()

    @property
    def client(self) -> Any:
        """The client that all threads and greenlets use."""
        return self._pooled

    def _create_client(self) -> Any:
        from pymemcache.client.hash import HashClient

        return HashClient(
            self.url, serde=_BytesSerde(), connect_timeout=TIMEOUT_S, timeout=TIMEOUT_S, no_delay=True,
            use_pooling=True, max_pool_size=MAX_CONNECTIONS, retry_attempts=0, dead_timeout=1, default_noreply=False,
        )  # fmt: skip
