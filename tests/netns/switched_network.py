# SPDX-License-Identifier: Apache-2.0
"""A switch with an instance, a rival and a router or DHCP server, and a host that attaches the latter."""

import json
import subprocess
import uuid
from pathlib import Path

from metadata_wsgi.netns import interface_state, namespaces, proxy_process
from metadata_wsgi.netns.attach import Attacher
from metadata_wsgi.netns.attachment_status import list_attachments
from metadata_wsgi.netns.iptables import Iptables
from metadata_wsgi.netns.proxy_command import ProxyCommand
from metadata_wsgi.netns.runner import SubprocessRunner
from metadata_wsgi.netns.target import AttachTarget
from tests.rawserver import RawServer, always_responds_with

from .router_topology import METADATA, ip

URL6 = f'http://[{interface_state.ADDRESS}%25eth0]/openstack'


URL4 = f'http://{METADATA}/openstack'


OK = b'HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nthis'


class SwitchedNetwork:
    """A switch with an instance, a rival, and other hosts that are plugged in."""

    def __init__(self):
        self.id = uuid.uuid4().hex[:8]
        self.names = []
        self.switch, self.guest, self.rival = (self.namespace(f'{kind}-{self.id}') for kind in ('sw', 'guest', 'rival'))
        ip('-n', self.switch, 'link', 'add', 'br0', 'type', 'bridge')
        ip('-n', self.switch, 'link', 'set', 'br0', 'up')
        self.plug(self.guest, 'eth0', '10.1.1.2/24')
        self.plug(self.rival, 'eth0', '10.1.1.9/24')

    def namespace(self, name):
        ip('netns', 'add', name)
        self.names.append(name)
        ip('-n', name, 'link', 'set', 'lo', 'up')
        return name

    def plug(self, namespace, interface, cidr):
        port = f'p{uuid.uuid4().hex[:8]}'
        ip('-n', namespace, 'link', 'add', interface, 'type', 'veth', 'peer', 'name', port, 'netns', self.switch)
        ip('-n', self.switch, 'link', 'set', port, 'master', 'br0', 'up')
        ip('-n', namespace, 'address', 'add', cidr, 'dev', interface)
        if interface == 'eth0':
            # Up for a while already: its own link-local address has been checked.
            ip('netns', 'exec', namespace, 'sysctl', '-qw', 'net.ipv6.conf.eth0.accept_dad=0')
        ip('-n', namespace, 'link', 'set', interface, 'up')

    def rival_takes_it(self):
        ip('-n', self.rival, 'address', 'add', f'{interface_state.ADDRESS}/64', 'dev', 'eth0', 'nodad')

    def rival_leaves(self):
        ip('-n', self.rival, 'address', 'del', f'{interface_state.ADDRESS}/64', 'dev', 'eth0')

    def mac(self, namespace, interface='eth0'):
        return self._json('-n', namespace, 'link', 'show', interface)[0]['address']

    def address(self, namespace, interface):
        """fe80::a9fe:a9fe on the interface as ``ip`` shows it; None if it is not there."""
        found = self._json('-n', namespace, '-6', 'address', 'show', 'dev', interface)
        infos = [info for one in found for info in one.get('addr_info', ())]
        return next((info for info in infos if info['local'] == interface_state.ADDRESS), None)

    def _json(self, *words):
        return json.loads(subprocess.run(['ip', '-j', *words], check=True, capture_output=True).stdout)

    def remove(self):
        for name in self.names:
            if namespaces.exists(name):
                ip('netns', 'delete', name)


def a_router(wire):
    target = AttachTarget.of('router', str(uuid.uuid4()))
    wire.plug(wire.namespace(target.namespace), 'qr-1', '10.1.1.1/24')
    ip('-n', wire.guest, 'route', 'add', 'default', 'via', '10.1.1.1')
    return target


def a_network(wire):
    target = AttachTarget.of('network', str(uuid.uuid4()))
    wire.plug(wire.namespace(target.namespace), 'tap0', '10.1.1.1/24')
    ip('-n', wire.guest, 'route', 'add', METADATA, 'via', '10.1.1.1')
    return target


class Host:
    """A state directory, an attacher that starts ``program``, and a fake agent that records requests."""

    def __init__(self, state_path, program):
        self.state_path = str(state_path)
        self.proxy = ProxyCommand(program=program, state_path=self.state_path, log_dir=self.state_path)
        self.attacher = Attacher(SubprocessRunner(), proxy=self.proxy, stop_timeout_s=5)
        self.agent = RawServer(always_responds_with(OK), path=f'{self.state_path}/metadata_proxy')

    def find(self, target):
        found = list_attachments(Iptables(SubprocessRunner()), state_path=self.state_path)
        return next(one for one in found if one.uuid == target.uuid)

    def pid(self, target):
        return proxy_process.running_pid(self.proxy.pid_file(target.uuid), target.uuid)

    def close(self):
        for file in Path(self.state_path).glob('external/pids/*.pid'):
            proxy_process.stop(str(file), file.stem, timeout_s=5)
        self.agent.close()


def curl(namespace, url):
    """The body, or '' without a response."""
    argv = ['ip', 'netns', 'exec', namespace, 'curl', '-gsS', '-m', '30', url]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout
