# SPDX-License-Identifier: Apache-2.0
"""A simulated host: the kernel's namespaces, sockets and rules, the keeper's registry, workers, namespace proxies.

Attacher and Registry are the real ones. ``SimulatedHost.patches`` replaces each call into the kernel.
"""

import contextlib
import itertools
import os
from dataclasses import dataclass, field

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper import admin_client
from metadata_wsgi.keeper.attachments_client import AttachmentsClient
from metadata_wsgi.keeper.registry import Registry, Subscriber
from metadata_wsgi.net import listening_process
from metadata_wsgi.net.listening_process import ListeningProcess
from metadata_wsgi.netns import dhcp_address, interface_state, namespaces, proxy_process
from metadata_wsgi.netns.attach import Attacher
from metadata_wsgi.netns.proxy_command import ProxyCommand
from tests.fakes import FakeClock

KEEPER, FOREIGN, SYSTEMD = 'keeper', 'another program', 'systemd'


@dataclass(eq=False)
class KernelSocket:
    """A listening socket. It is open while a process has it: ``owners`` has one entry for each copy."""

    generation: int
    host: str
    port: int
    owners: list = field(default_factory=list)


class Handle:
    """A descriptor of a KernelSocket in the process ``owner``."""

    numbers = itertools.count(3)

    def __init__(self, kernel_socket, owner):
        self.socket, self.owner, self.number = kernel_socket, owner, next(self.numbers)
        kernel_socket.owners.append(owner)

    def dup(self, owner):
        return Handle(self.socket, owner)

    def close(self):
        if self.owner is not None:
            self.socket.owners.remove(self.owner)
            self.owner = None

    def fileno(self):
        return self.number

    def getsockname(self):
        return self.socket.host or '::', self.socket.port


@dataclass
class Namespace:
    generation: int
    rules: list = field(default_factory=list)
    has_address: bool = False


@dataclass(eq=False)
class Process:
    """A namespace proxy of its own."""

    pid: int
    uuid: str
    generation: int
    handles: list


@dataclass(eq=False)
class Worker:
    subscriber: Subscriber
    handles: dict = field(default_factory=dict)


class SimulatedHost:
    """Kernel, processes and keeper. ``interrupt`` is called once, after ``countdown`` calls into the kernel.

    ``has_fdstore``: systemd has a copy of each of the keeper's sockets, also while no keeper runs.
    """

    def __init__(self, state_path):
        self.clock = FakeClock()
        self.state_path = state_path
        self.namespaces = {}
        self.sockets = []
        self.processes = {}
        self.workers = []
        self.registry = None
        self.numbers = itertools.count(100)
        self.countdown, self.interrupt = -1, None
        self.in_keeper = self.has_fdstore = False
        self.stored = {}
        self.ipv6_rules_fail = self.program_fails = False
        self.attacher = Attacher(
            self.run, proxy=ProxyCommand(state_path=state_path), iptables=self, keeper=AttachmentsClient(state_path),
            keeper_pid=lambda: 1 if self.registry is not None else None, families=(4, 6), clock=self.clock,
            sleep=self.sleep, stop_timeout_s=1.0,
        )  # fmt: skip

    def patches(self):
        """(module, name, replacement) of each call into the kernel."""
        yield from (
            (namespaces, 'identity', self.identity),
            (namespaces, 'identity_of', lambda handle: (4, handle.socket.generation)),
            (namespaces, 'name_of', self.name_of),
            (namespaces, 'run_in', self.run_in),
            (listening_process, 'find', self.find_process),
            (proxy_process, 'running_pid', self.running_pid),
            (proxy_process, 'is_holder', lambda pid: False),
            (proxy_process, 'listens', self.listens),
            (proxy_process, 'stop', self.stop_process),
            (proxy_process, 'is_port_open', self.is_port_open),
            (proxy_process, 'copy_proxy_listeners', self.copy_proxy_listeners),
            (proxy_process, 'copy_keeper_listeners', self.copy_keeper_listeners),
            (interface_state, 'names', lambda name: ['lo']),
            (interface_state, 'open_table', lambda name: contextlib.nullcontext(self)),
            (dhcp_address, 'add', self.add_address),
            (dhcp_address, 'remove', self.remove_address),
            (dhcp_address, 'interface_with_address', lambda name: 'tap0'),
            (admin_client, 'connect', self.connect),
        )

    def call(self, name=None):
        """At each call into the kernel; returns the namespace ``name``."""
        if self.interrupt is not None and not self.in_keeper:
            self.countdown -= 1
            if self.countdown < 0:
                interrupt, self.interrupt = self.interrupt, None
                interrupt()
        if name is None:
            return None
        if name not in self.namespaces:
            raise NetnsError(f'no namespace {name}')
        return self.namespaces[name]

    def sleep(self, seconds):
        self.clock.sleep(seconds)
        self.deliver()

    # -- namespaces

    def make(self, name):
        self.namespaces[name] = Namespace(next(self.numbers))

    def delete(self, name):
        self.namespaces.pop(name, None)

    def identity(self, name):
        self.call()
        found = self.namespaces.get(name)
        return found and (4, found.generation)

    def name_of(self, pid):
        process = next((one for one in self.processes.values() if one.pid == pid), None)
        generation = process and process.generation
        return next((name for name, one in self.namespaces.items() if one.generation == generation), None)

    def run_in(self, name, function):
        self.current = self.call(name)
        return function()

    # -- sockets and processes

    def listening(self, generation, port=None):
        return [one for one in self.sockets if one.owners and one.generation == generation and port in (None, one.port)]

    def bind(self, generation, host, port, owner):
        hosts = {one.host for one in self.listening(generation, port)}
        if hosts and (host in ('', '0.0.0.0') or hosts & {'', '0.0.0.0', host}):
            raise NetnsError(f'port {port} is in use')
        self.sockets.append(KernelSocket(generation, host, port))
        return Handle(self.sockets[-1], owner)

    def is_port_open(self, name, port):
        return bool(self.listening(self.call(name).generation, port))

    def find_process(self, port):
        found = self.listening(self.current.generation, port)
        if not found:
            return None
        if any(SYSTEMD in one.owners for one in found):
            return ListeningProcess(1, 'systemd', is_own=False)  # the process with the lowest pid
        is_own = any(owner != FOREIGN for one in found for owner in one.owners)
        return ListeningProcess(4711, 'metadata-wsgi' if is_own else 'haproxy', is_own=is_own)

    def running_pid(self, pid_file, uuid):
        process = self.processes.get(uuid)
        return process and process.pid

    def listens(self, pid, port):
        """As /proc/PID/net/tcp shows it: a socket of another namespace is not there."""
        return any(
            (handle.socket.port, handle.socket.generation) == (port, one.generation)
            for one in self.processes.values() if one.pid == pid for handle in one.handles
        )  # fmt: skip

    def stop_process(self, pid_file, uuid, timeout_s=0.0):
        self.call()
        return self.end_process(uuid)

    def end_process(self, uuid):
        process = self.processes.pop(uuid, None)
        for handle in process.handles if process else ():
            handle.close()
        return process is not None

    def run(self, argv, *, stdin='', namespace=None, pass_fds=()):
        """The program of a namespace proxy starts."""
        generation = self.call(namespace).generation
        if self.program_fails:
            raise NetnsError('the program does not start')
        options = [word.partition('=')[::2] for word in argv]
        uuid = next(value for name, value in options if name in ('--router_id', '--network_id'))
        port = int(dict(options)['--metadata_port'])
        handles = [HANDLES[number].dup(f'process of {uuid}') for number in pass_fds]
        if not handles:
            hosts = [value for name, value in options if name == '--metadata_host'] or ['']
            handles = [self.bind(generation, host, port, f'process of {uuid}') for host in hosts]
        self.processes[uuid] = Process(next(self.numbers), uuid, generation, handles)

    def copy_proxy_listeners(self, pid_file, uuid, port):
        self.call()
        process = self.processes.get(uuid)
        return [remember(one.dup('attach')) for one in process.handles if one.socket.port == port] if process else []

    def copy_keeper_listeners(self, keeper_pid, name, port):
        found = self.listening(self.call(name).generation, port)
        return [remember(Handle(one, 'attach')) for one in found if KEEPER in one.owners]

    # -- RuleWriter

    def apply(self, name, wanted, *, families):
        return self.replace(name, wanted, families=families) is not None

    def replace(self, name, wanted, *, families):
        place = self.call(name)
        if self.ipv6_rules_fail and 6 in families and wanted:
            raise NetnsError('ip6tables-restore: No such file or directory')
        former = tuple(one for one in place.rules if one.family in families)
        place.rules = [one for one in place.rules if one.family not in families]
        place.rules += [one for one in wanted if one.family in families]
        place.rules.sort(key=lambda one: one.family)
        return former if former != tuple(one for one in place.rules if one.family in families) else None

    def ours(self, name, *, families):
        return [one for one in self.call(name).rules if one.family in families]

    def interfaces(self):
        return []

    def add_address(self, name, interface):
        place = self.call(name)
        changed, place.has_address = not place.has_address, True
        return changed

    def remove_address(self, name):
        place = self.call(name)
        changed, place.has_address = place.has_address, False
        return changed

    # -- SocketOpener of the registry, and its administrator's client

    def open(self, listener):
        return self.bind(self.call(listener.namespace).generation, listener.host, listener.port, KEEPER)

    def is_valid(self, listener, handle):
        place = self.namespaces.get(listener.namespace)
        return (
            place is not None and place.generation == handle.socket.generation and handle.socket.port == listener.port
        )

    def inode(self, handle):
        return id(handle.socket)

    def namespace_exists(self, listener):
        return listener.namespace in self.namespaces

    @contextlib.contextmanager
    def connect(self, state_path):
        self.call()
        if self.registry is None:
            raise NetnsError('no keeper answers')
        yield self

    def register(self, listener, handed_over=None):
        registry = self.responding()
        # The client retries while the port is in use: meanwhile workers close what the keeper has closed.
        self.sleep(0.2)
        # A keeper that ends does so before or after.
        self.in_keeper = True
        try:
            return registry.register(listener, handed_over and handed_over.dup(KEEPER))
        except ValueError as error:
            raise NetnsError(str(error)) from error
        finally:
            self.in_keeper = False

    def unregister(self, listener):
        return self.responding().unregister(listener.key)

    def unregister_all(self, id_):
        return self.responding().unregister_all(id_)

    def list(self, id_=None):
        registry = self.responding()
        return [one for one in registry if id_ in (None, one.id)], registry.subscriber_counts()

    def responding(self):
        self.call()
        if self.registry is None:
            raise NetnsError('no reply from the keeper')
        return self.registry

    # -- keeper and workers

    def add(self, listener, handle):
        """As FdStore of the registry."""
        if listener not in self.stored:
            self.stored[listener] = handle.dup(SYSTEMD)

    def remove(self, listener):
        if listener in self.stored:
            self.stored.pop(listener).close()

    def start_keeper(self):
        self.registry = Registry(self, self if self.has_fdstore else None)
        open(os.path.join(self.state_path, 'keeper'), 'w').close()
        for listener, handle in list(self.stored.items()):
            self.registry.restore_from_store(listener, handle.dup(KEEPER))
        for worker in self.workers:
            worker.subscriber.queue.clear()
            for listener, handle in list(worker.handles.values()):
                if not self.registry.restore_from_worker(listener, handle.dup(KEEPER)):
                    worker.handles.pop(listener.key)[1].close()
            self.registry.subscribe(worker.subscriber)
        self.deliver()

    def kill_keeper(self):
        if self.registry is not None:
            self.deliver()
            self.registry.close()
            self.registry = None

    def start_worker(self, mode):
        self.workers.append(Worker(Subscriber(mode)))
        if self.registry is not None:
            self.registry.subscribe(self.workers[-1].subscriber)
        self.deliver()

    def kill_worker(self):
        worker = self.workers.pop()
        if self.registry is not None:
            self.registry.unsubscribe(worker.subscriber)
        for _, handle in worker.handles.values():
            handle.close()

    def deliver(self):
        """The workers receive what the keeper has queued for them."""
        if self.registry is None:
            return
        self.registry.reconcile()
        for worker in self.workers:
            while worker.subscriber.queue:
                message, handle = worker.subscriber.queue.popleft()
                if 'leave' in message and message['leave'] in worker.handles:
                    worker.handles.pop(message['leave'])[1].close()
                elif 'serve' in message:
                    listener = next(one for one in self.registry if one.to_json() == message['serve'])
                    former = worker.handles.pop(listener.key, None)
                    worker.handles[listener.key] = listener, handle.dup(f'worker {listener.mode}')
                    if former:
                        former[1].close()


HANDLES = {}


def remember(handle):
    """So that ``pass_fds`` finds it by its number."""
    HANDLES[handle.number] = handle
    return handle
