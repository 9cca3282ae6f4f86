# SPDX-License-Identifier: Apache-2.0
"""Neutron's L3 or DHCP agent without a message bus, in Neutron's virtual environment.

``python neutron_agent_program.py l3|dhcp CLOUD --config-file FILE``. It is the agent's own ``main``: service, threads,
process monitor, RPC client and server. Only the bus is not there: with ``transport_url = fake://`` oslo.messaging
delivers inside the process, and a thread beside the agent serves the calls that neutron-server would.

CLOUD is a JSON file ``{"routers": [...], "networks": [...]}`` in the form of those calls. When it changes, the agent is
notified of what was added, changed and deleted. Replace it in one step.
"""

import json
import os
import sys
import threading
import time

# neutron before oslo_messaging: the first of them selects the threads of oslo.service.
from neutron.agent import dhcp_agent, l3_agent
from neutron.agent.dhcp import agent as dhcp
from neutron.agent.l3 import agent as l3
from neutron_lib import constants, context, rpc
from neutron_lib.agent import topics
from oslo_config import cfg
from oslo_messaging import Target

POLL_S = 0.1


class Cloud:
    """What CLOUD has now."""

    def __init__(self, path):
        self._path = path

    def changed_at(self):
        return os.stat(self._path).st_mtime_ns

    def all(self, kind):
        with open(self._path, encoding='utf-8') as file:
            return {one['id']: one for one in json.load(file)[kind]}


class L3Server:
    """The calls of the L3 agent (neutron.api.rpc.handlers.l3_rpc)."""

    target = Target(version='1.14')

    def __init__(self, cloud):
        self._cloud = cloud

    def _routers(self):
        return self._cloud.all('routers')

    def get_host_ha_router_count(self, context, host):
        return sum(bool(router.get('ha')) for router in self._routers().values())

    def get_router_ids(self, context, host):
        return list(self._routers())

    def sync_routers(self, context, host, router_ids=None):
        return [router for id_, router in self._routers().items() if router_ids is None or id_ in router_ids]

    def get_service_plugin_list(self, context):
        return []

    def get_ports_by_subnet(self, context, host, subnet_id):
        return []

    def get_networks(self, context, filters=None, fields=None):
        return []

    def update_ha_routers_states(self, context, host, states):
        return None

    def update_floatingip_statuses(self, context, router_id, fip_statuses):
        return None

    def update_all_ha_network_port_statuses(self, context, host):
        return None


class DhcpServer:
    """The calls of the DHCP agent (neutron.api.rpc.handlers.dhcp_rpc). Each network has a reserved port."""

    target = Target(version='1.9', namespace=constants.RPC_NAMESPACE_DHCP_PLUGIN)

    def __init__(self, cloud):
        self._cloud = cloud

    def get_active_networks_info(self, context, host, **_):
        return list(self._cloud.all('networks').values())

    def get_network_info(self, context, network_id, host):
        return self._cloud.all('networks').get(network_id)

    def get_networks(self, context, filters=None, fields=None):
        return list(self._cloud.all('networks').values())

    def update_dhcp_port(self, context, port_id, port, host):
        for network in self._cloud.all('networks').values():
            for found in network['ports']:
                if found['id'] == port_id:
                    return {**found, **port['port']}
        return None

    def release_dhcp_port(self, context, network_id, device_id, host):
        return None

    def get_ports(self, context, filters):
        return []

    def dhcp_ready_on_ports(self, context, port_ids):
        return None


class ReportServer:
    """The agents' heartbeats (neutron.db.agents_db)."""

    target = Target(version='1.4', namespace=constants.RPC_NAMESPACE_STATE)

    def has_alive_neutron_server(self, context, **_):
        return True

    def report_state(self, context, agent_state, time, **_):
        return 'alive'


def start_server(cloud):
    """Serve the agents' calls."""
    for topic, endpoint in (
        (topics.L3PLUGIN, L3Server(cloud)),
        (topics.PLUGIN, DhcpServer(cloud)),
        (topics.REPORTS, ReportServer()),
    ):
        rpc.get_server(Target(topic=topic, server='neutron-server'), [endpoint]).start()


def notify(cloud, agent, kind, seen, known):
    """Tell the agent what changed in CLOUD since it was ``known``, as neutron-server does. Never returns."""
    while True:
        time.sleep(POLL_S)
        if cloud.changed_at() == seen:
            continue
        seen, now = cloud.changed_at(), cloud.all(kind)
        changed = [id_ for id_, one in now.items() if known.get(id_) != one]
        deleted = [id_ for id_ in known if id_ not in now]
        known = now
        admin = context.get_admin_context_without_session()
        if kind == 'routers':
            agent.routers_updated(admin, changed)
            for id_ in deleted:
                agent.router_deleted(admin, id_)
        else:
            for id_ in changed:
                agent.network_create_end(admin, {'network': now[id_], 'priority': 1})
            for id_ in deleted:
                agent.network_delete_end(admin, {'network_id': id_, 'priority': 1})


def with_server(agent_class, kind, path):
    """Have the agent start its server first: in the process that oslo.service forks, where the agent runs."""
    init_host, after_start, cloud = agent_class.init_host, agent_class.after_start, Cloud(path)
    known = []

    def start(agent):
        start_server(cloud)
        # Before the agent asks for everything.
        known.extend((cloud.changed_at(), cloud.all(kind)))
        init_host(agent)

    def started(agent):
        after_start(agent)
        threading.Thread(target=notify, args=(cloud, agent, kind, *known), daemon=True).start()

    agent_class.init_host, agent_class.after_start = start, started


def main():
    kind, path = sys.argv[1:3]
    del sys.argv[1:3]
    cfg.CONF.set_default('lock_path', os.path.dirname(path), 'oslo_concurrency')
    if kind == 'l3':
        with_server(l3.L3NATAgentWithStateReport, 'routers', path)
        l3_agent.main()
    else:
        with_server(dhcp.DhcpAgentWithStateReport, 'networks', path)
        dhcp_agent.main()


if __name__ == '__main__':
    main()
