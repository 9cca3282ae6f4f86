# SPDX-License-Identifier: Apache-2.0
import json
import traceback

import pytest
import redis
from dogpile.cache import make_region
from pymemcache.exceptions import MemcacheServerError, MemcacheUnexpectedCloseError

from metadata_wsgi.cache import shared
from metadata_wsgi.cache.local import Ttl
from metadata_wsgi.errors import ConfigError
from tests.fakes import FakeClock

TTL = Ttl(10.0, 60.0)


class Region:
    """A region of dogpile.cache; raises ``fault`` while it is set."""

    def __init__(self):
        self.entries, self.calls, self.fault = {}, 0, None

    def _called(self):
        self.calls += 1
        if self.fault:
            raise self.fault

    def get(self, key):
        self._called()
        return json.loads(self.entries[key]) if key in self.entries else shared.NO_VALUE

    def set(self, key, value):
        self._called()
        self.entries[key] = json.dumps(value)

    def delete(self, key):
        self._called()
        self.entries.pop(key, None)


class Server:
    def __init__(self):
        self.clock, self.wall, self.region = FakeClock(), FakeClock(1.7e9), Region()

    def client(self, kind='lookup'):
        return shared.SharedCache(self.region, kind, pack=list, unpack=tuple, clock=self.clock, now=self.wall)


@pytest.fixture
def server():
    return Server()


def test_an_entry_is_read_by_another_client_with_its_age(server):
    server.client().set(('10.1.1.2', 'r'), ('a', 'b'), TTL, 0.0)
    server.wall.sleep(4)
    value, age_s, ttl = server.client().get(('10.1.1.2', 'r'))
    assert (value, ttl) == (('a', 'b'), TTL)
    assert age_s == pytest.approx(4.0, abs=0.001)


def test_kinds_are_separate_and_keys_are_hashed(server):
    server.client('lookup').set(('10.1.1.2', 'r'), 'a', TTL, 0.0)
    assert server.client('answer').get(('10.1.1.2', 'r')) is None
    (key,) = server.region.entries
    assert key.startswith('metadata_wsgi:lookup:')
    assert '10.1.1.2' not in key
    assert len(key) < 250


def test_keys_with_the_same_text_are_different_keys(server):
    server.client().set(('a', 'b c'), 'v', TTL, 0.0)
    assert server.client().get(('a b', 'c')) is None


def test_a_deleted_entry_is_gone(server):
    one = server.client()
    one.set('k', 'v', TTL, 0.0)
    one.delete('k')
    assert server.client().get('k') is None


@pytest.mark.parametrize(
    'stored',
    [
        'text', 7, None, [], {}, {'value': 'v'}, {'value': 'v', 'made': 'x', 'fresh': 1, 'usable': 1},
        {'value': 7, 'made': 1.7e9, 'fresh': 1, 'usable': 1},
        {'value': 'v', 'made': 1.7e9, 'fresh': float('inf'), 'usable': 1},
        {'value': 'v', 'made': 1.7e9 + 60, 'fresh': 10, 'usable': 10},
    ],
    ids=str,
)  # fmt: skip
def test_an_invalid_entry_or_one_from_the_future_is_ignored(server, stored):
    one = server.client()
    one.set('k', 'v', TTL, 0.0)
    (key,) = server.region.entries
    server.region.entries[key] = json.dumps(stored)
    assert one.get('k') is None


def test_an_unavailable_server_is_a_miss_and_one_log_line(server, caplog):
    one = server.client()
    server.region.fault = OSError('refused')
    for _ in range(5):
        assert one.get('k') is None
        one.set('k', 'v', TTL, 0.0)
        one.delete('k')
    assert server.region.calls == 1
    assert [record.getMessage() for record in caplog.records] == [
        'The shared cache is unavailable, each worker uses its own: refused'
    ]


@pytest.mark.parametrize(
    'refusal',
    [
        MemcacheServerError(b'out of memory storing object'),
        redis.exceptions.ReadOnlyError('a replica'),
        redis.exceptions.OutOfMemoryError('maxmemory'),
    ],
    ids=['memcached', 'replica', 'memory'],
)
def test_a_server_that_refuses_a_write_stays_available(server, caplog, refusal):
    one = server.client()
    one.set('k', 'v', TTL, 0.0)
    server.region.fault = refusal
    one.set('l', 'v', TTL, 0.0)
    one.delete('m')
    server.region.fault = None
    assert one.get('k')[0] == ('v',)
    message = refusal.args[0].decode() if isinstance(refusal.args[0], bytes) else refusal.args[0]
    assert [record.getMessage() for record in caplog.records] == [f'The shared cache refuses a write: {message}']


@pytest.mark.parametrize(
    ('call', 'fault'),
    [
        ('set', MemcacheUnexpectedCloseError()),
        ('set', redis.exceptions.AuthenticationError('a password is required')),
        ('get', MemcacheServerError('out of memory')),
        ('get', redis.exceptions.ResponseError('DB index is out of range')),
    ],
    ids=str,
)
def test_a_server_that_closes_the_connection_or_refuses_a_read_is_unavailable(server, caplog, call, fault):
    one = server.client()
    server.region.fault = fault
    if call == 'set':
        one.set('k', 'v', TTL, 0.0)
    else:
        one.get('k')
    one.get('k')
    assert server.region.calls == 1
    assert 'The shared cache is unavailable' in caplog.text


def test_retry_by_one_request_then_by_all(server):
    one = server.client()
    server.region.fault = OSError('refused')
    one.get('k')
    server.clock.sleep(shared.RETRY_AFTER_FAILURE_S)
    one.get('k')
    one.get('k')
    assert server.region.calls == 2
    server.clock.sleep(shared.RETRY_AFTER_FAILURE_S)
    server.region.fault = None
    one.set('k', 'v', TTL, 0.0)
    one.set('l', 'v', TTL, 0.0)
    assert one.get('k')[0] == ('v',)
    assert server.region.calls == 5


def test_values_are_stored_as_json():
    region = make_region(serializer=shared._dumps, deserializer=json.loads).configure('dogpile.cache.memory')
    with pytest.raises(TypeError):
        region.set('k', object())


def test_a_pickle_from_the_server_is_not_loaded():
    assert shared._BytesSerde().deserialize('k', b'\x80\x04N.', 1) == b'\x80\x04N.'


def test_by_default_there_is_no_shared_cache():
    assert shared.connect('memory://', max_ttl_s=10) is None
    assert shared.connect('memory://?default_ttl=5', max_ttl_s=10) is None


@pytest.mark.parametrize(
    ('url', 'servers'),
    [
        ('memcached://10.0.0.1:11211', ['10.0.0.1:11211']),
        ('memcached://a:1,b:2', ['a:1', 'b:2']),
        ('memcached:///run/memcached.sock', ['unix:/run/memcached.sock']),
    ],
)
def test_memcached_by_url(url, servers):
    backend = shared.connect(url, max_ttl_s=310.2).backend
    assert backend.url == servers
    assert backend.set_arguments == {'expire': 316}
    assert backend.client is backend.client
    assert backend.client.default_kwargs['timeout'] == shared.TIMEOUT_S


@pytest.mark.parametrize('url', ['redis://h:6379/0', 'rediss://h:6379/0', 'unix:///run/redis.sock'])
def test_redis_by_url(url):
    backend = shared.connect(url, max_ttl_s=10).backend
    assert backend.redis_expiration_time == 15
    assert backend.writer_client.connection_pool.connection_kwargs['socket_timeout'] == shared.TIMEOUT_S


@pytest.mark.parametrize('url', ['10.0.0.1:11211', 'mongodb://h', '', 'memcached'])
def test_an_unknown_url_is_refused_without_showing_it(url):
    with pytest.raises(ConfigError, match='cache_url has the scheme'):
        shared.connect(url, max_ttl_s=10)


@pytest.mark.parametrize(
    'url',
    ['redis://:s3cr3t/2@h:6379/0', 'redis://:s3cr3t℀@h:1/0', 'rediss://[s3cr3t', 'memcached://s3cr3t:11211x'],
    ids=['port', 'letter', 'address', 'memcached'],
)
def test_a_malformed_url_is_refused_without_showing_its_password(url):
    """For urllib the text after the last colon before the first slash is the port, and its error shows it."""
    with pytest.raises(ConfigError, match=r'^cache_url = (rediss?|memcached)://...: not a valid URL') as raised:
        shared.connect(url, max_ttl_s=10)
    assert 's3cr3t' not in ''.join(traceback.format_exception(raised.value))
