# SPDX-License-Identifier: Apache-2.0
import pytest
import webtest

from metadata_wsgi import limits
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import ConfigError, MaybeSent, NotSent
from metadata_wsgi.nova_proxy import upstream
from metadata_wsgi.pipeline import environ_keys
from tests.fakes import FakeClock, FakeHttpClient

IDENTITY = [
    ('x-forwarded-for', '10.1.1.2'), ('x-instance-id', 'i1'), ('x-tenant-id', 'p1'), ('x-instance-id-signature', 'new'),
]  # fmt: skip


def identity(*signatures):
    return environ_keys.SignedIdentity(environ_keys.Instance('i1', 'p1', 'port1'), '10.1.1.2', signatures)


class Proxy:
    """An UpstreamApp with fake HTTP clients, on a fake clock."""

    def __init__(self, *clients, clock=None, max_body_bytes=1 << 20):
        self.clock = clock or FakeClock()
        app = upstream.UpstreamApp(clients, clock=self.clock, sleep=self.clock.sleep, max_body_bytes=max_body_bytes)
        self.app = webtest.TestApp(app)
        self.environ = {}

    def request(self, method='GET', path='/openstack', within_s=9.0, body=b'', signatures=('new',), **headers):
        return self.app.request(
            path,
            method=method,
            headers={name.replace('_', '-'): value for name, value in headers.items()},
            environ={
                environ_keys.DEADLINE: Deadline.after(within_s, self.clock),
                environ_keys.SIGNED_IDENTITY: identity(*signatures),
                **self.environ,
            },
            body=body,
            expect_errors=True,
        )


def test_the_response_is_relayed():
    response = Proxy(FakeHttpClient(200)).request()
    assert (response.status, response.headers['x-client']) == ('200 Fake', 'fake')


def test_only_allowed_headers_are_sent_to_nova():
    nova = FakeHttpClient(200)
    Proxy(nova).request(
        Accept='*/*', X_Metadata_Provider='p', X_Custom='1', Cookie='c', Authorization='a', TE='gzip', X_Project_Id='p'
    )
    assert nova.requests[0].headers == [('accept', '*/*'), *IDENTITY]


def test_the_identity_headers_are_ours_whatever_the_client_sends():
    nova = FakeHttpClient(200)
    Proxy(nova).request(
        X_Instance_ID='forged',
        X_Tenant_ID='forged',
        X_Instance_ID_Signature='forged',
        X_Forwarded_For='10.6.6.6',
        Connection='X-Instance-ID, X-Tenant-ID',
    )
    assert nova.requests[0].headers == IDENTITY


@pytest.mark.parametrize('status', [200, 302, 400, 404, 409, 501, 505])
def test_other_statuses_are_relayed_without_a_retry(status):
    nova = FakeHttpClient(status)
    assert Proxy(nova).request().status_int == status
    assert len(nova.requests) == 1


@pytest.mark.parametrize('status', [500, 502, 503, 504])
@pytest.mark.parametrize('method', ['GET', 'HEAD'])
def test_a_get_or_head_is_retried_while_nova_answers_5xx(status, method):
    nova = FakeHttpClient(status, status, 200)
    assert Proxy(nova).request(method).status_int == 200
    assert len(nova.requests) == 3


def test_the_last_response_is_relayed_when_the_retry_deadline_is_over():
    proxy = Proxy(FakeHttpClient(500))
    assert proxy.request().status == '500 Fake'
    assert proxy.clock.now_s <= 1009.0


@pytest.mark.parametrize('error', [NotSent('refused'), MaybeSent('broken')])
def test_a_get_is_retried_after_a_broken_connection(error):
    nova = FakeHttpClient(error, error, 200)
    assert Proxy(nova).request().status_int == 200
    assert len(nova.requests) == 3


def test_no_response_until_the_deadline_is_a_503_with_retry_after(caplog):
    response = Proxy(FakeHttpClient(NotSent('connection refused'))).request()
    assert (response.status_int, response.headers['Retry-After']) == (503, '1')
    assert 'no response from Nova: connection refused' in caplog.text
    assert 'refused' not in response.text


def test_a_nova_that_does_not_respond_is_retried_within_the_deadline():
    clock = FakeClock()
    nova = FakeHttpClient(200, clock=clock, takes_s=60, late=MaybeSent('silent'))
    assert Proxy(nova, clock=clock).request().status_int == 503
    assert len(nova.requests) >= 2
    assert clock.now_s <= 1009.0


@pytest.mark.parametrize('method', ['POST', 'PUT', 'DELETE'])
@pytest.mark.parametrize('outcome', [500, 503, MaybeSent('broken')])
def test_a_write_is_not_retried(method, outcome):
    """If it may have been received."""
    nova = FakeHttpClient(outcome, 200)
    assert Proxy(nova).request(method, body=b'secret').status_int == (
        503 if isinstance(outcome, Exception) else outcome
    )
    assert [request.body for request in nova.requests] == [b'secret']


def test_a_write_that_was_not_sent_is_retried():
    nova = FakeHttpClient(NotSent('refused'), NotSent('refused'), 200)
    assert Proxy(nova).request('POST', body=b'secret').status_int == 200
    assert [request.body for request in nova.requests] == [b'secret'] * 3


@pytest.mark.parametrize(
    ('method', 'closed_after', 'attempts'), [('POST', 0, 0), ('POST', 1, 1), ('POST', 9, 2), ('GET', 0, 2)]
)
def test_a_write_is_not_sent_after_the_client_has_closed_its_connection(method, closed_after, attempts):
    """The client has got a 503, so it repeats the request. Each attempt checks it: Nova may become available late."""
    nova = FakeHttpClient(NotSent('refused'), 200)
    proxy = Proxy(nova)
    proxy.environ = {environ_keys.CLIENT_HAS_CLOSED: lambda: len(nova.requests) >= closed_after}
    proxy.request(method, body=b'secret' if method == 'POST' else b'')
    assert len(nova.requests) == attempts


def test_a_body_over_the_limit_is_a_413():
    nova = FakeHttpClient(200)
    assert Proxy(nova, max_body_bytes=1020).request('POST', body=b'x' * 1021).status_int == 413
    assert nova.requests == []
    assert Proxy(nova, max_body_bytes=1020).request('POST', body=b'x' * 1020).status_int == 200


def test_the_log_line_for_a_403_names_the_secret_to_compare_and_is_throttled(caplog):
    proxy = Proxy(FakeHttpClient(403))
    assert [proxy.request().status_int for _ in range(3)] == [403] * 3
    assert [record.getMessage() for record in caplog.records] == [
        (
            'Nova rejects the signature (403): compare metadata_proxy_shared_secret here with '
            '[neutron] metadata_proxy_shared_secret in nova.conf; they must be the same'
        )
    ]


@pytest.mark.parametrize('outcome', [NotSent('refused'), MaybeSent('broken'), 503])
def test_the_next_host_is_tried_at_once_and_the_failed_one_after_it(outcome):
    first, second = FakeHttpClient(outcome, name='nova1'), FakeHttpClient(200, name='nova2')
    proxy = Proxy(first, second)
    assert proxy.request().headers['x-client'] == 'nova2'
    assert proxy.clock.slept == []
    proxy.request()
    assert (len(first.requests), len(second.requests)) == (1, 2)


def test_a_failed_host_is_tried_first_again_after_its_backoff():
    first, second = FakeHttpClient(NotSent('refused'), 200, name='nova1'), FakeHttpClient(200, name='nova2')
    proxy = Proxy(first, second)
    proxy.request()
    proxy.clock.sleep(limits.NOVA_HOST_BACKOFF_S)
    assert proxy.request().headers['x-client'] == 'nova1'


def test_a_write_is_retried_at_the_next_host_only_if_it_was_not_sent():
    second = FakeHttpClient(200, name='nova2')
    assert Proxy(FakeHttpClient(MaybeSent('broken')), second).request('POST', body=b'x').status_int == 503
    assert second.requests == []
    assert Proxy(FakeHttpClient(503), second).request('POST', body=b'x').status_int == 503
    assert second.requests == []
    proxy = Proxy(FakeHttpClient(NotSent('refused')), second)
    assert proxy.request('POST', body=b'x').status_int == 200
    assert proxy.clock.slept == []


def test_an_invalid_target_is_a_400():
    nova = FakeHttpClient(200)
    proxy = Proxy(nova)
    environ = {
        environ_keys.DEADLINE: Deadline.after(9, proxy.clock),
        environ_keys.SIGNED_IDENTITY: identity('new'),
        'RAW_URI': '*',
    }
    assert proxy.app.get('/', extra_environ=environ, status=400).text == 'The request target must be a path.\n'
    assert nova.requests == []


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
def test_the_hosts_come_from_the_configuration_file(factory, text, names):
    assert [client.name for client in factory(text).clients] == names


@pytest.mark.parametrize(
    'host', ['nova:http', ':8775', 'nova:0', 'nova:65536', '[2001:db8::1', '[]:80', '[2001:db8::1]x']
)
def test_an_invalid_host_stops_the_start(factory, host):
    with pytest.raises(ConfigError) as raised:
        factory(f'nova_metadata_host = {host}\n')
    assert str(raised.value) == f'nova_metadata_host = {host}: not a host; write host, host:port or [IPv6 address]:port'


def test_an_empty_host_list_stops_the_start(factory):
    with pytest.raises(ConfigError, match='nova_metadata_host is empty'):
        factory('nova_metadata_host =\n')


@pytest.mark.parametrize('option', ['auth_ca_cert', 'nova_client_cert'])
def test_an_unreadable_certificate_stops_the_start(factory, option):
    with pytest.raises(ConfigError, match=f'{option}.*cannot be used.*each must be a readable PEM file'):
        factory(f'nova_metadata_protocol = https\n{option} = /nonexistent.pem\n')


def sent_signatures(nova):
    return [dict(request.headers)['x-instance-id-signature'] for request in nova.requests]


@pytest.mark.parametrize('method', ['GET', 'POST'])
def test_a_request_refused_with_one_signature_is_sent_with_the_other(method):
    nova = FakeHttpClient(403, 200)
    proxy = Proxy(nova)
    body = b'password' if method == 'POST' else b''
    assert proxy.request(method, body=body, signatures=('new', 'old')).status_int == 200
    assert sent_signatures(nova) == ['new', 'old']
    assert [request.body for request in nova.requests] == [body, body]
    # The accepted one is used first, until it is refused.
    nova._outcomes = [200, 403, 200, 200]
    for _ in range(3):
        proxy.request(signatures=('new', 'old'))
    assert sent_signatures(nova)[2:] == ['old', 'old', 'new', 'new']


def test_a_request_refused_with_both_signatures_is_a_403():
    nova = FakeHttpClient(403)
    assert Proxy(nova).request(signatures=('new', 'old')).status_int == 403
    assert sent_signatures(nova) == ['new', 'old', 'new']


def test_a_secret_that_changes_between_two_attempts_is_no_403():
    nova = FakeHttpClient(403, 403, 200)
    assert Proxy(nova).request(signatures=('new', 'old')).status_int == 200
    assert sent_signatures(nova) == ['new', 'old', 'new']


def test_with_one_secret_a_403_is_not_retried():
    nova = FakeHttpClient(403)
    assert Proxy(nova).request().status_int == 403
    assert sent_signatures(nova) == ['new']


class SlowBody:
    """A body that does not arrive before the server's own timeout."""

    def read(self, size):
        raise TimeoutError


def test_a_slow_request_body_is_a_408_and_not_logged_as_a_fault_of_nova(caplog):
    nova = FakeHttpClient(200)
    app = upstream.UpstreamApp([nova])
    statuses = []
    with caplog.at_level('INFO'):
        for _ in range(3):
            environ = {
                environ_keys.DEADLINE: Deadline.after(9),
                environ_keys.SIGNED_IDENTITY: identity('new'),
                'REQUEST_METHOD': 'POST',
                'RAW_URI': '/',
                'CONTENT_LENGTH': '5',
                'wsgi.input': SlowBody(),
            }
            app(environ, lambda status, headers, exc_info=None: statuses.append(status))
    assert statuses == ['408 Request Timeout'] * 3
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ('INFO', 'A request gets 408: its client did not send the body in time')
    ]
    assert nova.requests == []


NOVA_IGNORES_SIGNATURES = (
    'Nova has sent 20 times 404 and never 200, for instances that the lookup has found: '
    'if [neutron] service_metadata_proxy is false or misspelt in nova.conf, Nova ignores '
    'the signature and sends 404 to every instance'
)


@pytest.mark.parametrize(
    'path', ['/openstack/', '/openstack/latest/meta_data.json', '/2009-04-04/meta-data/instance-id']
)
def test_many_404s_and_no_200_are_one_warning_that_names_service_metadata_proxy(caplog, path):
    proxy = Proxy(FakeHttpClient(404))
    assert {proxy.request(path=path).status_int for _ in range(60)} == {404}
    assert caplog.messages == [NOVA_IGNORES_SIGNATURES]


@pytest.mark.parametrize(
    ('first', 'path'), [(200, '/openstack'), (404, '/latest/user-data'), (404, '/no/such/path'), (404, '/')]
)
def test_404s_are_no_warning_after_a_200_or_for_paths_that_not_every_instance_has(caplog, first, path):
    proxy = Proxy(FakeHttpClient(first, 404))
    for _ in range(60):
        proxy.request(path=path)
    assert caplog.messages == []
