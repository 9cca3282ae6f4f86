# SPDX-License-Identifier: Apache-2.0
import pytest
import webtest

from metadata_wsgi.cache.local import LocalCache
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import ConfigError, IncompleteResult, InstanceLookupError, LookupUnavailable
from metadata_wsgi.filters.instance import InstanceFilter
from metadata_wsgi.filters.optional.lookup_cache import LookupCacheFilter, filter_factory
from metadata_wsgi.lookup.cached import CachedLookup
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeClock, FakeLookup

SOURCE = environ_keys.Source('10.1.1.2', router_id='r1')
OLD, NEW = environ_keys.Instance('old', 'p1', 'port1'), environ_keys.Instance('new', 'p2', 'port2')


class Nova:
    """Responds 200 for the instances ``knows``, with the instance id. Sets a key in the environ, as signature does."""

    REQUIRES = frozenset({environ_keys.INSTANCE})
    PROVIDES = frozenset()

    def __init__(self, *knows):
        self.knows, self.requests, self.closed = set(knows), [], 0
        self.lacks, self.statuses, self.during = '', [], []

    def __call__(self, environ, start_response):
        instance_id = environ[environ_keys.INSTANCE].instance_id
        self.requests.append((environ['REQUEST_METHOD'], instance_id))
        environ.setdefault('HTTP_X_INSTANCE_ID', instance_id)
        while self.during:
            self.during.pop()()
        is_there = instance_id in self.knows and environ['PATH_INFO'] != self.lacks
        status = self.statuses.pop(0) if self.statuses else '200 OK' if is_there else '404 Not Found'
        body = f'{environ["HTTP_X_INSTANCE_ID"]} {environ["PATH_INFO"]}'.encode()
        start_response(status, [('Content-Type', 'text/plain'), ('Content-Length', str(len(body)))])
        return Body(self, b'' if environ['REQUEST_METHOD'] == 'HEAD' else body)


class Body:
    def __init__(self, nova, body):
        self.nova, self.body = nova, body

    def __iter__(self):
        return iter([self.body] if self.body else [])

    def close(self):
        self.nova.closed += 1


class Pipeline:
    """lookup_cache, instance, Nova; and a clock."""

    def __init__(self, nova, *outcomes):
        self.clock, self.lookup, self.nova = FakeClock(), FakeLookup(*outcomes), nova
        cache = LocalCache(limit=99, clock=self.clock)
        cached_lookup = CachedLookup(self.lookup, cache, fresh_s=10.0, not_found_s=1.0, stale_s=300.0)
        instance = InstanceFilter(nova, lookup=self.lookup, sleep=self.clock.sleep)
        self.filter = LookupCacheFilter(
            instance, lookup=self.lookup, cached_lookup=cached_lookup, sleep=self.clock.sleep
        )
        self.app = webtest.TestApp(self.filter)

    def get(self, method='GET', status=200, **extra):
        keys = {
            environ_keys.SOURCE: SOURCE,
            environ_keys.DEADLINE: Deadline.after(9.0, self.clock),
            **extra,
        }
        self.app.extra_environ = keys
        return self.app.request('/x', method=method, status=status)

    @property
    def lookups(self):
        return len(self.lookup.calls)


def test_a_boot_is_one_lookup():
    pipeline = Pipeline(Nova('old'), [OLD])
    assert {pipeline.get().text for _ in range(28)} == {'old /x'}
    assert pipeline.lookups == 1


def test_an_instance_that_is_set_already_stays():
    pipeline = Pipeline(Nova('new'), [OLD])
    assert pipeline.get(**{environ_keys.INSTANCE: NEW}).text == 'new /x'
    assert pipeline.lookups == 0


@pytest.mark.parametrize('method', ['GET', 'HEAD'])
def test_a_404_of_nova_revalidates_the_instance(method):
    """The address has another instance now: the same request gets the metadata of that one."""
    pipeline = Pipeline(Nova('old'), [OLD], [NEW])
    pipeline.get()
    pipeline.clock.sleep(2)
    pipeline.nova.knows = {'new'}
    assert pipeline.get(method).text == ('new /x' if method == 'GET' else '')
    assert pipeline.nova.requests[1:] == [(method, 'old'), (method, 'new')]
    assert pipeline.nova.closed == 3


def test_filters_outside_see_the_instance_that_was_served():
    """request_log, metrics and healthcheck read the environ after the response."""
    pipeline = Pipeline(Nova('old'), [OLD], [NEW])
    pipeline.get()
    pipeline.clock.sleep(2)
    pipeline.nova.knows = {'new'}
    seen = []

    def observe(environ, start_response):
        body = inner(environ, start_response)
        seen.append((environ[environ_keys.INSTANCE], environ['HTTP_X_INSTANCE_ID']))
        return body

    inner, pipeline.app = pipeline.filter, webtest.TestApp(observe)
    assert pipeline.get().text == 'new /x'
    assert seen == [(NEW, 'new')]


def test_filters_outside_see_no_instance_where_there_is_none_any_more():
    pipeline = Pipeline(Nova('old'), [OLD], [])
    pipeline.get()
    pipeline.clock.sleep(2)
    pipeline.nova.knows = set()
    seen = []

    def observe(environ, start_response):
        body = inner(environ, start_response)
        seen.append(environ.get(environ_keys.INSTANCE))
        return body

    inner, pipeline.app = pipeline.filter, webtest.TestApp(observe)
    pipeline.get(status=404)
    assert seen == [None]


def test_a_request_is_replayed_once_only():
    pipeline = Pipeline(Nova('old'), [OLD], [NEW])
    pipeline.get()
    pipeline.clock.sleep(2)
    pipeline.nova.knows = set()
    assert pipeline.get(status=404).text == 'new /x'
    assert len(pipeline.nova.requests) == 3


def test_a_404_for_an_instance_that_did_not_move_is_not_replayed():
    pipeline = Pipeline(Nova(), [OLD])
    pipeline.get(status=404)
    pipeline.clock.sleep(2)
    assert pipeline.get(status=404).text == 'old /x'
    assert pipeline.lookups == 2
    assert len(pipeline.nova.requests) == 2


def test_a_404_just_after_the_lookup_is_not_revalidated():
    pipeline = Pipeline(Nova(), [OLD])
    for _ in range(5):
        pipeline.get(status=404)
    assert pipeline.lookups == 1


def test_an_address_without_an_instance_any_more_is_a_404():
    pipeline = Pipeline(Nova('old'), [OLD], [])
    pipeline.get()
    pipeline.clock.sleep(2)
    pipeline.nova.knows = set()
    assert 'No instance was found' in pipeline.get(status=404).text


@pytest.mark.parametrize('is_invalidated', [False, True], ids=['looked up', 'invalidated'])
def test_a_404_after_another_request_has_found_the_new_instance_is_replayed(is_invalidated):
    """Nova was slow: the entry is young, and is not that of this request."""
    pipeline = Pipeline(Nova('old'), [OLD], [NEW])
    pipeline.get()

    def meanwhile():
        pipeline.clock.sleep(8.5)
        pipeline.nova.knows = {'new'}
        if is_invalidated:
            pipeline.filter._cached_lookup.invalidate(SOURCE)
        else:
            assert pipeline.get().text == 'new /x'

    pipeline.nova.during = [meanwhile]
    assert pipeline.get().text == 'new /x'
    assert pipeline.lookups == 2


FAULTS = pytest.mark.parametrize('fault', [LookupUnavailable('no route'), InstanceLookupError('no rights')])


@FAULTS
@pytest.mark.parametrize('age_s', [2, 100], ids=['fresh', 'stale'])
@pytest.mark.parametrize('method', ['GET', 'HEAD'])
def test_404_for_a_deleted_instance_is_503_while_the_lookup_is_unavailable(fault, age_s, method):
    """The address may have another instance now, which would boot without keys after a 404."""
    pipeline = Pipeline(Nova('old'), [OLD], fault)
    pipeline.get()
    pipeline.clock.sleep(age_s)
    pipeline.nova.knows = set()
    assert pipeline.get(method, status=503).headers['Retry-After'] == '1'
    assert pipeline.nova.closed == len(pipeline.nova.requests)
    pipeline.nova.knows = {'old'}
    if isinstance(fault, LookupUnavailable) or age_s == 2:
        assert pipeline.get().text == 'old /x'


@FAULTS
def test_404_for_a_path_is_404_while_the_lookup_is_unavailable(fault):
    """For example, an instance without user-data."""
    pipeline = Pipeline(Nova('old'), [OLD], fault)
    pipeline.get()
    pipeline.clock.sleep(2)
    pipeline.nova.lacks = '/x'
    pipeline.nova.requests = []
    assert pipeline.get(status=404).text == 'old /x'
    assert pipeline.nova.requests == [('GET', 'old')] * 2


def test_404_while_neutron_does_not_show_the_router_is_a_failure_of_the_source(caplog):
    """Also of a second request, which does no lookup. The log line does not suppress that of another failure."""
    incomplete, unavailable = IncompleteResult('no port of router r1'), LookupUnavailable('no route')
    pipeline = Pipeline(Nova('old'), [OLD], incomplete, [OLD], unavailable)
    pipeline.get()
    pipeline.clock.sleep(2)
    pipeline.nova.knows = set()
    for _ in range(2):
        failure = pipeline.get(status=503).request.environ[environ_keys.FAILURE]
        assert (failure.status, failure.is_of_source) == (503, True)
        assert 'no port of router r1' in failure.reason
    assert pipeline.lookups == 2
    pipeline.filter._cached_lookup.invalidate(SOURCE)
    pipeline.get(status=404)
    pipeline.clock.sleep(6)
    assert not pipeline.get(status=503).request.environ[environ_keys.FAILURE].is_of_source
    assert [record.getMessage().rpartition(': ')[2] for record in caplog.records] == [
        'no port of router r1', 'no route',
    ]  # fmt: skip


def test_404_is_503_if_nova_does_not_respond_while_the_lookup_is_unavailable():
    pipeline = Pipeline(Nova('old'), [OLD], LookupUnavailable('no route'))
    pipeline.get()
    pipeline.clock.sleep(2)
    pipeline.nova.statuses = ['404 Not Found', '503 Service Unavailable']
    seen = []

    def observe(environ, start_response):
        body = inner(environ, start_response)
        seen.append((environ.get(environ_keys.INSTANCE), environ[environ_keys.FAILURE].status, environ['PATH_INFO']))
        return body

    inner, pipeline.app = pipeline.filter, webtest.TestApp(observe)
    pipeline.get(status=503)
    assert seen == [(None, 503, '/x')]


def test_stale_while_quantum_is_unavailable():
    pipeline = Pipeline(Nova('old'), [OLD], LookupUnavailable('no route'))
    pipeline.get()
    pipeline.clock.sleep(290)
    assert pipeline.get().text == 'old /x'
    pipeline.clock.sleep(10)
    assert pipeline.get(status=503).headers['Retry-After'] == '1'


@pytest.mark.parametrize('method', ['POST', 'PUT', 'DELETE'])
def test_a_write_is_not_done_for_a_cached_instance(method):
    """A password must not go to the instance that had the address before."""
    pipeline = Pipeline(Nova('old', 'new'), [OLD], [NEW])
    pipeline.get()
    assert pipeline.get(method).text == 'new /x'


def test_a_write_is_not_done_for_a_stale_instance():
    pipeline = Pipeline(Nova('old'), [OLD], LookupUnavailable('no route'))
    pipeline.get()
    pipeline.get('POST', status=503)


def test_a_write_is_not_replayed():
    pipeline = Pipeline(Nova(), [OLD], [NEW])
    pipeline.get(status=404)
    pipeline.clock.sleep(2)
    pipeline.get('POST', status=404)
    assert pipeline.nova.requests == [('GET', 'old'), ('POST', 'new')]


def test_a_read_with_a_body_is_not_replayed():
    """Its body is read already."""
    pipeline = Pipeline(Nova(), [OLD], [NEW])
    pipeline.get(status=404)
    pipeline.clock.sleep(2)
    assert pipeline.get(status=404, CONTENT_LENGTH='3').text == 'old /x'


def test_an_error_is_not_cached():
    pipeline = Pipeline(Nova('old'), InstanceLookupError('no rights'), [OLD])
    pipeline.get(status=503)
    assert pipeline.get().text == 'old /x'


def test_it_must_stand_before_instance(tmp_path):
    inventory = tmp_path / 'inventory.yaml'
    inventory.write_text('networks: []\nports: []\ninstances: []\n')
    path = tmp_path / 'agent.ini'
    path.write_text(f'[DEFAULT]\ndirectory = static\n[static]\ninventory = {inventory}\n')
    with pytest.raises(ConfigError, match='put lookup_cache before instance'):
        filter_factory({'config_file': str(path)})(Nova())


def test_late_404s_and_early_bodies_pass():
    """An app may call start_response when its body is read, and may write before it returns."""
    sent = []

    def start_response(status, headers, exc_info=None):
        sent.append(status)
        return sent.append

    def late(environ, start_response):
        start_response('404 Late', [])
        yield b'late'

    def early(environ, start_response):
        start_response('404 Early', [])(b'early')
        return []

    environ = {
        'REQUEST_METHOD': 'GET',
        environ_keys.SOURCE: SOURCE,
        environ_keys.DEADLINE: Deadline.after(9.0),
    }
    lookup = FakeLookup([OLD])
    for app in (late, early):
        cached_lookup = CachedLookup(lookup, LocalCache(limit=9), fresh_s=10.0, not_found_s=1.0, stale_s=0.0)
        sent += LookupCacheFilter(app, lookup=lookup, cached_lookup=cached_lookup)(dict(environ), start_response)
    assert sent == ['404 Late', b'late', '404 Early', b'early']


@pytest.mark.parametrize(
    ('header', 'requests'),
    [
        ({'CONTENT_LENGTH': '0'}, [('GET', 'old'), ('GET', 'new')]),
        ({'HTTP_TRANSFER_ENCODING': 'chunked'}, [('GET', 'old')]),
    ],
)
def test_only_a_request_without_body_is_sent_again(header, requests):
    """Its body can be read only once."""
    pipeline = Pipeline(Nova('old', 'new'), [OLD], [NEW])
    pipeline.get()
    pipeline.nova.knows, pipeline.nova.requests = {'new'}, []
    pipeline.clock.sleep(2)
    pipeline.get(status='*', **header)
    assert pipeline.nova.requests == requests


def test_exc_info_of_the_app_reaches_the_server():
    seen = []

    def nova(environ, start_response):
        start_response('404 Not Found', [])
        start_response('503 Unavailable', [('X-Nova', 'yes')], ('a type', 'a value', 'a traceback'))
        return []

    pipeline = Pipeline(nova, [OLD])
    facts = {
        environ_keys.SOURCE: SOURCE, environ_keys.DEADLINE: Deadline.after(9.0, pipeline.clock), 'REQUEST_METHOD': 'GET'
    }  # fmt: skip
    pipeline.filter(facts, lambda *arguments: seen.append(arguments))
    assert seen == [('503 Unavailable', [('X-Nova', 'yes')], ('a type', 'a value', 'a traceback'))]
