# SPDX-License-Identifier: Apache-2.0
"""Packets are dropped, rules are flushed, interfaces and namespaces disappear."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator

from tests.chaos.faults.fault import ROUTER_IS_AWAY, Action, Fault
from tests.chaos.host import Host
from tests.chaos.topology import SERVICES_LINK, ip


def faults() -> Iterator[Fault]:
    to_services = ('-o', SERVICES_LINK)
    lossy = ('-m', 'statistic', '--mode', 'random', '--probability', '0.1')
    yield Fault('packets to the services dropped', *_drop('OUTPUT', *to_services))
    yield Fault('10 % of the packets to the services dropped', *_drop('OUTPUT', *to_services, *lossy))
    yield Fault('netem on the link of one router: 100 ms, 10 % loss', *_netem('delay', '100ms', '50ms', 'loss', '10%'),
                missing=has_netem)  # fmt: skip
    yield Fault('interface of one router down', _link('down'), _link('up'), allows=ROUTER_IS_AWAY)
    yield Fault('rules of one router flushed', _flush_rules, allows=ROUTER_IS_AWAY)
    yield Fault('namespace of one router deleted and made anew', _recreate_namespace, allows=ROUTER_IS_AWAY)


def _run(*words: str) -> Action:
    return lambda host: subprocess.run(words, check=True, capture_output=True)


def _drop(chain: str, *match: str) -> tuple[Action, Action]:
    """Drop packets of the services, as a firewall does."""
    return _run('iptables', '-I', chain, *match, '-j', 'DROP'), _run('iptables', '-D', chain, *match, '-j', 'DROP')


def _has_netem() -> str:
    done = subprocess.run(['tc', 'qdisc', 'add', 'dev', 'lo', 'root', 'netem', 'delay', '0ms'], capture_output=True,
                          check=False)  # fmt: skip
    if done.returncode:
        return 'the kernel has no netem'
    subprocess.run(['tc', 'qdisc', 'del', 'dev', 'lo', 'root'], check=True)
    return ''


has_netem = functools.cache(_has_netem)


def _netem(*words: str) -> tuple[Action, Action]:
    """On the link of the first router to its instances."""

    def inject(host: Host) -> None:
        router = host.routers[0]
        ip('netns', 'exec', router.namespace, 'tc', 'qdisc', 'add', 'dev', router.interface, 'root', 'netem', *words)

    def repair(host: Host) -> None:
        router = host.routers[0]
        ip('netns', 'exec', router.namespace, 'tc', 'qdisc', 'del', 'dev', router.interface, 'root')

    return inject, repair


def _flush_rules(host: Host) -> None:
    for table in ('nat', 'mangle', 'filter'):
        ip('netns', 'exec', host.routers[0].namespace, 'iptables', '-t', table, '-F')


def _recreate_namespace(host: Host) -> None:
    host.routers[0].delete()
    host.routers[0].make()


def _link(state: str) -> Action:
    def change(host: Host) -> None:
        router = host.routers[0]
        ip('-n', router.namespace, 'link', 'set', router.interface, state)

    return change
