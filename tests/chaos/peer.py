# SPDX-License-Identifier: Apache-2.0
"""The peer on the same host: a haproxy in each router's namespace, and Neutron's metadata agent behind them.

Configuration and rules are those that Neutron's L3 agent writes. One thing is changed: the agent reads the ports from a
file, and not from neutron-server through a message queue. So faults of Neutron and Keystone do not concern it here. A
haproxy that ends is started again after a second; Neutron's process monitor does so after a minute.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from tests.chaos.host import AGENT, SECRET, SHARED, Host
from tests.chaos.services import NOVA, PORTS
from tests.chaos.topology import SERVICES, Router, ip
from tests.neutron_haproxy import DEFAULTS
from tests.openstack import deployment

LAUNCHER = Path(__file__).parents[1] / 'neutron_interop' / 'neutron_agent.py'
HAPROXY = """\
global
    maxconn 1024
{defaults}
listen listener
    bind 0.0.0.0:9697
    server metadata {socket}
    http-request del-header X-Neutron-Network-ID
    http-request set-header X-Neutron-Router-ID {id}
"""
AGENT_CONF = """\
[DEFAULT]
state_path = {state_path}
transport_url = fake:///
metadata_proxy_shared_secret = {secret}
nova_metadata_host = {host}
nova_metadata_port = {port}
metadata_workers = 2
[AGENT]
report_interval = 0
[oslo_concurrency]
lock_path = {state_path}
"""


def neutron_python() -> str:
    """The Python interpreter of the Neutron that tests/openstack has installed; '' if there is none."""
    named = os.environ.get('METADATA_WSGI_NEUTRON_PYTHON', '')
    installed = deployment.directory() / 'venv' / 'bin' / 'python'
    return named or (str(installed) if installed.exists() else '')


def missing() -> str:
    """Why this machine cannot run the peer; '' if it can."""
    if not shutil.which('haproxy', path=f'{os.environ["PATH"]}:/usr/sbin'):
        return 'haproxy is not installed'
    return '' if neutron_python() else "Neutron is not installed ('tox -e openstack' installs it)"


class PeerHost(Host):
    """``start`` starts the peer's programs in the place of ours."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, SHARED)

    def configure(self, **more: object) -> None:
        """Write the configuration of the agent and of each haproxy."""
        values = {'secret': SECRET, 'host': SERVICES, 'port': PORTS[NOVA], 'state_path': self.state_path}
        self.conf_file.write_text(AGENT_CONF.format(**values))
        ports = [port for router in self.routers for port in router.ports()]
        self._ports_file.write_text(json.dumps(ports))
        for router in self.routers:
            text = HAPROXY.format(defaults=DEFAULTS, socket=self.state_path / 'metadata_proxy', id=router.id)
            self._haproxy_conf(router).write_text(text)

    @property
    def _ports_file(self) -> Path:
        return self.directory / 'ports.json'

    def _haproxy_conf(self, router: Router) -> Path:
        return self.directory / f'{router.id}.conf'

    def _start_programs(self) -> None:
        self._add(AGENT, neutron_python(), '-W', 'ignore', str(LAUNCHER), str(self._ports_file),
                  '--config-file', str(self.conf_file))  # fmt: skip
        self.wait_until((self.state_path / 'metadata_proxy').exists, 'the agent does not listen')
        for router in self.routers:
            ip('netns', 'exec', router.namespace, 'iptables', '-t', 'nat', '-A', 'PREROUTING', '-d',
               '169.254.169.254/32', '-i', 'qr-+', '-p', 'tcp', '--dport', '80', '-j', 'REDIRECT', '--to-ports',
               '9697')  # fmt: skip
            self._add(f'haproxy-{router.number}', 'ip', 'netns', 'exec', router.namespace, 'haproxy', '-db', '-f',
                      str(self._haproxy_conf(router)))  # fmt: skip
