# SPDX-License-Identifier: Apache-2.0
"""Who may speak to the real agent's socket: other users try, with its mode in their way and without."""

import os
import stat

import pytest

from metadata_wsgi.privileges import identity
from tests.e2e.conftest import BIN, UnixConnection, answers, eventually, request
from tests.e2e.test_agent import GUEST, start_gunicorn_by_hand

pytestmark = pytest.mark.netns


def ask_as(uid, gid, path):
    """The status that this user hears, or 'closed' where the socket's mode keeps it out."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.write(writing, str(request(UnixConnection(path), 'GET', '/', GUEST)[0]).encode())
        except PermissionError:
            os.write(writing, b'closed')
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        heard = said.read()
    os.waitpid(child, 0)
    return heard


def test_by_default_root_and_the_workers_user_may(agent, cloud):
    program = agent()
    usual = identity.usual()
    assert ask_as(0, 0, cloud.socket) == '200'
    assert ask_as(usual.uid, usual.gid, cloud.socket) == '200'
    assert ask_as(12345, 12345, cloud.socket) == 'closed'
    # Opened too wide by somebody: the kernel still says who it is.
    cloud.socket.chmod(0o666)
    assert ask_as(12345, 12345, cloud.socket) == '403'
    assert 'of uid 12345, gid 12345: only namespace proxies may speak to the agent' in program.text()
    assert ask_as(usual.uid, usual.gid, cloud.socket) == '200'


def test_the_proxys_user_and_the_named_ones_may(agent, cloud):
    cloud.configure(metadata_proxy_user=12348, metadata_peer_users='12350', metadata_peer_groups='12351')
    agent()
    assert stat.S_IMODE(cloud.socket.stat().st_mode) == 0o600
    assert ask_as(12348, 12348, cloud.socket) == '200'
    cloud.socket.chmod(0o666)
    assert [ask_as(uid, gid, cloud.socket) for uid, gid in ((12350, 1), (1, 12351), (1, 1))] == ['200', '200', '403']


def test_under_gunicorn_by_hand_it_is_the_same(start, cloud, directory):
    path = start_gunicorn_by_hand(lambda *argv: start('gunicorn', BIN / argv[0], *argv[1:]), cloud, directory, 'gevent')
    path.chmod(0o666)
    assert ask_as(0, 0, path) == '200'
    assert ask_as(12345, 12345, path) == '403'


def test_the_socket_is_never_open_to_more_than_it_should_be(start, cloud, directory):
    """Every call that makes it, in order: it is bound closed, then owned, then opened."""
    trace = directory / 'trace'
    program = start(
        'agent', 'strace', '-f', '-o', trace, '-e', 'trace=umask,bind,chown,chmod,listen',
        BIN / 'quantum-metadata-agent', '--config-file', cloud.conf_file,
    )  # fmt: skip
    eventually(lambda: program.process.poll() is not None or answers(cloud.socket), 'the agent listens')
    lines = [line.split(maxsplit=1)[1] for line in trace.read_text().splitlines() if 'exited' not in line]
    bound = next(n for n, line in enumerate(lines) if line.startswith('bind(') and 'metadata_proxy' in line)
    calls = [line.partition('(')[0] for line in lines[bound - 1 : bound + 5]]
    assert calls == ['umask', 'bind', 'chown', 'chmod', 'umask', 'listen']
    assert lines[bound - 1].startswith('umask(0177)')
    assert '0660' in lines[bound + 2]
