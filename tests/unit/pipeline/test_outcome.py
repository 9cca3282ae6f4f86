# SPDX-License-Identifier: Apache-2.0
import pytest

from metadata_wsgi.pipeline import environ_keys
from metadata_wsgi.pipeline.outcome import StatusRecorder, is_local_request, stage_reached

SOURCE = {environ_keys.SOURCE: environ_keys.Source('10.1.1.2', router_id='r1')}
INSTANCE = {environ_keys.INSTANCE: environ_keys.Instance('i1', 'p1', 'port1')}
SIGNED = {
    environ_keys.SIGNED_IDENTITY: environ_keys.SignedIdentity(INSTANCE[environ_keys.INSTANCE], '10.1.1.2', ('ab',))
}


@pytest.mark.parametrize(
    ('environ', 'stage'),
    [
        ({}, 'unidentified'),
        ({'HTTP_X_INSTANCE_ID_SIGNATURE': 'ab'}, 'unidentified'),
        (SOURCE, 'source'),
        ({**SOURCE, **INSTANCE}, 'instance'),
        ({**SOURCE, **INSTANCE, 'HTTP_X_INSTANCE_ID_SIGNATURE': 'ab'}, 'instance'),
        ({**SOURCE, **INSTANCE, **SIGNED}, 'upstream'),
    ],
)
def test_the_stage_that_a_request_reached_follows_from_its_environ_keys(environ, stage):
    assert stage_reached(environ) == stage


@pytest.mark.parametrize(
    ('environ', 'is_local'),
    [
        ({}, True),
        ({'HTTP_HOST': 'agent', 'HTTP_USER_AGENT': 'curl', 'REMOTE_ADDR': ''}, True),
        ({'HTTP_X_FORWARDED_FOR': '10.1.1.2'}, False),
        ({'HTTP_X_NEUTRON_NETWORK_ID': 'n1'}, False),
        ({'REMOTE_ADDR': '10.1.1.2'}, False),
        ({environ_keys.NAMESPACE: environ_keys.Namespace(router_id='r1'), 'REMOTE_ADDR': ''}, False),
    ],
)
def test_a_local_request_comes_over_the_unix_socket_without_identity_headers(environ, is_local):
    assert is_local_request(environ) is is_local


def test_the_status_is_recorded_and_passed_on():
    passed = []
    recorder = StatusRecorder(lambda *arguments: passed.append(arguments))
    assert recorder.status == ''
    recorder('200 OK', [])
    recorder('503 Gone', [('A', 'b')], (None, None, None))
    assert recorder.status == '503'
    assert passed == [('200 OK', []), ('503 Gone', [('A', 'b')], (None, None, None))]
