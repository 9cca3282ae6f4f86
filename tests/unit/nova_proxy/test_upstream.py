# SPDX-License-Identifier: Apache-2.0
import pytest
import webtest

from metadata_wsgi import limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import ConfigError, MaybeSent, NotSent
from metadata_wsgi.nova_proxy import upstream
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeClock, FakeHttpClient


class Asked:
    """An UpstreamApp over fake hops, on a fake clock."""

    def __init__(self, *hops, clock=None, max_body_bytes=1 << 20):
        self.clock = clock or FakeClock()
        self.hops = hops
        app = upstream.UpstreamApp(hops, clock=self.clock, sleep=self.clock.sleep, max_body_bytes=max_body_bytes)
        self.app = webtest.TestApp(app)

    def ask(self, method='GET', path='/openstack', within_s=9.0, body=b'', other='', **headers):
        facts = {environ_keys.OTHER_SIGNATURE: other} if other else {}
        return self.app.request(
            path,
            method=method,
            headers={name.replace('_', '-'): value for name, value in headers.items()},
            environ={environ_keys.DEADLINE: Deadline.after(within_s, self.clock), **facts},
            body=body,
            expect_errors=True,
        )


def test_the_answer_is_relayed():
    response = Asked(FakeHttpClient(200)).ask()
    assert (response.status, response.headers['x-said-by']) == ('200 Said', 'fake')


def test_only_the_allow_list_goes_to_nova():
    hop = FakeHttpClient(200)
    Asked(hop).ask(
        Accept='*/*',
        X_Instance_ID='i1',
        X_Metadata_Provider='p',
        X_Custom='1',
        Cookie='c',
        Authorization='a',
        TE='gzip',
    )
    assert sorted(name for name, _ in hop.requests[0].headers) == ['accept', 'x-instance-id']


@pytest.mark.parametrize('status', [200, 302, 400, 404, 409, 501, 505])
def test_novas_word_is_not_asked_for_twice(status):
    hop = FakeHttpClient(status)
    assert Asked(hop).ask().status_int == status
    assert len(hop.requests) == 1


@pytest.mark.parametrize('status', [500, 502, 503, 504])
@pytest.mark.parametrize('method', ['GET', 'HEAD'])
def test_a_read_outlasts_a_failing_nova(status, method):
    hop = FakeHttpClient(status, status, 200)
    assert Asked(hop).ask(method).status_int == 200
    assert len(hop.requests) == 3


def test_novas_own_last_answer_is_relayed_when_time_is_over():
    asked = Asked(FakeHttpClient(500))
    assert asked.ask().status == '500 Said'
    assert asked.clock.now_s <= 1009.0


@pytest.mark.parametrize('error', [NotSent('refused'), MaybeSent('broken')])
def test_a_read_outlasts_a_broken_exchange(error):
    hop = FakeHttpClient(error, error, 200)
    assert Asked(hop).ask().status_int == 200
    assert len(hop.requests) == 3


def test_no_answer_at_all_is_a_503_with_retry_after(caplog):
    response = Asked(FakeHttpClient(NotSent('connection refused'))).ask()
    assert (response.status_int, response.headers['Retry-After']) == (503, '1')
    assert 'Nova gave no answer: connection refused' in caplog.text
    assert 'refused' not in response.text


def test_a_silent_nova_is_asked_twice_and_the_deadline_kept():
    clock = FakeClock()
    hop = FakeHttpClient(200, clock=clock, takes_s=60, late=MaybeSent('silent'))
    assert Asked(hop, clock=clock).ask().status_int == 503
    assert len(hop.requests) >= 2
    assert clock.now_s <= 1009.0


@pytest.mark.parametrize('method', ['POST', 'PUT', 'DELETE'])
@pytest.mark.parametrize('outcome', [500, 503, MaybeSent('broken')])
def test_a_write_is_sent_once(method, outcome):
    """Where it may have been received."""
    hop = FakeHttpClient(outcome, 200)
    assert Asked(hop).ask(method, body=b'secret').status_int == (503 if isinstance(outcome, Exception) else outcome)
    assert [request.body for request in hop.requests] == [b'secret']


def test_a_write_that_was_never_sent_is_sent_again():
    hop = FakeHttpClient(NotSent('refused'), NotSent('refused'), 200)
    assert Asked(hop).ask('POST', body=b'secret').status_int == 200
    assert [request.body for request in hop.requests] == [b'secret'] * 3


def test_a_body_over_the_limit_is_a_413():
    hop = FakeHttpClient(200)
    assert Asked(hop, max_body_bytes=1020).ask('POST', body=b'x' * 1021).status_int == 413
    assert hop.requests == []
    assert Asked(hop, max_body_bytes=1020).ask('POST', body=b'x' * 1020).status_int == 200


def test_a_403_says_which_secret_to_compare_once(caplog):
    asked = Asked(FakeHttpClient(403))
    assert [asked.ask().status_int for _ in range(3)] == [403] * 3
    assert [record.getMessage() for record in caplog.records] == [
        (
            'Nova refuses our signature (403): compare metadata_proxy_shared_secret here with '
            '[neutron] metadata_proxy_shared_secret in nova.conf; they must be the same'
        )
    ]


@pytest.mark.parametrize('outcome', [NotSent('refused'), MaybeSent('broken'), 503])
def test_the_next_host_is_asked_at_once_and_a_failing_one_put_aside(outcome):
    first, second = FakeHttpClient(outcome, name='nova1'), FakeHttpClient(200, name='nova2')
    asked = Asked(first, second)
    assert asked.ask().headers['x-said-by'] == 'nova2'
    assert asked.clock.slept == []
    asked.ask()
    assert (len(first.requests), len(second.requests)) == (1, 2)


def test_a_host_is_tried_again_after_a_while():
    first, second = FakeHttpClient(NotSent('refused'), 200, name='nova1'), FakeHttpClient(200, name='nova2')
    asked = Asked(first, second)
    asked.ask()
    asked.clock.sleep(limits.NOVA_HOST_BACKOFF_S)
    assert asked.ask().headers['x-said-by'] == 'nova1'


def test_a_write_goes_to_the_next_host_only_where_it_was_not_sent():
    second = FakeHttpClient(200, name='nova2')
    assert Asked(FakeHttpClient(MaybeSent('broken')), second).ask('POST', body=b'x').status_int == 503
    assert second.requests == []
    assert Asked(FakeHttpClient(NotSent('refused')), second).ask('POST', body=b'x').status_int == 200


def test_a_target_that_is_none_is_refused():
    hop = FakeHttpClient(200)
    asked = Asked(hop)
    environ = {environ_keys.DEADLINE: Deadline.after(9, asked.clock), 'RAW_URI': '*'}
    assert asked.app.get('/', extra_environ=environ, status=400).text == 'The request target must be a path.\n'
    assert hop.requests == []


@pytest.fixture
def factory(tmp_path):
    def load(text):
        path = tmp_path / 'agent.ini'
        path.write_text('[DEFAULT]\n' + text)
        return upstream.app_factory({'config_file': str(path)})

    return load


@pytest.mark.parametrize(
    ('text', 'names'),
    [
        ('', ['http://127.0.0.1:8775']),
        ('nova_metadata_ip = 10.0.0.9\n', ['http://10.0.0.9:8775']),
        (
            'nova_metadata_host = nova1, nova2:8776, [2001:db8::1]:80, 2001:db8::2\nnova_metadata_port = 9000\n',
            ['http://nova1:9000', 'http://nova2:8776', 'http://[2001:db8::1]:80', 'http://[2001:db8::2]:9000'],
        ),
        ('nova_metadata_protocol = https\nnova_metadata_insecure = true\n', ['https://127.0.0.1:8775']),
    ],
)
def test_the_hosts_are_those_of_the_file(factory, text, names):
    assert [hop.name for hop in factory(text)._hops] == names


@pytest.mark.parametrize(
    'host', ['nova:http', ':8775', 'nova:0', 'nova:65536', '[2001:db8::1', '[]:80', '[2001:db8::1]x']
)
def test_a_host_that_is_none_is_refused(factory, host):
    with pytest.raises(ConfigError) as raised:
        factory(f'nova_metadata_host = {host}\n')
    assert str(raised.value) == f'nova_metadata_host = {host}: not a host; write host, host:port or [IPv6 address]:port'


def test_no_host_is_refused(factory):
    with pytest.raises(ConfigError, match='nova_metadata_host is empty'):
        factory('nova_metadata_host =\n')


@pytest.mark.parametrize('option', ['auth_ca_cert', 'nova_client_cert'])
def test_a_certificate_that_cannot_be_read_is_refused(factory, option):
    with pytest.raises(ConfigError, match=f'{option}.*cannot be used.*each must be a readable PEM file'):
        factory(f'nova_metadata_protocol = https\n{option} = /nonexistent.pem\n')


def signatures(hop):
    return [dict(request.headers)['x-instance-id-signature'] for request in hop.requests]


@pytest.mark.parametrize('method', ['GET', 'POST'])
def test_what_nova_refuses_for_one_signature_is_sent_with_the_other(method):
    hop = FakeHttpClient(403, 200)
    asked = Asked(hop)
    body = b'password' if method == 'POST' else b''
    assert asked.ask(method, body=body, other='old', X_Instance_ID_Signature='new').status_int == 200
    assert signatures(hop) == ['new', 'old']
    assert [request.body for request in hop.requests] == [body, body]
    # Remembered, and forgotten when it is refused in its turn.
    hop._outcomes = [200, 403, 200, 200]
    for _ in range(3):
        asked.ask(other='old', X_Instance_ID_Signature='new')
    assert signatures(hop)[2:] == ['old', 'old', 'new', 'new']


def test_a_signature_that_nova_refuses_either_way_is_a_403():
    hop = FakeHttpClient(403)
    assert Asked(hop).ask(other='old', X_Instance_ID_Signature='new').status_int == 403
    assert signatures(hop) == ['new', 'old', 'new']


def test_a_nova_that_changes_its_secret_between_two_tries_is_no_403():
    hop = FakeHttpClient(403, 403, 200)
    assert Asked(hop).ask(other='old', X_Instance_ID_Signature='new').status_int == 200
    assert signatures(hop) == ['new', 'old', 'new']


def test_with_one_secret_nothing_is_sent_twice():
    hop = FakeHttpClient(403)
    assert Asked(hop).ask(X_Instance_ID_Signature='new').status_int == 403
    assert signatures(hop) == ['new']
