# SPDX-License-Identifier: Apache-2.0
"""Notifications to systemd (a socket of the test here), and checks of the descriptors that it returns."""

import os
import socket

import pytest

from metadata_wsgi.keeper import fdstore
from metadata_wsgi.keeper.fdstore import SystemdFdStore
from metadata_wsgi.keeper.protocol import Listener
from metadata_wsgi.net.sd_notify import Notifier
from tests.fake_systemd import FakeSystemd

A = Listener('shared', 'qrouter-a', 9697, router_id='a')
C = Listener('one_hop', 'qdhcp-c', 80, network_id='c', host='fe80::a9fe:a9fe%tap0')


@pytest.fixture
def systemd(tmp_path):
    receiver = FakeSystemd(str(tmp_path / 'notify'))
    yield receiver
    receiver.close()


@pytest.fixture
def store(systemd, tmp_path):
    notifier = Notifier(str(tmp_path / 'notify'))
    yield SystemdFdStore(notifier)
    notifier.close()


@pytest.fixture
def listening():
    with socket.create_server(('127.0.0.1', 0)) as made:
        yield made


def restored_environ(*names):
    """The environment of a service with stored descriptors, and the number of the first descriptor."""
    listening = [socket.create_server(('127.0.0.1', 0)) for _ in names]
    first = 500
    for number, one in enumerate(listening):
        os.dup2(one.fileno(), first + number)
        one.close()
    environ = {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': str(len(names)), 'LISTEN_FDNAMES': ':'.join(names)}
    return environ, first


def test_fdstore_stores_a_socket_once_and_removes_it_by_name(store, systemd, listening):
    store.add(A, listening)
    store.add(A, listening)
    name = f'FDNAME={fdstore.name_of(A)}'
    assert systemd.received() == [('FDSTORE=1', name, os.fstat(listening.fileno()).st_ino)]
    store.remove(A)
    store.remove(A)
    assert systemd.received() == [('FDSTOREREMOVE=1', name)]


@pytest.mark.parametrize(
    'listener',
    [
        A,
        C,
        Listener('shared', 'n', 80, network_id='c'),
        Listener('shared', 'a:b%c d\u00e9', 1, network_id='%3A', host='\x7f'),
    ],
)
def test_fdstore_name_is_valid_for_systemd_and_converts_back(listener):
    name = fdstore.name_of(listener)
    assert all(' ' <= letter < '\x7f' and letter != ':' for letter in name)
    assert fdstore.listener_from_name(name) == listener


def test_fdstore_names_of_different_listeners_differ():
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
def test_fdstore_invalid_name_raises_value_error(name):
    with pytest.raises(ValueError):
        fdstore.listener_from_name(name)


def test_fdstore_too_long_name_is_not_stored(store, systemd, listening, caplog):
    store.add(Listener('shared', 'n' * 250, 80, network_id='c'), listening)
    assert systemd.received() == []
    assert 'its name is too long' in caplog.text


def test_fdstore_restores_stored_sockets_and_does_not_store_them_again(store, systemd):
    environ, first = restored_environ(fdstore.name_of(A), fdstore.name_of(C))
    restored = list(store.restore(environ, first))
    assert [listener for listener, _ in restored] == [A, C]
    assert environ == {}
    for listener, sock in restored:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert (sock.get_inheritable(), sock.getblocking()) == (False, False)
        store.add(listener, sock)
        sock.close()
    assert systemd.received() == []
    store.remove(A)
    assert systemd.received() == [('FDSTOREREMOVE=1', f'FDNAME={fdstore.name_of(A)}')]


def test_fdstore_closes_and_removes_foreign_descriptors(store, systemd, caplog):
    environ, first = restored_environ('stored', fdstore.name_of(A))
    ((listener, sock),) = store.restore(environ, first)
    sock.close()
    assert listener == A
    assert systemd.received() == [('FDSTOREREMOVE=1', 'FDNAME=stored')]
    assert 'not a socket of a namespace' in caplog.text
    with pytest.raises(OSError, match='Bad file descriptor'):
        os.fstat(first)


def test_fdstore_closes_a_descriptor_without_a_name(store, systemd):
    environ, first = restored_environ(fdstore.name_of(A), '')
    environ['LISTEN_FDNAMES'] = fdstore.name_of(A)
    ((_, sock),) = store.restore(environ, first)
    sock.close()
    with pytest.raises(OSError, match='Bad file descriptor'):
        os.fstat(first + 1)


def test_fdstore_ignores_descriptors_of_another_pid(store):
    assert list(store.restore({'LISTEN_PID': '1', 'LISTEN_FDS': '1', 'LISTEN_FDNAMES': 'x'}, 0)) == []
    assert list(store.restore({})) == []


def test_fdstore_unavailable_systemd_is_logged_only(store, systemd, listening, caplog):
    systemd.close()
    store.add(A, listening)
    assert 'could not be sent to systemd' in caplog.text
    store.remove(A)
