# SPDX-License-Identifier: Apache-2.0
"""The keeper's process: serves two unix sockets with one event loop. Another thread runs only to enter a namespace."""

from __future__ import annotations

import array
import contextlib
import errno
import logging
import os
import selectors
import signal
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterable
from typing import Any

from metadata_wsgi import limits
from metadata_wsgi.errors import MetadataError
from metadata_wsgi.keeper import admin_client, protocol
from metadata_wsgi.keeper.holders import Holders
from metadata_wsgi.keeper.netns_listener import NetnsSocketOpener
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.keeper.registry import FdStore, Registry, SocketOpener, Subscriber
from metadata_wsgi.net import listeners
from metadata_wsgi.net.sd_notify import Notifier
from metadata_wsgi.netns import namespaces
from metadata_wsgi.throttle import Throttle

LOG = logging.getLogger(__name__)

# Errors at the kernel's limits for descriptors in flight and for buffers. No event shows when sending works again.
TRANSIENT_SEND_ERRORS = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})
DISCONNECT_ERRNOS = frozenset({errno.EAGAIN, errno.ECONNABORTED, errno.EINTR})
"""accept() fails with these if the client disconnected. Other errors mean a lack of descriptors or memory."""
POLL_S = 1.0
RESEND_POLL_S = 0.05
REPLY_TIMEOUT_S = 2.0
ACCEPT_BACKOFF_S = 1.0
MAX_WORKER_CONNECTIONS = 512
"""Largest number of connections of workers, one for each worker. Descriptors must remain for root's requests."""
MAX_QUEUED_REFUSALS = 1 << 14
"""Largest number of refusals that are queued for one worker. A worker reads nothing before it has sent all its
listeners, so the queue would otherwise be unbounded."""
SO_PEERGROUPS = 59  # <asm-generic/socket.h>, Linux 4.13
MAX_OPTION_BYTES = 1024
"""The largest buffer of Python's getsockopt(): 256 groups. If a process has more, only its primary group is used."""


class Keeper:
    """Serves ``<state_path>/keeper`` and ``<state_path>/listeners`` until ``stop``.

    ``user`` and ``group`` own the socket for workers. ``opener`` opens listeners. ``fdstore`` gets a copy of each
    listener. At each turn of the event loop ``notifier`` sends a changed status,
    and the watchdog message if it is due.
    """

    def __init__(
        self,
        state_path: str,
        *,
        user: str = '',
        group: str = '',
        fdstore: FdStore[socket.socket] | None = None,
        opener: SocketOpener[socket.socket] | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        listeners.raise_descriptor_limit()
        self._notifier = notifier or Notifier()
        self._holders = Holders(state_path)
        self._registry: Registry[socket.socket] = Registry(opener or NetnsSocketOpener(), fdstore)
        # None: the worker is connected and has not sent its mode yet.
        self._subscribers: dict[socket.socket, Subscriber | None] = {}
        self._running = True
        self._poll_s = POLL_S
        self._paused_until: dict[socket.socket, tuple[float, Callable[[Any], None]]] = {}
        self._accept_log = Throttle(limits.LOG_INTERVAL_S)
        self._refused_log = Throttle(limits.LOG_INTERVAL_S)
        self._closed_log = Throttle(limits.LOG_INTERVAL_S)
        self._reconcile_log = Throttle(limits.LOG_INTERVAL_S)
        self._namespaces_changed_at = self._reconciled_at = self._reconcile_until = 0.0
        self._is_reconcile_due = False
        self._path = admin_client.socket_path(state_path)
        self._selector = selectors.DefaultSelector()
        self._listen(self._path, 0o600, '', '', self._on_admin_connect)
        listeners_path = os.path.join(state_path, 'listeners')
        self._listen(listeners_path, 0o660, user, group, self._on_worker_connect)
        self._workers_socket = os.lstat(listeners_path)

    def stop(self, *_: Any) -> None:
        """Signal handler: make ``run`` return."""
        self._running = False

    def restore(self, stored: Iterable[tuple[Listener, socket.socket]]) -> None:
        """Register the sockets that systemd stored for an earlier keeper, if they are still valid.

        A socket that cannot be checked now stays in the store.
        """
        for listener, sock in stored:
            try:
                is_restored = self._registry.restore_from_store(listener, sock)
            except OSError as error:
                # Descriptors or memory are exhausted. systemd keeps the socket for the next keeper.
                LOG.warning('The stored socket of %s is not restored: %s', listener, error.strerror)
                sock.close()
                continue
            if not is_restored:
                LOG.info(
                    'The stored socket of %s is closed: its namespace was deleted or another socket is registered',
                    listener,
                )

    def run(self) -> None:
        """Serve until ``stop``. After that the workers keep their sockets, and send them to the next keeper."""
        wake_up, woken = socket.socketpair()
        wake_up.setblocking(False)
        # After a signal handler has run, select() continues to wait. The wakeup descriptor ends the wait.
        self._selector.register(woken, selectors.EVENT_READ, lambda sock: sock.recv(64))
        signal.set_wakeup_fd(wake_up.fileno())
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)
        self._notifier.ready(self._status())
        while self._running:
            self.poll_once()
            self._notifier.status(self._status())
            self._notifier.progress()
        self._notifier.stopping()
        signal.set_wakeup_fd(-1)
        wake_up.close()
        if not len(self._registry):
            # For clients a missing socket file means that no listener is registered.
            os.unlink(self._path)
        self.close()

    def _status(self) -> str:
        workers = ', '.join(f'{count} {mode}' for mode, count in sorted(self._registry.subscriber_counts().items()))
        return f'{len(self._registry)} sockets in namespaces; workers: {workers or "none"}'

    def close(self) -> None:
        """Close all descriptors of this process. The workers' descriptors stay open."""
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
        for listening in self._paused_until:
            listening.close()
        self._selector.close()
        self._registry.close()

    def poll_once(self) -> None:
        """Read requests, send queued packets, and reconcile if namespaces were created or deleted."""
        for key, _ in self._selector.select(self._poll_s):
            self._call_or_close(key.data, key.fileobj)
        self._poll_s = POLL_S
        for connection in list(self._subscribers):
            self._call_or_close(self._flush, connection)
        self._resume_accepting()
        self._reconcile_if_due()
        self._request_sockets()

    def _request_sockets(self) -> None:
        """Request sockets that are not registered from their holders.

        A holder registers them for the mode that has workers. So there is no request while there are no workers.
        """
        if not self._registry.subscriber_counts():
            return
        ids: list[str] = []
        with contextlib.suppress(OSError):  # descriptors are exhausted; the next round requests the sockets again
            ids = self._holders.request_sockets(lambda: {one.id for one in self._registry})
        for id_ in ids:
            LOG.info('Requested the sockets of %s from its holder', id_)

    def _reconcile_if_due(self) -> None:
        """Reconcile when namespaces were created or deleted, and repeat this for at least two polls.

        "ip netns add" creates the file in /run/netns before the namespace. So one reconcile may be too early.
        """
        now, changed_at = time.monotonic(), namespaces.changed_at()
        if changed_at != self._namespaces_changed_at:
            self._namespaces_changed_at, self._reconcile_until = changed_at, now + 2 * POLL_S
            self._is_reconcile_due = True
        if not self._is_reconcile_due or now - self._reconciled_at < POLL_S / 2:
            return
        self._reconciled_at = now
        # True until one reconcile has run after _reconcile_until, even if this process was stopped for a while.
        self._is_reconcile_due = now < self._reconcile_until
        try:
            outcome = self._registry.reconcile()
        except OSError as error:
            self._is_reconcile_due = True
            if self._reconcile_log.allow():
                LOG.warning('Sockets in deleted namespaces stay open until they can be checked: %s', error.strerror)
            return
        for listener, reopened in outcome:
            LOG.info(
                'The namespace of %s was %s', listener, 'created again, its socket reopened' if reopened else 'deleted'
            )
            # If descriptors are exhausted, the holder ends at the next request for its sockets.
            with contextlib.suppress(OSError):
                self._holders.end(listener.id)

    def _listen(self, path: str, mode: int, user: str, group: str, on_connect: Callable[[socket.socket], None]) -> None:
        listening = listeners.unix_listener(
            path, mode=mode, user=user, group=group, kind=socket.SOCK_SEQPACKET, option='state_path', program='keeper'
        )
        listening.setblocking(False)

        def accept(_listening: Any) -> None:
            try:
                connection, _ = listening.accept()
            except OSError as error:
                if error.errno not in DISCONNECT_ERRNOS:
                    self._pause_accepting(listening, accept, f'{path}: {error.strerror}')
                return
            try:
                connection.setblocking(False)
                on_connect(connection)
            except OSError as error:
                self._refuse(connection, str(error))

        self._selector.register(listening, selectors.EVENT_READ, accept)

    def _pause_accepting(self, listening: socket.socket, accept: Callable[[Any], None], reason: str) -> None:
        """Pause after accept() failed. Without the pause the event loop would spin: the socket stays readable."""
        if self._accept_log.allow():
            LOG.warning('No connections are accepted for the next %g s: %s', ACCEPT_BACKOFF_S, reason)
        self._selector.unregister(listening)
        self._paused_until[listening] = (time.monotonic() + ACCEPT_BACKOFF_S, accept)

    def _resume_accepting(self) -> None:
        for listening, (until, accept) in list(self._paused_until.items()):
            if time.monotonic() >= until:
                del self._paused_until[listening]
                self._selector.register(listening, selectors.EVENT_READ, accept)

    def _call_or_close(self, handler: Callable[[Any], None], connection: Any) -> None:
        """Call ``handler`` with ``connection``. Close the connection if it ended or the peer violates the protocol."""
        try:
            handler(connection)
        except BlockingIOError:
            return
        except (EOFError, OSError, ValueError) as error:
            if not isinstance(error, EOFError) and self._closed_log.allow():
                LOG.warning('A connection was closed: %s', error)
            subscriber = self._subscribers.pop(connection, None)
            if subscriber:
                self._registry.unsubscribe(subscriber)
            self._selector.unregister(connection)
            connection.close()

    # -- requests of root

    def _on_admin_connect(self, connection: socket.socket) -> None:
        uid = protocol.peer_uid(connection)
        if not protocol.is_root_or_own(uid, os.geteuid()):
            self._refuse(connection, f'uid {uid} may not send requests')
            return
        self._selector.register(connection, selectors.EVENT_READ, self._on_admin_packet)

    def _refuse(self, connection: socket.socket, reason: str) -> None:
        if self._refused_log.allow():
            LOG.warning('A connection was refused: %s', reason)
        connection.close()

    def _on_admin_packet(self, connection: socket.socket) -> None:
        message, handed_over = protocol.receive(connection)
        connection.settimeout(REPLY_TIMEOUT_S)
        if message.get(protocol.VERB) == protocol.GET:
            if handed_over is not None:
                handed_over.close()
            self._send_socket(connection, str(message.get('key')))
        else:
            for reply in self._handle_request(message, handed_over):
                protocol.send(connection, reply)
        connection.setblocking(False)

    def _send_socket(self, connection: socket.socket, key: str) -> None:
        found = self._registry.socket_of(key)
        if found is None:
            protocol.send(connection, {'error': f'no listener {key}'})
        else:
            protocol.send(connection, {'listener': found[0].to_json()}, found[1].fileno())

    def _handle_request(self, message: dict[str, Any], handed_over: socket.socket | None) -> list[dict[str, Any]]:
        verb, id_ = message.get(protocol.VERB), message.get('id')
        try:
            if verb == protocol.ATTACH:
                listener = Listener.from_json(message.get('listener'))
                changed = self._registry.register(listener, handed_over)
                # From here on the registry owns the socket and closes it.
                handed_over = None
                return [{'changed': changed}]
            if verb == protocol.DETACH:
                # Also done if no listener is registered: a worker may still have the listeners, and send them later.
                if 'key' in message:
                    return [{'closed': self._registry.unregister(str(message['key']))}]
                if not isinstance(id_, str):
                    raise ValueError('detach: an id or a key')
                if self._holders.is_replaced(id_, message.get('holder')):
                    return [{'closed': False}]
                self._holders.end(id_)
                return [{'closed': self._registry.unregister_all(id_)}]
            if verb == protocol.LIST:
                found = self._registry if id_ is None else self._registry.of(str(id_))
                return _list_pages([one.to_json() for one in found], self._registry.subscriber_counts())
        except (MetadataError, OSError, ValueError) as error:
            port_in_use = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
            return [{'error': str(error), 'again': port_in_use}]
        finally:
            if handed_over is not None:
                handed_over.close()
        return [{'error': 'the verb must be attach, detach, get or list'}]

    # -- workers

    def _on_worker_connect(self, connection: socket.socket) -> None:
        uid, group_ids = _peer_credentials(connection)
        if not may_subscribe(uid, group_ids, self._workers_socket):
            self._refuse(connection, f'uid {uid} may not subscribe')
            return
        if len(self._subscribers) >= MAX_WORKER_CONNECTIONS:
            self._refuse(connection, f'{MAX_WORKER_CONNECTIONS} workers are connected already')
            return
        self._subscribers[connection] = None
        self._selector.register(connection, selectors.EVENT_READ, self._on_worker_packet)

    def _on_worker_packet(self, connection: socket.socket) -> None:
        message, sock = protocol.receive(connection)
        try:
            self._handle_worker_message(connection, message, sock)
        except (OSError, ValueError):
            if sock is not None:
                sock.close()
            raise

    def _handle_worker_message(
        self, connection: socket.socket, message: dict[str, Any], sock: socket.socket | None
    ) -> None:
        subscriber = self._subscribers[connection]
        if subscriber is None and sock is None and message.get(protocol.MODE) in protocol.MODES:
            self._subscribers[connection] = Subscriber(message[protocol.MODE])
        elif subscriber is None or self._registry.is_subscribed(subscriber):
            raise ValueError('a worker sent an unexpected message')
        elif message.get(protocol.HAVE) is not None and sock is not None:
            listener = Listener.from_json(message[protocol.HAVE], ignore_unknown=True)
            if self._registry.restore_from_worker(listener, sock):
                return
            if len(subscriber.queue) >= MAX_QUEUED_REFUSALS:
                raise ValueError('a worker does not read')
            subscriber.queue.append(({protocol.REMOVE: listener.key}, None))
        elif protocol.HAVE in message and sock is None:
            self._registry.subscribe(subscriber)
        else:
            raise ValueError('a worker sent an unexpected message')

    def _flush(self, connection: socket.socket) -> None:
        subscriber = self._subscribers[connection]
        events = selectors.EVENT_READ
        while subscriber and subscriber.queue:
            message, sock = subscriber.queue[0]
            try:
                protocol.send(connection, message, sock.fileno() if sock is not None else None)  # type: ignore[attr-defined]
            except BlockingIOError:
                events |= selectors.EVENT_WRITE
                break
            except OSError as error:
                if error.errno not in TRANSIENT_SEND_ERRORS:
                    raise
                self._poll_s = RESEND_POLL_S
                break
            subscriber.queue.popleft()
        key = self._selector.get_key(connection)
        if key.events != events:
            self._selector.modify(connection, events, self._on_worker_packet)


def may_subscribe(uid: int, group_ids: list[int], socket_stat: os.stat_result) -> bool:
    """Whether a process with these ids may subscribe: as root, or as owner or group of the socket for workers.

    The kernel checks the permissions of the socket file at connect() only. The keeper checks the peer again.
    """
    return uid in (0, socket_stat.st_uid) or (
        bool(socket_stat.st_mode & stat.S_IWGRP) and socket_stat.st_gid in group_ids
    )


def _peer_credentials(connection: socket.socket) -> tuple[int, list[int]]:
    """(uid, all group ids) that the peer's process had when it called connect(); unix(7)."""
    _, uid, gid = struct.unpack('iII', connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        supplementary = array.array('I', connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, MAX_OPTION_BYTES))
    except OSError:
        supplementary = array.array('I')
    return uid, [gid, *supplementary]


def _list_pages(listeners: list[dict[str, Any]], workers: dict[str, int], size: int = 100) -> list[dict[str, Any]]:
    pages = [{'listeners': listeners[start : start + size]} for start in range(0, len(listeners), size)]
    return [*pages, {'listeners': [], 'workers': workers}]
