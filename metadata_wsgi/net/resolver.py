# SPDX-License-Identifier: Apache-2.0
"""Resolve a name and connect over TCP, never longer than the caller has time.

``socket.create_connection`` cannot promise that: no timeout reaches ``getaddrinfo`` (glibc waits 10 to 40 s for
name servers that do not answer, and gevent has ten threads for all lookups of a process), and each address of a name
gets the whole timeout. The API, for every HTTP client of this package::

    resolver.SHARED.connect('nova.example.net', 8775, timeout_s=3.0)    # a connected socket, in blocking mode
    resolver.Resolver().resolve('nova.example.net', timeout_s=3.0)      # its addresses only

Both raise OSError within ``timeout_s`` seconds. The text of the error names what was waited for, for example
``name nova.example.net could not be resolved within 3.0 s``.

* An IP address is used as it is: no lookup, no thread.
* A name is looked up in a thread of its own, one lookup for each name at a time. The addresses are used for
  ``limits.NAME_REFRESH_S`` seconds, then looked up again in the background. While a lookup fails or does not end,
  the last addresses that were found stay in use.
* Each address of a name gets an equal share of the time that is left. The address that accepted the last connection
  is tried first.

Works with threads and under gevent's monkey patching (a thread is a greenlet there); imports nothing of gevent.
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
    """A name has no known address. Another attempt may succeed."""


@dataclass(frozen=True, slots=True)
class Address:
    """One IP address of a host. ``rest`` is flow and scope of an IPv6 address, as the kernel wants them."""

    family: int
    ip: str
    rest: tuple[Any, ...] = ()


Lookup = Callable[[str], Sequence[Address]]
"""Blocking lookup of a name; raises OSError. :func:`getaddrinfo` is the real one."""


@dataclass(slots=True)
class _Entry:
    """What is known about one name. Changed by its lookup thread and read by all others."""

    addresses: tuple[Address, ...] = ()
    error: str = ''
    looked_up_at_s: float = -math.inf
    refresh_at_s: float = -math.inf
    pending: threading.Event | None = None


class Resolver:
    """Addresses of names. For all threads of a process."""

    def __init__(self, lookup: Lookup | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._lookup = lookup or getaddrinfo
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        # Held for a few instructions only and never while a thread starts: under gevent that would be a deadlock.
        self._lock = threading.Lock()
        self._failure_log = Throttle(limits.LOG_INTERVAL_S)

    def resolve(self, host: str, timeout_s: float) -> tuple[Address, ...]:
        """The addresses of ``host``, at least one. Waits at most ``timeout_s`` seconds; raises NameNotResolved.

        Waits only as long as no address of the name is known.
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
        """Look ``host`` up again at its next use: no address of it accepts connections."""
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
    """Opens TCP connections to hosts, given by name or IP address. For all threads of a process."""

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
        """A connected socket in blocking mode, within ``timeout_s`` seconds. Raises OSError.

        ``finish(sock, timeout_s)`` completes a connection, for example with a TLS handshake, and returns what is
        returned here; where it raises OSError the next address is tried. It closes the socket if it fails.
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
                # Without its traceback, which would keep this frame and its sockets alive.
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
    """The address if ``host`` is an IP address, a zone included (``fe80::1%eth0``); None if it is a name."""
    try:
        # The C function: with AI_NUMERICHOST it cannot wait, and gevent's own would need a thread.
        return _addresses(_socket.getaddrinfo(host, 0, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST))[0]
    except (OSError, UnicodeError):
        return None


def getaddrinfo(host: str) -> Sequence[Address]:
    """Resolve a name with the system's resolver: /etc/hosts, then name servers. Has no timeout."""
    return _addresses(socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM))


def _addresses(found: Sequence[Any]) -> list[Address]:
    return [Address(family, sockaddr[0], sockaddr[2:]) for family, _, _, _, sockaddr in found]


def wait_ready(sock: Any, event: int, timeout_s: float | None) -> None:
    """Wait until ``sock`` can be read (``select.POLLIN``) or written (``select.POLLOUT``); raises TimeoutError."""
    poller = select.poll()  # gevent's, where it is patched
    poller.register(sock.fileno(), event)
    if timeout_s is not None and timeout_s <= 0:
        raise TimeoutError('timed out')
    if not poller.poll(None if timeout_s is None else math.ceil(timeout_s * 1000)):
        raise TimeoutError('timed out')


def _open(address: Address, port: int, timeout_s: float) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # Not connect() with a timeout: gevent's would resolve the address again.
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
"""One for each process, so that Nova's, Keystone's and Neutron's names are looked up once for all of them."""
