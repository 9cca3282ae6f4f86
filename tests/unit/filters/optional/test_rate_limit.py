# SPDX-License-Identifier: Apache-2.0
import gc
import shutil
import subprocess
import time

import pytest
import webtest

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.filters.optional import rate_limit
from metadata_wsgi.filters.optional.rate_limit import RateLimitFilter, StoredCounters, StoreUnavailable, filter_factory
from metadata_wsgi.pipeline import environ_keys
from tests.e2e.conftest import eventually, free_port
from tests.fakes import FakeClock, FakeCounters

V4 = environ_keys.Source('10.1.1.2', router_id='r1')
V6 = environ_keys.Source('2001:db8::2', router_id='r1')
LINK_LOCAL = environ_keys.Source('fe80::f816:3eff:fe00:1', router_id='r1')
INSTANCE = environ_keys.Instance('i1', 'p1', 'port1')


def respond(environ, start_response):
    start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', '0')])
    return []


def make_client(counters, clock=None):
    """A function that sends a request through the filter as ``source``, with more environ keys where given."""
    app = webtest.TestApp(RateLimitFilter(respond, counters=counters, clock=clock or FakeClock()))

    def get(source=V4, **facts):
        return app.get('/', extra_environ={environ_keys.SOURCE: source, **facts}, expect_errors=True)

    return get


@pytest.mark.parametrize(('wait_s', 'header'), [(0.01, '1'), (1.0, '1'), (17.2, '18')])
def test_above_the_limit_it_is_a_429_with_retry_after(wait_s, header):
    """Never 0: cloud-init counts that as a failure."""
    get = make_client(FakeCounters(2, wait_s))
    assert [get().status_int for _ in range(3)] == [200, 200, 429]
    assert get().headers['Retry-After'] == header


def test_an_instance_is_one_client_with_all_its_addresses():
    counters = FakeCounters(2)
    get = make_client(counters)
    header = [get(source, **{environ_keys.INSTANCE: INSTANCE}).status_int for source in (V4, V6, LINK_LOCAL)]
    assert (header, set(counters.hits)) == ([200, 200, 429], {'port/port1'})


def test_before_instance_a_client_is_an_address_behind_a_router():
    other = environ_keys.Source('10.1.1.2', router_id='r2')
    counters = FakeCounters(1)
    get = make_client(counters)
    assert [get(source).status_int for source in (V4, other, V4)] == [200, 200, 429]
    assert set(counters.hits) == {'router/r1/10.1.1.2', 'router/r2/10.1.1.2'}


def test_while_the_store_is_unavailable_all_requests_pass_and_it_is_logged_once(caplog):
    clock, counters = FakeClock(), FakeCounters(error=StoreUnavailable('ConnectionError'))
    get = make_client(counters, clock)
    assert [get().status_int for _ in range(10)] == [200] * 10
    assert [record.getMessage() for record in caplog.records] == [
        'The store of rate_limit is unavailable, so all requests pass: ConnectionError'
    ]


def test_an_unavailable_store_is_retried_after_a_while():
    clock, counters = FakeClock(), FakeCounters(error=StoreUnavailable('timeout'))
    get = make_client(counters, clock)
    get()
    get()
    assert len(counters.hits) == 1
    counters.error = None
    clock.sleep(5.1)
    assert get().status_int == 429
    assert len(counters.hits) == 2


def test_log_of_a_limited_client_is_throttled_and_names_it(caplog):
    get = make_client(FakeCounters(0))
    for _ in range(5):
        get()
    assert [record.getMessage() for record in caplog.records] == [
        '10.1.1.2 behind router r1 is above the rate limit and gets 429'
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
def test_in_a_real_store_two_boots_pass_and_a_third_does_not(program, monkeypatch):
    # The windows of the counters begin with the minutes of the clock. None may begin between two of the requests.
    now_s = time.time() // 60 * 60 + 30
    monkeypatch.setattr(time, 'time', lambda: now_s)
    # On a busy machine a response may take seconds.
    monkeypatch.setattr(rate_limit, 'STORE_TIMEOUT_S', 20.0)
    url, started = store(program, free_port())
    try:
        two_boots_pass(url)
        if started:
            counters = StoredCounters(url, requests_per_minute=56)
            started.kill()
            started.wait()
            with pytest.raises(StoreUnavailable):
                counters.hit('a')
    finally:
        if started:
            started.kill()
            started.wait()
        gc.collect()


def two_boots_pass(url):
    """Two clients, as in two workers, share their counts, except in memory."""
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
    except StoreUnavailable:
        time.sleep(0.02)
        return False
    return True


@pytest.mark.parametrize(
    'url', ['redis://127.0.0.1:1', 'memcached://127.0.0.1:1', 'memcached://127.0.0.1:1,127.0.0.1:2']
)
def test_an_unavailable_store_does_not_stop_the_start(url):
    with pytest.raises(StoreUnavailable):
        StoredCounters(url, requests_per_minute=56).hit('a')


@pytest.mark.parametrize('url', ['mongo://:password@x', 'password', 'redis://:password@host:port'])
def test_an_unknown_store_is_refused_without_showing_its_password(url):
    with pytest.raises(ConfigError) as raised:
        StoredCounters(url, requests_per_minute=56)
    assert 'no such store, or its library is not installed' in str(raised.value)
    assert ':password' not in str(raised.value)


def test_fewer_than_two_boots_a_minute_are_refused(tmp_path):
    """An instance may boot and reboot at once."""
    path = tmp_path / 'agent.ini'
    path.write_text('[rate_limit]\nboots_per_minute = 1\n')
    with pytest.raises(ConfigError, match=r'boots_per_minute in \[rate_limit\]'):
        filter_factory({'config_file': str(path)})


def test_the_deprecated_option_counters_is_read(tmp_path):
    path = tmp_path / 'agent.ini'
    path.write_text('[rate_limit]\ncounters = nowhere://x\n')
    with pytest.raises(ConfigError, match=r'storage_url = nowhere://... in \[rate_limit\]'):
        filter_factory({'config_file': str(path)})


@pytest.mark.parametrize('url', [':sEcretPw@host:6379', 'redis:sEcretPw@host', 'sEcretPw@x://host'])
def test_a_malformed_storage_url_is_refused_without_its_password(tmp_path, url):
    path = tmp_path / 'agent.ini'
    path.write_text(f'[rate_limit]\nstorage_url = {url}\n')
    with pytest.raises(ConfigError, match='no such store') as refused:
        filter_factory({'config_file': str(path)})
    assert 'sEcretPw' not in str(refused.value)


@pytest.mark.parametrize('jump_s', [-86400.0, 86400.0])
def test_a_clock_that_is_set_limits_no_client_for_longer(monkeypatch, jump_s):
    """The library counts by the clock of the host, which may be set while the agent runs."""
    now_s = [1e9]
    monkeypatch.setattr(time, 'time', lambda: now_s[0])
    counters = StoredCounters('memory://', requests_per_minute=3)
    assert [bool(counters.hit('a')) for _ in range(4)] == [False, False, False, True]
    now_s[0] += jump_s
    assert not counters.hit('a')


def test_a_client_without_instance_is_an_address_on_its_network_and_interface():
    counters = FakeCounters(9)
    get = make_client(counters)
    for source in (
        environ_keys.Source('10.1.1.2', network_id='n1'),
        environ_keys.Source('10.1.1.2', network_id='n2'),
        environ_keys.Source('fe80::1', router_id='r1', interface='qr-1'),
        environ_keys.Source('fe80::1', router_id='r1', interface='qr-2'),
    ):
        get(source)
    assert counters.hits == [
        'network/n1/10.1.1.2', 'network/n2/10.1.1.2', 'router/r1/fe80::1%qr-1', 'router/r1/fe80::1%qr-2',
    ]  # fmt: skip
