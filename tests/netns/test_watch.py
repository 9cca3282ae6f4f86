# SPDX-License-Identifier: Apache-2.0
"""``watch`` and ``status`` on a host of their own: a mount namespace with an empty /run/netns, so that no namespace of
the machine is attached."""

import os
import re
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.e2e.conftest import eventually

pytestmark = pytest.mark.netns

PROGRAM = str(Path(sys.prefix, 'bin', 'metadata-wsgi'))
EMPTY = 'mkdir -p /run/netns && mount -t tmpfs none /run/netns && exec "$@"'


class Host:
    def __init__(self, state_path):
        self.state_path = state_path
        self._log = (state_path / 'watch.log').open('ab')
        self._keeper = self._start(['sleep', '600'])
        self.watch = None

    def _start(self, argv):
        words = ['unshare', '--mount', '--propagation', 'private', 'sh', '-c', EMPTY, 'sh', *argv]
        return subprocess.Popen(words, stdout=self._log, stderr=subprocess.STDOUT)

    def inside(self, *argv):
        return ['nsenter', f'--target={self._keeper.pid}', '--mount', *argv]

    def run(self, *argv, check=True):
        return subprocess.run(self.inside(*argv), check=check, capture_output=True, text=True)

    def is_made(self):
        """The shell becomes ``sleep`` once the mount is there."""
        return Path(f'/proc/{self._keeper.pid}/comm').read_text() == 'sleep\n'

    def watching(self):
        argv = self.inside(PROGRAM, 'watch', f'--state-path={self.state_path}', '--interval=0.2')
        self.watch = subprocess.Popen(argv, stdout=self._log, stderr=subprocess.STDOUT)

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
        for file in self.state_path.glob('external/pids/*.pid'):
            self.run(PROGRAM, 'detach', f'--router-id={file.stem}', f'--state-path={self.state_path}', check=False)
        self._keeper.kill()
        self._keeper.wait()
        self._log.close()


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path)
    try:
        eventually(host.is_made, 'it has a /run/netns of its own')
        yield host
    finally:
        host.end()


def test_routers_are_attached_as_they_come_and_detached_as_they_go(host):
    one, other = str(uuid.uuid4()), str(uuid.uuid4())
    host.run('ip', 'netns', 'add', f'qrouter-{one}')
    host.run('ip', 'netns', 'add', 'somebody-elses')
    host.watching()
    eventually(lambda: f'router {one}: attached' in host.log(), host.log)
    assert '--to-ports 9697' in host.rules(one)

    host.run('ip', 'netns', 'add', f'qrouter-{other}')
    eventually(lambda: f'router {other}: attached' in host.log(), host.log)
    assert host.status()[0] == '2 routers and networks, 0 of them only half'

    pid = host.pid(one)
    host.run('ip', 'netns', 'delete', f'qrouter-{one}')
    eventually(lambda: f'router {one}: detached' in host.log(), host.log)
    assert (host.pid(one), os.path.exists(f'/proc/{pid}/root')) == (None, False)

    # Ended, it leaves what is there; the next one adopts it.
    pid = host.pid(other)
    assert host.stop() == 0
    assert host.status()[0] == '1 routers and networks, 0 of them only half'
    host.watching()
    eventually(lambda: host.log().count(f'router {other}: attached') == 2, host.log)
    assert host.pid(other) == pid
    assert 'somebody-elses' not in host.log()


def test_what_went_while_nobody_watched_is_detached(host):
    router = str(uuid.uuid4())
    host.run('ip', 'netns', 'add', f'qrouter-{router}')
    host.watching()
    eventually(lambda: f'router {router}: attached' in host.log(), host.log)
    host.stop()
    host.run('ip', 'netns', 'exec', f'qrouter-{router}', 'iptables', '-t', 'nat', '-F')
    said, everything = host.status()
    assert said == '1 routers and networks, 1 of them only half'
    assert 'the rules are only partly there; attach it again' in everything
    host.run('ip', 'netns', 'delete', f'qrouter-{router}')
    host.watching()
    eventually(lambda: f'router {router}: detached' in host.log(), host.log)
    assert host.pid(router) is None
