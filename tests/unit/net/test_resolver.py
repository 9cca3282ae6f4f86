# SPDX-License-Identifier: Apache-2.0
"""Name resolution and TCP connects within a timeout."""

import select
import socket
import subprocess
import sys
import threading
import time

import pytest

from metadata_wsgi import limits
from metadata_wsgi.net import resolver
from metadata_wsgi.net.resolver import Address, NameNotResolved, Resolver, TcpConnector
from tests.fakes import FakeClock

ALIVE = Address(socket.AF_INET, '127.0.0.1')


def v4(ip):
    return Address(socket.AF_INET, ip)


def eventually(condition):
    until_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.01)


class Names:
    """A lookup that returns ``addresses`` or raises; it waits while ``gate`` is closed, and counts."""

    def __init__(self, *addresses, error=None):
        self.addresses, self.error = addresses, error
        self.gate = threading.Event()
        self.gate.set()
        self.lookups = []

    def __call__(self, host):
        self.lookups.append(host)
        self.gate.wait(20)
        if self.error:
            raise self.error
        return list(self.addresses)


@pytest.fixture
def silent():
    """A lookup that does not end before the test does."""
    names = Names(ALIVE)
    names.gate.clear()
    yield names
    names.gate.set()


@pytest.fixture
def listener():
    with socket.create_server(('127.0.0.1', 0)) as sock:
        yield sock


@pytest.fixture
def full_listener():
    """Its backlog is full: a further connection gets no SYN-ACK, as from a host that is gone."""
    with socket.socket() as sock:
        sock.bind(('127.0.0.2', 0))
        sock.listen(0)
        waiting = []
        for _ in range(8):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(sock.getsockname())
            waiting.append(client)
        yield sock
        for client in waiting:
            client.close()


@pytest.mark.parametrize(
    ('host', 'ip'), [('127.0.0.1', '127.0.0.1'), ('::1', '::1'), ('2001:DB8::1', '2001:db8::1'), ('fe80::1%lo', None)]
)
def test_an_ip_address_needs_no_lookup(host, ip, silent):
    (address,) = Resolver(silent).resolve(host, 0.0)
    assert ip is None or address.ip == ip
    assert silent.lookups == []


def test_a_lookup_that_does_not_end_is_a_timeout_that_names_the_name(silent):
    with pytest.raises(NameNotResolved, match=r'^name nova could not be resolved within 0\.1 s$'):
        Resolver(silent).resolve('nova', 0.1)


def test_many_requests_share_one_lookup_of_a_name(silent):
    names = Resolver(silent)
    waiting = [threading.Thread(target=lambda: results.append(names.resolve('nova', 20))) for _ in range(8)]
    results = []
    for thread in waiting:
        thread.start()
    silent.gate.set()
    for thread in waiting:
        thread.join(60)
    assert results == [(ALIVE,)] * 8
    assert silent.lookups == ['nova']


def test_a_lookup_that_does_not_end_delays_no_other_name(silent):
    lookup = {'keystone': silent, 'nova': Names(ALIVE)}
    names = Resolver(lambda host: lookup[host](host))
    for _ in range(20):
        with pytest.raises(NameNotResolved):
            names.resolve('keystone', 0.0)
    assert names.resolve('nova', 20) == (ALIVE,)
    assert silent.lookups == ['keystone']


def test_known_addresses_are_returned_at_once_and_refreshed_in_the_background():
    clock, lookup = FakeClock(), Names(ALIVE)
    names = Resolver(lookup, clock)
    assert names.resolve('nova', 20) == (ALIVE,)
    assert names.resolve('nova', 0) == (ALIVE,)
    assert len(lookup.lookups) == 1
    clock.sleep(limits.NAME_REFRESH_S)
    lookup.addresses = (v4('127.0.0.9'),)
    lookup.gate.clear()
    assert names.resolve('nova', 0) == (ALIVE,)
    lookup.gate.set()
    eventually(lambda: names.resolve('nova', 0) == (v4('127.0.0.9'),))
    assert len(lookup.lookups) == 2


def test_the_last_good_addresses_stay_in_use_while_the_name_server_fails(caplog):
    clock, lookup = FakeClock(), Names(ALIVE)
    names = Resolver(lookup, clock)
    names.resolve('nova', 20)
    lookup.error = socket.gaierror(socket.EAI_AGAIN, 'Temporary failure in name resolution')
    for _ in range(3):
        clock.sleep(limits.NAME_REFRESH_S)
        assert names.resolve('nova', 0) == (ALIVE,)
    eventually(lambda: caplog.messages)
    assert caplog.messages == [
        'name nova cannot be resolved: Temporary failure in name resolution; its last known addresses stay in use'
    ]


def test_a_failed_lookup_is_repeated_after_a_pause_only():
    clock, lookup = FakeClock(), Names(error=socket.gaierror(socket.EAI_NONAME, 'Name or service not known'))
    names = Resolver(lookup, clock)
    for _ in range(10):
        with pytest.raises(NameNotResolved, match=r'^name nova could not be resolved: Name or service not known$'):
            names.resolve('nova', 20)
    assert len(lookup.lookups) == 1
    clock.sleep(limits.NAME_RETRY_S)
    lookup.error, lookup.addresses = None, (ALIVE,)
    assert names.resolve('nova', 20) == (ALIVE,)


@pytest.mark.parametrize('host', ['nova..example', 'x' * 70 + '.example', ''])
def test_a_name_that_cannot_exist_is_an_error_as_any(host):
    with pytest.raises(OSError, match=r'could not be resolved|not known'):
        Resolver().resolve(host, 20)


def test_a_name_without_an_address_is_not_resolved():
    with pytest.raises(NameNotResolved, match='it has no address'):
        Resolver(Names()).resolve('nova', 20)


def test_all_addresses_share_one_timeout(full_listener):
    """One address that does not answer, and then one that does."""
    port = full_listener.getsockname()[1]
    with socket.create_server(('127.0.0.1', port)):
        connector = TcpConnector(Resolver(Names(v4('127.0.0.2'), ALIVE)))
        with connector.connect('nova', port, 6.0) as sock:
            assert sock.getpeername()[0] == '127.0.0.1'


def test_the_address_that_worked_is_tried_first():
    attempts = []

    class Recorder(TcpConnector):
        def _in_order(self, host, port, addresses):
            attempts.append([address.ip for address in super()._in_order(host, port, addresses)])
            return super()._in_order(host, port, addresses)

    with socket.create_server(('127.0.0.3', 0)) as listener:
        port = listener.getsockname()[1]
        connector = Recorder(Resolver(Names(v4('127.0.0.1'), v4('127.0.0.2'), v4('127.0.0.3'))))
        for _ in range(2):
            connector.connect('nova', port, 5.0).close()
    assert attempts == [['127.0.0.1', '127.0.0.2', '127.0.0.3'], ['127.0.0.3', '127.0.0.1', '127.0.0.2']]


def test_the_error_of_several_addresses_names_each():
    with socket.create_server(('127.0.0.1', 0)) as listener:
        port = listener.getsockname()[1]
    connector = TcpConnector(Resolver(Names(v4('127.0.0.1'), v4('127.0.0.2'))))
    with pytest.raises(OSError) as raised:
        connector.connect('nova', port, 5.0)
    assert str(raised.value) == (
        'no address of nova accepts connections: 127.0.0.1: Connection refused; 127.0.0.2: Connection refused'
    )


def test_a_host_whose_addresses_all_fail_is_looked_up_again_early():
    clock = FakeClock()
    with socket.create_server(('127.0.0.1', 0)) as listener:
        port = listener.getsockname()[1]
    lookup = Names(v4('127.0.0.1'))
    connector = TcpConnector(Resolver(lookup, clock))
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            connector.connect('nova', port, 5.0)
    assert len(lookup.lookups) == 1
    clock.sleep(limits.NAME_RETRY_S)
    with pytest.raises(ConnectionRefusedError):
        connector.connect('nova', port, 5.0)
    assert len(lookup.lookups) == 2


def test_a_connection_that_is_not_completed_moves_on_to_the_next_address(listener):
    completed = []

    def finish(sock, timeout_s):
        completed.append(timeout_s)
        if len(completed) == 1:
            sock.close()
            raise TimeoutError('no TLS')
        return sock

    port = listener.getsockname()[1]
    with socket.create_server(('127.0.0.2', port)):
        connector = TcpConnector(Resolver(Names(v4('127.0.0.2'), ALIVE)))
        with connector.connect('nova', port, 4.0, finish) as sock:
            assert sock.getpeername()[0] == '127.0.0.1'
            assert sock.getblocking()
    assert 0 < completed[0] <= 2.0
    assert 2.0 < completed[1] <= 4.0


def test_waiting_for_a_socket_ends_with_the_timeout():
    one, other = socket.socketpair()
    with one, other, pytest.raises(TimeoutError):
        resolver.wait_ready(one, select.POLLIN, 0.01)


UNDER_GEVENT = """
from metadata_wsgi.net import resolver
from gevent import monkey; monkey.patch_all()
import gevent, os, socket, threading, time
gate = threading.Event()
def lookup(host):
    if host == 'silent':
        gevent.get_hub().threadpool.apply(time_sleep, (600,))
    return [resolver.Address(socket.AF_INET, '127.0.0.1')]
time_sleep = monkey.get_original('time', 'sleep')
listener = socket.create_server(('127.0.0.1', 0))
connector = resolver.TcpConnector(resolver.Resolver(lookup))
def fails():
    try:
        connector.connect('silent', 1, 0.1)
    except OSError as error:
        return str(error)
waiting = [gevent.spawn(fails) for _ in range(30)]
connector.connect('alive', listener.getsockname()[1], 5).close()
print({greenlet.get() for greenlet in waiting}, flush=True)
os._exit(0)
"""


def test_it_works_under_gevent_and_a_silent_name_holds_one_thread_only():
    done = subprocess.run([sys.executable, '-c', UNDER_GEVENT], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("{'name silent could not be resolved within 0.1 s'}\n", 0), done.stderr
