# SPDX-License-Identifier: Apache-2.0
"""Run Neutron's metadata agent as it is installed, without a Neutron server and its message bus.

Only the one remote call it makes, ``get_ports``, is answered here, in process, from the bench's inventory. That
favours it: in a cloud each of a request's two calls goes to RabbitMQ, to the server, to its database and back.
"""

import json
import os
import sys

from neutron.agent.metadata.agent import MetadataPluginAPI
from neutron.cmd.agents import metadata

with open(os.environ['BENCH_PORTS']) as file:
    INVENTORY = json.load(file)
INTERFACES = {
    router['id']: [{'network_id': network} for network in router['networks']] for router in INVENTORY['routers']
}
PORTS = {}
for port in INVENTORY['ports']:
    found = {'device_id': port['instance_id'], 'project_id': port['project_id'], 'network_id': port['network_id']}
    PORTS.setdefault(port['ip'], {})[port['network_id']] = found


def get_ports(self, context, filters):
    """The interfaces of a router, or the ports with an address in the given networks."""
    if 'device_id' in filters:
        return INTERFACES.get(filters['device_id'][0], [])
    networks = filters['network_id']
    at = [PORTS.get(address, {}) for address in filters['fixed_ips']['ip_address']]
    return [by_network[network] for by_network in at for network in networks if network in by_network]


MetadataPluginAPI.get_ports = get_ports
sys.exit(metadata.main())
