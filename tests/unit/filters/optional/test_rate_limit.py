# SPDX-License-Identifier: Apache-2.0
import gc
import shutil
import subprocess
import time

import pytest
import webtest

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.filters.optional.rate_limit import CountersAway, RateLimitFilter, StoredCounters, filter_factory
from metadata_wsgi.pipeline import environ_keys
from tests.e2e.conftest import eventually, free_port
from tests.fakes import FakeClock, FakeCounters

V4 = environ_keys.Source('10.1.1.2', router_id='r1')
V6 = environ_keys.Source('2001:db8::2', router_id='r1')
LINK_LOCAL = environ_keys.Source('fe80::f816:3eff:fe00:1', router_id='r1')
INSTANCE = environ_keys.Instance('i1', 'p1', 'port1')


def passes(environ, start_response):
    start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', '0')])
    return []


def guest(counters, clock=None):
    """Asks through the filter as ``source``, with more facts where given."""
    app = webtest.TestApp(RateLimitFilter(passes, counters=counters, clock=clock or FakeClock()))

    def ask(source=V4, **facts):
        return app.get('/', extra_environ={environ_keys.SOURCE: source, **facts}, expect_errors=True)

    return ask


@pytest.mark.parametrize(('wait_s', 'said'), [(0.01, '1'), (1.0, '1'), (17.2, '18')])
def test_above_the_limit_it_is_a_429_that_says_when_to_come_back(wait_s, said):
    """Never 0: cloud-init counts that as a failure."""
    ask = guest(FakeCounters(2, wait_s))
    assert [ask().status_int for _ in range(3)] == [200, 200, 429]
    assert ask().headers['Retry-After'] == said


def test_an_instance_is_one_guest_whatever_address_it_asks_from():
    counters = FakeCounters(2)
    ask = guest(counters)
    said = [ask(source, **{environ_keys.INSTANCE: INSTANCE}).status_int for source in (V4, V6, LINK_LOCAL)]
    assert (said, set(counters.hits)) == ([200, 200, 429], {'port/port1'})


def test_before_the_instance_is_known_a_guest_is_an_address_behind_a_router():
    other = environ_keys.Source('10.1.1.2', router_id='r2')
    counters = FakeCounters(1)
    ask = guest(counters)
    assert [ask(source).status_int for source in (V4, other, V4)] == [200, 200, 429]
    assert set(counters.hits) == {'router/r1/10.1.1.2', 'router/r2/10.1.1.2'}


def test_while_the_counters_are_away_every_request_passes_and_it_is_said_once(caplog):
    clock, counters = FakeClock(), FakeCounters(away=CountersAway('ConnectionError'))
    ask = guest(counters, clock)
    assert [ask().status_int for _ in range(10)] == [200] * 10
    assert [record.getMessage() for record in caplog.records] == [
        'The counters of rate_limit are away, so every request passes: ConnectionError'
    ]


def test_counters_that_are_away_are_left_alone_for_a_while_and_then_asked_again():
    clock, counters = FakeClock(), FakeCounters(away=CountersAway('timeout'))
    ask = guest(counters, clock)
    ask()
    ask()
    assert len(counters.hits) == 1
    counters.away = None
    clock.sleep(5.1)
    assert ask().status_int == 429
    assert len(counters.hits) == 2


def test_that_a_guest_is_limited_is_said_once_and_names_it(caplog):
    ask = guest(FakeCounters(0))
    for _ in range(5):
        ask()
    assert [record.getMessage() for record in caplog.records] == [
        '10.1.1.2 behind router r1 asks too often and is answered 429'
    ]


def store(program, port):
    if program == 'memory':
        return 'memory://', None
    if not shutil.which(program):
        pytest.skip(f'{program} is not installed')
    argv = {
        'redis-server': ['redis-server', '--port', str(port), '--save', '', '--bind', '127.0.0.1'],
        'memcached': ['memcached', '-u', 'nobody', '-l', '127.0.0.1', '-p', str(port)],
    }[program]
    started = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return f'{program.partition("-")[0]}://127.0.0.1:{port}', started


# The libraries leave their connections to the garbage collector.
@pytest.mark.filterwarnings('ignore:unclosed:ResourceWarning')
@pytest.mark.parametrize('program', ['memory', 'redis-server', 'memcached'])
def test_in_a_real_store_two_boots_pass_and_a_third_does_not(program):
    url, started = store(program, free_port())
    try:
        two_boots_pass(url)
        if started:
            counters = StoredCounters(url, requests_per_minute=56)
            started.kill()
            started.wait()
            with pytest.raises(CountersAway):
                counters.hit('a')
    finally:
        if started:
            started.kill()
            started.wait()
        gc.collect()


def two_boots_pass(url):
    """Through two clients, as two workers are: what one counted the other knows, but in memory."""
    one = StoredCounters(url, requests_per_minute=56)
    other = one if url.startswith('memory:') else StoredCounters(url, requests_per_minute=56)
    eventually(lambda: _there(one), f'{url} answers')
    assert [one.hit('a') for _ in range(28)] + [other.hit('a') for _ in range(28)] == [0.0] * 56
    assert 1 <= other.hit('a') <= 60
    assert 1 <= one.hit('a') <= 60
    assert one.hit('b') == 0.0


def _there(counters):
    try:
        counters.hit('nobody')
    except CountersAway:
        time.sleep(0.02)
        return False
    return True


@pytest.mark.parametrize(
    'url', ['redis://127.0.0.1:1', 'memcached://127.0.0.1:1', 'memcached://127.0.0.1:1,127.0.0.1:2']
)
def test_a_store_that_is_away_at_start_stops_nothing(url):
    with pytest.raises(CountersAway):
        StoredCounters(url, requests_per_minute=56).hit('a')


@pytest.mark.parametrize('url', ['mongo://:password@x', 'password', 'redis://:password@host:port'])
def test_a_store_that_is_none_is_refused_and_its_password_not_said(url):
    with pytest.raises(ConfigError) as raised:
        StoredCounters(url, requests_per_minute=56)
    assert 'no such store, or its library is not installed' in str(raised.value)
    assert ':password' not in str(raised.value)


def test_fewer_than_two_boots_a_minute_are_refused(tmp_path):
    """A guest may boot and reboot at once."""
    path = tmp_path / 'agent.ini'
    path.write_text('[rate_limit]\nboots_per_minute = 1\n')
    with pytest.raises(ConfigError, match=r'boots_per_minute in \[rate_limit\]'):
        filter_factory({'config_file': str(path)})
