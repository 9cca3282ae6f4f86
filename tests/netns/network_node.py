# SPDX-License-Identifier: Apache-2.0
"""A network node in namespaces of its own, with default paths, for tests that run an operator's commands as they are.

It has its own network, processes, /run, /etc, /var/lib and /var/log; changes to /etc and /var/lib go to an overlay and
do not reach the host. On it run the keeper, the shared proxy and the agent, and in the place of OpenStack a fake
Keystone and Neutron (one server) and the package's own metadata service as Nova. ``/etc/hosts`` has their names::

    vm-web 10.1.1.2 --- qr-... 10.1.1.1  [qrouter-ROUTER]        [node] --- keystone:5000, neutron:9696, nova:8775
    vm-db  10.2.2.2 --- tap... 10.2.2.254  [qdhcp-NETWORK]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import BIN, Program, eventually

CHECKOUT = Path(__file__).parent.parent.parent
ROUTER = '4f6e2d0a-6a53-4b8c-9a6e-0c1b7f2f8d11'
ROUTED_NETWORK = '9b0d4c6e-1f57-4f0e-8f43-5a2f6f1c7e22'
NETWORK = 'c3a1f0de-93a5-4f27-b6f5-3d7f7f0f9a33'
SECRET = 'the-secret-of-nova'
CONF_FILE = '/etc/metadata_wsgi/metadata_agent.ini'
NOVA_CONF = '/etc/nova.ini'

BOOT = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$1"
for name in etc var/lib; do
    mkdir -p "$1/$name/upper" "$1/$name/work"
    mount -t overlay -o "lowerdir=/$name,upperdir=$1/$name/upper,workdir=$1/$name/work" overlay "/$name"
done
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /var/log
mkdir -p /run/netns /etc/metadata_wsgi /var/log/metadata_wsgi
ip link set lo up
echo 'metadata-wsgi:x:61234:61234::/nonexistent:/usr/sbin/nologin' >> /etc/passwd
echo 'metadata-wsgi:x:61234:' >> /etc/group
echo '127.0.0.1 localhost keystone neutron nova' > /etc/hosts
chown metadata-wsgi /var/log/metadata_wsgi
echo ready
exec sleep infinity
"""

TOPOLOGY = f"""
set -eu
connect() {{  # gateway's namespace, its interface and address, instance, its address, its route
    ip netns add "$1"; ip netns add "$4"
    ip -n "$1" link set lo up; ip -n "$4" link set lo up
    ip -n "$1" link add "$2" type veth peer name eth0 netns "$4"
    ip -n "$1" address add "$3/24" dev "$2"; ip -n "$1" link set "$2" up
    ip -n "$4" address add "$5/24" dev eth0; ip -n "$4" link set eth0 up
    ip -n "$4" route add "$6" via "$3"
}}
connect qrouter-{ROUTER} qr-5d0c2e1f-7a 10.1.1.1 vm-web 10.1.1.2 default
# The DHCP server of a network without a router offers this route.
connect qdhcp-{NETWORK} tap8e2b6c4d-1f 10.2.2.254 vm-db 10.2.2.2 169.254.169.254/32
"""

INVENTORY = f"""
routers:
- {{id: {ROUTER}, networks: [{ROUTED_NETWORK}]}}
networks:
- {{id: {ROUTED_NETWORK}, subnets: [{{cidr: 10.1.1.0/24}}]}}
- {{id: {NETWORK}, subnets: [{{cidr: 10.2.2.0/24}}]}}
ports:
- {{id: 6c0c7c56-6d2f-4d19-9f8e-0f3c2f5b1a44, network: {ROUTED_NETWORK}, mac: 'fa:16:3e:00:00:01',
   addresses: [10.1.1.2], instance: 0d7b5b3c-7d0a-4c8f-8a55-2b9c6e4f1b55,
   project: 7f1e8a2b9c3d4e5f8a9b0c1d2e3f4a66}}
- {{id: 2e9f4b7a-8c1d-4e3f-b5a6-7d8c9e0f1a77, network: {NETWORK}, mac: 'fa:16:3e:00:00:02',
   addresses: [10.2.2.2], instance: b1c2d3e4-f5a6-4b7c-8d9e-0f1a2b3c4d88,
   project: 7f1e8a2b9c3d4e5f8a9b0c1d2e3f4a66}}
instances:
- {{id: 0d7b5b3c-7d0a-4c8f-8a55-2b9c6e4f1b55, project: 7f1e8a2b9c3d4e5f8a9b0c1d2e3f4a66, name: vm-web}}
- {{id: b1c2d3e4-f5a6-4b7c-8d9e-0f1a2b3c4d88, project: 7f1e8a2b9c3d4e5f8a9b0c1d2e3f4a66, name: vm-db}}
"""

SERVICES = f"""
import signal
from tests.clients.fake_openstack import FakeOpenStack, port
project = '7f1e8a2b9c3d4e5f8a9b0c1d2e3f4a66'
ports = [
    port('{ROUTED_NETWORK}', 'network:router_interface', '{ROUTER}', project, '10.1.1.1'),
    port('{ROUTED_NETWORK}', 'compute:nova', '0d7b5b3c-7d0a-4c8f-8a55-2b9c6e4f1b55', project, '10.1.1.2',
         id='6c0c7c56-6d2f-4d19-9f8e-0f3c2f5b1a44'),
    port('{NETWORK}', 'network:dhcp', 'dhcp', project, '10.2.2.254'),
    port('{NETWORK}', 'compute:nova', 'b1c2d3e4-f5a6-4b7c-8d9e-0f1a2b3c4d88', project, '10.2.2.2',
         id='2e9f4b7a-8c1d-4e3f-b5a6-7d8c9e0f1a77'),
]
with FakeOpenStack(ports) as openstack:
    openstack.network_url = 'http://neutron:9696'
    print(f'port {{openstack.listen_port}}', flush=True)
    signal.pause()
"""


class NotPossible(Exception):
    """The node cannot be made here; the text says why."""


class NetworkNode:
    """``directory`` is for its files and logs. ``prefix`` is a command that makes checkout and interpreter readable."""

    def __init__(self, directory: Path, prefix: list[object]) -> None:
        if not shutil.which('unshare') or not shutil.which('nsenter'):
            raise NotPossible('unshare or nsenter is not installed')
        self._directory = directory
        self._programs: dict[str, Program] = {}
        upper = directory / 'overlay'
        upper.mkdir()
        fork = ('unshare', '--mount', '--net', '--pid', '--fork', '--kill-child', '--mount-proc')
        argv = [*prefix, *fork, 'sh', '-c', BOOT, 'sh', upper]
        self._init = subprocess.Popen(
            [str(word) for word in argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if self._init.stdout.readline() != 'ready\n':
            raise NotPossible(self._init.communicate()[1])
        children = Path(f'/proc/{self._init.pid}/task/{self._init.pid}/children').read_text().split()
        self._enter = ('nsenter', '--target', children[0], '--mount', '--net', '--pid', f'--wd={CHECKOUT}')

    def close(self) -> None:
        """End every process of the node."""
        self._init.kill()
        self._init.communicate()
        for program in self._programs.values():
            program.end()

    def run(self, command: str, instance: str = '') -> subprocess.CompletedProcess[str]:
        """Run a shell command as root on the node, or in ``instance``; its errors are part of its output.

        Its working directory is the node's own: a command may write a file there.
        """
        inside = ('ip', 'netns', 'exec', instance) if instance else ()
        environ = {**os.environ, 'PATH': f'{BIN}:{os.environ["PATH"]}:/usr/sbin:/sbin', 'COLUMNS': '120'}
        return subprocess.run(
            [*self._enter, *inside, 'sh', '-c', f'cd /run\n{command}'],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False, env=environ,
        )  # fmt: skip

    def write(self, path: str, text: str, mode: int = 0o600) -> None:
        """Write a file of the node."""
        file = self._directory / 'file'
        file.write_text(text)
        self._checked(f'install -m {mode:o} {file} {path}')

    def start(self, name: str, *argv: object) -> Program:
        """Start a program on the node; its output goes to a log that ``text`` returns."""
        log = self._directory / f'{name}.log'
        self._programs[name] = Program(log, *self._enter, *argv, cwd=CHECKOUT)
        return self._programs[name]

    def text(self) -> str:
        """All logs, for the message of a failed test."""
        return '\n'.join(log.read_text() for log in self._directory.glob('*.log')) + self.run('cat /var/log/*/*').stdout

    def set_up(self) -> None:
        """Make the two networks, start all programs and attach the router and the network."""
        self._checked(TOPOLOGY)
        self._start_services()
        self._checked(f'cp {CHECKOUT}/etc/api-paste.ini /etc/metadata_wsgi')
        self.configure()
        self.start('keeper', BIN / 'metadata-wsgi', 'keeper')
        self._until('test -S /var/lib/quantum/listeners')
        self.start('proxy', BIN / 'quantum-ns-metadata-proxy', '--shared', '--nodaemonize', '--verbose')
        self.start_agent()
        self._checked(f'metadata-wsgi attach --no-wait --mode shared --router-id {ROUTER}')
        self._checked(f'metadata-wsgi attach --no-wait --mode shared --network-id {NETWORK}')

    def configure(self, **options: object) -> None:
        """Write the agent's configuration file, with other ``options``."""
        values = {
            'auth_url': 'http://keystone:5000/v3',
            'admin_user': 'service',
            'admin_password': 'a password of tests',
            'admin_tenant_name': 'service',
            'nova_metadata_host': 'nova',
            'metadata_proxy_shared_secret': SECRET,
            'metadata_workers': 1,
            'log_file': '/var/log/metadata_wsgi/agent.log',
            'metadata_paste_config': '/etc/metadata_wsgi/api-paste.ini',
            **options,
        }
        lines = [f'{name} = {value}' for name, value in values.items()]
        self.write(CONF_FILE, '\n'.join(['[DEFAULT]', *lines, '']))

    def start_agent(self) -> None:
        """Start the agent, or restart it, and wait until it responds."""
        if 'agent' in self._programs:
            self._programs['agent'].end()
        # In the unit file root makes this directory; its group may write.
        self._checked('install -d -g metadata-wsgi -m 1775 /var/lib/quantum')
        self.start('agent', BIN / 'quantum-metadata-agent')
        self._until(
            'curl -s -o /dev/null -w %{http_code} --unix-socket /var/lib/quantum/metadata_proxy http://a/ | grep -q 400'
        )

    def empty_log(self) -> None:
        """Delete what the agent has logged."""
        self._checked(': > /var/log/metadata_wsgi/agent.log')

    def reload_agent(self) -> None:
        """Send SIGHUP, as ``systemctl reload quantum-metadata-agent`` does, and wait until the agent has reloaded."""
        count = 'grep -c Reloaded /var/log/metadata_wsgi/agent.log'
        before = self.run(count).stdout
        self._checked("pkill -HUP -o -f 'bin/quantum-metadata-agent$'")
        self._until(f'test $({count}) -gt {before.strip()}')

    def _start_services(self) -> None:
        self.write('/etc/inventory.yaml', INVENTORY, 0o644)
        options = [f'metadata_proxy_shared_secret = {SECRET}', '[static]', 'inventory = /etc/inventory.yaml', '']
        self.write(NOVA_CONF, '\n'.join(['[DEFAULT]', *options]))
        self.start(
            'nova', BIN / 'gunicorn', '--paste', f'{CHECKOUT}/etc/api-paste.ini#nova',
            '--paste-global', f'config_file={NOVA_CONF}', '--worker-class', 'gevent', '--no-control-socket',
            '--bind', '127.0.0.1:8775',
        )  # fmt: skip
        services = self.start('services', sys.executable, '-c', SERVICES)
        eventually(lambda: services.text().startswith('port '), services.text)
        port = services.text().split()[1]
        for public in (5000, 9696):
            self._checked(f'iptables -t nat -A OUTPUT -o lo -p tcp --dport {public} -j REDIRECT --to-ports {port}')
        self._until('curl -s -o /dev/null http://nova:8775/')

    def _checked(self, command: str) -> None:
        done = self.run(command)
        assert done.returncode == 0, (command, done.stdout, self.text())

    def _until(self, command: str) -> None:
        eventually(lambda: self.run(command).returncode == 0, self.text)
