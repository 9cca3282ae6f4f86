# SPDX-License-Identifier: Apache-2.0
"""The registered listeners and the subscribed workers. This module does no I/O: ``SocketOpener`` opens sockets.

A listener's key (router or network id, and address) is in one of three states. Each operation has this effect:

=======================  ===========================  ================================  =========================
operation                ABSENT                       REGISTERED                        UNREGISTERED
=======================  ===========================  ================================  =========================
``register``             opened -> REGISTERED         same fields: unchanged; another   opened -> REGISTERED
                                                      mode: same socket, other
                                                      workers; else, or if another
                                                      socket is handed over: the new
                                                      socket replaces the old one,
                                                      which is closed
``restore_from_worker``  valid socket that no other   same socket: accepted, else       refused
                         key has -> REGISTERED, else  refused
                         refused
``restore_from_store``   as restore_from_worker       as restore_from_worker            refused
``unregister``           -> UNREGISTERED              closed -> UNREGISTERED            unchanged
``reconcile``            unchanged                    socket invalid: reopened if the   unchanged
                                                      namespace was made again, else
                                                      closed -> UNREGISTERED
=======================  ===========================  ================================  =========================

A worker that connects to the keeper again sends the sockets that it has. One of them may have been detached while the
worker was not connected. The state UNREGISTERED makes the keeper refuse this socket. In the state ABSENT the keeper
would register it, and so undo the ``detach``. The last ``MAX_UNREGISTERED_KEYS`` unregistered keys are stored; older
keys are ABSENT.
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
    """Operations on sockets. :class:`metadata_wsgi.keeper.netns_listener.NetnsSocketOpener` implements them."""

    def open(self, listener: Listener) -> S:
        """Open the listening socket. Raises MetadataError if this fails."""

    def is_valid(self, listener: Listener, sock: S) -> bool:
        """Whether ``sock`` listens on the listener's port, in the namespace that has the listener's name now.

        Raises OSError if this cannot be checked now.
        """

    def inode(self, sock: S) -> int:
        """A number of the kernel's socket: copies of ``sock`` have the same, other sockets have another."""

    def namespace_exists(self, listener: Listener) -> bool:
        """Whether the listener's namespace exists."""


class FdStore(Protocol[S_contra]):
    """Holds sockets while keeper and workers are stopped: :class:`metadata_wsgi.keeper.fdstore.SystemdFdStore`."""

    def add(self, listener: Listener, sock: S_contra) -> None:
        """Store ``sock``. Does nothing if ``listener`` is already stored."""

    def remove(self, listener: Listener) -> None:
        """Remove the socket of ``listener``. Does nothing if it is not stored."""


@dataclass(eq=False)
class Subscriber:
    """A worker: the mode of the listeners that it receives, and the queue of the packets that are not sent yet.

    Packets wait in this queue and not in the kernel, for two reasons. A worker that reads slowly must not block the
    keeper. And the kernel limits the number of descriptors in flight (unix(7), ETOOMANYREFS).
    """

    mode: str
    queue: deque[tuple[dict[str, Any], ListeningSocket | None]] = field(default_factory=deque)


class Registry(Generic[S]):
    """The listeners by key, and the subscribers."""

    def __init__(self, opener: SocketOpener[S], fdstore: FdStore[S] | None = None) -> None:
        self._opener = opener
        self._fdstore = fdstore
        self._registered: dict[str, tuple[Listener, S]] = {}
        self._keys_by_id: dict[str, set[str]] = {}
        self._keys_by_inode: dict[int, str] = {}
        self._subscribers: list[Subscriber] = []
        # Keys of unregistered listeners, and ids of which all listeners were unregistered. The oldest is first.
        self._unregistered: dict[str, None] = {}

    def __iter__(self) -> Iterator[Listener]:
        return iter([listener for listener, _ in self._registered.values()])

    def __len__(self) -> int:
        return len(self._registered)

    def of(self, id_: str) -> list[Listener]:
        """The listeners of the router or network."""
        return [self._registered[key][0] for key in sorted(self._keys_by_id.get(id_, ()))]

    def socket_of(self, key: str) -> tuple[Listener, S] | None:
        """The listener ``key`` and its socket; None if it is not registered or its socket is no longer valid."""
        found = self._registered.get(key)
        return found if found and self._opener.is_valid(*found) else None

    def subscriber_counts(self) -> dict[str, int]:
        """The number of subscribed workers by mode."""
        return dict(Counter(subscriber.mode for subscriber in self._subscribers))

    def register(self, listener: Listener, handed_over: S | None = None) -> bool:
        """Register ``listener``. Returns whether anything changed.

        A listener with the same key and other fields is replaced. If only the mode differs, the socket and its accept
        queue are kept, and the workers of the new mode accept on it. If ``handed_over`` is given, this listening socket
        is registered and no socket is opened. It replaces a registered socket: two sockets can listen on one port, and
        a caller that hands over a socket relies on it. Raises ValueError if ``handed_over`` does not match
        ``listener``, MetadataError if no socket could be opened, and OSError if a socket cannot be checked now.
        """
        if handed_over is not None and not self._opener.is_valid(listener, handed_over):
            handed_over.close()
            raise ValueError('the socket in the packet does not listen there')
        current = self._registered.get(listener.key)
        if (
            current
            and self._opener.is_valid(*current)
            and (handed_over is None or self._opener.inode(current[1]) == self._opener.inode(handed_over))
        ):
            only_mode_differs = current[0] == replace(listener, mode=current[0].mode)
            if only_mode_differs and handed_over is not None:
                handed_over.close()
            if current[0] == listener:
                return False
            if only_mode_differs:
                self._notify(current[0], {protocol.REMOVE: listener.key}, None)
                # Removed before it is added with its new name: systemd stores a socket under one name only.
                self._remove_from_store(current[0])
                self._add(listener, current[1])
                return True
        # The new socket is opened before the current one is closed, so the current one stays if this fails.
        sock = handed_over if handed_over is not None else self._opener.open(listener)
        self.unregister(listener.key)
        self._add(listener, sock)
        return True

    def restore_from_worker(self, listener: Listener, sock: S) -> bool:
        """Register a socket that a worker has from an earlier keeper. Returns False if the worker must close it.

        The worker must close the socket in three cases: the listener was unregistered meanwhile, its namespace was
        deleted, or another socket is registered for it. A socket that is registered for another listener is refused
        too: a worker could send copies of one socket with any number of ids, until the keeper has no descriptor left.
        Raises OSError if the socket cannot be checked now.
        """
        current = self._registered.get(listener.key)
        key_of_socket = self._keys_by_inode.get(self._opener.inode(sock))
        if current:
            accepted = key_of_socket == listener.key
        else:
            is_unregistered = listener.key in self._unregistered or listener.id in self._unregistered
            accepted = key_of_socket is None and not is_unregistered and self._opener.is_valid(listener, sock)
        if accepted and not current:
            self._add(listener, sock)
        else:
            sock.close()
        return accepted

    def restore_from_store(self, listener: Listener, sock: S) -> bool:
        """Register a socket that systemd stored for an earlier keeper.

        Returns False if the socket is refused, as in ``restore_from_worker``. Then it is also removed from the store.
        """
        accepted = self.restore_from_worker(listener, sock)
        if not accepted:
            self._remove_from_store(listener)
        return accepted

    def unregister(self, key: str) -> bool:
        """Close the listener ``key`` and queue REMOVE for its workers. Returns whether it was registered."""
        self._remember_unregistered(key)
        current = self._registered.pop(key, None)
        if current is None:
            return False
        listener, sock = current
        self._keys_by_id[listener.id].discard(key)
        if not self._keys_by_id[listener.id]:
            del self._keys_by_id[listener.id]
        if self._keys_by_inode.get(self._opener.inode(sock)) == key:
            del self._keys_by_inode[self._opener.inode(sock)]
        self._notify(listener, {protocol.REMOVE: key}, None)
        self._remove_from_store(listener)
        sock.close()
        return True

    def unregister_all(self, id_: str) -> bool:
        """Close every listener of the router or network. Returns whether there was one."""
        closed = [self.unregister(one.key) for one in self.of(id_)]
        # A worker may have other listeners of this id, which it has not sent to this keeper yet.
        self._remember_unregistered(id_)
        return any(closed)

    def reconcile(self) -> list[tuple[Listener, bool]]:
        """Close the sockets in deleted namespaces. If there is a new namespace of the same name, open a socket in it.

        Returns each listener whose socket was closed, and whether it was reopened. The sockets must be closed because
        an open socket keeps a deleted namespace, with its interfaces and addresses, in the kernel. Raises OSError, and
        closes nothing, if the sockets cannot be checked now.
        """
        lost = [current for current in self._registered.values() if not self._opener.is_valid(*current)]
        outcome = []
        for listener, _ in lost:
            reopened = False
            if self._opener.namespace_exists(listener):
                try:
                    if not self.register(listener):
                        continue  # its socket is valid again
                    reopened = True
                except (MetadataError, OSError):
                    # The new namespace is not complete yet, or descriptors are exhausted. An attach opens the socket.
                    reopened = False
            if not reopened:
                self.unregister(listener.key)
            outcome.append((listener, reopened))
        return outcome

    def close(self) -> None:
        """Close this process's copies of the sockets. Workers and systemd keep theirs, so workers are not notified."""
        for _, sock in self._registered.values():
            sock.close()
        self._registered.clear()
        self._keys_by_id.clear()
        self._keys_by_inode.clear()

    def subscribe(self, subscriber: Subscriber) -> None:
        """Queue all listeners of the subscriber's mode. After this call every change is queued for it too."""
        for listener, sock in self._registered.values():
            if listener.mode == subscriber.mode:
                subscriber.queue.append(({protocol.ADD: listener.to_json()}, sock))
        subscriber.queue.append(({protocol.SYNC_END: True}, None))
        self._subscribers.append(subscriber)

    def is_subscribed(self, subscriber: Subscriber) -> bool:
        """Whether ``subscribe`` was called for ``subscriber``."""
        return subscriber in self._subscribers

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Stop queueing changes for ``subscriber``. Called when its connection has ended."""
        if subscriber in self._subscribers:
            self._subscribers.remove(subscriber)

    def _add(self, listener: Listener, sock: S) -> None:
        self._registered[listener.key] = (listener, sock)
        self._keys_by_inode[self._opener.inode(sock)] = listener.key
        self._keys_by_id.setdefault(listener.id, set()).add(listener.key)
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
                # An ADD that is still queued is dropped, because its socket will be closed.
                if protocol.REMOVE in message:
                    subscriber.queue = deque(
                        packet for packet in subscriber.queue if packet[0].get(protocol.ADD) != listener.to_json()
                    )
                subscriber.queue.append((message, sock))
