# SPDX-License-Identifier: Apache-2.0
"""The registered listeners and the subscribed workers. Pure: no socket is opened or written to here.

A listener's key (router or network id, and address) is in one of three states. Each operation by state:

======================  ============================  ================================  =========================
operation               ABSENT                        REGISTERED                        UNREGISTERED
======================  ============================  ================================  =========================
``register``            opened -> REGISTERED          same fields: unchanged; another   opened -> REGISTERED
                                                      mode: same socket, other
                                                      workers; else a new socket is
                                                      opened, then the old one closed
``restore_from_worker``  valid socket -> REGISTERED,  accepted if it is the same        refused
``restore_from_store``  else refused                  socket, else refused
``unregister``          -> UNREGISTERED               closed -> UNREGISTERED            unchanged
``reconcile``           unchanged                     socket invalid: reopened if the   unchanged
                                                      namespace was made again, else
                                                      closed -> UNREGISTERED
======================  ============================  ================================  =========================

UNREGISTERED differs from ABSENT only for a worker that has not been notified yet: the socket that it sends back after a
restart of the keeper must not undo a ``detach``. The last ``MAX_UNREGISTERED_KEYS`` such keys are remembered.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from metadata_wsgi.errors import MetadataError
from metadata_wsgi.keeper import protocol
from metadata_wsgi.keeper.protocol import Listener

MAX_UNREGISTERED_KEYS = 4096


class ListeningSocket(Protocol):
    """A listening socket."""

    def close(self) -> None:
        """Stop listening."""


S = TypeVar('S', bound=ListeningSocket)
S_contra = TypeVar('S_contra', bound=ListeningSocket, contravariant=True)


class SocketOpener(Protocol[S]):
    """Operations on sockets; :class:`metadata_wsgi.keeper.netns_listener.NetnsSocketOpener` is the real one."""

    def open(self, listener: Listener) -> S:
        """Open the listening socket. Raises MetadataError."""

    def is_valid(self, listener: Listener, sock: S) -> bool:
        """Whether ``sock`` is what ``open`` would return: listening there, in the namespace that has the name now."""

    def is_same_socket(self, sock: S, other: S) -> bool:
        """Whether both are the same socket of the kernel."""

    def namespace_exists(self, listener: Listener) -> bool:
        """Whether there is a namespace of that name."""


class FdStore(Protocol[S_contra]):
    """Holds sockets while keeper and workers are stopped; :class:`metadata_wsgi.keeper.fdstore.SystemdFdStore`."""

    def add(self, listener: Listener, sock: S_contra) -> None:
        """Store ``sock``; nothing if ``listener`` is stored already."""

    def remove(self, listener: Listener) -> None:
        """Remove the socket of ``listener``; nothing if there is none."""


@dataclass(eq=False)
class Subscriber:
    """A worker: the mode of the listeners it receives, and the packets that have yet to be sent.

    Packets are queued here and not in the kernel: a worker that reads slowly must not block the keeper, and the
    number of descriptors in flight is limited (unix(7), ETOOMANYREFS).
    """

    mode: str
    queue: deque[tuple[dict[str, Any], ListeningSocket | None]] = field(default_factory=deque)


class Registry(Generic[S]):
    """The listeners by key, and the subscribers."""

    def __init__(self, opener: SocketOpener[S], fdstore: FdStore[S] | None = None) -> None:
        self._opener = opener
        self._fdstore = fdstore
        self._registered: dict[str, tuple[Listener, S]] = {}
        self._subscribers: list[Subscriber] = []
        # Keys, and ids of which all listeners were unregistered; in the order of their unregistering.
        self._unregistered: dict[str, None] = {}

    def __iter__(self) -> Iterator[Listener]:
        return iter([listener for listener, _ in self._registered.values()])

    def __len__(self) -> int:
        return len(self._registered)

    def socket_of(self, key: str) -> tuple[Listener, S] | None:
        """The listener of that key and its socket; None if none is registered or it is not valid any more."""
        found = self._registered.get(key)
        return found if found and self._opener.is_valid(*found) else None

    def subscriber_counts(self) -> dict[str, int]:
        """The number of subscribed workers by mode."""
        return dict(Counter(subscriber.mode for subscriber in self._subscribers))

    def register(self, listener: Listener, handed_over: S | None = None) -> bool:
        """Register ``listener``; whether anything changed. One of the same key with other fields is replaced.

        If only the mode differs the socket and its accept queue stay, and the workers of the other mode accept on it.
        ``handed_over`` is a socket that listens there already: it is registered and none is opened. Raises ValueError
        if it does not listen there, and MetadataError if no socket could be opened.
        """
        if handed_over is not None and not self._opener.is_valid(listener, handed_over):
            handed_over.close()
            raise ValueError('the socket in the packet does not listen there')
        current = self._registered.get(listener.key)
        if current and self._opener.is_valid(*current):
            only_mode_differs = current[0] == replace(listener, mode=current[0].mode)
            if only_mode_differs and handed_over is not None:
                handed_over.close()
            if current[0] == listener:
                return False
            if only_mode_differs:
                self._notify(current[0], {protocol.REMOVE: listener.key}, None)
                # Removed first: systemd stores a socket under one name only.
                self._remove_from_store(current[0])
                self._add(listener, current[1])
                return True
        # Opened before the current one is closed: if that fails the current one stays.
        sock = handed_over if handed_over is not None else self._opener.open(listener)
        self.unregister(listener.key)
        self._add(listener, sock)
        return True

    def restore_from_worker(self, listener: Listener, sock: S) -> bool:
        """Register a socket that a worker has from an earlier keeper; False if the worker must close it.

        False if the listener was unregistered meanwhile, its namespace is gone, or another socket is registered.
        """
        current = self._registered.get(listener.key)
        if current:
            accepted = self._opener.is_same_socket(current[1], sock)
        else:
            is_unregistered = listener.key in self._unregistered or listener.id in self._unregistered
            accepted = not is_unregistered and self._opener.is_valid(listener, sock)
        if accepted and not current:
            self._add(listener, sock)
        else:
            sock.close()
        return accepted

    def restore_from_store(self, listener: Listener, sock: S) -> bool:
        """Register a socket that was stored for an earlier keeper; False, and it is removed there, if invalid."""
        accepted = self.restore_from_worker(listener, sock)
        if not accepted:
            self._remove_from_store(listener)
        return accepted

    def unregister(self, key: str) -> bool:
        """Close the listener ``key``; whether there was one. REMOVE is queued for its workers before it is closed."""
        self._remember_unregistered(key)
        current = self._registered.pop(key, None)
        if current is None:
            return False
        listener, sock = current
        self._notify(listener, {protocol.REMOVE: key}, None)
        self._remove_from_store(listener)
        sock.close()
        return True

    def unregister_all(self, id_: str) -> bool:
        """Close every listener of the router or network; whether there was one."""
        closed = [self.unregister(one.key) for one in self if one.id == id_]
        # Also those that a worker has and has not sent back yet.
        self._remember_unregistered(id_)
        return any(closed)

    def reconcile(self) -> list[tuple[Listener, bool]]:
        """Close the sockets whose namespace is gone, and reopen them where there is a new one of the same name.

        Returns each listener that was lost and whether it was reopened. A namespace without a name is unreachable for
        clients, but an open socket in it would keep it, its interfaces and its addresses in the kernel.
        """
        lost = [current for current in self._registered.values() if not self._opener.is_valid(*current)]
        outcome = []
        for listener, _ in lost:
            reopened = False
            if self._opener.namespace_exists(listener):
                try:
                    reopened = self.register(listener)
                except MetadataError:
                    # Not set up completely: the next reconcile or attach will find it.
                    reopened = False
            if not reopened:
                self.unregister(listener.key)
            outcome.append((listener, reopened))
        return outcome

    def close(self) -> None:
        """Close this process's sockets without notifying workers: they and systemd keep theirs."""
        for _, sock in self._registered.values():
            sock.close()
        self._registered.clear()

    def subscribe(self, subscriber: Subscriber) -> None:
        """Queue all listeners of its mode for ``subscriber``, and every change from now on."""
        for listener, sock in self._registered.values():
            if listener.mode == subscriber.mode:
                subscriber.queue.append(({protocol.ADD: listener.to_json()}, sock))
        subscriber.queue.append(({protocol.SYNC_END: True}, None))
        self._subscribers.append(subscriber)

    def is_subscribed(self, subscriber: Subscriber) -> bool:
        """Whether ``subscribe`` was called for it."""
        return subscriber in self._subscribers

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Its connection has ended."""
        if subscriber in self._subscribers:
            self._subscribers.remove(subscriber)

    def _add(self, listener: Listener, sock: S) -> None:
        self._registered[listener.key] = (listener, sock)
        for name in (listener.key, listener.id):
            self._unregistered.pop(name, None)
        if self._fdstore is not None:
            self._fdstore.add(listener, sock)
        self._notify(listener, {protocol.ADD: listener.to_json()}, sock)

    def _remember_unregistered(self, key_or_id: str) -> None:
        self._unregistered.pop(key_or_id, None)
        self._unregistered[key_or_id] = None
        if len(self._unregistered) > MAX_UNREGISTERED_KEYS:
            del self._unregistered[next(iter(self._unregistered))]

    def _remove_from_store(self, listener: Listener) -> None:
        if self._fdstore is not None:
            self._fdstore.remove(listener)

    def _notify(self, listener: Listener, message: dict[str, Any], sock: S | None) -> None:
        for subscriber in self._subscribers:
            if subscriber.mode == listener.mode:
                # An ADD that is still queued is dropped: its socket is about to be closed.
                if protocol.REMOVE in message:
                    subscriber.queue = deque(
                        packet for packet in subscriber.queue if packet[0].get(protocol.ADD) != listener.to_json()
                    )
                subscriber.queue.append((message, sock))
