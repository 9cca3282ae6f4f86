# SPDX-License-Identifier: Apache-2.0
"""The requests that attach makes of the keeper's client."""

import contextlib

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper import admin_client
from metadata_wsgi.keeper.attachments_client import AttachmentsClient, listener
from metadata_wsgi.netns.target import AttachTarget

ROUTER, NETWORK = AttachTarget.of('router', 'router-a'), AttachTarget.of('network', 'network-c')


class RecordingKeeper:
    """Records the requests; ``registered`` are the listeners of the target."""

    def __init__(self):
        self.registered = []
        self.requests = []
        self.listed = []
        self.errors = []

    def list(self, id_=None):
        self.listed.append(id_)
        if self.errors:
            raise self.errors.pop()
        return [one for one in self.registered if id_ in (None, one.id)], {}

    def register(self, one, handed_over=None):
        self.requests.append(('register', one.host, one.port))
        return True

    def unregister(self, one):
        self.requests.append(('unregister', one.host, one.port))
        return True


@pytest.fixture
def keeper(monkeypatch):
    made = RecordingKeeper()
    monkeypatch.setattr(admin_client, 'connect', lambda path: contextlib.nullcontext(made))
    return made


@pytest.mark.parametrize(
    ('port', 'requests'),
    [
        (9697, [('unregister', '', 9697), ('register', '0.0.0.0', 9697)]),
        (9700, [('register', '0.0.0.0', 9700), ('unregister', '', 9697)]),
    ],
)
def test_router_without_ipv6_rules_has_one_listener_on_ipv4_afterwards(keeper, port, requests):
    """The one on every address holds the port of the new one; on another port it would be open without rules."""
    keeper.registered = [listener(ROUTER, 'shared', 9697, '')]
    AttachmentsClient('/state').attach(ROUTER, 'shared', port, ['0.0.0.0'])
    assert keeper.requests == requests


def test_network_keeps_what_is_wanted_and_loses_the_address_of_a_former_interface(keeper):
    keeper.registered = [
        listener(NETWORK, 'shared', 80, '169.254.169.254'),
        listener(NETWORK, 'shared', 80, 'fe80::a9fe:a9fe%tap0'),
    ]
    AttachmentsClient('/state').attach(NETWORK, 'shared', 80, ['169.254.169.254'])
    assert keeper.requests == [('register', '169.254.169.254', 80), ('unregister', 'fe80::a9fe:a9fe%tap0', 80)]


def test_many_attaches_list_the_listeners_once_and_a_second_attach_lists_again(keeper):
    other = AttachTarget.of('router', 'router-b')
    keeper.registered = [listener(ROUTER, 'shared', 9697, ''), listener(other, 'shared', 9697, '')]
    client = AttachmentsClient('/state', list_once=True)
    for target in (ROUTER, other):
        client.attach(target, 'shared', 9700, ['0.0.0.0'])
    assert keeper.listed == [None]
    assert keeper.requests == 2 * [('register', '0.0.0.0', 9700), ('unregister', '', 9697)]
    client.attach(ROUTER, 'shared', 9700, ['0.0.0.0'])
    assert keeper.listed == [None, ROUTER.uuid]


def test_a_list_that_fails_once_is_sent_again_for_the_next_target(keeper):
    """Without the list, the former listener would hold the port."""
    other = AttachTarget.of('router', 'router-b')
    keeper.registered = [listener(other, 'shared', 9697, '')]
    keeper.errors = [NetnsError('the keeper does not respond')]
    client = AttachmentsClient('/state', list_once=True)
    with pytest.raises(NetnsError):
        client.attach(ROUTER, 'shared', 9697, ['0.0.0.0'])
    client.attach(other, 'shared', 9697, ['0.0.0.0'])
    assert keeper.requests == [('unregister', '', 9697), ('register', '0.0.0.0', 9697)]
