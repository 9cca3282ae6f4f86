# SPDX-License-Identifier: Apache-2.0
import pytest

from metadata_wsgi.errors import NotSent
from metadata_wsgi.filters.signature import SignatureFilter, sign
from metadata_wsgi.http import message
from metadata_wsgi.nova_proxy import probe
from metadata_wsgi.nova_proxy.upstream import UpstreamApp
from tests.fakes import FakeHttpClient

NO_CHECK = (
    'Nova at nova1 does not check signatures: it responds {} instead of 403 to a wrong signature. '
    'Set [neutron] service_metadata_proxy = true in nova.conf; until then no instance gets its metadata'
)
OTHER_SECRET = (
    'Nova at nova1 rejects the signature: metadata_proxy_shared_secret here and [neutron] '
    'metadata_proxy_shared_secret in nova.conf differ; every instance gets 403'
)


class Nova:
    """A HttpClient of a Nova that has ``secret``; without one it does not check signatures."""

    def __init__(self, secret, name='nova1'):
        self.secret, self.name = secret, name
        self.requests = []

    def send_request(self, request, deadline):
        self.requests.append(request)
        headers = dict(request.headers)
        right = self.secret is None or headers['x-instance-id-signature'] == sign(self.secret, headers['x-instance-id'])
        return message.Response(404 if right else 403, 'x', [], [])


def pipeline(*clients, secrets=(b'new', b'old')):
    return SignatureFilter(UpstreamApp(clients), secrets=secrets)


@pytest.mark.parametrize(
    ('secret', 'problems'),
    [(b'new', []), (b'old', []), (b'another', [OTHER_SECRET]), (None, [NO_CHECK.format(404)])],
    ids=['same secret', 'old secret', 'another secret', 'no check of signatures'],
)
def test_the_probe_finds_a_nova_that_does_not_check_or_has_another_secret(secret, problems):
    nova = Nova(secret)
    assert probe.check(pipeline(nova)) == problems
    assert {request.target for request in nova.requests} == {'/openstack/latest/meta_data.json'}


@pytest.mark.parametrize(
    ('outcomes', 'problem'),
    [
        ([200], NO_CHECK.format(200)),
        ([500], 'Nova at fake fails: it responds 500'),
        ([NotSent('http://nova:8775: refused')], 'Nova does not respond: http://nova:8775: refused'),
        (
            [403, 200],
            'Nova at fake responds 200 instead of 404 to a signed request for an instance that does not exist',
        ),
    ],
)
def test_the_probe_names_other_problems(outcomes, problem):
    assert probe.check(pipeline(FakeHttpClient(*outcomes))) == [problem.replace('nova1', 'fake')]


def test_the_probe_checks_each_host():
    assert probe.check(pipeline(Nova(b'new'), Nova(b'another'))) == [OTHER_SECRET]


def test_the_probe_does_nothing_for_a_pipeline_that_does_not_end_at_nova():
    def app(environ, start_response):
        raise NotImplementedError

    app.REQUIRES = frozenset()
    assert probe.check(SignatureFilter(app, secrets=(b'x',))) == []
