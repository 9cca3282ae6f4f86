# SPDX-License-Identifier: Apache-2.0
"""``watch`` and ``status`` on a host of their own: a mount namespace with an empty /run/netns, so that no namespace of
the machine is attached."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.e2e.conftest import eventually
from tests.fake_systemd import FakeSystemd

pytestmark = pytest.mark.netns

PROGRAM = str(Path(sys.prefix, 'bin', 'metadata-wsgi'))
EMPTY = 'mkdir -p /run/netns && mount -t tmpfs none /run/netns && exec "$@"'


class Host:
    def __init__(self, state_path):
        self.state_path = state_path
        self._log = (state_path / 'watch.log').open('ab')
        self._mount_holder = self._start(['sleep', '600'])
        self.watch = None
        self.programs = []

    def start(self, name, *argv):
        """One of our programs, ended with the test."""
        program = self._start_inside(str(Path(sys.prefix, 'bin', name)), *argv)
        self.programs.append(program)
        return program

    def start_keeper(self):
        for name in ('keeper', 'listeners'):
            (self.state_path / name).unlink(missing_ok=True)
        keeper = self.start('metadata-wsgi', 'keeper', f'--state-path={self.state_path}')
        eventually((self.state_path / 'listeners').exists, self.log)
        return keeper

    def _start_inside(self, *argv):
        return subprocess.Popen(self.inside(*argv), stdout=self._log, stderr=subprocess.STDOUT)

    def _start(self, argv):
        words = ['unshare', '--mount', '--propagation', 'private', 'sh', '-c', EMPTY, 'sh', *argv]
        return subprocess.Popen(words, stdout=self._log, stderr=subprocess.STDOUT)

    def inside(self, *argv):
        return ['nsenter', f'--target={self._mount_holder.pid}', '--mount', *argv]

    def run(self, *argv, check=True):
        return subprocess.run(self.inside(*argv), check=check, capture_output=True, text=True)

    def is_made(self):
        """The shell becomes ``sleep`` once the mount is there."""
        return Path(f'/proc/{self._mount_holder.pid}/comm').read_text() == 'sleep\n'

    def watching(self, *argv, mode='process'):
        """Start watch; ``mode`` '' leaves the mode open."""
        if mode and '--' not in argv:
            argv = (*argv, '--', f'--mode={mode}')
        self.watch = self._start_inside(PROGRAM, 'watch', f'--state-path={self.state_path}', '--interval=0.2', *argv)

    def stop(self):
        self.watch.send_signal(signal.SIGTERM)
        return self.watch.wait(20)

    def log(self):
        return (self.state_path / 'watch.log').read_text()

    def pid(self, router):
        try:
            return int((self.state_path / 'external' / 'pids' / f'{router}.pid').read_text())
        except (FileNotFoundError, ValueError):
            return None

    def rules(self, router):
        return self.run('ip', 'netns', 'exec', f'qrouter-{router}', 'iptables-save').stdout

    def status(self):
        done = self.run(PROGRAM, 'status', f'--state-path={self.state_path}', check=False)
        return re.search(r'^attached +(.*)$', done.stdout, re.MULTILINE)[1], done.stdout

    def end(self):
        if self.watch and self.watch.poll() is None:
            self.stop()
        for program in self.programs:
            if program.poll() is None:
                program.terminate()
            program.wait(20)
        for file in self.state_path.glob('external/pids/*.pid'):
            self.run(PROGRAM, 'detach', f'--router-id={file.stem}', f'--state-path={self.state_path}', check=False)
        self._kill_daemons()
        self._mount_holder.kill()
        self._mount_holder.wait()
        self._log.close()

    def _kill_daemons(self):
        """Keeper and shared proxy, if ``watch`` started them."""
        for directory in Path('/proc').glob('[0-9]*'):
            with contextlib.suppress(OSError):
                words = (directory / 'cmdline').read_bytes().split(b'\0')
                if any(str(self.state_path).encode() in word for word in words) and int(directory.name) != os.getpid():
                    os.kill(int(directory.name), signal.SIGKILL)


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path)
    try:
        eventually(host.is_made, 'it has a /run/netns of its own')
        yield host
    finally:
        host.end()


def test_watch_attaches_new_routers_and_detaches_deleted_ones(host):
    one, other = str(uuid.uuid4()), str(uuid.uuid4())
    host.run('ip', 'netns', 'add', f'qrouter-{one}')
    host.run('ip', 'netns', 'add', 'foreign')
    host.watching()
    eventually(lambda: f'router {one}: attached' in host.log(), host.log)
    assert '--to-ports 9697' in host.rules(one)

    host.run('ip', 'netns', 'add', f'qrouter-{other}')
    eventually(lambda: f'router {other}: attached' in host.log(), host.log)
    assert host.status()[0] == '2 routers and networks, 0 of them with problems: 2 in mode process'

    pid = host.pid(one)
    host.run('ip', 'netns', 'delete', f'qrouter-{one}')
    eventually(lambda: f'router {one}: detached' in host.log(), host.log)
    assert (host.pid(one), os.path.exists(f'/proc/{pid}/root')) == (None, False)

    # Ended, it leaves what is there; the next one adopts it.
    pid = host.pid(other)
    assert host.stop() == 0
    assert host.status()[0] == '1 routers and networks, 0 of them with problems: 1 in mode process'
    host.watching()
    eventually(lambda: host.log().count(f'router {other}: attached') == 2, host.log)
    assert host.pid(other) == pid
    assert 'foreign' not in host.log()


def test_killed_namespace_proxy_is_started_again_at_once(host):
    router = str(uuid.uuid4())
    host.run('ip', 'netns', 'add', f'qrouter-{router}')
    # So long that neither a listing nor a full reconciliation ends the test.
    host.watching('--interval=600', '--again=3600', '--', '--mode=process')
    eventually(lambda: f'router {router}: attached' in host.log(), host.log)
    killed = host.pid(router)
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: host.pid(router) not in (None, killed), host.log)
    eventually(lambda: host.log().count(f'router {router}: attached') == 2, host.log)
    assert f'router {router}: its namespace proxy has ended' in host.log()
    assert is_well(host, 'process')


def test_router_deleted_while_watch_was_stopped_is_detached(host):
    router = str(uuid.uuid4())
    host.run('ip', 'netns', 'add', f'qrouter-{router}')
    host.watching()
    eventually(lambda: f'router {router}: attached' in host.log(), host.log)
    host.stop()
    host.run('ip', 'netns', 'exec', f'qrouter-{router}', 'iptables', '-t', 'nat', '-F')
    summary, everything = host.status()
    assert summary == '1 routers and networks, 1 of them with problems: 1 in mode process'
    assert 'the rules are only partly there; attach it again' in everything
    host.run('ip', 'netns', 'delete', f'qrouter-{router}')
    host.watching()
    eventually(lambda: f'router {router}: detached' in host.log(), host.log)
    assert host.pid(router) is None


def flush(host, router):
    host.run('ip', 'netns', 'exec', f'qrouter-{router}', 'iptables', '-t', 'nat', '-F')


def is_well(host, mode):
    """Whether ``status`` shows the one router in that mode, without problems."""
    return host.status()[0] == f'1 routers and networks, 0 of them with problems: 1 in mode {mode}'


def test_watch_repairs_mode_shared_and_logs_it(host):
    router = str(uuid.uuid4())
    host.run('ip', 'netns', 'add', f'qrouter-{router}')
    keeper = host.start_keeper()
    host.watching('--again=0.5', '--', '--mode', 'shared')
    eventually(lambda: f'router {router}: attached' in host.log(), host.log)
    assert host.log().count('start quantum-ns-metadata-proxy --shared') == 1
    output = host.status()[1]
    assert f'keeper      pid {keeper.pid} has the sockets of 1 routers and networks' in output
    assert output.count('! no worker serves the sockets of mode shared') == 1
    assert is_well(host, 'shared')

    flush(host, router)
    eventually(lambda: host.log().count(f'router {router}: rules were added') == 2, host.log)
    # The keeper must not end in the middle of this attach.
    eventually(lambda: is_well(host, 'shared'), host.log)
    assert '--to-ports 9697' in host.rules(router)

    # It keeps nothing on a disk, and no worker has the socket.
    keeper.kill()
    keeper.wait()
    host.start_keeper()
    # The keeper may have ended in the middle of an attach, which is repeated. Then watch does not log that it has no
    # socket.
    served_again = f'router {router}: is now served in mode shared'
    eventually(lambda: host.log().count(served_again) == 2, host.log)
    eventually(lambda: is_well(host, 'shared'), host.log)

    host.run('ip', 'netns', 'delete', f'qrouter-{router}')
    host.run('ip', 'netns', 'add', f'qrouter-{router}')
    eventually(lambda: host.log().count(f'router {router}: rules were added') == 3, host.log)
    eventually(lambda: is_well(host, 'shared'), host.log)


def test_watch_keeps_the_last_known_mode(host):
    router = str(uuid.uuid4())
    host.run('ip', 'netns', 'add', f'qrouter-{router}')
    keeper = host.start_keeper()
    by_hand = (f'--router-id={router}', f'--state-path={host.state_path}')
    host.run(PROGRAM, 'attach', '--mode=one_hop', *by_hand)
    host.watching('--again=0.5', mode='')
    eventually(lambda: f'router {router}: attached' in host.log(), host.log)
    keeper.kill()
    keeper.wait()
    output = host.run(PROGRAM, 'status', f'--state-path={host.state_path}', check=False)
    assert (output.returncode, 'start metadata-wsgi keeper' in output.stdout) == (1, True)
    assert '1 in mode unknown' in output.stdout
    eventually(lambda: f'router {router}: no keeper listens' in host.log(), host.log)
    assert host.pid(router) is None
    host.start_keeper()
    eventually(lambda: is_well(host, 'one_hop'), host.log)

    host.run(PROGRAM, 'attach', '--mode=process', *by_hand)
    eventually(lambda: is_well(host, 'process'), host.log)
    pid = host.pid(router)
    flush(host, router)
    eventually(lambda: is_well(host, 'process'), host.log)
    assert host.pid(router) == pid


def test_router_of_unknown_mode_waits_for_the_keeper(host):
    router = str(uuid.uuid4())
    host.run('ip', 'netns', 'add', f'qrouter-{router}')
    keeper = host.start_keeper()
    host.run(PROGRAM, 'attach', '--mode=shared', f'--router-id={router}', f'--state-path={host.state_path}')
    keeper.kill()
    keeper.wait()
    host.watching(mode='')
    eventually(lambda: f'router {router}: no keeper listens' in host.log(), host.log)
    assert host.pid(router) is None
    host.start_keeper()
    eventually(lambda: f'router {router}: attached' in host.log(), host.log)


def test_watch_notifies_systemd_of_its_start_its_state_and_its_progress(host, tmp_path, monkeypatch):
    systemd = FakeSystemd(str(tmp_path / 'notify'))
    monkeypatch.setenv('NOTIFY_SOCKET', str(tmp_path / 'notify'))
    monkeypatch.setenv('WATCHDOG_USEC', '1000000')
    received = []

    def has_received(*lines):
        received.extend(systemd.received())
        return lines in received

    try:
        host.run('ip', 'netns', 'add', 'qrouter-watched')
        host.watching()
        eventually(
            lambda: has_received('STATUS=1 routers and networks are attached'), lambda: f'{received}{host.log()}'
        )
        assert received[0] == ('READY=1', 'STATUS=Attaching what is there')
        assert ('WATCHDOG=1',) in received
        assert host.stop() == 0
        assert has_received('STOPPING=1', 'STATUS=Stopping')
    finally:
        systemd.close()
