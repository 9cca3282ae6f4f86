# SPDX-License-Identifier: Apache-2.0
import json
import threading

import pytest
import webtest

from metadata_wsgi.cache.local import LocalCache, Ttl
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.filters.optional.response_cache import (
    ENTRY_BYTES,
    CacheAnswersFilter,
    Told,
    filter_factory,
    pack,
    unpack,
)
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeBehind, FakeClock

SOURCE = environ_keys.Source('10.1.1.2', router_id='r1')
ONE, OTHER = environ_keys.Instance('i1', 'p1', 'port1'), environ_keys.Instance('i2', 'p2', 'port2')


class Nova:
    """Counts its answers, and says the count."""

    def __init__(self, status='200 OK', headers=(), said=None, length=None):
        self.status, self.headers, self.said, self.length, self.asked = status, list(headers), said, length, 0
        self.before = lambda: None

    def __call__(self, environ, start_response):
        self.asked += 1
        self.before()
        said = self.said if self.said is not None else f'answer {self.asked}'.encode()
        length = len(said) if self.length is None else self.length
        start_response(self.status, [('Content-Type', 'text/plain'), ('Content-Length', str(length)), *self.headers])
        return [] if environ['REQUEST_METHOD'] == 'HEAD' else [said]


class Way:
    def __init__(self, nova, behind=None, limit=1 << 20, lint=True):
        self.clock, self.nova = FakeClock(), nova
        memory = LocalCache(
            limit=limit, weigh=lambda told: len(told.body) + ENTRY_BYTES, owner=lambda key: key[0], behind=behind,
            clock=self.clock,
        )  # fmt: skip
        self.filter = CacheAnswersFilter(nova, memory=memory, seconds=5.0, largest_body=100)
        self.app = webtest.TestApp(self.filter, lint=lint)

    def ask(self, path='/x', method='GET', instance=ONE, source=SOURCE, headers=None, **extra):
        facts = {
            environ_keys.SOURCE: source, environ_keys.INSTANCE: instance,
            environ_keys.DEADLINE: Deadline.after(9.0, self.clock), 'RAW_URI': path, **extra,
        }  # fmt: skip
        self.app.extra_environ = facts
        return self.app.request(path, method=method, headers=headers, expect_errors=True)


def asked(nova, *requests):
    """How often Nova is asked for these, each a dict of arguments to ``Way.ask``."""
    way = Way(nova)
    for request in requests:
        way.ask(**request)
    return nova.asked


def test_an_answer_is_given_again_byte_for_byte():
    way = Way(Nova(headers=[('X-Nova', 'yes'), ('Date', 'Thu, 01 Jan 1970 00:00:00 GMT')], said=b'\x00\xff'))
    first, second = way.ask(), way.ask()
    assert (first.status, first.headerlist, first.body) == (second.status, second.headerlist, second.body)
    assert way.nova.asked == 1


def test_an_answer_ends():
    way = Way(Nova())
    way.ask()
    way.clock.sleep(3.7)
    assert way.ask().text == 'answer 1'
    way.clock.sleep(1.3)
    assert way.ask().text == 'answer 2'


@pytest.mark.parametrize(
    'other',
    [
        {'instance': OTHER}, {'instance': environ_keys.Instance('i1', 'p2', 'port1')},
        {'source': environ_keys.Source('10.1.1.3', router_id='r1')}, {'path': '/y'}, {'headers': {'Accept': 'text/html'}},
        {'headers': {'Accept-Encoding': 'gzip'}}, {'headers': {'Accept-Language': 'de'}},
        {'headers': {'Accept-Charset': 'latin-1'}},
    ],
    ids=str,
)  # fmt: skip
def test_another_instance_path_or_wish_is_another_answer(other):
    assert asked(Nova(), {}, other, other, {}) == 2


@pytest.mark.parametrize('method', ['HEAD', 'POST', 'PUT', 'DELETE', 'OPTIONS'])
def test_only_get(method):
    assert asked(Nova(), {'method': method}, {'method': method}, {}, {'method': method}) == 4


@pytest.mark.parametrize(
    'path',
    [
        '/openstack/latest/password', '/openstack/2013-04-04/password', '/openstack/latest/Password',
        '/openstack/latest/password/', '/openstack/latest/%70assword', '/openstack/latest//password',
        '/openstack/latest/x/../password', '/openstack/latest/password?x', '/latest/meta-data/x?y', '/a%20b',
        '/' + 'x' * 256,
    ],
)  # fmt: skip
def test_never_passwords_and_no_odd_spellings(path):
    assert asked(Nova(), {'path': path}, {'path': path}) == 2


@pytest.mark.parametrize(
    'name',
    [
        'Range', 'If-Match', 'If-None-Match', 'If-Modified-Since', 'If-Unmodified-Since', 'X-aws-ec2-metadata-token',
        'Authorization', 'Cookie',
    ],
)  # fmt: skip
def test_a_particular_request_is_asked_each_time(name):
    assert asked(Nova(), {}, {'headers': {name: 'x'}}, {'headers': {name: 'x'}}) == 3


def test_a_get_with_a_body_is_asked_each_time():
    assert asked(Nova(), {'CONTENT_LENGTH': '2'}, {'CONTENT_LENGTH': '2'}) == 2


@pytest.mark.parametrize(
    'status',
    ['201 Said', '203 Said', '206 Said', '302 Said', '400 Said', '403 Said', '404 Said', '500 Said', '503 Said'],
)
def test_only_200(status):
    assert asked(Nova(status), {}, {}) == 2


@pytest.mark.parametrize('name', ['Set-Cookie', 'Cache-Control', 'Vary', 'Content-Range'])
def test_an_answer_for_one_request_is_not_kept(name):
    assert asked(Nova(headers=[(name, 'x')]), {}, {}) == 2


def test_a_large_answer_is_not_kept_and_not_read():
    nova = Nova(said=b'x' * 101)
    assert asked(nova, {}, {}) == 2
    assert asked(Nova(said=b'x' * 100), {}, {}) == 1


def test_an_answer_that_is_not_as_long_as_it_says_is_not_kept():
    nova = Nova(said=b'short', length=10)
    way = Way(nova, lint=False)
    way.ask()
    way.ask()
    assert nova.asked == 2


def test_an_exception_leaves_nobody_waiting():
    way = Way(Nova())

    def fail():
        raise RuntimeError('unforeseen')

    way.nova.before = fail
    with pytest.raises(RuntimeError):
        way.ask()
    way.nova.before = lambda: None
    assert way.ask().text == 'answer 2'


def test_one_instances_many_answers_do_not_push_out_anothers():
    way = Way(Nova())
    way.ask(instance=OTHER)
    for number in range(200):
        way.ask(f'/{number}')
    way.ask(instance=OTHER)
    assert way.nova.asked == 201


def test_it_keeps_a_bounded_number_of_bytes():
    way = Way(Nova(said=b'x' * 100), limit=3 * (ENTRY_BYTES + 100))
    for number in range(4):
        way.ask(instance=environ_keys.Instance(f'i{number}', 'p', 'q'))
    way.ask(instance=environ_keys.Instance('i0', 'p', 'q'))
    assert way.nova.asked == 5


def together(way, count=10):
    """``count`` threads ask the same while Nova is at the first one's; their texts."""
    entered, opened, texts = threading.Event(), threading.Event(), []

    def before():
        entered.set()
        assert opened.wait(20)

    way.nova.before = before
    threads = [threading.Thread(target=lambda: texts.append(way.ask().text)) for _ in range(count)]
    threads[0].start()
    assert entered.wait(20)
    for thread in threads[1:]:
        thread.start()
    opened.set()
    for thread in threads:
        thread.join(20)
    return texts


def test_identical_requests_at_once_are_one():
    way = Way(Nova())
    assert together(way) == ['answer 1'] * 10
    assert way.nova.asked == 1


def test_who_waited_for_an_answer_that_is_not_kept_asks_itself():
    way = Way(Nova('503 Away'))
    assert len(set(together(way))) == 10


def test_who_waits_does_so_until_its_deadline():
    way = Way(Nova())
    key = ('i1', 'p1', '10.1.1.2', '/x', '', '', '', '')
    way.filter._memory.join(key)
    late = {environ_keys.DEADLINE: Deadline.after(0.0, way.clock)}
    assert way.ask(**late).text == 'answer 1'


def test_what_another_worker_was_told_is_told():
    key = ('i1', 'p1', '10.1.1.2', '/x', '', '', '', '')
    told = Told('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', '6')], b'theirs')
    way = Way(Nova(), FakeBehind())
    way.filter._memory._behind.entries[key] = (told, 1.0, Ttl(5.0, 0.0))
    assert way.ask().text == 'theirs'
    assert way.nova.asked == 0


def test_without_a_raw_target_the_path_and_query_are_the_key():
    way = Way(Nova())
    bare = {
        environ_keys.SOURCE: SOURCE,
        environ_keys.INSTANCE: ONE,
        environ_keys.DEADLINE: Deadline.after(9.0, way.clock),
    }
    for path in ('/x', '/x', '/x?y', '/z'):
        way.app.get(path, extra_environ=bare)
    assert way.nova.asked == 3


def test_an_answer_survives_json():
    told = Told('200 OK', [('a', 'b'), ('a', 'c')], bytes(range(256)))
    assert unpack(json.loads(json.dumps(pack(told)))) == told


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
def test_what_is_no_answer_is_refused(packed):
    with pytest.raises((TypeError, ValueError)):
        unpack(packed)


def test_the_factory_reads_the_options(tmp_path):
    path = tmp_path / 'agent.ini'
    path.write_text('[DEFAULT]\ncache_url = memcached://127.0.0.1:1\nanswer_cache_shared = true\n')
    made = filter_factory({'config_file': str(path)})(Nova())
    assert made._memory._behind is not None
    path.write_text('[DEFAULT]\ncache_url = memcached://127.0.0.1:1\n')
    assert filter_factory({'config_file': str(path)})(Nova())._memory._behind is None
