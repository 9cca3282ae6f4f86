# SPDX-License-Identifier: Apache-2.0
"""Keystone, the Neutron API and Nova's metadata API on loopback: each a gunicorn with an SQLite database.

Facts about them:

- The services parse ``sys.argv``, so gunicorn gets its options through an environment variable.
- Neutron's migrations change constraints, which SQLite does not support: tables are created from the models.
- Neutron caches token validations for minutes. Here the cache is off, so that it rejects a revoked token.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import requests

from tests.openstack.install import log_end
from tests.owned_processes import kill_group

ADMIN_PASSWORD = 'admin of tests'
SHARED_SECRET = 'a secret of Nova and the agent'
REGION = 'RegionOne'
APPLICATIONS = {
    'keystone': 'keystone.wsgi.api:application',
    'neutron': 'neutron.wsgi.api:application',
    'nova': 'nova.wsgi.metadata:application',
}
START_WITHIN_S = 120.0
TOKEN_LASTS_S = 3600
PRIORITY = -10
"""As for ``nice``."""

KEYSTONE_CONF = """
[DEFAULT]
log_file = {top}/keystone.log
[database]
connection = sqlite:///{top}/keystone.sqlite
[token]
provider = fernet
expiration = {token_lasts_s}
[fernet_tokens]
key_repository = {top}/keystone/tokens
[credential]
key_repository = {top}/keystone/credentials
"""
NEUTRON_CONF = """
[DEFAULT]
log_file = {top}/neutron.log
state_path = {top}/state
api_paste_config = {venv}/etc/neutron/api-paste.ini
core_plugin = ml2
service_plugins = router
transport_url = fake://
dhcp_agent_notification = false
notify_nova_on_port_status_changes = false
notify_nova_on_port_data_changes = false
# Projects here have more networks than the default quota.
[quotas]
quota_network = -1
quota_subnet = -1
quota_port = -1
quota_router = -1
[database]
connection = sqlite:///{top}/neutron.sqlite
[keystone_authtoken]
www_authenticate_uri = {keystone}
token_cache_time = -1
{admin}
[oslo_concurrency]
lock_path = {top}/state
[oslo_messaging_notifications]
driver = noop
[ml2]
mechanism_drivers = openvswitch
type_drivers = vxlan
tenant_network_types = vxlan
extension_drivers = port_security
[ml2_type_vxlan]
vni_ranges = 1:2000
"""
NOVA_CONF = """
[DEFAULT]
log_file = {top}/nova.log
state_path = {top}/state
host = here
transport_url = fake://
[api_database]
connection = sqlite:///{top}/nova_api.sqlite
[database]
connection = sqlite:///{top}/nova_cell1.sqlite
[neutron]
service_metadata_proxy = true
metadata_proxy_shared_secret = {secret}
{admin}
[oslo_concurrency]
lock_path = {top}/state
[oslo_messaging_notifications]
driver = noop
"""
ADMIN = """
auth_type = password
auth_url = {keystone}
username = admin
password = {password}
project_name = admin
user_domain_name = Default
project_domain_name = Default
region_name = {region}
"""
GUNICORN_CONF = """
wsgi_app = {application!r}
bind = '127.0.0.1:{port}'
worker_class = 'gthread'
threads = 8
keepalive = 75
timeout = 120
graceful_timeout = 2
accesslog = '{top}/{name}.access.log'
# Gunicorn's own format and the response time: a slow service explains a failed test.
access_log_format = '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s" %(M)sms'
errorlog = '{top}/{name}.gunicorn.log'
capture_output = True
control_socket_disable = True
"""


@dataclass
class Services:
    """The three services: files in ``top``, programs from ``venv``, ports from ``first_port`` on."""

    top: Path
    venv: Path
    first_port: int
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def keystone(self) -> str:
        """URL of Keystone's v3 API."""
        return f'http://127.0.0.1:{self.port("keystone")}/v3'

    @property
    def neutron(self) -> str:
        """URL of Neutron as in the catalogue, without a version."""
        return f'http://127.0.0.1:{self.port("neutron")}'

    def port(self, name: str) -> int:
        """The port of the service ``name``."""
        return self.first_port + list(APPLICATIONS).index(name)

    def configure(self, token_lasts_s: int = TOKEN_LASTS_S) -> None:
        """Write all configuration files; a running service reads its file at its next start."""
        for name in ('keystone', 'neutron', 'nova', 'state'):
            (self.top / name).mkdir(parents=True, exist_ok=True)
        admin = ADMIN.format(keystone=self.keystone, password=ADMIN_PASSWORD, region=REGION)
        values = {
            'top': self.top, 'venv': self.venv, 'keystone': self.keystone, 'admin': admin, 'secret': SHARED_SECRET,
            'token_lasts_s': token_lasts_s,
        }  # fmt: skip
        for name, text in (('keystone', KEYSTONE_CONF), ('neutron', NEUTRON_CONF), ('nova', NOVA_CONF)):
            (self.top / name / f'{name}.conf').write_text(text.format_map(values))
        for name, application in APPLICATIONS.items():
            text = GUNICORN_CONF.format(application=application, port=self.port(name), top=self.top, name=name)
            (self.top / f'{name}.gunicorn.py').write_text(text)
        # Nova reads it from the directory of nova.conf.
        shutil.copy(self.venv / 'etc' / 'nova' / 'api-paste.ini', self.top / 'nova')

    def make_databases(self) -> None:
        """Create the tables, and Keystone's keys, administrator and catalogue entry."""
        with ThreadPoolExecutor() as pool:
            for made in [pool.submit(make) for make in (self._make_keystone, self._make_neutron, self._make_nova)]:
                made.result()

    def start(self, *names: str) -> None:
        """Start the services ``names`` (default: all) that do not run, and wait until they respond."""
        wanted = names or tuple(APPLICATIONS)
        for name in wanted:
            if name not in self._running:
                self._running[name] = self._spawn(name)
        for name in wanted:
            self._wait(name)

    def stop(self, *names: str) -> None:
        """Stop the running services ``names`` (default: all); afterwards nothing listens on their ports."""
        for name in names or tuple(self._running):
            process = self._running.pop(name, None)
            if process is None:
                continue
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            kill_group(process)
            process.wait(60)

    def pause(self, name: str) -> None:
        """SIGSTOP: the kernel accepts connections, but the service does not respond until ``resume``."""
        os.killpg(self._running[name].pid, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """SIGCONT after ``pause``."""
        os.killpg(self._running[name].pid, signal.SIGCONT)

    def requests_from(self, agent: str, name: str) -> list[str]:
        """The lines in the access log of service ``name`` whose User-Agent starts with ``agent``."""
        lines = (self.top / f'{name}.access.log').read_text().splitlines()
        return [line for line in lines if f'"{agent}' in line]

    def log_text(self) -> str:
        """The ends of all logs."""
        return '\n'.join(log_end(log) for log in sorted(self.top.glob('*.log')) if '.access.' not in log.name)

    def run(self, program: str, *words: str, stdin: str = '') -> str:
        """Run a program of the virtual environment with ``stdin``; its output. Raises RuntimeError if it fails."""
        argv = [str(self.venv / 'bin' / program), *words]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, cwd=self.top)
        if done.returncode:
            raise RuntimeError(f'{" ".join(argv)} ended with {done.returncode}: {done.stderr[-2000:]}')
        return done.stdout

    def _make_keystone(self) -> None:
        def manage(*words: str) -> None:
            self.run('keystone-manage', '--config-file', str(self.top / 'keystone' / 'keystone.conf'), *words)

        me = pwd.getpwuid(os.getuid()).pw_name
        manage('db_sync')
        for keys in ('fernet_setup', 'credential_setup'):
            manage(keys, '--keystone-user', me, '--keystone-group', me)
        urls = (f'--bootstrap-{interface}-url={self.keystone}' for interface in ('public', 'internal', 'admin'))
        manage('bootstrap', f'--bootstrap-password={ADMIN_PASSWORD}', f'--bootstrap-region-id={REGION}', *urls)

    def _make_neutron(self) -> None:
        script = Path(__file__).with_name('neutron_tables.py')
        self.run('python', str(script), f'sqlite:///{self.top}/neutron.sqlite')

    def _make_nova(self) -> None:
        def manage(*words: str) -> None:
            self.run('nova-manage', '--config-file', str(self.top / 'nova' / 'nova.conf'), *words)

        manage('api_db', 'sync')
        manage('cell_v2', 'map_cell0', '--database_connection', f'sqlite:///{self.top}/nova_cell0.sqlite')
        manage('db', 'sync')
        manage('cell_v2', 'create_cell', '--name', 'cell1')

    def _spawn(self, name: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            'GUNICORN_CMD_ARGS': f'--config {self.top}/{name}.gunicorn.py',
            'OS_KEYSTONE_CONFIG_DIR': f'{self.top}/keystone',
            'OS_NEUTRON_CONFIG_DIR': f'{self.top}/neutron',
            'OS_NEUTRON_CONFIG_FILES': 'neutron.conf',
            'OS_NOVA_CONFIG_DIR': f'{self.top}/nova',
            'no_proxy': '127.0.0.1',
        }
        with (self.top / f'{name}.stdout.log').open('ab') as log:
            process = subprocess.Popen(
                # It gets SIGTERM when the tests end, even if they are killed.
                ['setpriv', '--pdeathsig', 'TERM', str(self.venv / 'bin' / 'gunicorn')],
                env=environment, cwd=self.top, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        _raise_priority(process.pid)
        return process

    def _wait(self, name: str) -> None:
        deadline = time.monotonic() + START_WITHIN_S
        while not self._answers(name):
            if time.monotonic() > deadline or self._running[name].poll() is not None:
                raise RuntimeError(f'{name} does not respond: {self.log_text()}')
            time.sleep(0.1)

    def _answers(self, name: str) -> bool:
        try:
            url = f'http://127.0.0.1:{self.port(name)}/'
            return requests.get(url, timeout=START_WITHIN_S, proxies={'http': ''}).status_code < 500
        except requests.RequestException:
            return False


def _raise_priority(pid: int) -> None:
    """Prefer the process to other tests that run at the same time: Neutron needs 0.3 s of CPU time for 100 ports.

    Beside them it took up to 3 s, and sometimes longer than the deadline of a request. With sched_autogroup_enabled the
    kernel compares the priorities of sessions, else those of processes (man 7 sched).
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, PRIORITY)
        Path(f'/proc/{pid}/autogroup').write_text(str(PRIORITY))
