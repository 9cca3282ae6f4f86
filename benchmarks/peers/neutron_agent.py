# SPDX-License-Identifier: Apache-2.0
"""Neutron's metadata agent as it is, its questions to neutron-server answered in process. For Neutron's Python.

``neutron_agent.py PORTS.json --config-file FILE``: PORTS.json is what the two questions select from::

    {"networks": {"ROUTER ID": ["NETWORK ID"]},
     "ports": [{"device_id": ..., "project_id": ..., "network_id": ..., "address": ...}]}
"""

import json
import pathlib
import sys

from neutron.agent.metadata import agent
from neutron.cmd.agents import metadata


def answering(cloud):
    """A replacement for the call to neutron-server that selects from ``cloud``."""

    def get_ports(self, context, port_filters):
        if 'device_id' in port_filters:
            return [
                {'network_id': network}
                for one in port_filters['device_id']
                for network in cloud['networks'].get(one, ())
            ]
        networks = port_filters.get('network_id')
        addresses = port_filters.get('fixed_ips', {}).get('ip_address', ())
        return [
            port
            for port in cloud['ports']
            if port['address'] in addresses and (networks is None or port['network_id'] in networks)
        ]

    return get_ports


if __name__ == '__main__':
    agent.MetadataPluginAPI.get_ports = answering(json.loads(pathlib.Path(sys.argv.pop(1)).read_text()))
    sys.exit(metadata.main())
