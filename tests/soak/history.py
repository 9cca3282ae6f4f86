# SPDX-License-Identifier: Apache-2.0
"""What happened in a run, as a file of JSON lines: requests, assignments of addresses, windows of faults.

All times are of one monotonic clock, in seconds. A change takes effect somewhere between ``began_s`` and ``ended_s``.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

Place = tuple[str, str]
"""A router and an address behind it."""


@dataclass(frozen=True, order=True)
class Request:
    """A request of the instance at ``place``. ``instance_id`` is the instance in the response; '' without one."""

    started_s: float
    ended_s: float
    place: Place
    outcome: str
    instance_id: str = ''


@dataclass(frozen=True, order=True)
class Assignment:
    """From now on ``place`` belongs to ``instance_id``, and to no instance where that is ''."""

    began_s: float
    ended_s: float
    place: Place
    instance_id: str


@dataclass(frozen=True, order=True)
class FaultWindow:
    """A fault and the time until the host had recovered.

    ``stops_lookups``: Neutron or Keystone was unavailable, or Neutron did not show the router. ``outcomes``: prefixes
    of the outcomes that it may cause. Both concern ``routers``, or all routers if that is empty.
    """

    began_s: float
    ended_s: float
    name: str
    stops_lookups: bool = False
    outcomes: tuple[str, ...] = ()
    routers: tuple[str, ...] = ()


@dataclass
class History:
    """All of a run."""

    requests: list[Request] = field(default_factory=list)
    assignments: list[Assignment] = field(default_factory=list)
    faults: list[FaultWindow] = field(default_factory=list)


KINDS: Mapping[str, tuple[type, str]] = {
    'request': (Request, 'requests'), 'assignment': (Assignment, 'assignments'), 'fault': (FaultWindow, 'faults'),
}  # fmt: skip


class Recorder:
    """Writes the events to ``path`` as they happen; for all threads."""

    def __init__(self, path: Path) -> None:
        self._file = path.open('w')
        self._lock = threading.Lock()

    def add(self, event: Request | Assignment | FaultWindow) -> None:
        """Append an event."""
        kind = next(kind for kind, (cls, _) in KINDS.items() if isinstance(event, cls))
        line = json.dumps([kind, asdict(event)])
        with self._lock:
            self._file.write(line + '\n')

    def close(self) -> None:
        """Write what is buffered."""
        with self._lock:
            self._file.close()


def load(path: Path) -> History:
    """The history in a file that a Recorder has written."""
    with path.open() as file:
        return _history(json.loads(line) for line in file)


def _history(events: Iterable[tuple[str, dict]]) -> History:
    made = History()
    for kind, values in events:
        cls, name = KINDS[kind]
        for key, value in values.items():
            if isinstance(value, list):
                values[key] = tuple(value)
        getattr(made, name).append(cls(**values))
    return made
