# SPDX-License-Identifier: Apache-2.0
import pytest

from metadata_wsgi.pipeline import environ_keys
from metadata_wsgi.pipeline.outcome import Heard, is_the_hosts_own, reached

SOURCE = {environ_keys.SOURCE: environ_keys.Source('10.1.1.2', router_id='r1')}
INSTANCE = {environ_keys.INSTANCE: environ_keys.Instance('i1', 'p1', 'port1')}
SIGNED = {'HTTP_X_INSTANCE_ID_SIGNATURE': 'ab'}


@pytest.mark.parametrize(
    ('environ', 'far'),
    [
        ({}, 'door'),
        (SIGNED, 'door'),
        (SOURCE, 'source'),
        ({**SOURCE, **INSTANCE}, 'instance'),
        ({**SOURCE, **INSTANCE, **SIGNED}, 'upstream'),
    ],
)
def test_how_far_a_request_came_is_told_by_the_facts_that_are_there(environ, far):
    assert reached(environ) == far


@pytest.mark.parametrize(
    ('environ', 'own'),
    [
        ({}, True),
        ({'HTTP_HOST': 'agent', 'HTTP_USER_AGENT': 'curl', 'REMOTE_ADDR': ''}, True),
        ({'HTTP_X_FORWARDED_FOR': '10.1.1.2'}, False),
        ({'HTTP_X_NEUTRON_NETWORK_ID': 'n1'}, False),
        ({'REMOTE_ADDR': '10.1.1.2'}, False),
        ({environ_keys.NAMESPACE: environ_keys.Namespace(router_id='r1'), 'REMOTE_ADDR': ''}, False),
    ],
)
def test_the_hosts_own_request_comes_on_the_unix_socket_and_says_nothing_of_who_asks(environ, own):
    assert is_the_hosts_own(environ) is own


def test_what_was_said_is_remembered_and_goes_on():
    said = []
    heard = Heard(lambda *words: said.append(words))
    assert heard.status == ''
    heard('200 OK', [])
    heard('503 Gone', [('A', 'b')], (None, None, None))
    assert heard.status == '503'
    assert said == [('200 OK', []), ('503 Gone', [('A', 'b')], (None, None, None))]
