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
def test_the_mode_is_deduced_from_owner_and_group(name, user, group, bits):
    assert listeners.mode(name, user, group) == bits


@pytest.mark.parametrize('bits', [0o600, 0o660, 0o666])
def test_the_socket_has_its_mode_and_owner(path, bits):
    with listeners.unix_listener(path, mode=bits, user=str(os.getuid()), group=str(os.getgid())):
        found = os.stat(path)
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (bits, os.getuid(), os.getgid())


def test_the_umask_is_as_it_was(path):
    before = os.umask(0o027)
    try:
        listeners.unix_listener(path, mode=0o660).close()
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_a_stale_socket_is_replaced(path):
    listeners.unix_listener(path, mode=0o660).close()
    assert os.path.exists(path)
    with listeners.unix_listener(path, mode=0o660), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


@pytest.mark.parametrize('queued', [0, 3], ids=['idle', 'with a full queue'])
def test_a_living_one_is_refused(path, queued):
    with listeners.unix_listener(path, mode=0o660, backlog=1):
        clients = [socket.socket(socket.AF_UNIX) for _ in range(queued)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(path)
        with pytest.raises(ConfigError) as raised:
            listeners.unix_listener(path, mode=0o660, patience_s=0)
        for client in clients:
            client.close()
    assert str(raised.value) == (
        f'metadata_proxy_socket = {path}: another agent is running and listens there; '
        'stop it first, or name another path'
    )


def test_one_that_is_on_its_way_out_is_waited_for(path):
    """After a SIGKILL of the agent's master its workers listen for up to a second more."""
    dying = listeners.unix_listener(path, mode=0o660)
    with listeners.unix_listener(path, mode=0o660, patience_s=60, sleep=lambda seconds: dying.close()):
        pass


def test_what_is_no_socket_is_left_alone(tmp_path):
    (tmp_path / 'precious').write_text('data')
    with pytest.raises(ConfigError, match='is there and is no socket; name another path or remove it'):
        listeners.unix_listener(str(tmp_path / 'precious'), mode=0o660)
    assert (tmp_path / 'precious').read_text() == 'data'


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        ({'user': 'nobody-of-that-name'}, 'metadata_proxy_user = nobody-of-that-name: there is no such user'),
        ({'group': 'none-of-that-name'}, 'metadata_proxy_group = none-of-that-name: there is no such group'),
    ],
)
def test_an_owner_that_does_not_exist_is_named(path, options, sentence):
    with pytest.raises(ConfigError) as raised:
        listeners.unix_listener(path, mode=0o660, **options)
    assert str(raised.value) == sentence
    assert not os.path.exists(path)


@pytest.mark.parametrize('name', ['file/metadata_proxy', 'file/deeper/metadata_proxy', 'x' * 120])
def test_a_place_where_none_can_be_is_named(tmp_path, name):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ConfigError, match=r'^metadata_proxy_socket = .*: '):
        listeners.unix_listener(str(tmp_path / name), mode=0o660)


@pytest.mark.parametrize(
    ('host', 'client'), [('', '127.0.0.1'), ('', '::1'), ('127.0.0.1', '127.0.0.1'), ('::1', '::1')]
)
def test_a_port_is_open_to_the_families_it_names(host, client):
    with listeners.tcp_listener(host, 0) as listener:
        port = listener.getsockname()[1]
        socket.create_connection((client, port), 5).close()


def test_a_port_that_is_taken_is_asked_for_until_patience_ends():
    slept = []
    with listeners.tcp_listener('127.0.0.1', 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError) as raised:
            listeners.tcp_listener('127.0.0.1', port, patience_s=0, sleep=slept.append)
    assert str(raised.value) == f'metadata_port: cannot listen on 127.0.0.1 port {port}: Address already in use'
    assert slept == []


def test_a_predecessor_on_its_way_out_is_waited_for():
    first = listeners.tcp_listener('127.0.0.1', 0)
    port = first.getsockname()[1]
    with listeners.tcp_listener('127.0.0.1', port, patience_s=60, sleep=lambda seconds: first.close()) as second:
        assert second.getsockname()[1] == port


@pytest.mark.parametrize('host', ['not an address', '2001:db8::1'])
def test_an_address_that_is_none_of_ours_is_named(host):
    with pytest.raises(ConfigError, match=r'^metadata_port: cannot listen on '):
        listeners.tcp_listener(host, 0, patience_s=0)


NOWHERE = 'fe80::a9fe:a9fe%no-interface'


def test_a_link_local_address_is_listened_on_before_the_kernel_lets_it_be_used():
    """Its check takes seconds, and IPv4 must not wait for it; also it may come and go."""
    with listeners.tcp_listener('fe80::a9fe:a9fe%lo', 0) as listener:
        address, _, _, zone = listener.getsockname()
        assert (address, socket.if_indextoname(zone)) == ('fe80::a9fe:a9fe', 'lo')


def test_several_addresses_are_listened_on(caplog):
    opened = listeners.tcp_listeners(['127.0.0.1', 'fe80::a9fe:a9fe%lo'], 0)
    assert [listener.getsockname()[0] for listener in opened] == ['127.0.0.1', 'fe80::a9fe:a9fe']
    assert caplog.messages == []
    for listener in opened:
        listener.close()


def test_a_further_address_that_cannot_be_had_is_a_warning(caplog):
    (listener,) = listeners.tcp_listeners(['127.0.0.1', NOWHERE], 0)
    assert listener.getsockname()[0] == '127.0.0.1'
    listener.close()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f'Serving 127.0.0.1 only: metadata_port: cannot listen on [{NOWHERE}]:0: ')


def test_the_first_address_must_be_there():
    with pytest.raises(ConfigError, match='no-interface'):
        listeners.tcp_listeners([NOWHERE, '127.0.0.1'], 0)
