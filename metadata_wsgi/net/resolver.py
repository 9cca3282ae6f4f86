# SPDX-License-Identifier: Apache-2.0
"""Resolves a host name and connects over TCP, within one timeout for both steps.

``socket.create_connection`` has no such timeout. Its timeout does not apply to ``getaddrinfo``. glibc waits 10 to 40 s
for name servers that do not respond. gevent has only ten threads for all lookups of a process. If a name has several
addresses, each address gets the whole timeout. Every HTTP client of this package uses these functions::

    resolver.SHARED.connect('nova.example.net', 8775, timeout_s=3.0)    # a connected socket, in blocking mode
    resolver.Resolver().resolve('nova.example.net', timeout_s=3.0)      # its addresses only

If a call fails, it raises OSError within ``timeout_s`` seconds. The text of the error names the step that took too
long, for example ``name nova.example.net could not be resolved within 3.0 s``.

* An IP address needs no lookup and no thread.
* Each lookup of a name has its own thread, at most one for each name. The addresses are used for
  ``limits.NAME_REFRESH_S`` seconds. The next request after this time starts another lookup in the background. If a
  lookup fails or does not end, the last known addresses stay in use.
* Each address of a name gets an equal share of the remaining time. The address that accepted the last connection is
  tried first.

The module does not import gevent. It works with threads, and under gevent's monkey patching, where a thread is a
greenlet.
"""

from __future__ import annotations

import _socket
import errno
import logging
import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from metadata_wsgi import limits
from metadata_wsgi.throttle import Throttle

LOG = logging.getLogger(__name__)


class NameNotResolved(OSError):
    """No address of a host name is known. A retry may succeed."""


@dataclass(frozen=True, slots=True)
class Address:
    """One IP address of a host. ``rest``: flow info and scope id of an IPv6 address, as in ``socket.connect``."""

    family: int
    ip: str
    rest: tuple[Any, ...] = ()


Lookup = Callable[[str], Sequence[Address]]
"""Blocking lookup of a host name. Raises OSError. :func:`getaddrinfo` is the implementation."""


@dataclass(slots=True)
class _Entry:
    """The cached result for one host name. The thread of the lookup changes it, all other threads read it."""

    addresses: tuple[Address, ...] = ()
    error: str = ''
    looked_up_at_s: float = -math.inf
    refresh_at_s: float = -math.inf
    pending: threading.Event | None = None


class Resolver:
    """Resolves host names and caches their addresses. Shared by all threads of a process."""

    def __init__(self, lookup: Lookup | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._lookup = lookup or getaddrinfo
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        # Held only for a few instructions. Under gevent, starting a thread with the lock held would be a deadlock.
        self._lock = threading.Lock()
        self._failure_log = Throttle(limits.LOG_INTERVAL_S)

    def resolve(self, host: str, timeout_s: float) -> tuple[Address, ...]:
        """The addresses of ``host``, at least one.

        If no address is known, waits for a lookup. Raises NameNotResolved if the lookup fails or takes more than
        ``timeout_s`` seconds.
        """
        if literal := ip_literal(host):
            return (literal,)
        with self._lock:
            entry = self._entries.setdefault(host, _Entry())
            must_start = entry.pending is None and self._clock() >= entry.refresh_at_s
            if must_start:
                entry.pending = threading.Event()
            pending = entry.pending
        if must_start and pending is not None:
            self._start_lookup(host, entry, pending)
        if not entry.addresses and pending is not None and not pending.wait(timeout_s):
            raise NameNotResolved(f'name {host} could not be resolved within {timeout_s:.1f} s')
        if not entry.addresses:
            raise NameNotResolved(f'name {host} could not be resolved: {entry.error}')
        return entry.addresses

    def expire(self, host: str) -> None:
        """Look ``host`` up again at its next use, at the earliest NAME_RETRY_S after its last lookup."""
        with self._lock:
            if entry := self._entries.get(host):
                entry.refresh_at_s = min(entry.refresh_at_s, entry.looked_up_at_s + limits.NAME_RETRY_S)

    def _start_lookup(self, host: str, entry: _Entry, done: threading.Event) -> None:
        try:
            threading.Thread(
                target=self._look_up, args=(host, entry, done), name=f'resolve {host}', daemon=True
            ).start()
        except RuntimeError as error:  # no more threads
            self._finish(entry, done, (), str(error))

    def _look_up(self, host: str, entry: _Entry, done: threading.Event) -> None:
        found: tuple[Address, ...] = ()
        error_text = 'it has no address'
        try:
            found = tuple(dict.fromkeys(self._lookup(host)))
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that IDNA does not allow
            error_text = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        finally:
            self._finish(entry, done, found, error_text)
        if not found and entry.addresses and self._failure_log.allow():
            LOG.warning('name %s cannot be resolved: %s; its last known addresses stay in use', host, error_text)

    def _finish(self, entry: _Entry, done: threading.Event, found: tuple[Address, ...], error_text: str) -> None:
        with self._lock:
            entry.looked_up_at_s = self._clock()
            entry.refresh_at_s = entry.looked_up_at_s + (limits.NAME_REFRESH_S if found else limits.NAME_RETRY_S)
            entry.addresses = found or entry.addresses
            entry.error = '' if found else error_text
            entry.pending = None
        done.set()


class TcpConnector:
    """Opens TCP connections to hosts, given by name or IP address. Shared by all threads of a process."""

    def __init__(self, resolver: Resolver, clock: Callable[[], float] = time.monotonic) -> None:
        self._resolver = resolver
        self._clock = clock
        self._last_good: dict[tuple[str, int], Address] = {}

    def connect(
        self,
        host: str,
        port: int,
        timeout_s: float,
        finish: Callable[[socket.socket, float], Any] = lambda sock, timeout_s: sock,
    ) -> Any:
        """Connect within ``timeout_s`` seconds. Returns a socket in blocking mode. Raises OSError.

        ``finish(sock, timeout_s)`` completes a connection, for example with a TLS handshake. Its result is returned. If
        ``finish`` fails, it must close the socket and raise OSError. Then the next address is tried.
        """
        until_s = self._clock() + timeout_s
        addresses = self._in_order(host, port, self._resolver.resolve(host, timeout_s))
        failures: list[tuple[Address, OSError]] = []
        for number, address in enumerate(addresses):
            attempt_until_s = self._clock() + (until_s - self._clock()) / (len(addresses) - number)
            try:
                sock = _open(address, port, attempt_until_s - self._clock())
                finished = finish(sock, attempt_until_s - self._clock())
            except OSError as error:
                # The traceback is dropped because it would keep this frame and its sockets alive.
                failures.append((address, error.with_traceback(None)))
                continue
            self._last_good[host, port] = address
            return finished
        self._last_good.pop((host, port), None)
        self._resolver.expire(host)
        if len(failures) == 1:
            raise failures[0][1]
        texts = '; '.join(f'{address.ip}: {error.strerror or error}' for address, error in failures)
        raise OSError(f'no address of {host} accepts connections: {texts}')

    def _in_order(self, host: str, port: int, addresses: tuple[Address, ...]) -> list[Address]:
        last_good = self._last_good.get((host, port))
        return sorted(addresses, key=lambda address: address != last_good)


def ip_literal(host: str) -> Address | None:
    """The address if ``host`` is an IP address, with or without a zone (``fe80::1%eth0``). None if it is a name."""
    try:
        # With AI_NUMERICHOST the C function cannot block. gevent's function would need a thread.
        return _addresses(_socket.getaddrinfo(host, 0, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST))[0]
    except (OSError, UnicodeError):
        return None


def getaddrinfo(host: str) -> Sequence[Address]:
    """Resolve a host name with the system's resolver: /etc/hosts, then name servers. The call has no timeout."""
    return _addresses(socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM))


def _addresses(found: Sequence[Any]) -> list[Address]:
    return [Address(family, sockaddr[0], sockaddr[2:]) for family, _, _, _, sockaddr in found]


def wait_ready(sock: Any, event: int, timeout_s: float | None) -> None:
    """Wait until ``sock`` can be read (``select.POLLIN``) or written (``select.POLLOUT``). TimeoutError if too late."""
    poller = select.poll()  # under gevent's monkey patching this is gevent's poll
    poller.register(sock.fileno(), event)
    if timeout_s is not None and timeout_s <= 0:
        raise TimeoutError('timed out')
    if not poller.poll(None if timeout_s is None else math.ceil(timeout_s * 1000)):
        raise TimeoutError('timed out')


def _open(address: Address, port: int, timeout_s: float) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # connect() with a timeout is not used, because gevent's connect() would resolve the address again.
        code = sock.connect_ex((address.ip, port, *address.rest))
        if code == errno.EINPROGRESS:
            wait_ready(sock, select.POLLOUT, timeout_s)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        sock.setblocking(True)
    except BaseException:
        sock.close()
        raise
    return sock


SHARED = TcpConnector(Resolver())
"""The connector of this process. All HTTP clients share its resolver, so each host name is looked up once."""
