# SPDX-License-Identifier: Apache-2.0
import json
import threading

import pytest
import webtest

from metadata_wsgi.cache.local import Flight, LocalCache, Ttl
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.filters.optional.response_cache import (
    ENTRY_BYTES,
    CachedResponse,
    ResponseCacheFilter,
    filter_factory,
    pack,
    unpack,
)
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeBackend, FakeClock

SOURCE = environ_keys.Source('10.1.1.2', router_id='r1')
ONE, OTHER = environ_keys.Instance('i1', 'p1', 'port1'), environ_keys.Instance('i2', 'p2', 'port2')


class Nova:
    """Counts its responses, with the count in the body."""

    def __init__(self, status='200 OK', headers=(), body=None, length=None):
        self.status, self.headers, self.body, self.length, self.requests = status, list(headers), body, length, 0
        self.before = lambda: None

    def __call__(self, environ, start_response):
        self.requests += 1
        self.before()
        body = self.body if self.body is not None else f'response {self.requests}'.encode()
        length = len(body) if self.length is None else self.length
        start_response(self.status, [('Content-Type', 'text/plain'), ('Content-Length', str(length)), *self.headers])
        return [] if environ['REQUEST_METHOD'] == 'HEAD' else [body]


class Pipeline:
    def __init__(self, nova, backend=None, limit=1 << 20, lint=True):
        self.clock, self.nova = FakeClock(), nova
        cache = LocalCache(
            limit=limit, weigh=lambda response: len(response.body) + ENTRY_BYTES, owner_of=lambda key: key[0],
            backend=backend, clock=self.clock,
        )  # fmt: skip
        self.filter = ResponseCacheFilter(nova, cache=cache, ttl_s=5.0, max_body_bytes=100)
        self.app = webtest.TestApp(self.filter, lint=lint)

    def get(self, path='/x', method='GET', instance=ONE, source=SOURCE, headers=None, **extra):
        facts = {
            environ_keys.SOURCE: source, environ_keys.INSTANCE: instance,
            environ_keys.DEADLINE: Deadline.after(9.0, self.clock), 'RAW_URI': path, **extra,
        }  # fmt: skip
        self.app.extra_environ = facts
        return self.app.request(path, method=method, headers=headers, expect_errors=True)


def requests_to(nova, *requests):
    """The number of requests to Nova for these, each a dict of arguments to ``Pipeline.get``."""
    pipeline = Pipeline(nova)
    for request in requests:
        pipeline.get(**request)
    return nova.requests


def test_age_counts_from_the_request_to_nova():
    """RFC 9111, 4.2.3: Nova may have made the response at once, and sent it slowly."""
    pipeline = Pipeline(nova := Nova())
    nova.before = lambda: pipeline.clock.sleep(2.0)
    assert 'Age' not in pipeline.get().headers
    assert pipeline.get().headers['Age'] == '2'
    pipeline.clock.sleep(3.0)
    assert pipeline.get().headers.get('Age') is None


def test_a_cached_response_is_the_same_byte_for_byte():
    pipeline = Pipeline(Nova(headers=[('X-Nova', 'yes'), ('Date', 'Thu, 01 Jan 1970 00:00:00 GMT')], body=b'\x00\xff'))
    first, second = pipeline.get(), pipeline.get()
    assert (first.status, [*first.headerlist, ('Age', '0')], first.body) == (
        second.status, second.headerlist, second.body,
    )  # fmt: skip
    assert pipeline.nova.requests == 1


def test_a_cached_response_has_its_age():
    """RFC 9111, 5.1. The Date is that of Nova's response."""
    pipeline = Pipeline(Nova())
    assert 'Age' not in pipeline.get().headers
    pipeline.clock.sleep(3.6)
    assert pipeline.get().headers['Age'] == '3'


def test_the_age_of_a_response_that_a_cache_before_nova_sent_is_added():
    pipeline = Pipeline(Nova(headers=[('age', '10')]))
    assert pipeline.get().headers['Age'] == '10'
    pipeline.clock.sleep(2)
    assert pipeline.get().headers.getall('Age') == ['12']


def test_a_response_expires():
    pipeline = Pipeline(Nova())
    pipeline.get()
    pipeline.clock.sleep(3.7)
    assert pipeline.get().text == 'response 1'
    pipeline.clock.sleep(1.3)
    assert pipeline.get().text == 'response 2'


@pytest.mark.parametrize(
    'other',
    [
        {'instance': OTHER}, {'instance': environ_keys.Instance('i1', 'p2', 'port1')},
        {'source': environ_keys.Source('10.1.1.3', router_id='r1')}, {'path': '/y'},
        {'headers': {'Accept': 'text/html'}},
        {'headers': {'Accept-Encoding': 'gzip'}}, {'headers': {'Accept-Language': 'de'}},
        {'headers': {'Accept-Charset': 'latin-1'}},
    ],
    ids=str,
)  # fmt: skip
def test_another_instance_path_or_accept_header_is_another_entry(other):
    assert requests_to(Nova(), {}, other, other, {}) == 2


@pytest.mark.parametrize('method', ['HEAD', 'POST', 'PUT', 'DELETE', 'OPTIONS'])
def test_only_get_is_cached(method):
    assert requests_to(Nova(), {'method': method}, {'method': method}, {}, {'method': method}) == 4


@pytest.mark.parametrize(
    'path',
    [
        '/openstack/latest/password', '/openstack/2013-04-04/password', '/openstack/latest/Password',
        '/openstack/latest/password/', '/openstack/latest/%70assword', '/openstack/latest//password',
        '/openstack/latest/x/../password', '/openstack/latest/password?x', '/latest/meta-data/x?y', '/a%20b',
        '/' + 'x' * 256,
    ],
)  # fmt: skip
def test_passwords_and_non_canonical_paths_are_not_cached(path):
    assert requests_to(Nova(), {'path': path}, {'path': path}) == 2


@pytest.mark.parametrize(
    'name',
    [
        'Range', 'If-Match', 'If-None-Match', 'If-Modified-Since', 'If-Unmodified-Since', 'X-aws-ec2-metadata-token',
        'Authorization', 'Cookie',
    ],
)  # fmt: skip
def test_a_request_with_a_header_for_itself_is_not_cached(name):
    assert requests_to(Nova(), {}, {'headers': {name: 'x'}}, {'headers': {name: 'x'}}) == 3


def test_a_get_with_a_body_is_not_cached():
    assert requests_to(Nova(), {'CONTENT_LENGTH': '2'}, {'CONTENT_LENGTH': '2'}) == 2


@pytest.mark.parametrize(
    'status',
    [
        '201 Status',
        '203 Status',
        '206 Status',
        '302 Status',
        '400 Status',
        '403 Status',
        '404 Status',
        '500 Status',
        '503 Status',
    ],
)
def test_only_200_is_cached(status):
    assert requests_to(Nova(status), {}, {}) == 2


@pytest.mark.parametrize('length', ['9' * 5000, '-1', '1.0', ''])
def test_a_response_with_an_odd_length_is_not_cached(length):
    nova = Nova(length=length)
    pipeline = Pipeline(nova, lint=False)
    assert [pipeline.get().status_int for _ in range(2)] == [200] * 2
    assert nova.requests == 2


@pytest.mark.parametrize('name', ['Set-Cookie', 'Cache-Control', 'Vary', 'Content-Range'])
def test_a_response_for_one_request_is_not_cached(name):
    assert requests_to(Nova(headers=[(name, 'x')]), {}, {}) == 2


def test_a_large_response_is_not_cached():
    nova = Nova(body=b'x' * 101)
    assert requests_to(nova, {}, {}) == 2
    assert requests_to(Nova(body=b'x' * 100), {}, {}) == 1


def test_a_response_shorter_than_its_content_length_is_not_cached():
    nova = Nova(body=b'short', length=10)
    pipeline = Pipeline(nova, lint=False)
    pipeline.get()
    pipeline.get()
    assert nova.requests == 2


def test_single_flight_ends_after_an_exception():
    pipeline = Pipeline(Nova())

    def fail():
        raise RuntimeError('unforeseen')

    pipeline.nova.before = fail
    with pytest.raises(RuntimeError):
        pipeline.get()
    pipeline.nova.before = lambda: None
    assert pipeline.get().text == 'response 2'


def test_the_responses_of_one_instance_do_not_evict_those_of_another():
    pipeline = Pipeline(Nova())
    pipeline.get(instance=OTHER)
    for number in range(200):
        pipeline.get(f'/{number}')
    pipeline.get(instance=OTHER)
    assert pipeline.nova.requests == 201


def test_the_cache_is_bounded_in_bytes():
    pipeline = Pipeline(Nova(body=b'x' * 100), limit=3 * (ENTRY_BYTES + 100))
    for number in range(4):
        pipeline.get(instance=environ_keys.Instance(f'i{number}', 'p', 'q'))
    pipeline.get(instance=environ_keys.Instance('i0', 'p', 'q'))
    assert pipeline.nova.requests == 5


def together(pipeline, count=10):
    """``count`` threads send the same request while Nova processes that of the first; their bodies."""
    entered, opened, texts = threading.Event(), threading.Event(), []

    def before():
        entered.set()
        assert opened.wait(20)

    pipeline.nova.before = before
    threads = [threading.Thread(target=lambda: texts.append(pipeline.get().text)) for _ in range(count)]
    threads[0].start()
    assert entered.wait(20)
    for thread in threads[1:]:
        thread.start()
    opened.set()
    for thread in threads:
        thread.join(60)
    return texts


def test_single_flight_identical_requests_are_one():
    pipeline = Pipeline(Nova())
    assert together(pipeline) == ['response 1'] * 10
    assert pipeline.nova.requests == 1


def test_single_flight_waiters_of_an_uncacheable_response_send_their_own_request():
    pipeline = Pipeline(Nova('503 Away'))
    assert len(set(together(pipeline))) == 10


def test_single_flight_a_waiter_waits_until_its_deadline():
    pipeline = Pipeline(Nova())
    key = ('i1', 'p1', '10.1.1.2', '/x', '', '', '', '')
    pipeline.filter._cache.join(key)
    late = {environ_keys.DEADLINE: Deadline.after(0.0, pipeline.clock)}
    assert pipeline.get(**late).text == 'response 1'


class WaitingCache(LocalCache):
    """A cache in which another request loads every key, and never ends."""

    def __init__(self, clock):
        super().__init__(limit=9, clock=clock)
        self.timeouts_s = []

    def join(self, key):
        flight = Flight()
        flight.wait = self.timeouts_s.append
        return flight, False


def test_single_flight_a_waiter_has_time_left_for_its_own_request():
    """The request of the other one may hang at Nova, or its response may not be cacheable."""
    pipeline = Pipeline(Nova())
    cache = WaitingCache(pipeline.clock)
    pipeline.app = webtest.TestApp(ResponseCacheFilter(pipeline.nova, cache=cache, ttl_s=5.0, max_body_bytes=100))
    assert pipeline.get().text == 'response 1'
    assert cache.timeouts_s == [4.5]


def test_a_response_of_another_worker_is_sent():
    key = ('i1', 'p1', '10.1.1.2', '/x', '', '', '', '')
    response = CachedResponse('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', '6')], b'theirs')
    pipeline = Pipeline(Nova(), FakeBackend())
    pipeline.filter._cache._backend.entries[key] = (response, 1.0, Ttl(5.0, 0.0))
    response = pipeline.get()
    assert (response.text, response.headers['Age']) == ('theirs', '1')
    assert pipeline.nova.requests == 0


def test_without_a_raw_target_the_path_and_query_are_the_key():
    pipeline = Pipeline(Nova())
    bare = {
        environ_keys.SOURCE: SOURCE,
        environ_keys.INSTANCE: ONE,
        environ_keys.DEADLINE: Deadline.after(9.0, pipeline.clock),
    }
    for path in ('/x', '/x', '/x?y', '/z'):
        pipeline.app.get(path, extra_environ=bare)
    assert pipeline.nova.requests == 3


def test_a_response_survives_json():
    response = CachedResponse('200 OK', [('a', 'b'), ('a', 'c')], bytes(range(256)))
    assert unpack(json.loads(json.dumps(pack(response)))) == response


@pytest.mark.parametrize(
    'packed',
    [
        None,
        [],
        ['200 OK', [], 'no base64!'],
        ['200 OK', [['a']], ''],
        ['200 OK', [['a', 'b\r\nc: d']], ''],
        [1, [], ''],
    ],
)
def test_an_invalid_packed_response_is_refused(packed):
    with pytest.raises((TypeError, ValueError)):
        unpack(packed)


def test_the_factory_reads_the_options(tmp_path):
    path = tmp_path / 'agent.ini'
    path.write_text('[DEFAULT]\ncache_url = memcached://127.0.0.1:1\nanswer_cache_shared = true\n')
    made = filter_factory({'config_file': str(path)})(Nova())
    assert made._cache._backend is not None
    path.write_text('[DEFAULT]\ncache_url = memcached://127.0.0.1:1\n')
    assert filter_factory({'config_file': str(path)})(Nova())._cache._backend is None


class PiecesBody(list):
    """A body in pieces that records its close."""

    closed = 0

    def close(self):
        self.closed += 1


def test_a_body_in_pieces_is_cached_whole_and_closed_once():
    body = PiecesBody([b'one ', b'two'])

    def nova(environ, start_response):
        start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', '7')])
        return body

    pipeline = Pipeline(nova, lint=False)
    assert [pipeline.get().body for _ in range(2)] == [b'one two'] * 2
    assert body.closed == 1


def test_exc_info_of_the_app_reaches_the_server():
    seen = []

    def nova(environ, start_response):
        start_response('500 Error', [('Content-Length', '0')], ('a type', 'a value', 'a traceback'))
        return []

    facts = {
        environ_keys.SOURCE: SOURCE, environ_keys.INSTANCE: ONE, 'REQUEST_METHOD': 'GET', 'RAW_URI': '/x',
        environ_keys.DEADLINE: Deadline.after(9.0, FakeClock()),
    }  # fmt: skip
    Pipeline(nova).filter(facts, lambda *arguments: seen.append(arguments))
    assert seen == [('500 Error', [('Content-Length', '0')], ('a type', 'a value', 'a traceback'))]


def test_the_cache_of_the_options_is_limited_for_each_instance_and_by_size(tmp_path):
    path = tmp_path / 'agent.ini'
    path.write_text('[DEFAULT]\nanswer_cache_mebibytes = 1\nanswer_cache_largest_body = 1048576\n')
    cache = filter_factory({'config_file': str(path)})(None)._cache
    cache.set(('quiet', 'p1'), CachedResponse('200 OK', [], b''), Ttl(5.0, 0.0))
    for number in range(100):
        cache.set(('loud', number), CachedResponse('200 OK', [], b''), Ttl(5.0, 0.0))
    assert cache.fresh(('quiet', 'p1')) is not None
    assert len(cache) == 65
    large = CachedResponse('200 OK', [], b'x' * ((1 << 20) - ENTRY_BYTES))
    cache.set(('large', 'p1'), large, Ttl(5.0, 0.0))
    assert (len(cache), cache.fresh(('large', 'p1')).value) == (1, large)
