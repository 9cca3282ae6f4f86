# SPDX-License-Identifier: Apache-2.0
"""The standby of an HA router: its qr- interface is up and has the MAC of the primary, but no address.

::

    [qrouter-...] qr-1 ------ eth0 [switch]
"""

import json
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from metadata_wsgi.netns import interface_state
from metadata_wsgi.netns.attach import Attacher, Changes
from metadata_wsgi.netns.attachment_status import list_attachments
from metadata_wsgi.netns.iptables import Iptables
from metadata_wsgi.netns.proxy_command import ProxyCommand
from metadata_wsgi.netns.proxy_process import stop
from metadata_wsgi.netns.runner import SubprocessRunner
from metadata_wsgi.netns.target import AttachTarget
from tests.e2e.conftest import eventually

from .router_topology import ip

pytestmark = [pytest.mark.netns, pytest.mark.not_traced]

STANDIN = str(Path(__file__).with_name('fake_namespace_proxy.py'))
PROGRAM = str(Path(sys.prefix, 'bin', 'metadata-wsgi'))
MAC = 'fa:16:3e:00:00:01'


class Standby:
    """A router whose interface has no address; ``attacher`` attaches it."""

    def __init__(self, state_path):
        self.target = AttachTarget.of('router', str(uuid.uuid4()))
        self.namespace = self.target.namespace
        self.switch = f'switch-{self.target.uuid}'
        self.state_path = str(state_path)
        self.attacher = Attacher(SubprocessRunner(), proxy=ProxyCommand(program=STANDIN, state_path=self.state_path))

    def make(self):
        for name in (self.namespace, self.switch):
            ip('netns', 'add', name)
            ip('-n', name, 'link', 'set', 'lo', 'up')
        ip('-n', self.namespace, 'link', 'add', 'qr-1', 'address', MAC, 'type', 'veth', 'peer', 'name', 'eth0',
           'netns', self.switch)  # fmt: skip
        # As keepalived leaves it: without a link-local address of the kernel's.
        ip('-n', self.namespace, 'link', 'set', 'qr-1', 'addrgenmode', 'none')
        for name, interface in ((self.namespace, 'qr-1'), (self.switch, 'eth0')):
            ip('-n', name, 'link', 'set', interface, 'up')

    def sent_frames(self):
        (link,) = self._json('-s', 'link', 'show', 'qr-1')
        return link['stats64']['tx']['packets']

    def sent_frames_when_quiet(self):
        """The kernel repeats the message that it leaves a multicast group, up to a second after it lost an address."""
        before = None
        while before != (now := self.sent_frames()):
            before = now
            time.sleep(1.5)
        return now

    def addresses(self):
        found = self._json('address', 'show', 'dev', 'qr-1')
        return {info['local'] for one in found for info in one.get('addr_info', ())}

    def status(self):
        found = list_attachments(Iptables(SubprocessRunner()), state_path=self.state_path)
        return next(one for one in found if one.uuid == self.target.uuid)

    def becomes_primary(self):
        ip('-n', self.namespace, 'address', 'add', '10.1.1.1/24', 'dev', 'qr-1')

    def becomes_standby(self):
        ip('-n', self.namespace, 'address', 'del', '10.1.1.1/24', 'dev', 'qr-1')

    def _json(self, *words):
        argv = ['ip', '-n', self.namespace, '-j', *words]
        return json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)

    def remove(self):
        stop(ProxyCommand(state_path=self.state_path).pid_file(self.target.uuid), self.target.uuid)
        for name in (self.namespace, self.switch):
            ip('netns', 'delete', name)


@pytest.fixture
def standby(tmp_path):
    standby = Standby(tmp_path)
    standby.make()
    try:
        yield standby
    finally:
        standby.remove()


def replace(path, text):
    """Without a moment in which the file is empty."""
    new = path.with_name('new')
    new.write_text(text)
    new.rename(path)


def test_attach_of_a_standby_sends_no_frame(standby):
    before = standby.sent_frames()
    for _ in range(2):
        standby.attacher.attach(standby.target)
        standby.attacher.settle(standby.target, mode='process')
    status = standby.status()
    assert (standby.sent_frames(), standby.addresses()) == (before, set())
    assert status.problems == ()
    assert status.notes[0].startswith('fe80::a9fe:a9fe is not on qr-1, because it has no address of its own')


def test_address_follows_the_role_of_the_router(standby):
    standby.attacher.attach(standby.target)
    standby.becomes_primary()
    assert standby.attacher.attach(standby.target) == Changes(False, (f'{interface_state.ADDRESS} was added to qr-1',))
    assert standby.addresses() == {'10.1.1.1', interface_state.ADDRESS}
    assert (standby.status().problems, standby.status().notes) == ((), ())
    standby.becomes_standby()
    removed = f'{interface_state.ADDRESS} was removed from qr-1'
    assert standby.attacher.attach(standby.target) == Changes(False, (removed,))
    before = standby.sent_frames_when_quiet()
    standby.attacher.attach(standby.target)
    assert (standby.sent_frames() - before, standby.addresses()) == (0, set())


def test_watch_adds_the_address_when_keepalived_reports_the_primary(standby, tmp_path):
    """The interval and the repair are far away: only the state file can be the reason."""
    state = tmp_path / 'ha_confs' / standby.target.uuid / 'state'
    state.parent.mkdir(parents=True)
    state.write_text('backup')
    log = (tmp_path / 'watch.log').open('wb')
    watch = subprocess.Popen(
        [PROGRAM, 'watch', f'--state-path={tmp_path}', '--interval=0.2', '--again=3600', '--only=router',
         f'--ha-confs-path={tmp_path}/ha_confs', '--', '--mode=process', f'--program={STANDIN}'],
        stderr=log,
    )  # fmt: skip
    text = (tmp_path / 'watch.log').read_text
    try:
        eventually(lambda: f'router {standby.target.uuid}: attached' in text(), text)
        assert standby.addresses() == set()
        standby.becomes_primary()
        replace(state, 'primary')
        eventually(lambda: interface_state.ADDRESS in standby.addresses(), text)
        eventually(lambda: 'its HA state is now primary' in text(), text)
        standby.becomes_standby()
        replace(state, 'backup')
        eventually(lambda: interface_state.ADDRESS not in standby.addresses(), text)
    finally:
        watch.terminate()
        watch.wait(20)
        log.close()
