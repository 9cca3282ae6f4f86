# SPDX-License-Identifier: Apache-2.0
"""What the units report to systemd: progress for the watchdog, and the status line."""

import re

import pytest

from tests.e2e.conftest import eventually
from tests.netns.keeper_host import serves
from tests.netns.units.running_units import AGENT, ALL, KEEPER, PROXY, children, pid, shorten_watchdog

pytestmark = pytest.mark.netns


@pytest.mark.parametrize('unit', ALL)
def test_watchdog_restarts_a_service_that_makes_no_progress(host, topology, attach, unit):
    """A stopped process stands for one that hangs; the socket of the router stays open meanwhile."""
    attach('shared')
    shorten_watchdog(host, unit)
    before = pid(host, unit)
    host.systemctl('kill', '--kill-whom=main', '--signal', 'STOP', unit)
    eventually(lambda: pid(host, unit) not in (0, before), lambda: f'it was restarted: {host.text()}', within_s=60)
    assert 'Watchdog timeout' in host.run('cat', '/dev/kmsg').stdout
    eventually(
        lambda: serves(topology.guest, 'instance-a'),
        lambda: f'the guest gets responses: {host.text()}',
    )


@pytest.mark.parametrize('unit', [AGENT, PROXY])
def test_watchdog_is_not_fed_while_no_worker_makes_progress(host, topology, attach, unit):
    """The master runs on, and would end such workers only after ``limits.WORKER_TIMEOUT_S``."""
    attach('shared')
    shorten_watchdog(host, unit)
    before = pid(host, unit)
    host.run('kill', '-STOP', *children(host, unit), check=True)
    eventually(lambda: pid(host, unit) not in (0, before), lambda: f'it was restarted: {host.text()}', within_s=60)
    assert 'Watchdog timeout' in host.run('cat', '/dev/kmsg').stdout
    eventually(
        lambda: serves(topology.guest, 'instance-a'),
        lambda: f'the guest gets responses: {host.text()}',
    )


def test_status_line_of_each_unit(host, attach):
    attach('shared')
    expected = {
        KEEPER: r'1 sockets in namespaces; workers: \d+ one_hop, 1 shared',
        AGENT: r'(\d+) of \1 workers serve, version \S+',
        PROXY: r'1 of 1 workers serve, version \S+',
    }
    for unit, pattern in expected.items():
        eventually(
            lambda unit=unit, pattern=pattern: re.fullmatch(pattern, host.show_property(unit, 'StatusText')),
            lambda unit=unit: f'{unit}: {host.show_property(unit, "StatusText")!r}: {host.text()}',
        )


def test_status_line_names_the_error_of_a_reload_that_failed(host):
    conf = '/etc/metadata_wsgi/metadata_agent.ini'
    host.run('sed', '-i', '1a metadata_connections = none', conf, check=True)
    host.systemctl('reload', AGENT)
    eventually(
        lambda: '; not reloaded: ' in host.show_property(AGENT, 'StatusText'),
        lambda: host.show_property(AGENT, 'StatusText') + host.text(),
    )
    assert 'metadata_connections' in host.show_property(AGENT, 'StatusText')
    host.run('sed', '-i', '/metadata_connections = none/d', conf, check=True)
    host.systemctl('reload', AGENT)
    eventually(
        lambda: re.fullmatch(r'(\d+) of \1 workers serve, version \S+', host.show_property(AGENT, 'StatusText')),
        lambda: host.show_property(AGENT, 'StatusText') + host.text(),
    )
