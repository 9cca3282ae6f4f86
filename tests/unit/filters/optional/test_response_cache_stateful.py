# SPDX-License-Identifier: Apache-2.0
"""The response cache of two workers before a Nova whose responses change, in any order of events.

Whatever happens, an instance gets a response that Nova gave to the same instance, for the same path and ``Accept``,
within the documented time; an Age that is true; and a password never from the cache.
"""

import json

import webtest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from metadata_wsgi.cache.local import LocalCache
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.filters.optional.response_cache import ENTRY_BYTES, ResponseCacheFilter, pack, unpack
from metadata_wsgi.pipeline import environ_keys
from tests import state_machine
from tests.fakes import FakeClock
from tests.unit.cache.test_local_stateful import ClockedBackend

TTL_S = 5.0
INSTANCES = [environ_keys.Instance('i1', 'p1', 'port1'), environ_keys.Instance('i2', 'p2', 'port2')]
SOURCES = [environ_keys.Source('10.1.1.2', router_id='r1'), environ_keys.Source('10.1.1.3', router_id='r1')]
PATHS = ['/user-data', '/openstack/latest/password', '/a?b=c', '/a%62', '/A/../b']
CACHEABLE = '/user-data'


class JsonBackend(ClockedBackend):
    """Packs values as the shared cache does."""

    def get(self, key):
        found = super().get(key)
        return found and (unpack(json.loads(found[0])), *found[1:])

    def set(self, key, value, ttl, age_s):
        super().set(key, json.dumps(pack(value)), ttl, age_s)


requests = st.fixed_dictionaries(
    {
        'instance': st.sampled_from(INSTANCES),
        'source': st.sampled_from(SOURCES),
        'path': st.sampled_from([CACHEABLE, CACHEABLE, *PATHS]),
        'method': st.sampled_from(['GET', 'GET', 'GET', 'HEAD', 'POST']),
        'accept': st.sampled_from(['*/*', 'text/plain']),
        'condition': st.sampled_from([None, None, 'HTTP_RANGE', 'HTTP_IF_NONE_MATCH', 'HTTP_X_AWS_EC2_METADATA_TOKEN']),
    }
)
workers = st.sampled_from([0, 1])
KINDS = ['plain', 'plain', 'plain', 'large', '404', '500', 'private', 'cut']


class ResponseCacheMachine(state_machine.StateMachine):
    def __init__(self):
        super().__init__()
        self.clock = FakeClock()
        self.backend = JsonBackend(self.clock)
        self.kind = 'plain'
        self.given = {}
        self.during = []
        self.busy = set()
        self.apps = [webtest.TestApp(self.make_filter(), lint=False) for _ in range(2)]

    def make_filter(self):
        cache = LocalCache(
            limit=4 * ENTRY_BYTES, weigh=lambda response: len(response.body) + ENTRY_BYTES,
            owner_of=lambda key: key[0], backend=self.backend, clock=self.clock,
        )  # fmt: skip
        return ResponseCacheFilter(self.nova, cache=cache, ttl_s=TTL_S, max_body_bytes=200)

    def nova(self, environ, start_response):
        """The response names the request; ``given`` has the time at which Nova began it."""
        number, began_s, kind = len(self.given), self.clock(), self.kind
        who = (environ[environ_keys.INSTANCE].instance_id, environ['RAW_URI'], environ['HTTP_ACCEPT'])
        body = json.dumps([number, *who]).encode().ljust(300 if kind == 'large' else 0)
        self.given[number] = began_s
        events, self.during = self.during, []
        for name, *arguments in events:
            getattr(self, name)(*arguments)
        headers = [('Content-Type', 'text/plain'), ('Content-Length', str(len(body) + (kind == 'cut')))]
        headers += [('Cache-Control', 'private')] if kind == 'private' else []
        start_response({'404': '404 Not Found', '500': '500 Error'}.get(kind, '200 OK'), headers)
        return [] if environ['REQUEST_METHOD'] == 'HEAD' else [body]

    def pass_time(self, seconds):
        self.clock.sleep(seconds)

    def set_kind(self, kind):
        self.kind = kind

    def send(self, worker, request):
        key = (worker, *(str(value) for name, value in request.items() if name != 'method'))
        if key in self.busy:
            return  # it would wait for the request that it interrupts
        self.busy.add(key)
        try:
            self.check(worker, request)
        finally:
            self.busy.discard(key)

    def check(self, worker, request):
        extra = {
            environ_keys.SOURCE: request['source'], environ_keys.INSTANCE: request['instance'],
            environ_keys.DEADLINE: Deadline.after(9.0, self.clock), 'RAW_URI': request['path'],
            'HTTP_ACCEPT': request['accept'],
        }  # fmt: skip
        if request['condition']:
            extra[request['condition']] = 'x'
        first = len(self.given)
        app = webtest.TestApp(self.apps[worker].app, lint=False, extra_environ=extra)
        response = app.request('/', method=request['method'], expect_errors=True)
        if request['method'] == 'HEAD':
            assert response.body == b''
            return
        number, *who = json.loads(response.body)
        assert who == [request['instance'].instance_id, request['path'], request['accept']]
        if number >= first and 'Age' not in response.headers:
            return
        # It is from the cache.
        assert (request['method'], request['path'], request['condition']) == ('GET', CACHEABLE, None)
        assert response.status_int == 200
        age_s = self.clock() - self.given[number]
        assert age_s <= TTL_S
        assert abs(int(response.headers['Age']) - age_s) <= 1

    @rule(seconds=st.sampled_from([0.1, 1.0, 2.6, 4.9]))
    def time_passes(self, seconds):
        self.pass_time(seconds)

    @rule(kind=st.sampled_from(KINDS))
    def nova_changes(self, kind):
        self.set_kind(kind)

    @rule(available=st.booleans())
    def backend_changes(self, available):
        self.backend.available = available

    @rule(
        worker=workers,
        request=requests,
        events=st.lists(
            st.one_of(
                st.tuples(st.just('pass_time'), st.sampled_from([0.1, 1.0, 3.0])),
                st.tuples(st.just('set_kind'), st.sampled_from(KINDS)),
                st.tuples(st.just('send'), workers, requests),
            ),
            max_size=3,
        ),
    )
    def request_is_sent(self, worker, request, events):
        self.during = events
        self.send(worker, request)
        self.during = []


def test_response_cache_sends_an_instance_only_its_own_and_recent_responses():
    state_machine.run(ResponseCacheMachine, runs=40, steps=30)
