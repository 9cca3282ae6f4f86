# SPDX-License-Identifier: Apache-2.0
"""One instance attacks the namespace proxy with 2,000 connections while another boots: the boot succeeds.

The attacker is a process of its own. The time of the slowest request of some boots, without and during the attack, is
printed. It is not asserted, except for the timeout of 10 s that instances have.
"""

import contextlib
import http.client
import multiprocessing
import resource
import socket
import time

import pytest

pytestmark = pytest.mark.not_traced

CONNECTIONS = 2000
BOOTS = 5
BOOT = [f'/openstack/latest/{number}' for number in range(28)]
ATTACKER, OTHER = '127.0.0.2', '127.0.0.1'

INCOMPLETE_HEADER = b'GET / HTTP/1.1\r\nX-Slow: '
INCOMPLETE_BODY = b'POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n'
PIPELINED_REQUESTS = b'GET / HTTP/1.1\r\nHost: x\r\n\r\n' * 300


@pytest.fixture(autouse=True)
def descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Attack:
    """``CONNECTIONS`` connections that send ``first``, then ``more`` every 0.1 s, and read nothing. A closed one is
    opened again, up to as many times."""

    def __init__(self, port, sources, first, more):
        self._port, self._sources, self._first, self._more = port, sources, first, more
        self._opened = FORK.Value('i', 0)
        self._stop = FORK.Event()
        self._open = []
        self._process = FORK.Process(target=self._run)

    @property
    def opened(self):
        """Number of connections so far."""
        return self._opened.value

    def _connect(self):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.bind((self._sources[self.opened % len(self._sources)], 0))
        sock.settimeout(0.2)
        self._opened.value += 1
        try:
            sock.connect(('127.0.0.1', self._port))
            sock.setblocking(False)
            if self._first:
                sock.send(self._first)
        except OSError:
            sock.close()
            return
        self._open.append(sock)

    def _run(self):
        while not self._stop.is_set():
            while len(self._open) < CONNECTIONS and not self._stop.is_set() and self.opened < 2 * CONNECTIONS:
                self._connect()
            for sock in list(self._open):
                try:
                    if self._more:
                        sock.send(self._more)
                except BlockingIOError:
                    pass
                except OSError:
                    sock.close()
                    self._open.remove(sock)
            self._stop.wait(0.1)

    def __enter__(self):
        self._process.start()
        while self.opened < CONNECTIONS:
            time.sleep(0.01)
        return self

    def __exit__(self, *exc):
        self._stop.set()
        self._process.join(60)


def boot(port, boots=BOOTS):
    """(statuses, milliseconds of the slowest request) of so many boots: 28 requests each, on new connections.

    The timeout is longer than that of instances, because this machine may be busy: the benchmark measures times.
    """
    statuses, slowest_s = [], 0.0
    for target in BOOT * boots:
        since = time.monotonic()
        connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60, source_address=(OTHER, 0))
        with contextlib.closing(connection):
            connection.request('GET', target)
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
        slowest_s = max(slowest_s, time.monotonic() - since)
    return statuses, slowest_s * 1000


FORK = multiprocessing.get_context('fork')
MANY = [f'127.{number >> 8}.{number & 255}.9' for number in range(600, 600 + CONNECTIONS)]
COMPLETE_REQUEST = b'GET / HTTP/1.1\r\nHost: x\r\n\r\n'
ATTACKS = {
    'idle connections': ([ATTACKER], b'', b''),
    'slow headers': ([ATTACKER], INCOMPLETE_HEADER, b'x'),
    'slow bodies': ([ATTACKER], INCOMPLETE_BODY, b'x'),
    'slow readers': ([ATTACKER], PIPELINED_REQUESTS, b''),
    # An instance without port security: its network does not limit it to its own addresses.
    'slow headers from 2,000 addresses': (MANY, INCOMPLETE_HEADER, b'x'),
    'idle connections from 2,000 addresses': (MANY, b'', b''),
    'complete requests': ([ATTACKER], COMPLETE_REQUEST, b''),
    'complete requests from 2,000 addresses': (MANY, COMPLETE_REQUEST, b''),
    'slow bodies from 2,000 addresses': (MANY, INCOMPLETE_BODY, b'x'),
}


@pytest.mark.parametrize('name', ATTACKS)
def test_another_instances_boot_succeeds_during_an_attack(agent, proxy, capsys, name):
    agent()
    program, port = proxy()
    boot(port, 1)  # the first requests of a process are slower
    alone, undisturbed_ms = boot(port)
    sources, first, more = ATTACKS[name]
    with Attack(port, sources, first, more) as attack:
        during, disturbed_ms = boot(port)
    assert alone == during == [200] * len(BOOT) * BOOTS
    assert 'Traceback' not in program.text()
    with capsys.disabled():
        print(
            f'\n{attack.opened} {name}: slowest request of the other instance {undisturbed_ms:.1f} ms without, '
            f'{disturbed_ms:.1f} ms during the attack'
        )
