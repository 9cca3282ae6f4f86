# SPDX-License-Identifier: Apache-2.0
"""The identity of workers, and the verdict of the seccomp filter on each system call."""

import errno
import os
import socket
import struct

import pytest

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.privileges import identity, seccomp
from metadata_wsgi.privileges.identity_from_socket import IdentityFromSocket

ALLOWED = 0x7FFF0000


def verdict(machine, number, argument=0, architecture=None):
    """Run the BPF program on one system call, as the kernel would."""
    data = struct.pack('=IIQQ', number, architecture or seccomp.AUDIT_ARCH[machine], 0, argument)
    instructions = list(struct.iter_unpack('=HBBI', seccomp.bpf_program(machine)))
    at, accumulator = 0, 0
    while True:
        code, if_true, if_false, operand = instructions[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from('=I', data, operand)
        elif code == 0x06:
            return operand if operand == ALLOWED else errno.errorcode[operand & 0xFFFF]
        else:
            true = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: bool(accumulator & operand)}[code]
            at += if_true if true else if_false


@pytest.mark.parametrize('machine', seccomp.AUDIT_ARCH)
def test_seccomp_denies_the_listed_calls_only(machine):
    column = list(seccomp.AUDIT_ARCH).index(machine)
    denied = {numbers[column] for numbers in seccomp.DENIED.values()}
    assert len(denied) == len(seccomp.DENIED)
    special = {seccomp._CLONE3[column], seccomp._SOCKET[column]}
    for number in range(500):
        if number not in special:
            assert verdict(machine, number) == ('EPERM' if number in denied else ALLOWED), number


def test_seccomp_checks_clone_flags_and_socket_family():
    assert verdict('x86_64', 56, 0x11) == ALLOWED
    assert verdict('x86_64', 56, 0x10000000 | 0x11) == 'EPERM'
    assert verdict('x86_64', 435) == 'ENOSYS'
    assert [verdict('x86_64', 41, family) for family in (1, 2, 10, 16)] == [ALLOWED] * 4
    assert [verdict('x86_64', 41, family) for family in (0, 17, 38, 40)] == ['EAFNOSUPPORT'] * 4


def test_seccomp_denies_calls_of_another_architecture():
    assert verdict('x86_64', 0, architecture=0x40000003) == 'EPERM'
    assert verdict('x86_64', 0x40000000) == 'EPERM'
    assert verdict('aarch64', 0, architecture=seccomp.AUDIT_ARCH['x86_64']) == 'EPERM'


def test_seccomp_call_numbers_are_those_of_the_c_library():
    """Compared with the header files, if they are installed."""
    machine = os.uname().machine
    if machine not in seccomp.AUDIT_ARCH:
        pytest.skip(f'no numbers for {machine}')
    header = {'x86_64': '/usr/include/x86_64-linux-gnu/asm/unistd_64.h', 'aarch64': '/usr/include/asm-generic/unistd.h'}
    if not os.path.exists(header[machine]):
        pytest.skip('the headers of the C library are not installed')
    with open(header[machine]) as file:
        words = [line.split() for line in file]
    known = {line[1].removeprefix('__NR_'): int(line[2]) for line in words if len(line) == 3 and line[2].isdecimal()}
    column = list(seccomp.AUDIT_ARCH).index(machine)
    for name, numbers in seccomp.DENIED.items():
        assert known.get(name, numbers[column]) == numbers[column], name


def test_identity_of_names_and_numbers():
    assert identity.resolve('root', '') == identity.Identity(0, 0, 'root')
    assert identity.resolve('0', '') == identity.Identity(0, 0, 'root')
    assert identity.resolve('root', '7').gid == 7
    assert identity.resolve('1234567', '7') == identity.Identity(1234567, 7, '1234567')
    assert identity.resolve('', '') == identity.default_identity()
    assert identity.default_identity().uid != 0


@pytest.mark.parametrize(
    ('user', 'group', 'words'),
    [
        ('no-such-user', '', 'metadata_user = no-such-user: there is no such user'),
        ('1234567', '', 'metadata_user = 1234567: no user has that number; name metadata_group too'),
        ('root', 'no-such-group', 'metadata_group = no-such-group: there is no such group'),
    ],
)
def test_unknown_user_or_group_is_named_with_its_option(user, group, words):
    with pytest.raises(ConfigError) as raised:
        identity.resolve(user, group)
    assert str(raised.value) == words


def test_can_traverse_by_the_mode_bits(reachable_path):
    inner = reachable_path / 'a' / 'b'
    inner.mkdir(parents=True)
    owner = identity.Identity(os.getuid(), os.getgid(), 'own')
    other = identity.Identity(12345, 12345, 'other')
    assert identity.can_traverse(other, str(inner))
    inner.parent.chmod(0o750)
    assert not identity.can_traverse(other, str(inner))
    assert identity.can_traverse(identity.Identity(12345, os.getgid(), 'in the group'), str(inner))
    assert identity.can_traverse(owner, str(inner))
    assert identity.can_traverse(other, str(reachable_path / 'not there' / 'yet'))


@pytest.fixture
def path(reachable_path):
    """Path of the agent's socket, in a directory that every user may search."""
    return reachable_path / 'metadata_proxy'


OWNER_UID = os.geteuid() or 54321


@pytest.fixture
def listen(path):
    """Creates the socket as the agent does; returns a function that closes it and leaves the file."""
    opened = []

    def listen(mode, *, live=True, owner=OWNER_UID):
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        opened.append(listener)
        listener.bind(str(path))
        os.chown(path, owner, -1)
        path.chmod(mode)
        if live:
            listener.listen()
        return listener.close

    yield listen
    for listener in opened:
        listener.close()


OTHER = identity.Identity(12345, 12346, 'other')


@pytest.mark.skipif(os.geteuid() != 0, reason='makes a socket of root: run it as root')
def test_identity_is_never_root_where_only_root_may_connect(path, listen, caplog):
    """uid 0 without capabilities may still write what belongs to root."""
    listen(0o600, owner=0)
    assert IdentityFromSocket(str(path), OTHER)() == OTHER
    assert f'Clients will get 503: only root may connect to {path}' in caplog.text


def test_identity_is_never_root_where_a_directory_may_not_be_searched(path, listen, caplog):
    listen(0o666)
    path.parent.chmod(0o700)
    assert IdentityFromSocket(str(path), OTHER)() == OTHER
    assert f'Clients will get 503: the user other may not enter {path.parent}' in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason='only root may start workers as another user')
@pytest.mark.parametrize('user', ['root', '0'])
def test_root_is_refused_as_user_of_workers(user):
    with pytest.raises(ConfigError, match=f'^metadata_user = {user}: workers parse client data and never run as root'):
        identity.resolve_workers(user, '')


def test_identity_changes_when_the_socket_appears(path, listen):
    current = IdentityFromSocket(str(path), OTHER)
    assert current() == OTHER
    listen(0o600)
    assert current().uid == OWNER_UID


def test_identity_stays_while_the_agent_is_unavailable(path, listen):
    end = listen(0o600)
    current = IdentityFromSocket(str(path), OTHER)
    before = current()
    assert before != OTHER
    end()
    assert current() == before
    path.unlink()
    assert current() == before
    listen(0o666)
    assert current() == OTHER


def test_identity_changes_with_the_mode_of_the_socket(path, listen):
    listen(0o600)
    current = IdentityFromSocket(str(path), OTHER)
    assert current() != OTHER
    path.chmod(0o666)
    assert current() == OTHER


@pytest.mark.parametrize('mode', [0o600, 0o660])
def test_stale_socket_does_not_change_the_identity(path, listen, mode):
    listen(mode, live=False)
    assert IdentityFromSocket(str(path), OTHER)() == OTHER


def test_regular_file_does_not_change_the_identity(path):
    path.touch(0o600)
    assert IdentityFromSocket(str(path), OTHER)() == OTHER


def test_probe_connects_once_for_each_new_socket(path):
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(path))
        agent.listen()
        agent.setblocking(False)
        current = IdentityFromSocket(str(path), OTHER)
        for _ in range(3):
            current()
        agent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            agent.accept()


def test_symlink_in_place_of_the_socket_does_not_change_the_identity(path, listen, tmp_path):
    """The owner of the directory could let workers join the group of another daemon's socket, e.g. docker."""
    listen(0o600)
    path.rename(tmp_path / 'docker.sock')
    path.symlink_to(tmp_path / 'docker.sock')
    assert IdentityFromSocket(str(path), OTHER)() == OTHER
