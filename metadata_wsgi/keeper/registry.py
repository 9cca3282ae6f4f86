# SPDX-License-Identifier: Apache-2.0
"""Which sockets are kept, and who has been told of them. Pure: no socket is opened or written to here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from metadata_wsgi.keeper.protocol import Listener


class Kept(Protocol):
    """A listening socket."""

    def close(self) -> None:
        """Stop listening."""


K = TypeVar('K', bound=Kept)


@dataclass(eq=False)
class Follower:
    """A worker: what it serves by ``mode``, and the packets it has yet to be sent.

    Packets wait here and not in the kernel: a worker that reads slowly must not hold the keeper, and
    descriptors in flight are limited (unix(7), ETOOMANYREFS).
    """

    mode: str
    waiting: deque[tuple[dict[str, Any], Kept | None]] = field(default_factory=deque)


class Registry(Generic[K]):
    """The listeners by key. ``open_`` opens one in its namespace; it may raise."""

    def __init__(self, open_: Callable[[Listener], K]) -> None:
        self._open = open_
        self._kept: dict[str, tuple[Listener, K]] = {}
        self._followers: list[Follower] = []

    def __iter__(self) -> Iterator[Listener]:
        return (listener for listener, _ in self._kept.values())

    def __len__(self) -> int:
        return len(self._kept)

    def attach(self, listener: Listener) -> bool:
        """Keep ``listener``; whether it had to be opened. One of the same key that differs is replaced."""
        there = self._kept.get(listener.key)
        if there and there[0] == listener:
            return False
        if there:
            self.detach(listener.key)
        self.adopt(listener, self._open(listener))
        return True

    def adopt(self, listener: Listener, kept: K) -> None:
        """Keep an open socket; one that is there already stays, and this one is closed."""
        if listener.key in self._kept:
            kept.close()
            return
        self._kept[listener.key] = (listener, kept)
        self._tell(listener, {'serve': listener.to_json()}, kept)

    def detach(self, key: str) -> bool:
        """Let go of the listener ``key``; whether there was one. Its workers are told before it closes."""
        there = self._kept.pop(key, None)
        if there is None:
            return False
        listener, kept = there
        self._tell(listener, {'leave': key}, None)
        kept.close()
        return True

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

    def _tell(self, listener: Listener, message: dict[str, Any], kept: K | None) -> None:
        for follower in self._followers:
            if follower.mode == listener.mode:
                # What is closed before it was sent need not be sent.
                if 'leave' in message:
                    follower.waiting = deque(
                        packet for packet in follower.waiting if packet[0].get('serve') != listener.to_json()
                    )
                follower.waiting.append((message, kept))
