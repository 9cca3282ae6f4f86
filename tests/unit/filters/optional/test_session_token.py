# SPDX-License-Identifier: Apache-2.0
import base64

import pytest
import webtest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.filters.optional.session_token import (
    MAX_TTL_S,
    SessionTokenFilter,
    filter_factory,
    make_token,
    verify_token,
)
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeClock

KEY, OLD_KEY = b'k' * 32, b'o' * 32
HERE = environ_keys.Instance('i1', 'p1', 'port1')
ELSEWHERE = environ_keys.Instance('i1', 'p1', 'port2')
TTL, TOKEN = 'X-aws-ec2-metadata-token-ttl-seconds', 'X-aws-ec2-metadata-token'


class Client:
    """Sends requests through the filter; ``passed`` are the environs of those that passed."""

    def __init__(self, *, instance=HERE, clock=None, forwarded=False, keys=(KEY,), **options):
        self.passed = []
        self.facts = {environ_keys.INSTANCE: instance, environ_keys.CLIENT_IS_PROXY: forwarded}
        self.app = webtest.TestApp(SessionTokenFilter(self._next, keys=keys, clock=clock or FakeClock(), **options))

    def _next(self, environ, start_response):
        self.passed.append(environ)
        start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', '0')])
        return []

    def get(self, path='/latest/meta-data/', method='GET', **headers):
        headers = {name.replace('_', '-'): value for name, value in headers.items()}
        return self.app.request(path, method=method, headers=headers, environ=self.facts, expect_errors=True)

    def put(self, ttl='60', path='/latest/api/token'):
        headers = {} if ttl is None else {TTL: ttl}
        return self.app.request(path, method='PUT', headers=headers, environ=self.facts, expect_errors=True)

    def use(self, token):
        return self.app.get('/x', headers={TOKEN: token}, extra_environ=self.facts, expect_errors=True).status_int


@pytest.mark.parametrize('ttl', ['1', '60', '21600'])
def test_a_token_is_issued_with_its_ttl_and_is_valid(ttl):
    client = Client(required=True)
    response = client.put(ttl)
    assert (response.status_int, response.headers[TTL], response.content_type) == (200, ttl, 'text/plain')
    assert client.use(response.text) == 200


@pytest.mark.parametrize(
    'ttl',
    [
        None, '', '0', '21601', '-1', '1.5', 'x', ' ', '٣', '9' * 5000, '0x10', '00000',
        # The first nine digits are a valid TTL, the number is not: 634 years, more than 8 bytes, more than int() takes.
        '0000000019999999999', '000000001' + '9' * 20, '000000001' + '0' * 4300, '0' * 5000 + '60',
    ],
    ids=lambda ttl: repr(ttl)[:24],
)  # fmt: skip
def test_an_invalid_ttl_is_a_400(ttl):
    # A header's bytes are latin-1 to WSGI.
    assert Client().put(ttl if ttl is None else ttl.encode().decode('latin-1')).status_int == 400


def test_a_proxy_gets_no_token():
    assert Client(forwarded=True).put().status_int == 403


def test_a_proxy_may_use_a_token():
    """As AWS has it: only the PUT is refused."""
    assert Client(forwarded=True, required=True).use(Client().put().text) == 200


@pytest.mark.parametrize('path', ['/2021-01-03/api/token', '/1.0/api/token'])
def test_under_a_version_no_token_is_issued(path):
    assert Client().put(path=path).status_int == 403


@pytest.mark.parametrize(
    'path', ['//latest/api/token', '/latest/api/token/', '/latest/./api/token', '/latest/x/../api/token']
)
def test_every_spelling_of_the_path_is_recognized(path):
    client = Client()
    assert (client.put(path=path).status_int, client.passed) == (200, [])


@pytest.mark.parametrize('method', ['GET', 'HEAD', 'POST', 'DELETE'])
def test_another_method_is_a_405(method):
    response = Client().get('/latest/api/token', method)
    assert (response.status_int, response.headers['Allow']) == (405, 'PUT')


@pytest.mark.parametrize('required', [False, True])
@pytest.mark.parametrize('token', ['', 'x', 'é', base64.urlsafe_b64encode(b'0' * 40).decode()])
def test_an_invalid_token_is_a_401_also_where_none_is_required(required, token):
    assert Client(required=required).use(token) == 401


def test_without_a_token_a_request_passes_only_where_none_is_required():
    assert Client().get().status_int == 200
    assert Client(required=True).get().status_int == 401


def test_a_token_expires():
    clock = FakeClock()
    client = Client(clock=clock)
    token = client.put('10').text
    clock.sleep(9.5)
    assert client.use(token) == 200
    clock.sleep(0.5)
    assert client.use(token) == 401


def test_a_token_with_more_than_the_longest_ttl_is_invalid():
    """Tokens of version 1.0 can have any TTL."""
    clock = FakeClock()
    longest, longer = (make_token(KEY, 'port1', int(clock()) + ttl_s) for ttl_s in (MAX_TTL_S, MAX_TTL_S + 3600))
    assert Client(clock=clock).use(longest) == 200
    assert Client(clock=clock).use(longer) == 401


def test_a_token_of_a_host_whose_clock_is_some_seconds_ahead_is_valid():
    clock = FakeClock()
    ahead = FakeClock(clock() + 30)
    assert Client(clock=clock).use(Client(clock=ahead).put(str(MAX_TTL_S)).text) == 200


def test_a_token_is_invalid_at_another_port():
    assert Client(instance=ELSEWHERE, required=True).use(Client().put().text) == 401


def test_a_token_is_valid_on_hosts_with_its_key_only():
    token = Client(keys=(OLD_KEY,)).put().text
    assert Client(keys=(KEY, OLD_KEY)).use(token) == 200
    assert Client(keys=(KEY,)).use(token) == 401


def test_tokens_are_made_with_the_first_key():
    assert Client(keys=(KEY,)).use(Client(keys=(KEY, OLD_KEY)).put().text) == 200


def test_the_token_is_not_sent_to_nova():
    client = Client()
    client.use(client.put().text)
    assert [key for key in client.passed[0] if 'TOKEN' in key] == []


def test_the_response_has_the_hop_limit():
    assert Client(hop_limit=2).put().headers['X-Metadata-Hop-Limit'] == '2'


@given(st.text())
def test_no_other_text_is_a_valid_token(text):
    assert not verify_token(KEY, 'port1', text, 0.0)


@given(st.integers(0, 39), st.integers(1, 255))
def test_a_token_with_one_byte_changed_is_invalid(position, change):
    raw = bytearray(base64.urlsafe_b64decode(make_token(KEY, 'port1', 2000) + '=='))
    raw[position] ^= change
    assert not verify_token(KEY, 'port1', base64.urlsafe_b64encode(raw).decode().rstrip('='), 0.0)
    assert verify_token(KEY, 'port1', make_token(KEY, 'port1', 2000), 0.0)


@pytest.mark.parametrize('text', ['', 'keys = short\n', f'keys = {"k" * 32},short\n'])
def test_a_missing_or_short_key_is_refused_without_showing_it(tmp_path, text):
    path = tmp_path / 'agent.ini'
    path.write_text('[session_token]\n' + text)
    with pytest.raises(ConfigError, match='keys') as raised:
        filter_factory({'config_file': str(path)})
    assert 'k' * 32 not in str(raised.value)


def test_the_factory_passes_keys_and_hop_limit(tmp_path):
    path = tmp_path / 'agent.ini'
    path.write_text(f'[session_token]\nkeys = {KEY.decode()}\nhop_limit = 3\nrequired = true\n')
    app = webtest.TestApp(filter_factory({'config_file': str(path)})(None))
    app.extra_environ = {environ_keys.INSTANCE: HERE, environ_keys.CLIENT_IS_PROXY: False}
    response = app.put('/latest/api/token', headers={TTL: '60'})
    assert (response.status, response.headers['Content-Length']) == ('200 OK', str(len(response.body)))
    assert response.headers['X-Metadata-Hop-Limit'] == '3'
    assert app.get('/latest/meta-data/', status='*').status_int == 401
