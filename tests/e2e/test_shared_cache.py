# SPDX-License-Identifier: Apache-2.0
"""A real memcached or Redis behind the caches: shared by workers; its outage is no failure of the agent."""

import contextlib
import http.client
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from metadata_wsgi.cache import shared
from metadata_wsgi.cache.local import Ttl
from tests.e2e.conftest import UnixConnection, eventually, free_port, request
from tests.e2e.long_store_timeouts import LONG_TIMEOUT_S, with_long_store_timeouts
from tests.pipeline.test_caches import with_filters

# dogpile.cache calls a method that redis has deprecated.
pytestmark = pytest.mark.filterwarnings('ignore:Call to deprecated setex:DeprecationWarning')

TTL = Ttl(60.0, 60.0)
A = {'X-Forwarded-For': '10.1.1.2', 'X-Quantum-Router-ID': 'router-a'}


class Server:
    """memcached or Redis on a loopback port; may be stopped and started again."""

    def __init__(self, kind):
        self.kind, self.port, self.process, self.options = kind, free_port(), None, []
        self.url = f'memcached://127.0.0.1:{self.port}' if kind == 'memcached' else f'redis://127.0.0.1:{self.port}/0'

    def start(self):
        memcached = [
            'memcached',
            '-u',
            'nobody',
            '-l',
            '127.0.0.1',
            '-p',
            str(self.port),
            '-t',
            '1',
            '-m',
            '8',
            *self.options,
        ]
        redis = ['redis-server', '--bind', '127.0.0.1', '--port', str(self.port), '--save', '', '--appendonly', 'no']
        self.process = subprocess.Popen(
            memcached if self.kind == 'memcached' else redis, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        eventually(self.listens, f'{self.kind} listens')

    def listens(self):
        with socket.socket() as probe:
            return probe.connect_ex(('127.0.0.1', self.port)) == 0

    def stop(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait(20)

    def refuse_large_values(self):
        """Redis refuses all values. memcached starts again."""
        if self.kind == 'redis':
            self.limit_memory(1)
            return
        self.stop()
        self.options = ['-I', '512k']
        self.start()

    def accept_small_values(self):
        if self.kind == 'redis':
            self.limit_memory(0)

    def limit_memory(self, size):
        with contextlib.closing(socket.create_connection(('127.0.0.1', self.port), 10)) as peer:
            peer.sendall(b'CONFIG SET maxmemory %d\r\n' % size)
            assert b'OK' in peer.recv(1000)

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)
        status = Path(f'/proc/{self.process.pid}/status')
        eventually(lambda: re.search(r'^State:\s+T', status.read_text(), re.MULTILINE), f'{self.kind} is stopped')


@pytest.fixture(params=[('memcached', 'memcached'), ('redis', 'redis-server')], ids=lambda param: param[0])
def server(request):
    kind, program = request.param
    if shutil.which(program) is None:
        pytest.skip(f'{program} is not installed')
    made = Server(kind)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def connect(server, monkeypatch):
    """Connects to the server with a clock; closes the connections afterwards."""
    regions = []

    def to(clock, timeout_s=LONG_TIMEOUT_S):
        monkeypatch.setattr(shared, 'TIMEOUT_S', timeout_s)
        regions.append(shared.connect(server.url, max_ttl_s=60))
        return shared.SharedCache(regions[-1], 'lookup', pack=list, unpack=tuple, clock=clock)

    yield to
    for region in regions:
        backend = region.backend
        (backend.client if server.kind == 'memcached' else backend.writer_client).close()


class ManualClock:
    """A clock that is set by the test."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def test_shared_cache_retry_after_the_server_was_unavailable(server, connect, caplog):
    clock = ManualClock()
    one, other = connect(clock), connect(clock)
    one.set(('k', 'r'), ['v'], TTL, 0.0)
    assert other.get(('k', 'r'))[0] == ('v',)
    one.delete(('k', 'r'))
    assert other.get(('k', 'r')) is None

    server.stop()
    one.set(('k', 'r'), ['v'], TTL, 0.0)
    assert one.get(('k', 'r')) is None
    assert 'The shared cache is unavailable' in caplog.text

    server.start()
    # pymemcache's own pause is measured in real seconds.
    eventually(lambda: is_back(one, clock), 'the server is used again')
    assert connect(clock).get(('k', 'r'))[0] == ('back',)


def test_shared_cache_stays_available_if_a_value_is_too_large(server, connect, caplog):
    """memcached refuses a value above 1 MiB. An instance chooses the size of its user-data."""
    one = connect(ManualClock())
    one.set('large', ['v' * (1 << 20)], TTL, 0.0)
    one.set('k', ['v'], TTL, 0.0)
    assert one.get('large') is None
    assert one.get('k')[0] == ('v',)
    assert not caplog.records


def test_shared_cache_stays_available_if_the_server_refuses_one_value(server, connect, caplog):
    """An operator may have set a lower limit. An instance chooses the size of its user-data."""
    server.refuse_large_values()
    one = connect(ManualClock())
    large = ['v' * 700_000]
    for _ in range(2):
        one.set('large', large, TTL, 0.0)
    assert one.get('large') is None
    server.accept_small_values()
    one.set('k', ['v'], TTL, 0.0)
    assert one.get('k')[0] == ('v',)
    assert [record.getMessage().partition(':')[0] for record in caplog.records] == ['The shared cache refuses a write']


def is_back(one, clock):
    clock.now_s += shared.RETRY_AFTER_FAILURE_S
    one.set(('k', 'r'), ['back'], TTL, 0.0)
    return one.get(('k', 'r')) is not None


def test_shared_cache_timeout_of_a_server_that_hangs(server, connect, caplog):
    one = connect(ManualClock(), timeout_s=0.5)
    one.set('k', ['v'], TTL, 0.0)
    server.freeze()
    assert one.get('k') is None
    assert 'The shared cache is unavailable' in caplog.text


def test_shared_cache_stores_json_under_hashed_keys(server, connect):
    if server.kind != 'memcached':
        pytest.skip('looked at in memcached')
    connect(ManualClock()).set(('10.1.1.2', 'router-a'), ['v'], TTL, 0.0)
    with contextlib.closing(socket.create_connection(('127.0.0.1', server.port), 10)) as peer:
        peer.sendall(b'lru_crawler metadump all\r\n')
        dump = b''
        while b'END' not in dump:
            dump += peer.recv(65536)
        key = dump.split(b'key=')[1].split(b' ')[0].replace(b'%3A', b':')
        assert b'10.1.1.2' not in dump
        peer.sendall(b'get ' + key + b'\r\n')
        assert b'|{"value":["v"],' in peer.recv(65536)


def test_shared_cache_outage_does_not_stop_the_agent(server, cloud, agent, tmp_path):
    """The next worker uses the cached lookups and responses of the one before."""
    paste = with_long_store_timeouts(with_filters(tmp_path, 'lookup_cache', 'response_cache'))
    cloud.configure(
        api_paste_config=paste, cache_url=server.url, answer_cache_shared=True, answer_cache_seconds=600,
        lookup_cache_seconds=600,
    )  # fmt: skip
    program = agent()

    def get(path):
        status, _, body = request(UnixConnection(cloud.socket), 'GET', path, headers=A)
        return status, body.partition(b'"uuid": ')[2][:12]

    good = (200, b'"instance-a"')
    assert get('/one') == good
    reload(program)
    assert get('/one') == good
    assert [seen['PATH_INFO'] for seen in cloud.nova.seen] == ['/one']

    server.stop()
    assert [get(f'/two/{number}') for number in range(20)] == [good] * 20
    server.start()
    assert get('/three') == good
    assert program.process.poll() is None
    assert 'Traceback' not in program.text()


def reload(program):
    """Replace the only worker."""
    before = program.workers()
    program.kill(signal.SIGHUP)
    eventually(lambda: program.workers() and not set(before) & set(program.workers()), 'the worker was replaced')


def test_shared_cache_from_concurrent_connections(server, cloud, agent, tmp_path):
    """Each connection has a greenlet; all share one client."""
    paste = with_long_store_timeouts(with_filters(tmp_path, 'lookup_cache', 'response_cache'))
    cloud.configure(api_paste_config=paste, cache_url=server.url, answer_cache_shared=True)
    program = agent()
    connections = [UnixConnection(cloud.socket) for _ in range(20)]
    for number, connection in enumerate(connections):
        connection.request('GET', f'/{number}', headers=A)
    statuses = []
    for connection in connections:
        response: http.client.HTTPResponse = connection.getresponse()
        statuses.append(response.status)
        response.read()
        connection.close()
    assert statuses == [200] * 20
    assert 'shared cache is unavailable' not in program.text()
