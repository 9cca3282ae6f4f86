# SPDX-License-Identifier: Apache-2.0
"""Requests to a fake keeper: retries, and replies that this version does not know."""

import socket
import threading

import pytest

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.keeper import protocol
from metadata_wsgi.keeper.admin_client import KeeperClient
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.net.listening_process import ListeningProcess

A = Listener('shared', 'qrouter-a', 9697, router_id='a')
PORT_IN_USE = {'error': 'metadata_port: cannot listen on any address port 9697: Address already in use', 'again': True}


@pytest.fixture
def keeper():
    """Starts a fake keeper that sends ``replies``, the last one for ever; returns a client of it."""
    opened = []

    def start(*replies, process=None):
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(10)
        pending = list(replies)

        def run():
            try:
                while True:
                    protocol.receive(its)
                    protocol.send(its, pending.pop(0) if len(pending) > 1 else pending[0])
            except (EOFError, OSError):
                its.close()

        thread = threading.Thread(target=run)
        thread.start()
        opened.append((ours, thread))
        retries = []
        looks = []
        client = KeeperClient(ours, sleep=retries.append, find_process=lambda listener: looks.append(1) or process)
        client.retries, client.looks = retries, looks
        return client

    yield start
    for sock, thread in opened:
        sock.close()
        thread.join(60)


def test_register_retries_a_port_in_use(keeper):
    """A worker sends the socket back soon, or a former proxy ends."""
    client = keeper(PORT_IN_USE, PORT_IN_USE, {'changed': True})
    assert client.register(A) is True
    assert len(client.retries) == 2


def test_register_gives_up_at_the_timeout(keeper):
    client = keeper(PORT_IN_USE)
    with pytest.raises(NetnsError, match='Address already in use'):
        client.register(A)
    assert sum(client.retries) == pytest.approx(5.0, abs=0.3)


def test_register_names_another_program_on_the_port_after_two_seconds(keeper):
    client = keeper(PORT_IN_USE, process=ListeningProcess(4711, 'haproxy', is_own=False))
    with pytest.raises(NetnsError, match=r'^metadata_port: port 9697 in qrouter-a is used by pid 4711 \(haproxy\): '):
        client.register(A)
    assert sum(client.retries) == pytest.approx(2.0, abs=0.3)


def test_register_retries_for_our_own_program_and_names_it_at_the_timeout(keeper):
    client = keeper(PORT_IN_USE, process=ListeningProcess(4711, 'python3', is_own=True))
    with pytest.raises(NetnsError, match='used by pid 4711'):
        client.register(A)
    assert sum(client.retries) == pytest.approx(5.0, abs=0.3)
    assert len(client.looks) == 3


@pytest.mark.parametrize(
    'reply',
    [
        {'listeners': [{**A.to_json(), 'mode': 'later'}]},
        {'listeners': ['later']},
        {'listeners': []},
        {'listeners': [], 'workers': []},
        {'listeners': 7},
        {'later': True},
    ],
)
def test_list_of_another_release_is_an_error_in_words(keeper, reply):
    with pytest.raises(NetnsError, match=r'the reply of the keeper is not understood .* another release'):
        keeper(reply).list()


@pytest.mark.parametrize(
    'request_', [lambda c: c.register(A), lambda c: c.unregister(A), lambda c: c.unregister_all('a')]
)
def test_reply_of_another_release_is_an_error_in_words(keeper, request_):
    with pytest.raises(NetnsError, match='the reply of the keeper is not understood'):
        request_(keeper({'later': True}))
