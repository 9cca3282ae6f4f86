# SPDX-License-Identifier: Apache-2.0
import os
import socket
import stat

import pytest

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.net import listeners


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'state' / 'metadata_proxy')


@pytest.mark.parametrize(
    ('name', 'user', 'group', 'bits'),
    [
        ('user', '', '', 0o600), ('group', '', '', 0o660), ('all', '', '', 0o666),
        ('deduce', '', '', 0o660), ('deduce', 'quantum', '', 0o600), ('deduce', '', 'quantum', 0o660),
        ('deduce', 'quantum', 'quantum', 0o660),
    ],
)  # fmt: skip
def test_unix_socket_mode_is_deduced_from_owner_and_group(name, user, group, bits):
    assert listeners.socket_mode(name, user, group) == bits


@pytest.mark.parametrize('bits', [0o600, 0o660, 0o666])
def test_unix_socket_has_its_mode_and_owner(path, bits):
    with listeners.unix_listener(path, mode=bits, user=str(os.getuid()), group=str(os.getgid())):
        found = os.stat(path)
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (bits, os.getuid(), os.getgid())


def test_unix_socket_leaves_the_umask_unchanged(path):
    before = os.umask(0o027)
    try:
        listeners.unix_listener(path, mode=0o660).close()
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_unix_socket_replaces_a_stale_one(path):
    listeners.unix_listener(path, mode=0o660).close()
    assert os.path.exists(path)
    with listeners.unix_listener(path, mode=0o660), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


@pytest.mark.parametrize('queued', [0, 3], ids=['idle', 'with a full queue'])
def test_unix_socket_that_is_live_is_refused(path, queued):
    with listeners.unix_listener(path, mode=0o660, backlog=1):
        clients = [socket.socket(socket.AF_UNIX) for _ in range(queued)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(path)
        with pytest.raises(ConfigError) as raised:
            listeners.unix_listener(path, mode=0o660, timeout_s=0)
        for client in clients:
            client.close()
    assert str(raised.value) == (
        f'metadata_proxy_socket = {path}: another agent is running and listens there; '
        'stop it first, or name another path'
    )


def test_unix_socket_of_a_stopping_agent_is_retried(path):
    """After a SIGKILL of the agent's master its workers listen for up to a second more."""
    dying = listeners.unix_listener(path, mode=0o660)
    with listeners.unix_listener(path, mode=0o660, timeout_s=60, sleep=lambda seconds: dying.close()):
        pass


def test_unix_socket_does_not_replace_a_regular_file(tmp_path):
    (tmp_path / 'precious').write_text('data')
    with pytest.raises(ConfigError, match='is there and is no socket; name another path or remove it'):
        listeners.unix_listener(str(tmp_path / 'precious'), mode=0o660)
    assert (tmp_path / 'precious').read_text() == 'data'


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        ({'user': 'no-such-user'}, 'metadata_proxy_user = no-such-user: there is no such user'),
        ({'group': 'no-such-group'}, 'metadata_proxy_group = no-such-group: there is no such group'),
    ],
)
def test_unix_socket_with_unknown_owner_or_group_is_refused(path, options, sentence):
    with pytest.raises(ConfigError) as raised:
        listeners.unix_listener(path, mode=0o660, **options)
    assert str(raised.value) == sentence
    assert not os.path.exists(path)


@pytest.mark.parametrize('name', ['file/metadata_proxy', 'file/deeper/metadata_proxy', 'x' * 120])
def test_unix_socket_path_that_cannot_be_created_is_named(tmp_path, name):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ConfigError, match=r'^metadata_proxy_socket = .*: '):
        listeners.unix_listener(str(tmp_path / name), mode=0o660)


@pytest.mark.parametrize(
    ('host', 'client'), [('', '127.0.0.1'), ('', '::1'), ('127.0.0.1', '127.0.0.1'), ('::1', '::1')]
)
def test_tcp_listener_accepts_the_families_of_its_host(host, client):
    with listeners.tcp_listener(host, 0) as listener:
        port = listener.getsockname()[1]
        socket.create_connection((client, port), 5).close()


def test_tcp_port_in_use_is_retried_until_the_timeout():
    slept = []
    with listeners.tcp_listener('127.0.0.1', 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError) as raised:
            listeners.tcp_listener('127.0.0.1', port, timeout_s=0, sleep=slept.append)
    assert str(raised.value) == f'metadata_port: cannot listen on 127.0.0.1 port {port}: Address already in use'
    assert slept == []


def test_tcp_port_of_a_stopping_process_is_retried():
    first = listeners.tcp_listener('127.0.0.1', 0)
    port = first.getsockname()[1]
    with listeners.tcp_listener('127.0.0.1', port, timeout_s=60, sleep=lambda seconds: first.close()) as second:
        assert second.getsockname()[1] == port


@pytest.mark.parametrize('host', ['not an address', '2001:db8::1'])
def test_tcp_address_that_is_not_local_is_named(host):
    with pytest.raises(ConfigError, match=r'^metadata_port: cannot listen on '):
        listeners.tcp_listener(host, 0, timeout_s=0)


MISSING_INTERFACE = 'fe80::a9fe:a9fe%no-interface'


def test_tcp_listener_on_a_link_local_address_that_is_not_usable_yet():
    """Duplicate address detection takes seconds, and IPv4 must not wait for it."""
    with listeners.tcp_listener('fe80::a9fe:a9fe%lo', 0) as listener:
        address, _, _, zone = listener.getsockname()
        assert (address, socket.if_indextoname(zone)) == ('fe80::a9fe:a9fe', 'lo')


def test_tcp_listeners_open_several_addresses(caplog):
    opened = listeners.tcp_listeners(['127.0.0.1', 'fe80::a9fe:a9fe%lo'], 0)
    assert [listener.getsockname()[0] for listener in opened] == ['127.0.0.1', 'fe80::a9fe:a9fe']
    assert caplog.messages == []
    for listener in opened:
        listener.close()


def test_tcp_listeners_warn_about_a_further_address_that_fails(caplog):
    (listener,) = listeners.tcp_listeners(['127.0.0.1', MISSING_INTERFACE], 0)
    assert listener.getsockname()[0] == '127.0.0.1'
    listener.close()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(
        f'Serving 127.0.0.1 only: metadata_port: cannot listen on [{MISSING_INTERFACE}]:0: '
    )


def test_tcp_listeners_raise_if_the_first_address_fails():
    with pytest.raises(ConfigError, match='no-interface'):
        listeners.tcp_listeners([MISSING_INTERFACE, '127.0.0.1'], 0)
