# SPDX-License-Identifier: Apache-2.0
"""Keystone, Neutron and Nova in one process, each behind a proxy that injects faults into its connections.

    python -m tests.chaos.services ADDRESS    # runs in the namespace of the services

Each line of standard input is a command, a JSON list of a name and its arguments; each gets one line of JSON as its
response. ``ServicesClient`` is the other end. The proxies work on bytes, so memcached is behind one too. The faults are
those of toxiproxy (latency, slicer, timeout, reset_peer, limit_data, down) and two more: garbage and flapping.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from io import BytesIO
from typing import Any

from metadata_wsgi.netns import namespaces
from tests.clients.fake_openstack import PASSWORD, OpenStackApi
from tests.fakes import FakeNova

KEYSTONE, NEUTRON, NOVA, MEMCACHED = 'Keystone', 'Neutron', 'Nova', 'memcached'
PORTS = {KEYSTONE: 5000, NEUTRON: 9696, NOVA: 8775, MEMCACHED: 11211}
"""The ports of the proxies; the service itself has the same port, on loopback."""

CREDENTIALS = {'admin_user': 'service', 'admin_password': PASSWORD, 'admin_tenant_name': 'service'}

LATENCY_S = 1.0
SLICE_BYTES, SLICE_PAUSE_S = 32, 0.05
FLAP_S = 0.5
GARBAGE = bytes(range(128, 256)) * 8
MAX_BYTES = 1 << 16

Answer = tuple[int, bytes, list[tuple[str, str]]]
"""Status, body, headers."""


class Service:
    """An HTTP/1.1 server on loopback. ``forced`` replaces its responses; ``requested_at_s`` has the time of each."""

    def __init__(self, respond: Callable[[str, str, Mapping[str, str], bytes], Answer]) -> None:
        self._respond = respond
        self.forced: Answer | None = None
        self.requested_at_s = array('d')

    async def start(self, port: int) -> None:
        await asyncio.start_server(self._serve, '127.0.0.1', port, backlog=1024)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                head = (await reader.readuntil(b'\r\n\r\n')).decode('latin-1').split('\r\n')
                method, target, _ = head[0].split(' ', 2)
                fields = (line.partition(':') for line in head[1:] if line)
                headers = {name.lower(): value.strip() for name, _, value in fields}
                received = await reader.readexactly(int(headers.get('content-length', 0)))
                self.requested_at_s.append(time.monotonic())
                status, body, more = self.forced or self._respond(method, target, headers, received)
                lines = [f'HTTP/1.1 {status} -', f'Content-Length: {len(body)}', *(f'{n}: {v}' for n, v in more)]
                writer.write('\r\n'.join([*lines, '\r\n']).encode() + (body if method != 'HEAD' else b''))
                await writer.drain()


class FaultyProxy:
    """Accepts connections for a service and passes bytes on, until ``set_fault`` is called with one of ``FAULTS``."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._fault = 'none'
        self._server: asyncio.Server | None = None
        self._flapping: asyncio.Task[None] | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self.connected_at_s = array('d')

    async def set_fault(self, name: str) -> None:
        """Inject a fault into all connections, new and open ones, from now on. 'none' ends it."""
        if self._flapping:
            self._flapping.cancel()
            self._flapping = None
        self._fault = name
        if name in ('down', 'flapping'):
            await self._stop()
        else:
            await self._start()
        if name == 'flapping':
            self._flapping = asyncio.create_task(self._flap())
        if name == 'none':
            # What a fault has garbled or swallowed is lost, so the connections that met it end.
            self._abort_connections()

    async def _flap(self) -> None:
        while True:
            await asyncio.sleep(FLAP_S)
            await self._start()
            await asyncio.sleep(FLAP_S)
            await self._stop()

    async def _start(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, self._host, self._port, backlog=1024)

    async def _stop(self) -> None:
        server, self._server = self._server, None
        if server:
            server.close()
        self._abort_connections()

    def _abort_connections(self) -> None:
        for writer in self._connections:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected_at_s.append(time.monotonic())
        self._connections.add(writer)
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection('127.0.0.1', self._port)
            try:
                await asyncio.gather(
                    self._pass_requests(reader, upstream_writer), self._pass_responses(upstream_reader, writer)
                )
            finally:
                upstream_writer.transport.abort()
        except OSError:
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _pass_requests(self, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter) -> None:
        while data := await reader.read(MAX_BYTES):
            if self._fault != 'hanging':
                upstream.write(data)
                await upstream.drain()
        upstream.close()

    async def _pass_responses(self, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await upstream.read(MAX_BYTES):
            await FAULTS[self._fault](writer, data)
            await writer.drain()
        writer.close()


async def _pass_on(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)


async def _late(writer: asyncio.StreamWriter, data: bytes) -> None:
    await asyncio.sleep(LATENCY_S)
    if not writer.is_closing():
        writer.write(data)


async def _sliced(writer: asyncio.StreamWriter, data: bytes) -> None:
    for start in range(0, len(data), SLICE_BYTES):
        if writer.is_closing():
            return
        writer.write(data[start : start + SLICE_BYTES])
        await asyncio.sleep(SLICE_PAUSE_S)


async def _reset(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.get_extra_info('socket').setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    writer.transport.abort()


async def _garbage(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(GARBAGE)
    writer.close()


async def _cut(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data[: len(data) // 2])
    writer.close()


async def _swallow(writer: asyncio.StreamWriter, data: bytes) -> None:
    pass


FAULTS: Mapping[str, Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]] = {
    'none': _pass_on, 'down': _pass_on, 'flapping': _pass_on, 'hanging': _swallow, 'slow': _late, 'trickling': _sliced,
    'resetting': _reset, 'garbage': _garbage, 'cutting': _cut,
}  # fmt: skip
"""What happens to the bytes of a response. ``down`` and ``flapping`` close the listening socket."""


class Cloud:
    """The three services and the proxies; each method that is no private one is a command."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._openstack = OpenStackApi([], f'http://{address}:{PORTS[NEUTRON]}')
        self._nova = FakeNova(b'', {}, seen=deque(maxlen=1))  # type: ignore[arg-type]
        self._services = {
            KEYSTONE: Service(self._respond_openstack),
            NEUTRON: Service(self._respond_openstack),
            NOVA: Service(self._respond_nova),
        }
        self._proxies = {name: FaultyProxy(address, port) for name, port in PORTS.items()}

    async def run(self) -> None:
        """Serve until the end of standard input."""
        for name, service in self._services.items():
            await service.start(PORTS[name])
        for proxy in self._proxies.values():
            await proxy.set_fault('none')
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            name, *arguments = json.loads(line)
            print(json.dumps(await getattr(self, name)(*arguments)), flush=True)
        # At once: the tasks of open connections would log that they were cancelled.
        os._exit(0)

    async def set_ports(self, ports: list[dict[str, Any]]) -> None:
        """What Neutron knows."""
        self._openstack.ports = ports

    async def set_instances(self, instances: dict[str, str]) -> None:
        """What Nova knows: instance id to project id."""
        self._nova.instances = instances

    async def set_secret(self, secret: str) -> None:
        """Nova's shared secret."""
        self._nova.secret = secret.encode()

    async def revoke_tokens(self) -> None:
        """Keystone's tokens are invalid from now on."""
        self._openstack.roles_by_token.clear()

    async def set_fault(self, name: str, fault: str) -> None:
        """A fault of a proxy; 'none' ends it."""
        await self._proxies[name].set_fault(fault)

    async def force(self, name: str, status: int, body: str) -> None:
        """Respond to every request of a service with this; status 0 ends it."""
        content = body.encode()
        self._services[name].forced = (status, content, [('Content-Type', 'text/html')]) if status else None

    async def forget_times(self) -> None:
        """Start to count anew."""
        for counted in (*(s.requested_at_s for s in self._services.values()), *self._connect_times()):
            del counted[:]

    async def times(self, name: str) -> list[list[float]]:
        """When the service got each request, and when its proxy accepted each connection; monotonic seconds."""
        requested = self._services[name].requested_at_s if name in self._services else array('d')
        return [list(requested), list(self._proxies[name].connected_at_s)]

    def _connect_times(self) -> list[array[float]]:
        return [proxy.connected_at_s for proxy in self._proxies.values()]

    def _respond_openstack(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        status, content, more = self._openstack.respond(method, target, headers, body)
        return status, json.dumps(content).encode(), [('Content-Type', 'application/json'), *more]

    def _respond_nova(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        environ = {f'HTTP_{name.upper().replace("-", "_")}': value for name, value in headers.items()}
        environ |= {
            'REQUEST_METHOD': method,
            'PATH_INFO': target,
            'CONTENT_LENGTH': str(len(body)),
            'wsgi.input': BytesIO(body),  # type: ignore[dict-item]
        }
        started: list[tuple[str, list[tuple[str, str]]]] = []
        content = self._nova(environ, lambda status, headers: started.append((status, headers)))  # type: ignore[arg-type,func-returns-value]
        status, more = started[0]
        return int(status[:3]), b''.join(content), [one for one in more if one[0] != 'Content-Length']


class ServicesClient:
    """Starts the services in a namespace and sends them commands."""

    def __init__(self, namespace: str, address: str) -> None:
        argv = ['ip', 'netns', 'exec', namespace, sys.executable, '-m', 'tests.chaos.services', address]
        self._lock = threading.Lock()
        self._process = namespaces.run_in(
            namespace, lambda: subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The commands are the methods of ``Cloud``."""

        def call(*arguments: object) -> Any:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            try:
                with self._lock:
                    self._process.stdin.write(json.dumps([name, *arguments]) + '\n')
                    self._process.stdin.flush()
                    return json.loads(self._process.stdout.readline())
            except (BrokenPipeError, ValueError) as error:
                raise AssertionError(f'the services ended with {self._process.wait(5)} before {name}') from error

        return call

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(10)


if __name__ == '__main__':
    asyncio.run(Cloud(sys.argv[1]).run())
