# SPDX-License-Identifier: Apache-2.0
"""The lab's namespaces and links: made as the plan says, and removed whatever state they are in.

A namespace takes its links, addresses and rules with it when it goes; what has to be ended before are
the processes in it, and every process in a namespace of the lab is the lab's.
"""

from __future__ import annotations

import os
import signal
import time

from pyroute2 import IPRoute, netns

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.lab import plan


def make_host() -> None:
    """The namespace that stands for the host: the agent and Nova's stand-in run there, on its loopback."""
    netns.create(plan.HOST_NAMESPACE)
    with IPRoute(netns=plan.HOST_NAMESPACE) as links:
        links.link('set', index=1, state='up')


def make_guest(guest: plan.Guest) -> None:
    """A guest and its neighbour (router or DHCP server), joined by a link."""
    for name in (guest.gateway_namespace, guest.namespace):
        netns.create(name)
    with IPRoute(netns=guest.gateway_namespace) as neighbour, IPRoute(netns=guest.namespace) as inside:
        neighbour.link('set', index=1, state='up')
        inside.link('set', index=1, state='up')
        neighbour.link(
            'add',
            ifname=guest.gateway_interface,
            kind='veth',
            peer={'ifname': 'eth0', 'address': guest.mac, 'net_ns_fd': f'{plan_path(guest.namespace)}'},
        )
        near = neighbour.link_lookup(ifname=guest.gateway_interface)[0]
        eth0 = inside.link_lookup(ifname='eth0')[0]
        neighbour.addr('add', index=near, address=plan.GATEWAY, prefixlen=plan.PREFIX_LENGTH)
        neighbour.link('set', index=near, state='up')
        inside.addr('add', index=eth0, address=plan.ADDRESS, prefixlen=plan.PREFIX_LENGTH)
        inside.link('set', index=eth0, state='up')
        # An isolated network's DHCP server tells its guests this one route, a router is the default one.
        inside.route('add', dst='default' if guest.routed else '169.254.169.254/32', gateway=plan.GATEWAY)


def plan_path(namespace: str) -> str:
    """Where the kernel's handle of a namespace is."""
    return f'/run/netns/{namespace}'


def remove() -> int:
    """End every process of the lab and remove its namespaces; returns how many namespaces there were."""
    there = [name for name in plan.namespaces() if os.path.exists(plan_path(name))]
    _end(_processes_in(there))
    for name in there:
        try:
            netns.remove(name)
        except OSError as error:
            raise NetnsError(f'namespace {name} cannot be removed: {error.strerror}') from error
    return len(there)


def _processes_in(namespaces: list[str]) -> list[int]:
    inodes = {os.stat(plan_path(name)).st_ino for name in namespaces}
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


def _end(pids: list[int], patience_s: float = 5.0) -> None:
    """SIGTERM, then SIGKILL for what is left; by pidfd, so that no other process can be meant."""
    handles = {}
    for pid in pids:
        try:
            handles[pid] = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
    for how, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, patience_s)):
        for handle in handles.values():
            try:
                signal.pidfd_send_signal(handle, how)
            except ProcessLookupError:
                continue
        give_up_at = time.monotonic() + wait_s
        while any(_alive(pid) for pid in handles) and time.monotonic() < give_up_at:
            time.sleep(0.02)
    for handle in handles.values():
        os.close(handle)


def _alive(pid: int) -> bool:
    try:
        with open(f'/proc/{pid}/stat') as stat:
            return stat.read().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False
