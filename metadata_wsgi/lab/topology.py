# SPDX-License-Identifier: Apache-2.0
"""Creates the lab's namespaces and links as in ``plan``, and removes them in any state.

When a namespace is deleted, the kernel removes its links, addresses and rules. The processes in it must be ended first.
Every process in a namespace of the lab belongs to the lab.
"""

from __future__ import annotations

import os
import signal
import time

from pyroute2 import netns

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.lab import plan
from metadata_wsgi.netns import namespaces, rtnetlink


def create_namespace(name: str) -> None:
    """Create a namespace. Raises OSError if it exists, and OSError or NetnsError if it cannot be made.

    ``netns.create`` of pyroute2 would fork this process, and wait 2 s for the child. The child of a process that has
    threads may never respond, and on a busy machine it needs longer. So a thread makes the namespace.
    """
    namespaces.run_in_scratch(lambda: netns.attach(name, 'thread-self'))


def make_host() -> None:
    """Create the namespace that represents the host. The agent and the replacement for Nova run in it."""
    create_namespace(plan.HOST_NAMESPACE)
    with rtnetlink.connect(plan.HOST_NAMESPACE) as links:
        links.link('set', index=1, state='up')


def make_guest(guest: plan.Guest) -> None:
    """Create an instance and its router or DHCP server, and a link between them."""
    for name in (guest.gateway_namespace, guest.namespace):
        create_namespace(name)
    with rtnetlink.connect(guest.gateway_namespace) as neighbour, rtnetlink.connect(guest.namespace) as inside:
        neighbour.link('set', index=1, state='up')
        inside.link('set', index=1, state='up')
        neighbour.link(
            'add',
            ifname=guest.gateway_interface,
            kind='veth',
            peer={'ifname': 'eth0', 'address': guest.mac, 'net_ns_fd': f'{namespace_path(guest.namespace)}'},
        )
        near = neighbour.link_lookup(ifname=guest.gateway_interface)[0]
        eth0 = inside.link_lookup(ifname='eth0')[0]
        neighbour.addr('add', index=near, address=plan.GATEWAY, prefixlen=plan.PREFIX_LENGTH)
        neighbour.link('set', index=near, state='up')
        inside.addr('add', index=eth0, address=plan.ADDRESS, prefixlen=plan.PREFIX_LENGTH)
        inside.link('set', index=eth0, state='up')
        # A DHCP server offers the router as the default gateway; on an isolated network, it offers a single route.
        inside.route('add', dst='default' if guest.routed else '169.254.169.254/32', gateway=plan.GATEWAY)


def namespace_path(namespace: str) -> str:
    """The file of a namespace."""
    return f'/run/netns/{namespace}'


def remove() -> int:
    """End every process of the lab and remove its namespaces. Returns the number of removed namespaces."""
    existing = [name for name in plan.namespaces() if os.path.exists(namespace_path(name))]
    _terminate(_processes_in(existing))
    errors = []
    for name in existing:
        try:
            netns.remove(name)
        except OSError:
            # A file without a namespace cannot be unmounted.
            try:
                os.unlink(namespace_path(name))
            except OSError as error:
                errors.append(f'namespace {name} cannot be removed: {error.strerror}')
    if errors:
        raise NetnsError('; '.join(errors))
    return len(existing)


def _processes_in(namespaces: list[str]) -> list[int]:
    inodes = {os.stat(namespace_path(name)).st_ino for name in namespaces}
    found = []
    for entry in os.listdir('/proc'):
        if not entry.isdecimal() or int(entry) == os.getpid():
            continue
        try:
            inode = os.stat(f'/proc/{entry}/ns/net').st_ino
        except OSError:
            continue
        if inode in inodes:
            found.append(int(entry))
    return found


def _terminate(pids: list[int], timeout_s: float = 5.0) -> None:
    """Send SIGTERM, and after ``timeout_s`` SIGKILL. Pidfds are used, so that a reused pid gets no signal."""
    pidfds = {}
    for pid in pids:
        try:
            pidfds[pid] = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        for pidfd in pidfds.values():
            try:
                signal.pidfd_send_signal(pidfd, signal_number)
            except ProcessLookupError:
                continue
        deadline_s = time.monotonic() + timeout_s
        while any(_is_alive(pid) for pid in pidfds) and time.monotonic() < deadline_s:
            time.sleep(0.02)
    for pidfd in pidfds.values():
        os.close(pidfd)


def _is_alive(pid: int) -> bool:
    try:
        with open(f'/proc/{pid}/stat') as stat:
            return stat.read().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False
