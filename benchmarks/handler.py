# SPDX-License-Identifier: Apache-2.0
"""Measures the CPU time that this package takes for a request, without kernel, network and second process.

    python benchmarks/handler.py [--case NAME]... [--profile] [--rounds N]

The results show changes of a few percent. Each case passes requests to the connection handler through sockets that are
Python objects. The lookup is a YAML file; Nova and the agent are Python objects too. The program prints for each
request: microseconds of CPU time (the smallest of many rounds), calls of Python functions, and calls of socket methods.
In a worker, each of these socket calls is a system call. The numbers of calls are exact: they are the same in each run
and on each machine. ``--profile`` prints the functions that take the most time.
"""

from __future__ import annotations

import gevent.monkey

gevent.monkey.patch_all()

import argparse  # noqa: E402
import cProfile  # noqa: E402
import gc  # noqa: E402
import pstats  # noqa: E402
import socket  # noqa: E402
import struct  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, ClassVar  # noqa: E402

from gevent.hub import get_hub  # noqa: E402
from greenlet import getcurrent  # noqa: E402
from gunicorn.config import Config  # noqa: E402

from metadata_wsgi import limits  # noqa: E402
from metadata_wsgi.http import client  # noqa: E402
from metadata_wsgi.http.raw_socket import RawSocket  # noqa: E402
from metadata_wsgi.namespace_proxy.app import NamespaceProxyApp  # noqa: E402
from metadata_wsgi.net import resolver  # noqa: E402
from metadata_wsgi.pipeline import paste_loader  # noqa: E402
from metadata_wsgi.pipeline.environ_keys import NAMESPACE, Namespace  # noqa: E402
from metadata_wsgi.server.acceptor import GreenletPool  # noqa: E402
from metadata_wsgi.server.connection_handler import ConnectionHandler  # noqa: E402
from metadata_wsgi.server.connection_limits import ConnectionLimits  # noqa: E402
from metadata_wsgi.server.worker import FrozenSettings  # noqa: E402

ROUTER, NETWORK, INSTANCE, PROJECT = (f'6a4b1c1e-0000-4000-8000-00000000000{digit}' for digit in 'abcd')
INVENTORY = f"""
networks: [{{id: {NETWORK}}}]
routers: [{{id: {ROUTER}, networks: [{NETWORK}]}}]
instances: [{{id: {INSTANCE}, project: {PROJECT}, name: vm}}]
ports:
  - {{id: p, network: {NETWORK}, mac: 'fa:16:3e:00:00:01', addresses: [10.1.1.2],
     instance: {INSTANCE}, project: {PROJECT}}}
"""
REQUEST = (
    b'GET /openstack/latest/meta_data.json HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: Cloud-Init/25.1\r\n'
    b'Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: %s\r\n'
)
FROM_PROXY = (
    f'x-forwarded-for: 10.1.1.2\r\nx-quantum-router-id: {ROUTER}\r\nx-metadata-remaining-ms: 8950\r\n'
    f'x-openstack-request-id: req-{NETWORK}\r\n'
).encode()
RESPONSE = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 600\r\nConnection: keep-alive\r\n\r\n'
    + b'x' * 600
)
KEPT = limits.REQUESTS_PER_YIELD - 1
"""Requests on each keep-alive connection. One more, and the handler would let other connections run first."""


class Socket:
    """An accepted connection on which ``requests`` have arrived. ``calls`` counts the method calls of all sockets."""

    calls: ClassVar[Counter[str]] = Counter()
    type = socket.SOCK_STREAM

    def __init__(self, requests: Iterator[bytes], family: socket.AddressFamily) -> None:
        self._requests = requests
        self.family = family

    def recv(self, size: int) -> bytes:
        self.calls['recv'] += 1
        return next(self._requests, b'')

    def send(self, data: bytes) -> int:
        self.calls['send'] += 1
        assert data.startswith(b'HTTP/1.1 200 '), data
        return len(data)

    def getsockopt(self, level: int, option: int, size: int = 0) -> bytes:
        self.calls['getsockopt'] += 1
        if option == 80:  # SO_ORIGINAL_DST
            return struct.pack('!HH4s8x', 2, 80, socket.inet_aton('169.254.169.254'))
        if option == socket.SO_PEERCRED:
            return struct.pack('3i', 1, 0, 0)
        return bytes(size)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self.calls['setsockopt'] += 1

    def setblocking(self, flag: bool) -> None:
        self.calls['setblocking'] += 1

    def fileno(self) -> int:
        return -1

    def shutdown(self, how: int) -> None:
        self.calls['shutdown'] += 1

    def close(self) -> None:
        self.calls['close'] += 1


class Service(Socket):
    """A connection to a service that responds at once."""

    def __init__(self) -> None:
        super().__init__(iter(()), socket.AF_INET)
        self._response = b''

    def send(self, data: bytes) -> int:
        self.calls['service send'] += 1
        self._response = RESPONSE
        return len(data)

    def recv(self, size: int) -> bytes:
        self.calls['service recv'] += 1
        if not self._response:
            raise BlockingIOError
        data, self._response = self._response, b''
        return data


def connect(*_: object) -> Any:
    """Replaces connect() to Nova and to the agent's socket."""
    return RawSocket(Service())  # type: ignore[arg-type]


class Case:
    """Requests of one kind to ``app``, on connections with ``per_connection`` requests each."""

    def __init__(self, app: Any, *, per_connection: int = 1, through_proxy: bool = False) -> None:
        self.per_connection = per_connection
        self._address: Any = '' if through_proxy else ('10.1.1.2', 40000)
        self._family = socket.AF_UNIX if through_proxy else socket.AF_INET
        head = REQUEST % (b'close' if per_connection == 1 else b'keep-alive')
        self._request = head + (FROM_PROXY if through_proxy else b'') + b'\r\n'
        self._namespace = None if through_proxy else ROUTER
        self._environ: dict[str, Any] = {
            'SCRIPT_NAME': '', 'SERVER_NAME': 'localhost', 'SERVER_PORT': '', 'SERVER_SOFTWARE': 'metadata_wsgi',
            'wsgi.version': (1, 0), 'wsgi.url_scheme': 'http', 'wsgi.input_terminated': True,
            'wsgi.errors': sys.stderr, 'wsgi.file_wrapper': None, 'wsgi.multithread': True,
            'wsgi.multiprocess': True, 'wsgi.run_once': False,
        }  # fmt: skip
        if not through_proxy:
            self._environ[NAMESPACE] = Namespace(ROUTER)
        self._handler = ConnectionHandler(
            app,
            FrozenSettings(Config()),
            ConnectionLimits(per_address=1000, total=1000),
            any_destination=False,
            is_stopping=lambda: False,
        )
        self._pool = GreenletPool(1000)

    def run(self, connections: int, around: Callable[..., Any] = lambda call, *args: call(*args)) -> None:
        """Handle that many ``connections`` in the event loop, each by ``around(handle, ...)``."""
        handler, namespace_id, environ = self._handler, self._namespace, self._environ
        caller, hub = getcurrent(), get_hub()

        def handle(sock: Any, address: Any) -> None:
            around(handler.handle, sock, address, namespace_id, environ)

        def accept() -> None:
            for _ in range(connections):
                requests = iter([self._request] * self.per_connection)
                self._pool.spawn(handle, Socket(requests, self._family), self._address)  # type: ignore[arg-type]
            caller.switch()

        hub.loop.run_callback(accept)
        hub.switch()


def cases(directory: Path) -> dict[str, Case]:
    """Every case by its name. The configuration files are written to ``directory``."""
    (directory / 'inventory.yaml').write_text(INVENTORY)
    shipped = Path(__file__).parents[1] / 'etc' / 'api-paste.ini'
    (directory / 'cached.ini').write_text(
        shipped.read_text().replace(' instance signature ', ' lookup_cache instance response_cache signature ')
    )
    (directory / 'agent.ini').write_text(
        f'[DEFAULT]\nmetadata_proxy_shared_secret = x\ndirectory = static\nstate_path = {directory}\n'
        f'[static]\ninventory = {directory}/inventory.yaml\n'
    )

    def pipeline(path: Path, name: str) -> Any:
        return paste_loader.load(str(path), name, {'config_file': str(directory / 'agent.ini')})

    proxy = NamespaceProxyApp(
        client.PooledHttpClient(connect, name='agent', host='localhost'), router_id=ROUTER, prefix='X-Quantum'
    )
    return {
        'one_hop': Case(pipeline(shipped, 'one_hop')),
        'one_hop_cached': Case(pipeline(directory / 'cached.ini', 'one_hop')),
        'namespace_proxy': Case(proxy),
        'agent': Case(pipeline(shipped, 'agent'), per_connection=KEPT, through_proxy=True),
        'agent_cached': Case(pipeline(directory / 'cached.ini', 'agent'), per_connection=KEPT, through_proxy=True),
    }


def _calls_of(case: Case) -> float:
    """The number of calls of Python functions for one request."""
    count = 0

    def trace(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == 'call'

    def counted(call: Callable[..., Any], *args: Any) -> None:
        sys.setprofile(trace)
        try:
            call(*args)
        finally:
            sys.setprofile(None)

    case.run(1, counted)
    return count / case.per_connection


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--case', action='append', help='only this case')
    parser.add_argument('--rounds', type=int, default=500)
    parser.add_argument('--profile', action='store_true')
    args = parser.parse_args()
    resolver.SHARED.connect = connect  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as directory:
        chosen = {name: case for name, case in cases(Path(directory)).items() if name in (args.case or [name])}
        best_us = dict.fromkeys(chosen, float('inf'))
        for case in chosen.values():
            case.run(300)
        gc.collect()
        gc.freeze()
        for _ in range(args.rounds):
            for name, case in chosen.items():
                connections = max(1, 45 // case.per_connection)
                began = time.process_time()
                case.run(connections)
                used_us = 1e6 * (time.process_time() - began) / connections / case.per_connection
                best_us[name] = min(best_us[name], used_us)
        for name, case in chosen.items():
            Socket.calls.clear()
            calls = _calls_of(case)
            sockets = ', '.join(f'{key} {n / case.per_connection:.3g}' for key, n in sorted(Socket.calls.items()))
            print(f'{name:16} {best_us[name]:6.1f} us  {calls:5.0f} calls  sockets: {sockets}')
            if args.profile:
                profile = cProfile.Profile(time.process_time)
                case.run(4000 // case.per_connection, profile.runcall)
                pstats.Stats(profile).sort_stats('tottime').print_stats(75)


if __name__ == '__main__':
    main()
