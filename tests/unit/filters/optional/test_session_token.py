# SPDX-License-Identifier: Apache-2.0
import base64

import pytest
import webtest
from hypothesis import given
from hypothesis import strategies as st

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.filters.optional.session_token import SessionTokenFilter, filter_factory, opens, seal
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeClock

KEY, OLD_KEY = b'k' * 32, b'o' * 32
HERE = environ_keys.Instance('i1', 'p1', 'port1')
ELSEWHERE = environ_keys.Instance('i1', 'p1', 'port2')
TTL, TOKEN = 'X-aws-ec2-metadata-token-ttl-seconds', 'X-aws-ec2-metadata-token'


class Guest:
    """Asks through the filter; ``seen`` are the environs that came through."""

    def __init__(self, *, instance=HERE, clock=None, forwarded=False, keys=(KEY,), **options):
        self.seen = []
        self.facts = {environ_keys.INSTANCE: instance, environ_keys.CLIENT_IS_PROXY: forwarded}
        self.app = webtest.TestApp(SessionTokenFilter(self._next, keys=keys, clock=clock or FakeClock(), **options))

    def _next(self, environ, start_response):
        self.seen.append(environ)
        start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', '0')])
        return []

    def ask(self, path='/latest/meta-data/', method='GET', **headers):
        headers = {name.replace('_', '-'): value for name, value in headers.items()}
        return self.app.request(path, method=method, headers=headers, environ=self.facts, expect_errors=True)

    def put(self, ttl='60', path='/latest/api/token'):
        headers = {} if ttl is None else {TTL: ttl}
        return self.app.request(path, method='PUT', headers=headers, environ=self.facts, expect_errors=True)

    def show(self, token):
        return self.app.get('/x', headers={TOKEN: token}, extra_environ=self.facts, expect_errors=True).status_int


@pytest.mark.parametrize('ttl', ['1', '60', '21600'])
def test_a_token_is_given_with_its_time_and_lets_pass(ttl):
    guest = Guest(required=True)
    given = guest.put(ttl)
    assert (given.status_int, given.headers[TTL], given.content_type) == (200, ttl, 'text/plain')
    assert guest.show(given.text) == 200


@pytest.mark.parametrize('ttl', [None, '', '0', '21601', '-1', '1.5', 'x', ' ', '٣', '9' * 5000, '0x10'])
def test_a_time_that_is_none_is_a_400(ttl):
    # A header's bytes are latin-1 to WSGI.
    assert Guest().put(ttl if ttl is None else ttl.encode().decode('latin-1')).status_int == 400


def test_a_proxy_in_the_guest_gets_none():
    assert Guest(forwarded=True).put().status_int == 403


def test_a_proxy_may_use_one_all_the_same():
    """As AWS has it: only the PUT is refused."""
    assert Guest(forwarded=True, required=True).show(Guest().put().text) == 200


@pytest.mark.parametrize('path', ['/2021-01-03/api/token', '/1.0/api/token'])
def test_under_a_version_there_is_none(path):
    assert Guest().put(path=path).status_int == 403


@pytest.mark.parametrize(
    'path', ['//latest/api/token', '/latest/api/token/', '/latest/./api/token', '/latest/x/../api/token']
)
def test_no_spelling_of_the_path_leads_past_it(path):
    guest = Guest()
    assert (guest.put(path=path).status_int, guest.seen) == (200, [])


@pytest.mark.parametrize('method', ['GET', 'HEAD', 'POST', 'DELETE'])
def test_another_method_is_a_405(method):
    response = Guest().ask('/latest/api/token', method)
    assert (response.status_int, response.headers['Allow']) == (405, 'PUT')


@pytest.mark.parametrize('required', [False, True])
@pytest.mark.parametrize('token', ['', 'x', 'é', base64.urlsafe_b64encode(b'0' * 40).decode()])
def test_a_token_that_is_none_is_a_401_also_where_none_is_needed(required, token):
    assert Guest(required=required).show(token) == 401


def test_without_one_a_guest_passes_only_where_none_is_required():
    assert Guest().ask().status_int == 200
    assert Guest(required=True).ask().status_int == 401


def test_a_token_ends():
    clock = FakeClock()
    guest = Guest(clock=clock)
    token = guest.put('10').text
    clock.sleep(9.5)
    assert guest.show(token) == 200
    clock.sleep(0.5)
    assert guest.show(token) == 401


def test_a_stolen_token_is_worth_nothing_at_another_port():
    assert Guest(instance=ELSEWHERE, required=True).show(Guest().put().text) == 401


def test_another_host_with_the_same_key_takes_it_and_one_without_does_not():
    token = Guest(keys=(OLD_KEY,)).put().text
    assert Guest(keys=(KEY, OLD_KEY)).show(token) == 200
    assert Guest(keys=(KEY,)).show(token) == 401


def test_the_first_key_seals():
    assert Guest(keys=(KEY,)).show(Guest(keys=(KEY, OLD_KEY)).put().text) == 200


def test_nothing_of_it_goes_on_to_nova():
    guest = Guest()
    guest.show(guest.put().text)
    assert [key for key in guest.seen[0] if 'TOKEN' in key] == []


def test_the_answer_may_go_so_many_hops():
    assert Guest(hop_limit=2).put().headers['X-Metadata-Hop-Limit'] == '2'


@given(st.text())
def test_no_text_opens_but_what_was_sealed(text):
    assert not opens(KEY, 'port1', text, 0.0)


@given(st.integers(0, 39), st.integers(1, 255))
def test_a_token_with_one_byte_changed_does_not_open(position, change):
    raw = bytearray(base64.urlsafe_b64decode(seal(KEY, 'port1', 2000) + '=='))
    raw[position] ^= change
    assert not opens(KEY, 'port1', base64.urlsafe_b64encode(raw).decode().rstrip('='), 0.0)
    assert opens(KEY, 'port1', seal(KEY, 'port1', 2000), 0.0)


@pytest.mark.parametrize('text', ['', 'keys = short\n', f'keys = {"k" * 32},short\n'])
def test_a_key_that_is_missing_or_short_is_refused_and_not_said(tmp_path, text):
    path = tmp_path / 'agent.ini'
    path.write_text('[session_token]\n' + text)
    with pytest.raises(ConfigError, match='keys') as raised:
        filter_factory({'config_file': str(path)})
    assert 'kkk' not in str(raised.value)
