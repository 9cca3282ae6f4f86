# SPDX-License-Identifier: Apache-2.0
"""Keystone, Neutron, Nova and memcached are down, hang, are slow, or respond with garbage or errors."""

from __future__ import annotations

from collections.abc import Iterator

from tests.chaos.faults.fault import NOVAS_STATUS, Action, Fault
from tests.chaos.host import MODES, Host
from tests.chaos.services import KEYSTONE, MEMCACHED, NEUTRON, NOVA
from tests.chaos.setups import CACHED

SERVICE_FAULTS = ('down', 'hanging', 'slow', 'trickling', 'flapping', 'resetting', 'garbage', 'cutting')


def faults() -> Iterator[Fault]:
    for service in (KEYSTONE, NEUTRON, NOVA, MEMCACHED):
        setups = (CACHED,) if service == MEMCACHED else MODES
        for fault in SERVICE_FAULTS:
            yield Fault(f'{service} {fault}', _set_fault(service, fault), _end_fault(service), setups=setups)
    for service in (KEYSTONE, NEUTRON):
        yield Fault(f'{service} responds 500', _force(service, 500), _force(service, 0))
        yield Fault(f'{service} responds 200 with HTML', _force(service, 200, '<html>'), _force(service, 0))
    yield Fault('Nova responds 500', _force(NOVA, 500), _force(NOVA, 0), allows=NOVAS_STATUS)
    yield Fault('Nova responds 503', _force(NOVA, 503), _force(NOVA, 0),
                allows=NOVAS_STATUS)  # fmt: skip


def _set_fault(service: str, fault: str) -> Action:
    def inject(host: Host) -> None:
        if service == KEYSTONE:
            host.services.revoke_tokens()
        host.services.set_fault(service, fault)

    return inject


def _end_fault(service: str) -> Action:
    return lambda host: host.services.set_fault(service, 'none')


def _force(service: str, status: int, body: str = 'injected') -> Action:
    def inject(host: Host) -> None:
        if service == KEYSTONE:
            host.services.revoke_tokens()
        host.services.force(service, status, body)

    return inject
