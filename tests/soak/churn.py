# SPDX-License-Identifier: Apache-2.0
"""Changes the cloud at random, from a seed, and records each change: instances, addresses, routers, secret, faults."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager

from tests.chaos.faults import FAULTS
from tests.chaos.faults.fault import Fault
from tests.chaos.host import AGENT, SECRET, Host
from tests.chaos.load import CUT, NO_ROUTE, REFUSED, RETRY_AFTER, TIMED_OUT
from tests.chaos.services import KEYSTONE, NEUTRON
from tests.chaos.topology import Client, Router
from tests.clients.fake_openstack import port
from tests.soak.checker import NOT_FOUND
from tests.soak.history import Assignment, FaultWindow, Place, Recorder

RELOADED = ' Reloaded'
ROUTER_AWAY_S = (2.0, 10.0)
FAULT_S = (1.0, 20.0)
RECOVERY_S = 15.0
"""After a repair a request that met the fault may end this much later: the client's timeout, and the restart."""
Actions = Sequence[tuple[Callable[[], str], int]]
"""Each with its weight. An action returns what it did, for the counts."""

STOPS_LOOKUPS = (KEYSTONE, NEUTRON, 'packets to the services', '10 % of the packets')
KILLING = ('SIGKILL', 'restart', 'reload', 'upgrade')
"""After these the caches and pools of new workers fill up."""
EXCLUDED = ('clock', 'SIGSTOP keeper', 'memory', 'namespace of one router', 'interface', 'rules')
"""Of another setup, or done here to routers in their own way."""


class Cloud:
    """What Neutron and Nova know, and who knows it: the history."""

    def __init__(self, host: Host, recorder: Recorder) -> None:
        self._host = host
        self._recorder = recorder
        self._owners: dict[Place, tuple[str, str]] = {}
        self._absent_routers: set[str] = set()
        self._number = 0
        self._lock = threading.RLock()

    def start(self) -> None:
        """Record the state that the host has made."""
        now_s = time.monotonic()
        for client in self._host.clients:
            self._owners[self.place(client)] = (client.instance_id, client.project_id)
            self._recorder.add(Assignment(now_s, now_s, self.place(client), client.instance_id))

    def place(self, client: Client) -> Place:
        """The router and the address of a client."""
        return self._host.routers[client.router_number].id, client.address

    def replace_instance(self, client: Client) -> None:
        """Another instance, of another project, gets the address."""
        self._number += 1
        self._assign({self.place(client): (f'instance-new-{self._number}', f'project-new-{self._number}')})

    def swap_addresses(self, one: Client, other: Client) -> None:
        """Two instances swap their addresses."""
        first, second = self.place(one), self.place(other)
        self._assign({first: self._owners[second], second: self._owners[first]})

    def remove_router(self, router: Router) -> None:
        """Neutron no longer knows the router's interfaces; its places have no instances."""
        places = [self.place(client) for client in router.clients]
        with self._lock, self._recorded(dict.fromkeys(places, '')):
            self._absent_routers.add(router.id)
            self._publish()

    def add_router(self, router: Router) -> None:
        """The router's interfaces are back."""
        places = [self.place(client) for client in router.clients]
        with self._lock, self._recorded({place: self._owners[place][0] for place in places}):
            self._absent_routers.discard(router.id)
            self._publish()

    def _assign(self, owners: dict[Place, tuple[str, str]]) -> None:
        present = {place: instance for place, (instance, _) in owners.items() if place[0] not in self._absent_routers}
        with self._lock, self._recorded(present):
            self._owners |= owners
            self._publish()

    @contextmanager
    def _recorded(self, changes: dict[Place, str]):
        began_s = time.monotonic()
        yield
        ended_s = time.monotonic()
        for place, instance in changes.items():
            self._recorder.add(Assignment(began_s, ended_s, place, instance))

    def _publish(self) -> None:
        ports = []
        for router in self._host.routers:
            network = f'network-{router.number}'
            if router.id not in self._absent_routers:
                ports.append(port(network, 'network:router_interface', router.id, '', '10.1.1.1'))
            for client in router.clients:
                instance, project = self._owners[self.place(client)]
                ports.append(port(network, 'compute:nova', instance, project, client.address))
        # Nova first: Neutron never names an instance that Nova does not know.
        instances = dict(self._owners.values())
        self._host.services.set_instances(instances)
        self._host.services.set_ports(ports)


class Churn:
    """Random actions until ``stop``: instances and addresses change all the time, one disturbance follows the other.

    Each of the two sequences depends only on ``seed`` and the time.
    """

    def __init__(self, host: Host, cloud: Cloud, recorder: Recorder, seed: int, *, with_faults: bool = True) -> None:
        self._host, self._cloud, self._recorder = host, cloud, recorder
        self._rng, self._move_rng = random.Random(seed), random.Random(seed + 1)
        self._moves: Actions = ((self._replace_instance, 1), (self._swap_addresses, 1))
        self._disturbances: Actions = (
            (self._reattach_router, 3),
            (self._rotate_secret, 1),
            (self._inject_fault, 12 if with_faults else 0),
        )
        self._stopping = threading.Event()
        self._secret_number = 0
        self.counts: dict[str, int] = {}
        self.may_kill = True
        """Programs may be killed, restarted and reloaded. Without it their memory and descriptors can be watched."""

    def run(self) -> None:
        """Until ``stop``. Raises what an action raised."""
        moves = threading.Thread(target=self._repeat, args=(self._move_rng, (0.2, 2.0), self._moves))
        moves.start()
        try:
            self._repeat(self._rng, (1.0, 5.0), self._disturbances)
        finally:
            self._stopping.set()
            moves.join()

    def _repeat(self, rng: random.Random, pause_s: tuple[float, float], actions: Actions) -> None:
        choices, weights = zip(*actions, strict=True)
        while not self._stopping.wait(rng.uniform(*pause_s)):
            (action,) = rng.choices(choices, weights)
            name = action()
            self.counts[name] = self.counts.get(name, 0) + 1

    def stop(self) -> None:
        """End after the current action."""
        self._stopping.set()

    def _replace_instance(self) -> str:
        self._cloud.replace_instance(self._move_rng.choice(self._host.clients))
        return 'instance replaced'

    def _swap_addresses(self) -> str:
        self._cloud.swap_addresses(*self._move_rng.sample(self._host.clients, 2))
        return 'addresses swapped'

    def _reattach_router(self) -> str:
        """Deleted as an L3 agent deletes it, and made anew; ``watch`` detaches and attaches it."""
        router = self._rng.choice(self._host.routers[1:])
        outcomes = (CUT, REFUSED, TIMED_OUT, NO_ROUTE, RETRY_AFTER, NOT_FOUND)
        # Neutron shows no port of the router meanwhile, so its lookups fail.
        with self._window('router deleted and made anew', outcomes, routers=(router.id,), stops_lookups=True):
            self._cloud.remove_router(router)
            router.delete()
            self._stopping.wait(self._rng.uniform(*ROUTER_AWAY_S))
            router.make()
            self._cloud.add_router(router)
            clients = [client for client in self._host.clients if client.router_number == router.number]
            self._host.wait_until(lambda: all(map(self._is_served, clients)), f'router {router.id} is not served')
        return 'router deleted and made anew'

    def _rotate_secret(self) -> str:
        """As in doc/threat_model.md: both secrets in the agent, the new one in Nova, then only that in the agent."""
        if not self.may_kill:
            # The agent is reloaded.
            return self._reattach_router()
        former = self._secret()
        self._secret_number += 1
        self._reload(metadata_proxy_shared_secret=self._secret(), metadata_proxy_shared_secret_old=former)
        self._host.services.set_secret(self._secret())
        self._reload(metadata_proxy_shared_secret=self._secret())
        return 'secret rotated'

    def _reload(self, **options: object) -> None:
        """Reload the agent with other options and wait until the former workers have ended."""
        self._host.configure(**options)
        log = self._host.agent_log
        before = log.read_text().count(RELOADED)
        self._host.units[AGENT].kill(signal.SIGHUP)
        self._host.wait_until(lambda: log.read_text().count(RELOADED) > before, 'the agent does not reload')

    def _inject_fault(self) -> str:
        fault = self._rng.choice([fault for fault in FAULTS if self._is_possible(fault)])
        for_s = self._rng.uniform(*FAULT_S)
        routers = (self._host.routers[0].id,) if fault.allows.first_router_only else ()
        outcomes = (RETRY_AFTER, *fault.allows.outcomes, *fault.allows.after_deadline)
        with self._window(fault.name, outcomes, routers, stops_lookups=fault.name.startswith(STOPS_LOOKUPS)):
            fault.inject(self._host)
            self._stopping.wait(for_s)
            if fault.repair:
                fault.repair(self._host)
            self._host.wait_until(lambda: all(map(self._is_served, self._host.clients)), f'{fault.name}: not repaired')
        return 'fault'

    def _is_possible(self, fault: Fault) -> bool:
        return (
            (self._host.mode in fault.setups or fault.name.startswith('memcached'))
            and not fault.name.startswith(EXCLUDED)
            and (self.may_kill or not fault.name.startswith(KILLING))
            and not fault.missing()
        )

    def _is_served(self, client: Client) -> bool:
        """Whether an instance gets metadata; of which instance is the checker's concern."""
        return self._host.answers(client)

    def _secret(self) -> str:
        return SECRET if not self._secret_number else f'secret number {self._secret_number}'

    @contextmanager
    def _window(
        self, name: str, outcomes: tuple[str, ...], routers: tuple[str, ...] = (), *, stops_lookups: bool = False
    ):
        began_s = time.monotonic()
        yield
        self._recorder.add(FaultWindow(began_s, time.monotonic() + RECOVERY_S, name, stops_lookups, outcomes, routers))
