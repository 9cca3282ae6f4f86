# SPDX-License-Identifier: Apache-2.0
"""Runs Neutron's metadata agent: ``neutron_agent.py PORTS ARGUMENTS...``. The interpreter needs Neutron.

One thing is changed: the agent reads the ports from the file PORTS, a JSON list as neutron-server returns it, instead
of calling neutron-server through a message queue.
"""

import json
import sys

from neutron.agent.metadata import agent
from neutron.cmd.agents import metadata

with open(sys.argv.pop(1)) as file:
    PORTS = json.load(file)


def matches(port, filters):
    """Whether the port matches all ``filters`` (name -> accepted values)."""
    wanted = dict(filters)
    addresses = wanted.pop('fixed_ips', {}).get('ip_address', ())
    has = {fixed['ip_address'] for fixed in port['fixed_ips']}
    return all(port.get(name) in values for name, values in wanted.items()) and (not addresses or has & set(addresses))


def get_ports(self, context, port_filters):
    """Replaces the remote procedure call."""
    return [port for port in PORTS if matches(port, port_filters)]


agent.MetadataPluginAPI.get_ports = get_ports
metadata.main()
