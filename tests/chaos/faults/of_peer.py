# SPDX-License-Identifier: Apache-2.0
"""The faults that also concern haproxy and Neutron's agent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tests.chaos.faults.fault import Allows, Fault
from tests.chaos.host import SHARED
from tests.chaos.setups import PEER

PEER_FAULTS = (
    'SIGKILL agent master', 'SIGKILL agent worker', 'restart agent', 'Nova down', 'Nova hanging', 'Nova slow',
    'Nova flapping', 'Nova resetting', 'Nova garbage', 'Nova cutting', 'Nova responds 500', 'Nova responds 503',
    'packets to the services dropped',
)  # fmt: skip
ANYTHING = Allows(('',), why='The peer has no contract')


def faults(ours: Sequence[Fault]) -> Iterator[Fault]:
    for name in PEER_FAULTS:
        fault = next(fault for fault in ours if fault.name == name and SHARED in fault.setups)
        yield replace(fault, setups=(PEER,), allows=ANYTHING)
