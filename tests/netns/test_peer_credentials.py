# SPDX-License-Identifier: Apache-2.0
"""Which users may connect to the agent's socket, with its file mode and without."""

import os
import re
import stat

import pytest

from metadata_wsgi.privileges import identity
from tests.e2e.conftest import BIN, UnixConnection, accepts_connections, eventually, request
from tests.e2e.test_agent import GUEST, start_gunicorn_by_hand

pytestmark = pytest.mark.netns


def status_as(uid, gid, path):
    """The status of a request by this user, or 'closed' if the socket's mode denies access."""
    read_end, write_end = os.pipe()
    if not (child := os.fork()):
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.write(write_end, str(request(UnixConnection(path), 'GET', '/', GUEST)[0]).encode())
        except PermissionError:
            os.write(write_end, b'closed')
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        status = pipe.read()
    os.waitpid(child, 0)
    return status


def test_peer_credentials_default_is_root_and_the_workers_own_user_but_not_nobody(agent, cloud):
    """Without a user metadata-wsgi the workers run as nobody, as other programs do."""
    cloud.configure(metadata_peer_users=None)
    program = agent()
    default = identity.default_identity()
    default_status = '403' if default.name == 'nobody' else '200'
    assert status_as(0, 0, cloud.socket) == '200'
    assert status_as(default.uid, default.gid, cloud.socket) == default_status
    assert status_as(12345, 12345, cloud.socket) == 'closed'
    # With a wider mode the peer's uid still decides.
    cloud.socket.chmod(0o666)
    assert status_as(12345, 12345, cloud.socket) == '403'
    assert 'gid 12345: only namespace proxies' in program.text() or default.name == 'nobody'
    assert status_as(default.uid, default.gid, cloud.socket) == default_status


def test_peer_credentials_of_the_proxy_user_and_configured_users(agent, cloud):
    cloud.configure(metadata_proxy_user=12348, metadata_peer_users='12350', metadata_peer_groups='12351')
    agent()
    assert stat.S_IMODE(cloud.socket.stat().st_mode) == 0o600
    assert status_as(12348, 12348, cloud.socket) == '200'
    cloud.socket.chmod(0o666)
    assert [status_as(uid, gid, cloud.socket) for uid, gid in ((12350, 1), (1, 12351), (1, 1))] == ['200', '200', '403']


def test_peer_credentials_under_plain_gunicorn(start, cloud, directory):
    path = start_gunicorn_by_hand(lambda *argv: start('gunicorn', BIN / argv[0], *argv[1:]), cloud, directory, 'gevent')
    path.chmod(0o666)
    assert status_as(0, 0, path) == '200'
    assert status_as(12345, 12345, path) == '403'


def test_unix_socket_is_created_closed_and_opened_last(start, cloud, directory):
    """The system calls in order: bound with mode 0600, then group, mode, owner."""
    trace = directory / 'trace'
    program = start(
        'agent', 'strace', '-f', '-o', trace, '-e', 'trace=fchmod,bind,chown,chmod,listen',
        BIN / 'quantum-metadata-agent', '--config-file', cloud.conf_file,
    )  # fmt: skip
    eventually(lambda: program.process.poll() is not None or accepts_connections(cloud.socket), 'the agent listens')
    # strace writes a line after the call.
    written = re.compile(r'bind\([^\n]*metadata_proxy.*\n\d+ +listen\([^\n]*= 0\n', re.DOTALL)
    eventually(lambda: written.search(trace.read_text()), trace.read_text)
    lines = [line.split(maxsplit=1)[1] for line in trace.read_text().splitlines() if 'exited' not in line]
    bound = next(n for n, line in enumerate(lines) if line.startswith('bind(') and 'metadata_proxy' in line)
    calls = [line.partition('(')[0] for line in lines[bound - 1 : bound + 5]]
    assert calls == ['fchmod', 'bind', 'chown', 'chmod', 'chown', 'listen']
    assert '0600' in lines[bound - 1]
    assert '0660' in lines[bound + 2]
