# SPDX-License-Identifier: Apache-2.0
"""The faults of a service behind the agent, by the names used in the result tables, and their durations."""

from __future__ import annotations

import os
from collections.abc import Iterable

from tests.fault_injecting_proxy import FaultInjectingProxy, Refused, RequestFilter, Status, cut, hang

FAULTS = {
    '500': Status(500),
    '502': Status(502),
    '503': Status(503),
    '504': Status(504),
    'refused': Refused(),
    'hanging': hang,
    'cut mid-body': cut,
}
DURATIONS = ('once', 'twice', '5 s')
FAULTS_FOR_EACH_DURATION = tuple((name, duration) for name in FAULTS for duration in DURATIONS)
"""(fault, duration): all combinations."""
NIGHTLY = os.environ.get('METADATA_WSGI_NIGHTLY', '') not in ('', '0')


def inject(proxy: FaultInjectingProxy, name: str, duration: str, at: RequestFilter) -> None:
    """Inject the fault ``name`` into the requests that match ``at``."""
    if (name, duration) == ('refused', '5 s'):
        proxy.plan(Refused(5.0), at=at)
    elif duration == '5 s':
        proxy.plan(FAULTS[name], at=at, for_s=5.0)
    else:
        proxy.plan(FAULTS[name], at=at, times=DURATIONS.index(duration) + 1)


def nightly(cases: Iterable[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """``cases`` in a nightly run, else none; pytest reports an empty list as one skipped test."""
    return list(cases) if NIGHTLY else []
