# SPDX-License-Identifier: Apache-2.0
"""Print the bench's JSON inventory as the YAML file that the static directory reads."""

import json
import sys

import yaml

with open(sys.argv[1]) as file:
    bench = json.load(file)
networks = {network for router in bench['routers'] for network in router['networks']}
yaml.safe_dump(
    {
        'routers': [{'id': router['id'], 'networks': router['networks']} for router in bench['routers']],
        'networks': [{'id': network} for network in sorted(networks)],
        'ports': [
            {
                'id': f'port-{number}',
                'network': port['network_id'],
                'mac': port['mac'],
                'addresses': [port['ip']],
                'instance': port['instance_id'],
                'project': port['project_id'],
            }
            for number, port in enumerate(bench['ports'])
        ],
        'instances': [
            {'id': port['instance_id'], 'project': port['project_id'], 'name': f'vm-{number}'}
            for number, port in enumerate(bench['ports'])
        ],
    },
    sys.stdout,
)
