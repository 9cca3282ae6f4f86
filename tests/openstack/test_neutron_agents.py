# SPDX-License-Identifier: Apache-2.0
"""Neutron's L3 and DHCP agents themselves, with ``metadata-wsgi-haproxy`` as the haproxy that they start.

The agents run as root without a message bus (``neutron_agent_program``): they make the namespaces, interfaces, rules
and processes; keepalived and dnsmasq are Debian's.
"""

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
import uuid
from pathlib import Path

import pytest

from metadata_wsgi.keeper import admin_client
from tests.netns import neutron_node
from tests.netns.neutron_node import SHIM, is_alive, run, until
from tests.openstack import deployment, install
from tests.owned_processes import kill_from_file

pytestmark = [
    pytest.mark.openstack,
    pytest.mark.skipif(os.geteuid() != 0, reason='makes network namespaces'),
]

HERE = Path(__file__).parent
PRIVSEP_SECTIONS = (
    'privsep', 'privsep_dhcp_release', 'privsep_ovs_vsctl', 'privsep_namespace', 'privsep_conntrack', 'privsep_link',
)  # fmt: skip


@pytest.fixture(scope='module')
def neutron_environment():
    """The virtual environment that has Neutron."""
    return install.install(deployment.directory())


@pytest.fixture
def node(tmp_path):
    with neutron_node.running(tmp_path) as made:
        yield made


class Agent:
    """An agent and the cloud that it is told of; ``kind`` is l3 or dhcp."""

    def __init__(self, kind, node, directory, environment):
        self._kind, self._node, self._directory, self._environment = kind, node, directory, environment
        self._programs = directory / 'bin'
        self._programs.mkdir()
        (self._programs / 'haproxy').symlink_to(SHIM)
        self._cloud = {'routers': [], 'networks': []}
        self._conf = directory / 'neutron.conf'
        # Root already: the daemons of privileged calls are started without sudo.
        helper = f'helper_command = {environment}/bin/privsep-helper --config-file {self._conf}\n'
        sections = ''.join(f'[{name}]\n{helper}' for name in PRIVSEP_SECTIONS)
        self._conf.write_text(f"""{sections}
[DEFAULT]
host = node
transport_url = fake://
state_path = {node.state_path}
log_file = {directory}/agent.log
interface_driver = neutron_interfaces.VethDriver
agent_mode = dvr
ha_confs_path = {node.state_path}/ha_confs
ha_vrrp_advert_int = 1
ha_keepalived_state_change_server_threads = 1
force_metadata = true
periodic_fuzzy_delay = 0
[AGENT]
root_helper =
check_child_processes_interval = 1
[oslo_concurrency]
lock_path = {directory}
""")
        self._process = None

    def start(self):
        """Start the agent's program; it does its work in the background."""
        path = f'{self._programs}:{self._environment}/bin:{os.environ["PATH"]}:/usr/sbin:/sbin'
        with open(self._directory / 'agent.out', 'a') as out:
            self._process = subprocess.Popen(
                [self._environment / 'bin' / 'python', HERE / 'neutron_agent_program.py', self._kind, self._write(),
                 '--config-file', self._conf],
                env={**os.environ, 'PATH': path}, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip

    def stop(self):
        """End the agent as a service manager does; what it started stays."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self):
        """SIGKILL the agent and the process that oslo.service forked."""
        for child in Path(f'/proc/{self._process.pid}/task/{self._process.pid}/children').read_text().split():
            os.kill(int(child), signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def add(self, kind, entry):
        """Add a router or a network to the cloud."""
        self._cloud[kind].append(entry)
        self._write()

    def delete(self, id_):
        """Delete the router or network of that id from the cloud."""
        for entries in self._cloud.values():
            entries[:] = [entry for entry in entries if entry['id'] != id_]
        self._write()

    def _write(self):
        path = self._directory / 'cloud.json'
        new = path.with_suffix('.new')
        new.write_text(json.dumps(self._cloud))
        new.replace(path)
        return path

    def text(self):
        """The end of its log, for the message of a failed test."""
        log = self._directory / 'agent.log'
        return (self._directory / 'agent.out').read_text()[-4000:] + (log.read_text()[-8000:] if log.exists() else '')


@pytest.fixture
def make_agent(node, tmp_path, neutron_environment):
    """A function that makes an agent of a kind; it and what it started end with the test."""
    made = []

    def make(kind):
        made.append(Agent(kind, node, tmp_path, neutron_environment))
        return made[-1]

    yield make
    for agent in made:
        with contextlib.suppress(OSError):
            agent.kill()
    for directory in ('ha_confs', 'dhcp', 'external/pids'):
        for file in (node.state_path / directory).rglob('*pid*'):
            kill_from_file(file, str(node.state_path))


def router(number, **fields):
    """A router with one interface 10.47.NUMBER.1, as neutron-server describes it."""
    subnet = str(uuid.uuid4())
    port = {
        'id': str(uuid.uuid4()), 'network_id': str(uuid.uuid4()), 'mac_address': f'fa:16:3e:47:00:{number:02x}',
        'mtu': 1500, 'admin_state_up': True, 'device_owner': 'network:router_interface', 'extra_subnets': [],
        'address_scopes': {'4': None, '6': None},
        'fixed_ips': [{'ip_address': f'10.47.{number}.1', 'subnet_id': subnet, 'prefixlen': 24}],
        'subnets': [
            {'id': subnet, 'cidr': f'10.47.{number}.0/24', 'gateway_ip': f'10.47.{number}.1', 'ipv6_ra_mode': None,
             'ipv6_address_mode': None, 'dns_nameservers': [], 'subnetpool_id': None}
        ],
    }  # fmt: skip
    return {
        'id': str(uuid.uuid4()), 'project_id': 'red', 'admin_state_up': True, 'distributed': False, 'ha': False,
        'routes': [], 'gw_port': None, 'external_gateway_info': None, '_interfaces': [port], **fields,
    }  # fmt: skip


def ha_fields():
    """The fields of a router that is highly available: it becomes active on the only node it has."""
    subnet = str(uuid.uuid4())
    return {
        'ha': True, 'ha_vr_id': 1, '_ha_state': 'standby',
        '_ha_interface': {
            'id': str(uuid.uuid4()), 'network_id': str(uuid.uuid4()), 'mac_address': 'fa:16:3e:47:01:01', 'mtu': 1500,
            'admin_state_up': True, 'status': 'ACTIVE', 'device_owner': 'network:router_ha_interface',
            'fixed_ips': [{'ip_address': '169.254.192.1', 'subnet_id': subnet, 'prefixlen': 18}],
            'subnets': [{'id': subnet, 'cidr': '169.254.192.0/18', 'gateway_ip': None}],
        },
    }  # fmt: skip


def network(number):
    """A network without router, 10.47.NUMBER.0/24, whose DHCP server has the address .1."""
    id_, subnet = str(uuid.uuid4()), str(uuid.uuid4())
    return {
        'id': id_, 'project_id': 'red', 'admin_state_up': True, 'mtu': 1500, 'segments': [], 'non_local_subnets': [],
        'subnets': [
            {'id': subnet, 'network_id': id_, 'ip_version': 4, 'cidr': f'10.47.{number}.0/24', 'enable_dhcp': True,
             'gateway_ip': None, 'dns_nameservers': [], 'host_routes': [], 'allocation_pools': [],
             'ipv6_ra_mode': None, 'ipv6_address_mode': None, 'segment_id': None, 'subnetpool_id': None}
        ],
        'ports': [
            {'id': str(uuid.uuid4()), 'network_id': id_, 'device_id': 'reserved_dhcp_port', 'name': '',
             'device_owner': 'network:dhcp', 'mac_address': f'fa:16:3e:47:02:{number:02x}', 'admin_state_up': True,
             'extra_dhcp_opts': [], 'dns_assignment': [], 'dns_name': '',
             'fixed_ips': [{'subnet_id': subnet, 'ip_address': f'10.47.{number}.1'}]}
        ],
    }  # fmt: skip


def peer(port):
    return f'peer{port["id"][:10]}'


def has_interface(name):
    return subprocess.run(['ip', 'link', 'show', name], capture_output=True, check=False).returncode == 0


def wait_for(agent, condition):
    try:
        until(condition, within_s=180)
    except AssertionError:
        pytest.fail(agent.text())


def attached_ids(node):
    with admin_client.connect(str(node.state_path)) as keeper:
        return {listener.id for listener in keeper.list()[0]}


def holder_pid(node, id_):
    """The pid of the holder that the agent started; 0 if it has none."""
    try:
        return node.pid(id_)
    except (OSError, ValueError):
        return 0


def has_new_holder(node, id_, former):
    pid = holder_pid(node, id_)
    return pid not in (0, former) and is_alive(pid) and node.serves(id_)


@pytest.mark.skipif(not shutil.which('keepalived'), reason='keepalived is missing (Debian: keepalived)')
def test_the_l3_agent_starts_respawns_adopts_and_deletes_the_proxies_of_its_routers(node, make_agent):
    """One agent in mode dvr: a router, a distributed one, and one that is highly available (keepalived)."""
    agent = make_agent('l3')
    routers = [router(0), router(1, distributed=True), router(2, **ha_fields())]
    plain, *_ = ids = [one['id'] for one in routers]
    agent.add('routers', routers[0])
    agent.start()
    for one in routers[1:]:
        agent.add('routers', one)
    for one in routers:
        name = peer(one['_interfaces'][0])
        wait_for(agent, lambda name=name: has_interface(name))
        node.add_instance(one['id'], f'qrouter-{one["id"]}', name)
        wait_for(agent, lambda id_=one['id']: has_new_holder(node, id_, 0))
        assert 'metadata-wsgi-holder' in Path(f'/proc/{node.pid(one["id"])}/cmdline').read_text()
    assert attached_ids(node) == set(ids)

    # The process monitor starts a new holder.
    former = node.pid(plain)
    os.kill(former, signal.SIGKILL)
    wait_for(agent, lambda: has_new_holder(node, plain, former))

    # The agent is restarted: every router is served meanwhile, and the holders stay. For a moment the agent itself
    # leaves the redirect out, when it first writes the rules of a router after its start (Network is unreachable).
    failures, stop = [], threading.Event()

    def client():
        for id_ in itertools.cycle(ids):
            try:
                assert node.get(id_) == id_
            except (OSError, AssertionError) as error:
                if getattr(error, 'errno', None) != errno.ENETUNREACH:
                    failures.append(f'{id_}: {error!r}')
            if stop.wait(0.02):
                return

    clients = threading.Thread(target=client, daemon=True)
    clients.start()
    before = {id_: node.pid(id_) for id_ in ids}
    agent.stop()
    assert all(map(is_alive, before.values()))
    agent.start()
    added = router(3)
    agent.add('routers', added)
    wait_for(agent, lambda: has_interface(peer(added['_interfaces'][0])))
    node.add_instance(added['id'], f'qrouter-{added["id"]}', peer(added['_interfaces'][0]))
    wait_for(agent, lambda: node.serves(added['id']))
    stop.set()
    clients.join()
    assert failures == []
    assert {id_: node.pid(id_) for id_ in ids} == before

    # Deleted routers leave nothing.
    pids = {id_: node.pid(id_) for id_ in ids}
    for id_ in ids:
        agent.delete(id_)
    for id_ in ids:
        wait_for(agent, lambda id_=id_: not Path(f'/run/netns/qrouter-{id_}').exists())
        wait_for(agent, lambda id_=id_: not is_alive(pids[id_]))
    wait_for(agent, lambda: attached_ids(node) == {added['id']})
    assert [file.stem for file in (node.state_path / 'ns-metadata-proxy').iterdir()] == [added['id']]
    assert node.serves(added['id'])


@pytest.mark.skipif(not shutil.which('dnsmasq'), reason='dnsmasq is missing (Debian: dnsmasq-base)')
def test_the_dhcp_agent_starts_respawns_restarts_and_deletes_the_proxies_of_its_networks(node, make_agent):
    """Isolated networks, with dnsmasq; force_metadata, as kolla-ansible sets it."""
    agent = make_agent('dhcp')
    networks = [network(number) for number in range(3)]
    first, second, added = ids = [one['id'] for one in networks]

    def wait_until_served(one):
        name = peer(one['ports'][0])
        wait_for(agent, lambda: has_interface(name))
        node.add_instance(one['id'], f'qdhcp-{one["id"]}', name)
        wait_for(agent, lambda: has_new_holder(node, one['id'], 0))

    agent.add('networks', networks[0])
    agent.start()
    wait_until_served(networks[0])
    agent.add('networks', networks[1])
    wait_until_served(networks[1])
    assert 'metadata-wsgi-holder' in Path(f'/proc/{node.pid(first)}/cmdline').read_text()
    assert '169.254.169.254:80' in run('ip', 'netns', 'exec', f'qdhcp-{first}', 'ss', '-Htln')

    # The process monitor starts a new holder.
    former = node.pid(first)
    os.kill(former, signal.SIGKILL)
    wait_for(agent, lambda: has_new_holder(node, first, former))

    # The agent is restarted: the networks are served meanwhile. At some events it restarts each proxy once.
    before = {id_: node.pid(id_) for id_ in (first, second)}
    agent.stop()
    assert all(node.serves(id_) for id_ in before)
    agent.start()
    agent.add('networks', networks[2])
    wait_until_served(networks[2])
    for id_ in ids:
        wait_for(agent, lambda id_=id_: has_new_holder(node, id_, 0))

    former = node.pid(second)
    agent.delete(second)
    wait_for(agent, lambda: not Path(f'/run/netns/qdhcp-{second}').exists())
    wait_for(agent, lambda: not is_alive(former))
    wait_for(agent, lambda: attached_ids(node) == {first, added})
    assert node.serves(first)
