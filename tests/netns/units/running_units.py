# SPDX-License-Identifier: Apache-2.0
"""The three services on a running ``SystemdMachine``, called ``host``: start them, and read their state."""

import pytest

from tests.e2e.conftest import eventually
from tests.netns.systemd_machine import BootError

KEEPER, AGENT, PROXY = 'metadata-wsgi-keeper', 'quantum-metadata-agent', 'quantum-ns-metadata-proxy'
ALL = (KEEPER, AGENT, PROXY)
WATCH = 'metadata-wsgi-watch'
SECRET_FILE = 'metadata_proxy_shared_secret'


def start_machine(machine):
    """Boot the machine and start all units."""
    try:
        running = machine.start()
    except BootError as error:
        pytest.skip(f'no systemd could be booted here: {error}')
    running.systemctl('start', *ALL)
    eventually(
        lambda: workers(running) == {'shared', 'one_hop'},
        lambda: f'workers of both modes are connected: {running.text()}',
    )
    return running


def workers(host, state_path='/var/lib/quantum'):
    """The modes that have workers."""
    script = (
        'import sys; sys.path[:0] = ["/opt/checkout", "/opt/packages"]\n'
        'from metadata_wsgi.keeper.attachments_client import AttachmentsClient\n'
        f'print(*AttachmentsClient({state_path!r}).workers())'
    )
    return set(host.run(host.interpreter, '-c', script).stdout.split())


def sockets_in_fdstore(host):
    return int(host.show_property(KEEPER, 'NFileDescriptorStore'))


def pid(host, unit):
    return int(host.show_property(unit, 'MainPID'))


def wait_until_attached_is_healthy(host):
    """Wait until ``metadata-wsgi attached`` reports no problem: workers reconnect to a new keeper after a while."""
    eventually(
        lambda: host.metadata_wsgi('attached', check=False).returncode == 0,
        lambda: host.metadata_wsgi('attached', check=False).stdout + host.text(),
    )


def refused_connections(requests):
    return [failure for failure in requests.failures if isinstance(failure, ConnectionRefusedError)]


def owners(host):
    """Owner, group and mode of the state directory and each socket."""
    return host.run('stat', '-c', '%n %U:%G %a', *(f'/var/lib/quantum{name}' for name in SOCKETS)).stdout.splitlines()


SOCKETS = ('', '/keeper', '/listeners', '/metadata_proxy')
EXPECTED_OWNERS = [
    '/var/lib/quantum root:metadata-wsgi 1775',
    '/var/lib/quantum/keeper root:root 600',
    '/var/lib/quantum/listeners root:metadata-wsgi 660',
    '/var/lib/quantum/metadata_proxy metadata-wsgi:metadata-wsgi 660',
]


def shorten_watchdog(host, unit):
    drop_in = f'/etc/systemd/system/{unit}.service.d/watchdog.conf'
    host.run('sh', '-c', f'printf "[Service]\\nWatchdogSec=8\\n" > {drop_in}', check=True)
    host.systemctl('daemon-reload')
    host.systemctl('restart', unit)
    eventually(lambda: workers(host) == {'shared', 'one_hop'}, lambda: f'workers are connected: {host.text()}')


def children(host, unit):
    master = pid(host, unit)
    return set(host.run('cat', f'/proc/{master}/task/{master}/children').stdout.split())
