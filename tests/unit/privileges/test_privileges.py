# SPDX-License-Identifier: Apache-2.0
"""Who workers become, and what the filter's program says of each call."""

import errno
import os
import socket
import struct

import pytest

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.privileges import identity, seccomp
from metadata_wsgi.privileges.identity_from_socket import Following

ALLOWED = 0x7FFF0000


def verdict(machine, number, argument=0, architecture=None):
    """Run the program as the kernel would, on one call."""
    data = struct.pack('=IIQQ', number, architecture or seccomp.AUDIT[machine], 0, argument)
    steps = list(struct.iter_unpack('=HBBI', seccomp.program(machine)))
    at, accumulator = 0, 0
    while True:
        code, if_true, if_false, operand = steps[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from('=I', data, operand)
        elif code == 0x06:
            return operand if operand == ALLOWED else errno.errorcode[operand & 0xFFFF]
        else:
            true = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: bool(accumulator & operand)}[code]
            at += if_true if true else if_false


@pytest.mark.parametrize('machine', seccomp.AUDIT)
def test_every_refused_call_is_refused_and_others_are_not(machine):
    column = list(seccomp.AUDIT).index(machine)
    refused = {numbers[column] for numbers in seccomp.REFUSED.values()}
    assert len(refused) == len(seccomp.REFUSED)
    special = {seccomp._CLONE3[column], seccomp._SOCKET[column]}
    for number in range(500):
        if number not in special:
            assert verdict(machine, number) == ('EPERM' if number in refused else ALLOWED), number


def test_what_is_looked_at_in_an_argument():
    assert verdict('x86_64', 56, 0x11) == ALLOWED
    assert verdict('x86_64', 56, 0x10000000 | 0x11) == 'EPERM'
    assert verdict('x86_64', 435) == 'ENOSYS'
    assert [verdict('x86_64', 41, family) for family in (1, 2, 10, 16)] == [ALLOWED] * 4
    assert [verdict('x86_64', 41, family) for family in (0, 17, 38, 40)] == ['EAFNOSUPPORT'] * 4


def test_another_architectures_numbers_are_refused_as_a_whole():
    assert verdict('x86_64', 0, architecture=0x40000003) == 'EPERM'
    assert verdict('x86_64', 0x40000000) == 'EPERM'
    assert verdict('aarch64', 0, architecture=seccomp.AUDIT['x86_64']) == 'EPERM'


def test_the_numbers_of_this_machine_are_the_kernels():
    """execve's and setns's, as the C library knows them."""
    machine = os.uname().machine
    if machine not in seccomp.AUDIT:
        pytest.skip(f'no numbers for {machine}')
    header = {'x86_64': '/usr/include/x86_64-linux-gnu/asm/unistd_64.h', 'aarch64': '/usr/include/asm-generic/unistd.h'}
    if not os.path.exists(header[machine]):
        pytest.skip('the headers of the C library are not installed')
    with open(header[machine]) as file:
        words = [line.split() for line in file]
    known = {line[1].removeprefix('__NR_'): int(line[2]) for line in words if len(line) == 3 and line[2].isdecimal()}
    column = list(seccomp.AUDIT).index(machine)
    for name, numbers in seccomp.REFUSED.items():
        assert known.get(name, numbers[column]) == numbers[column], name


def test_names_and_numbers():
    assert identity.of('root', '') == identity.Identity(0, 0, 'root')
    assert identity.of('0', '') == identity.Identity(0, 0, 'root')
    assert identity.of('root', '7').gid == 7
    assert identity.of('1234567', '7') == identity.Identity(1234567, 7, '1234567')
    assert identity.of('', '') == identity.usual()
    assert identity.usual().uid != 0


@pytest.mark.parametrize(
    ('user', 'group', 'words'),
    [
        ('no-such-user', '', 'metadata_user = no-such-user: there is no such user'),
        ('1234567', '', 'metadata_user = 1234567: no user has that number; name metadata_group too'),
        ('root', 'no-such-group', 'metadata_group = no-such-group: there is no such group'),
    ],
)
def test_nobody_is_a_sentence(user, group, words):
    with pytest.raises(ConfigError) as raised:
        identity.of(user, group)
    assert str(raised.value) == words


def test_who_may_enter_goes_by_the_modes(tmp_path):
    inner = tmp_path / 'a' / 'b'
    inner.mkdir(parents=True)
    for path in (tmp_path, *tmp_path.parents):
        if not path.stat().st_mode & 0o001:
            path.chmod(0o711)
    owner = identity.Identity(os.getuid(), os.getgid(), 'us')
    other = identity.Identity(12345, 12345, 'other')
    assert identity.may_enter(other, str(inner))
    inner.parent.chmod(0o750)
    assert not identity.may_enter(other, str(inner))
    assert identity.may_enter(identity.Identity(12345, os.getgid(), 'in the group'), str(inner))
    assert identity.may_enter(owner, str(inner))
    assert identity.may_enter(other, str(tmp_path / 'not there' / 'yet'))


@pytest.fixture
def path(tmp_path):
    """Of the agent's socket, in a directory that everybody may pass through."""
    for directory in (tmp_path, *tmp_path.parents):
        if not directory.stat().st_mode & 0o001:
            directory.chmod(0o711)
    return tmp_path / 'metadata_proxy'


@pytest.fixture
def listen(path):
    """Makes the socket anew, as the agent does; returns how to end it, which leaves the file."""
    opened = []

    def listen(mode, *, living=True):
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        opened.append(listener)
        listener.bind(str(path))
        path.chmod(mode)
        if living:
            listener.listen()
        return listener.close

    yield listen
    for listener in opened:
        listener.close()


OTHER = identity.Identity(12345, 12346, 'other')


def test_a_socket_that_is_not_there_yet_is_followed_when_it_comes(path, listen):
    follow = Following(str(path), OTHER)
    assert follow() == OTHER
    listen(0o600)
    assert follow().uid == os.geteuid()


def test_workers_stay_who_they_are_while_the_agent_is_away(path, listen):
    end = listen(0o600)
    follow = Following(str(path), OTHER)
    before = follow()
    assert before != OTHER
    end()
    assert follow() == before
    path.unlink()
    assert follow() == before
    listen(0o666)
    assert follow() == OTHER


def test_an_agent_that_opens_its_socket_further_is_followed(path, listen):
    listen(0o600)
    follow = Following(str(path), OTHER)
    assert follow() != OTHER
    path.chmod(0o666)
    assert follow() == OTHER


@pytest.mark.parametrize('mode', [0o600, 0o660])
def test_a_socket_on_which_nobody_listens_says_nothing(path, listen, mode):
    listen(mode, living=False)
    assert Following(str(path), OTHER)() == OTHER


def test_nothing_is_followed_that_is_no_socket(path):
    path.touch(0o600)
    assert Following(str(path), OTHER)() == OTHER


def test_the_agent_notices_one_connection_for_each_socket_of_its(path):
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(path))
        agent.listen()
        agent.setblocking(False)
        follow = Following(str(path), OTHER)
        for _ in range(3):
            follow()
        agent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            agent.accept()
