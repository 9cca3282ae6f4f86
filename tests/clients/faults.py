# SPDX-License-Identifier: Apache-2.0
"""How a service behind the path fails, by the names that the tables have, and how long."""

from __future__ import annotations

import os
from collections.abc import Iterable

from tests.injector import At, Injector, Refused, Status, cut, hang

FAULTS = {
    '500': Status(500),
    '502': Status(502),
    '503': Status(503),
    '504': Status(504),
    'refused': Refused(),
    'hanging': hang,
    'cut mid-body': cut,
}
LASTING = ('once', 'twice', '5 s')
HOW = tuple((name, lasting) for name in FAULTS for lasting in LASTING)
"""Each fault for each time."""
NIGHTLY = os.environ.get('METADATA_WSGI_NIGHTLY', '') not in ('', '0')


def plan(injector: Injector, name: str, lasting: str, at: At) -> None:
    """Let the fault of that name happen at the requests that fit."""
    if (name, lasting) == ('refused', '5 s'):
        injector.plan(Refused(5.0), at=at)
    elif lasting == '5 s':
        injector.plan(FAULTS[name], at=at, for_s=5.0)
    else:
        injector.plan(FAULTS[name], at=at, times=LASTING.index(lasting) + 1)


def nightly(cases: Iterable[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """The cases in a nightly run; none, which pytest counts as one skipped test, in any other."""
    return list(cases) if NIGHTLY else []
