# SPDX-License-Identifier: Apache-2.0
"""The keeper's process: two unix sockets, one loop, no thread but the one that enters a namespace."""

from __future__ import annotations

import array
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

from metadata_wsgi.errors import MetadataError
from metadata_wsgi.keeper import admin_client, protocol
from metadata_wsgi.keeper.netns_listener import NamespaceOpener
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.keeper.registry import Follower, Opener, Registry, Store
from metadata_wsgi.net import listeners
from metadata_wsgi.netns import namespaces

LOG = logging.getLogger(__name__)

# The kernel's limits for descriptors in flight and for buffers: no event says when they are lifted.
LATER = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})
BREATH_S = 1.0
SHORT_BREATH_S = 0.05
ANSWER_S = 2.0
SO_PEERGROUPS = 59  # <asm-generic/socket.h>, Linux 4.13


class Keeper:
    """Serves ``<state_path>/keeper`` and ``<state_path>/listeners`` until ``stop``."""

    def __init__(
        self,
        state_path: str,
        *,
        user: str = '',
        group: str = '',
        store: Store[socket.socket] | None = None,
        opener: Opener[socket.socket] | None = None,
    ) -> None:
        listeners.raise_descriptor_limit()
        self._registry: Registry[socket.socket] = Registry(opener or NamespaceOpener(), store)
        self._followers: dict[socket.socket, Follower | None] = {}
        self._running = True
        self._breath_s = BREATH_S
        self._changed_at = self._looked_at = self._look_until = 0.0
        self._path = admin_client.path(state_path)
        self._selector = selectors.DefaultSelector()
        self._serve(self._path, 0o600, '', '', self._asked)
        listeners_path = os.path.join(state_path, 'listeners')
        self._serve(listeners_path, 0o660, user, group, self._followed)
        self._workers = os.stat(listeners_path)

    def stop(self, *_: Any) -> None:
        """End ``run`` (a signal handler)."""
        self._running = False

    def take_back(self, stored: Iterable[tuple[Listener, socket.socket]]) -> None:
        """Keep what a store held for an earlier keeper, as far as it still is what it was."""
        for listener, kept in stored:
            if not self._registry.take_back(listener, kept):
                LOG.info('%s was stored, and is not taken back: another is kept, or its namespace is gone', listener)

    def run(self) -> None:
        """Serve until stopped. The workers go on with what they have, and hand it to the next keeper."""
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)
        while self._running:
            self.breathe()
        if not len(self._registry):
            # Who finds no socket knows that nothing is kept; otherwise it is the next keeper who knows.
            os.unlink(self._path)
        self.close()

    def close(self) -> None:
        """Close this process's descriptors; what a worker serves stays open in the worker."""
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
        self._registry.close()

    def breathe(self) -> None:
        """One turn: hear who speaks, tell who follows, look after namespaces that came or went."""
        for key, _ in self._selector.select(self._breath_s):
            self._guarded(key.fileobj, key.data)
        self._breath_s = BREATH_S
        for connection in list(self._followers):
            self._guarded(connection, self._tell)
        if self._should_look():
            for listener, again in self._registry.look_after():
                LOG.info('The namespace of %s %s', listener, 'was made anew, and entered again' if again else 'is gone')

    def _should_look(self) -> bool:
        """Whether names came or went; also a second time, because a name comes before its namespace is behind it."""
        now, changed_at = time.monotonic(), namespaces.changed_at()
        if changed_at != self._changed_at:
            self._changed_at, self._look_until = changed_at, now + 2 * BREATH_S
        due = now < self._look_until and now - self._looked_at >= BREATH_S / 2
        if due:
            self._looked_at = now
        return due

    def _serve(self, path: str, mode: int, user: str, group: str, arrived: Callable[[socket.socket], None]) -> None:
        listening = listeners.unix_listener(path, mode=mode, user=user, group=group, kind=socket.SOCK_SEQPACKET)
        listening.setblocking(False)

        def accept(_listening: Any) -> None:
            try:
                connection, _ = listening.accept()
            except OSError as error:
                # Whoever came has gone again, or descriptors ran out: never a reason to stop listening.
                LOG.warning('%s: nobody could be let in: %s', path, error)
                return
            connection.setblocking(False)
            arrived(connection)

        self._selector.register(listening, selectors.EVENT_READ, accept)

    def _guarded(self, connection: Any, act: Callable[[Any], None]) -> None:
        try:
            act(connection)
        except BlockingIOError:
            return
        except (EOFError, OSError, ValueError) as error:
            if not isinstance(error, EOFError):
                LOG.warning('A connection was closed: %s', error)
            follower = self._followers.pop(connection, None)
            if follower:
                self._registry.unfollow(follower)
            self._selector.unregister(connection)
            connection.close()

    # -- what root asks

    def _asked(self, connection: socket.socket) -> None:
        self._selector.register(connection, selectors.EVENT_READ, self._answer)

    def _answer(self, connection: socket.socket) -> None:
        message, descriptor = protocol.receive(connection)
        taken = socket.socket(fileno=descriptor) if descriptor is not None else None
        replies = self._replies(message, taken)
        connection.settimeout(ANSWER_S)
        for reply in replies:
            protocol.send(connection, reply)
        connection.setblocking(False)

    def _replies(self, message: dict[str, Any], taken: socket.socket | None) -> list[dict[str, Any]]:
        verb, id_ = message.get('verb'), message.get('id')
        try:
            if verb == 'attach':
                listener = Listener.from_json(message.get('listener'))
                return [{'changed': self._registry.attach(listener, taken)}]
            if verb == 'detach':
                keys = [one.key for one in self._registry if one.id == id_]
                if 'key' in message:
                    # Also where it is not there: a worker may be about to hand it back.
                    keys = [str(message['key'])]
                closed = [self._registry.detach(key) for key in keys]
                return [{'closed': any(closed)}]
            if verb == 'list':
                found = [one.to_json() for one in self._registry if id_ in (None, one.id)]
                return _pages(found, self._registry.followers())
        except (MetadataError, ValueError) as error:
            busy = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
            return [{'error': str(error), 'again': busy}]
        return [{'error': 'one of the verbs attach, detach, list'}]

    # -- who follows

    def _followed(self, connection: socket.socket) -> None:
        uid, group_ids = _peer(connection)
        if not may_follow(uid, group_ids, self._workers):
            LOG.warning('A process of uid %d may not follow, and was sent away', uid)
            connection.close()
            return
        self._followers[connection] = None
        self._selector.register(connection, selectors.EVENT_READ, self._hear)

    def _hear(self, connection: socket.socket) -> None:
        message, descriptor = protocol.receive(connection)
        handed = socket.socket(fileno=descriptor) if descriptor is not None else None
        try:
            self._heard(connection, message, handed)
        except ValueError:
            if handed:
                handed.close()
            raise

    def _heard(self, connection: socket.socket, message: dict[str, Any], handed: socket.socket | None) -> None:
        follower = self._followers[connection]
        if follower is None and message.get('mode') in protocol.MODES:
            self._followers[connection] = Follower(message['mode'])
        elif follower and message.get('holds') is not None and handed is not None:
            listener = Listener.from_json(message['holds'])
            if not self._registry.adopt(listener, handed):
                follower.waiting.append(({'leave': listener.key}, None))
        elif follower and 'holds' in message and handed is None:
            self._registry.follow(follower)
        else:
            raise ValueError('not what a worker says')

    def _tell(self, connection: socket.socket) -> None:
        follower = self._followers[connection]
        wanted = selectors.EVENT_READ
        while follower and follower.waiting:
            message, kept = follower.waiting[0]
            try:
                protocol.send(connection, message, kept.fileno() if kept is not None else None)  # type: ignore[attr-defined]
            except BlockingIOError:
                wanted |= selectors.EVENT_WRITE
                break
            except OSError as error:
                if error.errno not in LATER:
                    raise
                self._breath_s = SHORT_BREATH_S
                break
            follower.waiting.popleft()
        key = self._selector.get_key(connection)
        if key.events != wanted:
            self._selector.modify(connection, wanted, self._hear)


def may_follow(uid: int, group_ids: list[int], owner: os.stat_result) -> bool:
    """Root, the owner of the workers' socket, and its group: who may write to it. Asked again of who is connected.

    The permissions of a socket are those of its file system's moment; a process keeps what it opened before.
    """
    return uid in (0, owner.st_uid) or (bool(owner.st_mode & stat.S_IWGRP) and owner.st_gid in group_ids)


def _peer(connection: socket.socket) -> tuple[int, list[int]]:
    """(uid, all group ids) of the process at the other end when it connected; unix(7)."""
    _, uid, gid = struct.unpack('iII', connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        more = array.array('I', connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4096))
    except OSError:
        more = array.array('I')
    return uid, [gid, *more]


def _pages(listeners: list[dict[str, Any]], workers: dict[str, int], size: int = 100) -> list[dict[str, Any]]:
    pages = [{'listeners': listeners[start : start + size]} for start in range(0, len(listeners), size)]
    return [*pages, {'listeners': [], 'workers': workers}]
