# SPDX-License-Identifier: Apache-2.0
"""Proves of a history that no instance got another's metadata beyond the documented bound, and none failed needlessly.

A response with metadata of an instance is right if that instance had the place (router and address) at some time
between ``bound`` before the start of the request and its end. The bound is that of doc/caches.md:
``lookup_cache_seconds``, and ``lookup_cache_stale_seconds`` while lookups were impossible. A 404 is right if the place
had no instance at some time in the same interval. It is also right if the place changed its instance within the last
second: Nova does not know the former instance, and a younger entry is not looked up again. Every other outcome needs a
fault that may cause it.

A response for another router's or another address's instance is never right, however old it is: that is what the check
of the place means.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from metadata_wsgi.lookup import cached
from tests.chaos.load import OK
from tests.soak.history import Assignment, FaultWindow, History, Place, Request

NOT_FOUND = 'status 404'
FOREVER_S = float('inf')


@dataclass(frozen=True)
class Bounds:
    """In seconds. ``after_outage_s``: for how long after an outage a worker may still take lookups to be impossible.

    ``unchecked_s``: age at which a cached instance that Nova does not know is looked up again. ``response_s``: from the
    decision about a response to its end.
    """

    fresh_s: float = 10.0
    stale_s: float = 300.0
    after_outage_s: float = 7.0
    unchecked_s: float = cached.MIN_REVALIDATE_AGE_S
    response_s: float = 1.0


@dataclass(frozen=True)
class Violation:
    """A request that got what it must not get."""

    request: Request
    reason: str

    def __str__(self) -> str:
        request = self.request
        return f'{request.started_s:.3f} to {request.ended_s:.3f} at {"/".join(request.place)}: {self.reason}'


@dataclass(frozen=True)
class _Tenure:
    """An instance ('' for none) had a place at most from ``from_s`` to ``until_s``."""

    instance_id: str
    from_s: float
    until_s: float


def check(history: History, bounds: Bounds) -> list[Violation]:
    """All violations, in the order of the requests."""
    tenures = _tenures(history.assignments)
    outages = [fault for fault in history.faults if fault.stops_lookups]
    found = []
    for request in history.requests:
        reason = _reason(request, tenures.get(request.place, ()), outages, history.faults, bounds)
        if reason:
            found.append(Violation(request, reason))
    return found


def _tenures(assignments: Sequence[Assignment]) -> dict[Place, list[_Tenure]]:
    by_place: dict[Place, list[Assignment]] = defaultdict(list)
    for assignment in sorted(assignments):
        by_place[assignment.place].append(assignment)
    return {
        place: [
            _Tenure(one.instance_id, one.began_s, following.ended_s if following else FOREVER_S)
            for one, following in zip(changes, [*changes[1:], None], strict=True)
        ]
        for place, changes in by_place.items()
    }


def _reason(
    request: Request, tenures: Sequence[_Tenure], outages: Sequence[FaultWindow], faults: Sequence[FaultWindow],
    bounds: Bounds,
) -> str:  # fmt: skip
    """Why a request is a violation; '' if it is none."""
    if request.outcome in (OK, NOT_FOUND):
        wanted = request.instance_id if request.outcome == OK else ''
        impossible = any(
            outage.began_s <= request.ended_s
            and request.started_s <= outage.ended_s + bounds.after_outage_s
            and (not outage.routers or request.place[0] in outage.routers)
            for outage in outages
        )
        bound_s = max(bounds.stale_s, bounds.fresh_s) if impossible else bounds.fresh_s
        if any(
            tenure.instance_id == wanted
            and tenure.from_s <= request.ended_s
            and tenure.until_s >= request.started_s - bound_s
            for tenure in tenures
        ):
            return ''
        if request.outcome == OK:
            return f'got the metadata of {wanted}, which did not have this place in the {bound_s:g} s before'
        changed_after_s = max(request.started_s, request.ended_s - bounds.response_s) - bounds.unchecked_s
        changes = [(new.from_s, old.until_s) for old, new in pairwise(tenures)]
        if any(began_s <= request.ended_s and changed_after_s <= ended_s for began_s, ended_s in changes):
            return ''
        if _is_explained(request, faults):
            return ''
        return f'got 404, but the place had an instance in all of the {bound_s:g} s before'
    if _is_explained(request, faults):
        return ''
    return f'failed ({request.outcome}), and no fault explains it'


def _is_explained(request: Request, faults: Sequence[FaultWindow]) -> bool:
    return any(
        fault.began_s <= request.ended_s
        and request.started_s <= fault.ended_s
        and request.outcome.startswith(fault.outcomes or ('\0',))
        and (not fault.routers or request.place[0] in fault.routers)
        for fault in faults
    )
