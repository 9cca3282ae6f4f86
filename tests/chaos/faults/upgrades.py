# SPDX-License-Identifier: Apache-2.0
"""The programs are replaced by another version, as the packages do it (``packages/scripts/postinstall.sh``)."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

from tests.chaos.faults.fault import Fault
from tests.chaos.host import AGENT, KEEPER, PROXY, WATCH, Host
from tests.chaos.installation import Release
from tests.chaos.setups import TWO_VERSIONS

SERVES = re.compile(r'[1-9]\d* of \d+ workers serve, version (\S+)')


def faults() -> Iterator[Fault]:
    yield Fault('upgrade of all programs', replace_programs, every_s=15)
    yield Fault('upgrade from the former version', _upgrade, setups=TWO_VERSIONS)
    yield Fault('downgrade to the former version', _downgrade, setups=TWO_VERSIONS)


def replace_programs(host: Host) -> None:
    """Start the installed version of each program, one after the other; each serves before the next one follows.

    In mode ``process`` the namespace proxies run on with the version with which they were started, as documented.
    """
    for name in (KEEPER, PROXY, AGENT, WATCH):
        unit = host.units.get(name)
        if unit is None:
            continue
        if name in (KEEPER, WATCH):
            unit.restart()
            continue
        unit.notify.status = ''
        unit.kill(signal.SIGUSR1)
        host.wait_until(lambda unit=unit: SERVES.match(unit.notify.status), f'the {name} does not serve')  # type: ignore[misc]


def version_of(host: Host, name: str) -> str:
    """The version that the agent or the shared proxy reports to systemd; '' if no worker serves."""
    found = SERVES.match(host.units[name].notify.status)
    return found[1] if found else ''


def _upgrade(host: Host) -> None:
    _replace(host, host.installation.present)


def _downgrade(host: Host) -> None:
    _replace(host, host.installation.former)


def _replace(host: Host, release: Release) -> None:
    host.installation.install(release)
    replace_programs(host)
    for name in (AGENT, PROXY):
        if name in host.units:
            assert version_of(host, name) == release.version, host.units[name].notify.status
