# SPDX-License-Identifier: Apache-2.0
"""Which sockets are kept, and who has been told of them. Pure: no socket is opened or written to here."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from metadata_wsgi.errors import MetadataError
from metadata_wsgi.keeper.protocol import Listener

REMEMBERED = 4096


class Kept(Protocol):
    """A listening socket."""

    def close(self) -> None:
        """Stop listening."""


K = TypeVar('K', bound=Kept)
K_contra = TypeVar('K_contra', bound=Kept, contravariant=True)


class Opener(Protocol[K]):
    """What is done to sockets; :class:`metadata_wsgi.keeper.netns_listener.NamespaceOpener` is the real one."""

    def open(self, listener: Listener) -> K:
        """Listen as ``listener`` says. Raises MetadataError."""

    def fits(self, listener: Listener, kept: K) -> bool:
        """Whether ``kept`` is what ``open`` would give: it listens there, in the namespace that has the name now."""

    def are_one(self, kept: K, other: K) -> bool:
        """Whether both are the same socket of the kernel."""

    def is_gone(self, listener: Listener) -> bool:
        """Whether there is no namespace of that name any more."""


class Store(Protocol[K_contra]):
    """What outlives keeper and workers; :class:`metadata_wsgi.keeper.fdstore.SystemdStore` is the real one."""

    def keep(self, listener: Listener, kept: K_contra) -> None:
        """Hold ``kept``; nothing if it is held already as ``listener``."""

    def forget(self, listener: Listener) -> None:
        """Let go of what is held as ``listener``; nothing if there is none."""


@dataclass(eq=False)
class Follower:
    """A worker: what it serves by ``mode``, and the packets it has yet to be sent.

    Packets wait here and not in the kernel: a worker that reads slowly must not hold the keeper, and
    descriptors in flight are limited (unix(7), ETOOMANYREFS).
    """

    mode: str
    waiting: deque[tuple[dict[str, Any], Kept | None]] = field(default_factory=deque)


class Registry(Generic[K]):
    """The listeners by key, and the followers that have heard ``follow``."""

    def __init__(self, opener: Opener[K], store: Store[K] | None = None) -> None:
        self._opener = opener
        self._store = store
        self._kept: dict[str, tuple[Listener, K]] = {}
        self._followers: list[Follower] = []
        self._let_go: deque[str] = deque(maxlen=REMEMBERED)

    def __iter__(self) -> Iterator[Listener]:
        return iter([listener for listener, _ in self._kept.values()])

    def __len__(self) -> int:
        return len(self._kept)

    def followers(self) -> dict[str, int]:
        """How many workers follow, by mode."""
        return dict(Counter(follower.mode for follower in self._followers))

    def attach(self, listener: Listener, taken: K | None = None) -> bool:
        """Keep ``listener``; whether anything changed. One of the same key that differs is replaced.

        Where only the mode differs the socket stays, and so does who waits in it: others serve it from now on.
        ``taken`` is a socket that listens there already; it is kept instead of one that would have to be opened.
        """
        if taken is not None and not self._opener.fits(listener, taken):
            taken.close()
            raise ValueError('the socket beside it does not listen there')
        there = self._kept.get(listener.key)
        if there and self._opener.fits(*there):
            if taken is not None:
                taken.close()
            if there[0] == listener:
                return False
            if there[0] == replace(listener, mode=there[0].mode):
                self._tell(there[0], {'leave': listener.key}, None)
                # First: a store holds a socket once, under one name.
                self._forget(there[0])
                self._keep(listener, there[1])
                return True
        # Opened before the other is closed: what cannot be replaced stays.
        opened = taken if taken is not None else self._opener.open(listener)
        self.detach(listener.key)
        self._keep(listener, opened)
        return True

    def adopt(self, listener: Listener, kept: K) -> bool:
        """Take back a socket that a worker has of an earlier keeper; False if the worker must let go of it.

        It must where it was detached meanwhile, or its namespace has gone, or another socket took its place.
        """
        there = self._kept.get(listener.key)
        if there:
            welcome = self._opener.are_one(there[1], kept)
        else:
            welcome = listener.key not in self._let_go and self._opener.fits(listener, kept)
        if welcome and not there:
            self._keep(listener, kept)
        else:
            kept.close()
        return welcome

    def detach(self, key: str) -> bool:
        """Let go of the listener ``key``; whether there was one. Its workers are told before it closes."""
        self._let_go.append(key)
        there = self._kept.pop(key, None)
        if there is None:
            return False
        listener, kept = there
        self._tell(listener, {'leave': key}, None)
        self._forget(listener)
        kept.close()
        return True

    def look_after(self) -> list[tuple[Listener, bool]]:
        """Let go of sockets whose namespace has gone, and open them again where there is a new one of its name.

        Returns what was lost, and whether it was opened again: no guest reaches a namespace that has lost its
        name, but a socket in it would keep it, its interfaces and its addresses in the kernel.
        """
        lost = [there for there in self._kept.values() if not self._opener.fits(*there)]
        outcome = []
        for listener, _ in lost:
            again = False
            if not self._opener.is_gone(listener):
                try:
                    again = self.attach(listener)
                except MetadataError:
                    # Half made as yet; it is looked at again, or attached by whoever made it.
                    again = False
            if not again:
                self.detach(listener.key)
            outcome.append((listener, again))
        return outcome

    def take_back(self, listener: Listener, kept: K) -> bool:
        """Keep again what the store held for an earlier keeper; False, and it is forgotten, where it does not fit."""
        welcome = self.adopt(listener, kept)
        if not welcome:
            self._forget(listener)
        return welcome

    def close(self) -> None:
        """Close our hold of everything and tell nobody: the end of this process, not of what it kept."""
        for _, kept in self._kept.values():
            kept.close()
        self._kept.clear()

    def follow(self, follower: Follower) -> None:
        """Tell ``follower`` of all there is to serve in its mode, and of every change from now on."""
        for listener, kept in self._kept.values():
            if listener.mode == follower.mode:
                follower.waiting.append(({'serve': listener.to_json()}, kept))
        follower.waiting.append(({'complete': True}, None))
        self._followers.append(follower)

    def unfollow(self, follower: Follower) -> None:
        """It has gone."""
        if follower in self._followers:
            self._followers.remove(follower)

    def _keep(self, listener: Listener, kept: K) -> None:
        self._kept[listener.key] = (listener, kept)
        if listener.key in self._let_go:
            self._let_go.remove(listener.key)
        if self._store is not None:
            self._store.keep(listener, kept)
        self._tell(listener, {'serve': listener.to_json()}, kept)

    def _forget(self, listener: Listener) -> None:
        if self._store is not None:
            self._store.forget(listener)

    def _tell(self, listener: Listener, message: dict[str, Any], kept: K | None) -> None:
        for follower in self._followers:
            if follower.mode == listener.mode:
                # What is closed before it was sent cannot be sent any more.
                if 'leave' in message:
                    follower.waiting = deque(
                        packet for packet in follower.waiting if packet[0].get('serve') != listener.to_json()
                    )
                follower.waiting.append((message, kept))
