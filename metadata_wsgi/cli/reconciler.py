# SPDX-License-Identifier: Apache-2.0
"""When ``watch`` attaches and detaches what, and what it says of it. Pure: it asks and acts through ``Attaching``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Protocol

LOG = logging.getLogger(__name__)

AGAIN_S = 60.0
FEW = 8

Place = tuple[str, str]
"""(kind, id): ``router`` or ``network``."""


class Attaching(Protocol):
    """What is done to places; each returns those for which it failed, with a complaint."""

    def attach(self, places: Sequence[Place]) -> Mapping[Place, str]:
        """Attach each, if it is not."""

    def detach(self, places: Sequence[Place]) -> Mapping[Place, str]:
        """Detach each, if it is."""

    def held(self) -> Set[Place] | None:
        """Those of which the keeper has a socket; None if it is away, and nobody knows."""


class Watching:
    """``look`` gives the namespaces that are there, by place, and what identifies each: another is another one."""

    def __init__(
        self,
        look: Callable[[], Mapping[Place, object]],
        attaching: Attaching,
        *,
        again_s: float = AGAIN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look = look
        self._attaching = attaching
        self._again_s = again_s
        self._clock = clock
        self._attached: dict[Place, object] = {}
        """As what it was attached; None where it has to be attached again."""
        self._held: Set[Place] = frozenset()
        self._gone: set[Place] = set()
        self._said: dict[Place, str] = {}
        self._all_again_at_s = clock() + again_s

    def begin(self, leftovers: Iterable[Place]) -> None:
        """Remove what belongs to namespaces that were gone before; then as always."""
        self._gone.update(leftovers)
        self.once()

    def once(self) -> None:
        """Look, and do what is to be done."""
        there = self._look()
        self._gone.update(place for place in self._attached if place not in there)
        self._gone -= set(there)
        self._find_lost(there)
        if self._clock() >= self._all_again_at_s:
            self._all_again_at_s = self._clock() + self._again_s
            self._attached = dict.fromkeys(self._attached)
        for place in self._did(sorted(self._gone), 'detached', self._attaching.detach):
            self._gone.discard(place)
            self._attached.pop(place, None)
            self._said.pop(place, None)
        due = [place for place in sorted(there) if self._attached.get(place) != there[place]]
        # Also where it fails: something of it may be there, and has to go with its namespace.
        self._attached.update(dict.fromkeys(due))
        for place in self._did(due, 'attached', self._attaching.attach):
            self._attached[place] = there[place]
        if due:
            # Also what went out of the keeper's hands by this.
            held = self._attaching.held()
            self._held = self._held if held is None else held

    def _find_lost(self, there: Mapping[Place, object]) -> None:
        """What was right, and is to be attached again at once."""
        held = self._attaching.held()
        lost = set() if held is None else set(self._held - held)
        for place in sorted(there):
            before = self._attached.get(place)
            if before is not None and (before != there[place] or place in lost):
                why = 'the keeper has no socket of it any more' if place in lost else 'its namespace was made anew'
                LOG.warning('%s %s: %s', *place, why)
                self._attached[place] = None
                self._said.pop(place, None)
        self._held = self._held if held is None else held

    def _did(
        self, places: Sequence[Place], done: str, act: Callable[[Sequence[Place]], Mapping[Place, str]]
    ) -> list[Place]:
        """Those for which it was done."""
        complaints = act(places) if places else {}
        news: dict[str, list[Place]] = {}
        for place in places:
            said = complaints.get(place, done)
            if self._said.get(place) != said:
                self._said[place] = said
                news.setdefault(said, []).append(place)
        for said, about in news.items():
            # A keeper that is away is one fault and not a thousand.
            shown = about[:1] if said != done and len(about) > FEW else about
            more = f' (and {len(about) - 1} more)' if shown != about else ''
            for place in shown:
                LOG.log(logging.INFO if said == done else logging.WARNING, '%s %s: %s%s', *place, said, more)
        return [place for place in places if place not in complaints]
