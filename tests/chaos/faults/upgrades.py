# SPDX-License-Identifier: Apache-2.0
"""The programs are replaced by another version, as the packages do it (``packages/scripts/postinstall.sh``)."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

from tests.chaos.faults.fault import FRONT_RESTARTS, Fault
from tests.chaos.host import AGENT, KEEPER, PROXY, WATCH, Host
from tests.chaos.installation import Release
from tests.chaos.setups import TWO_VERSIONS
from tests.chaos.units import Unit


def faults() -> Iterator[Fault]:
    yield Fault('upgrade of all programs', replace_programs, every_s=15)
    yield Fault('upgrade from the former version', _upgrade, setups=TWO_VERSIONS)
    yield Fault('downgrade to the former version', _downgrade, setups=TWO_VERSIONS)
    yield Fault('upgrade by restart', _upgrade_by_restart, setups=TWO_VERSIONS, allows=FRONT_RESTARTS)
    yield Fault('downgrade by restart', _downgrade_by_restart, setups=TWO_VERSIONS, allows=FRONT_RESTARTS)


def replace_programs(host: Host, version: str = r'\S+') -> None:
    """Start the installed version of each program, one after the other; each serves before the next one follows.

    ``version`` is a regular expression. The former process may still send its own status after the signal.

    In mode ``process`` the namespace proxies run on with the version with which they were started, as documented.
    """
    serves = re.compile(rf'[1-9]\d* of \d+ workers serve, version {version}(?!\S)')
    for name, unit in _running(host):
        if name in (KEEPER, WATCH):
            unit.restart()
            continue
        unit.notify.status = ''
        unit.kill(signal.SIGUSR1)
        host.wait_until(lambda unit=unit: serves.match(unit.notify.status), f'the {name} does not serve')  # type: ignore[misc]


def _running(host: Host) -> list[tuple[str, Unit]]:
    return [(name, host.units[name]) for name in (KEEPER, PROXY, AGENT, WATCH) if name in host.units]


def _upgrade(host: Host) -> None:
    _replace(host, host.installation.present)


def _downgrade(host: Host) -> None:
    _replace(host, host.installation.former)


def _replace(host: Host, release: Release) -> None:
    host.installation.install(release)
    replace_programs(host, re.escape(release.version))


def _upgrade_by_restart(host: Host) -> None:
    _restart_all(host, host.installation.present)


def _downgrade_by_restart(host: Host) -> None:
    _restart_all(host, host.installation.former)


def _restart_all(host: Host, release: Release) -> None:
    """For a version that does not know SIGUSR1, as 1.0.

    The agent is stopped and started. In a restart systemd would keep its socket, and version 1.0 takes an open socket
    for that of a second agent.
    """
    host.installation.install(release)
    for name, unit in _running(host):
        unit.stop()
        if name == AGENT:
            unit.notify.close_stored()
        unit.start()
        host.wait_until(lambda: all(map(host.answers, host.clients)), f'no metadata after the restart of the {name}')
