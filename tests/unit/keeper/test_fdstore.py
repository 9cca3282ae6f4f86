# SPDX-License-Identifier: Apache-2.0
"""What is said to systemd, which is a socket of the test here, and what is believed of what it gives back."""

import array
import os
import socket

import pytest

from metadata_wsgi.keeper import fdstore
from metadata_wsgi.keeper.fdstore import SystemdStore
from metadata_wsgi.keeper.protocol import Listener

A = Listener('shared', 'qrouter-a', 9697, router_id='a')
C = Listener('one_hop', 'qdhcp-c', 80, network_id='c', host='fe80::a9fe:a9fe%tap0')


class Systemd:
    """Hears what is said to it; a socket beside it as its inode."""

    def __init__(self, address):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.setblocking(False)

    def heard(self):
        said = []
        while True:
            try:
                text, beside, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(4))
            except BlockingIOError:
                return said
            said.append((*text.decode().splitlines(), *(inode(data) for _, _, data in beside)))

    def close(self):
        self._socket.close()


def inode(data):
    (descriptor,) = array.array('i', data)
    try:
        return os.fstat(descriptor).st_ino
    finally:
        os.close(descriptor)


@pytest.fixture(params=['{}/notify', '@{}'])
def address(request, tmp_path):
    return request.param.format(tmp_path)


@pytest.fixture
def systemd(address):
    hearing = Systemd('\0' + address[1:] if address.startswith('@') else address)
    yield hearing
    hearing.close()


@pytest.fixture
def stored(systemd, address):
    speaking = SystemdStore(address)
    yield speaking
    speaking.close()


@pytest.fixture
def listening():
    with socket.create_server(('127.0.0.1', 0)) as made:
        yield made


def given_back(*names):
    """The environment that says so, and the number of the first of so many descriptors in a row."""
    listening = [socket.create_server(('127.0.0.1', 0)) for _ in names]
    first = 500
    for number, one in enumerate(listening):
        os.dup2(one.fileno(), first + number)
        one.close()
    environ = {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': str(len(names)), 'LISTEN_FDNAMES': ':'.join(names)}
    return environ, first


def test_a_socket_is_given_once_and_taken_out_by_its_name(stored, systemd, listening):
    stored.ready()
    stored.keep(A, listening)
    stored.keep(A, listening)
    name = f'FDNAME={fdstore.name_of(A)}'
    assert systemd.heard() == [('READY=1',), ('FDSTORE=1', name, os.fstat(listening.fileno()).st_ino)]
    stored.forget(A)
    stored.forget(A)
    assert systemd.heard() == [('FDSTOREREMOVE=1', name)]


@pytest.mark.parametrize(
    'listener',
    [
        A,
        C,
        Listener('shared', 'n', 80, network_id='c'),
        Listener('shared', 'a:b%c d\u00e9', 1, network_id='%3A', host='\x7f'),
    ],
)
def test_a_name_is_one_that_systemd_takes_and_the_listener_again(listener):
    name = fdstore.name_of(listener)
    assert all(' ' <= letter < '\x7f' and letter != ':' for letter in name)
    assert fdstore.listener_of(name) == listener


def test_listeners_that_differ_differ_in_name():
    listeners = [Listener(mode, namespace, port, **{id_: 'x'}, host=host)
                 for mode in ('shared', 'one_hop') for namespace in 'ab' for port in (1, 2)
                 for id_ in ('router_id', 'network_id') for host in ('', 'h')]  # fmt: skip
    assert len({fdstore.name_of(one) for one in listeners}) == len(listeners)


@pytest.mark.parametrize(
    'name',
    [
        '',
        'stored',
        'shared/router/a/9697/qrouter-a',
        'shared/pear/a/9697/qrouter-a/',
        'process/router/a/9697/qrouter-a/',
        'shared/router/a/x/qrouter-a/',
        'shared/router/a/9697/..%2Fnet/',
        'shared/router/%FF/9697/qrouter-a/',
    ],
)
def test_another_name_is_none(name):
    with pytest.raises(ValueError):
        fdstore.listener_of(name)


def test_a_name_that_is_too_long_is_served_and_not_stored(stored, systemd, listening, caplog):
    stored.keep(Listener('shared', 'n' * 250, 80, network_id='c'), listening)
    assert systemd.heard() == []
    assert 'too long a name' in caplog.text


def test_what_was_stored_comes_back_and_is_not_stored_again(stored, systemd):
    environ, first = given_back(fdstore.name_of(A), fdstore.name_of(C))
    back = list(stored.taken_back(environ, first))
    assert [listener for listener, _ in back] == [A, C]
    assert environ == {}
    for listener, kept in back:
        assert kept.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert (kept.get_inheritable(), kept.getblocking()) == (False, False)
        stored.keep(listener, kept)
        kept.close()
    assert systemd.heard() == []
    stored.forget(A)
    assert systemd.heard() == [('FDSTOREREMOVE=1', f'FDNAME={fdstore.name_of(A)}')]


def test_what_is_not_ours_is_closed_and_taken_out(stored, systemd, caplog):
    environ, first = given_back('stored', fdstore.name_of(A))
    ((listener, kept),) = stored.taken_back(environ, first)
    kept.close()
    assert listener == A
    assert systemd.heard() == [('FDSTOREREMOVE=1', 'FDNAME=stored')]
    assert 'no socket of a namespace' in caplog.text
    with pytest.raises(OSError, match='Bad file descriptor'):
        os.fstat(first)


def test_what_is_meant_for_another_process_is_left_alone(stored):
    assert list(stored.taken_back({'LISTEN_PID': '1', 'LISTEN_FDS': '1', 'LISTEN_FDNAMES': 'x'}, 0)) == []
    assert list(stored.taken_back({})) == []


def test_a_systemd_that_does_not_hear_stops_nothing(stored, systemd, listening, caplog):
    systemd.close()
    stored.keep(A, listening)
    assert 'did not hear' in caplog.text
    stored.forget(A)
