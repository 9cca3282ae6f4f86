# SPDX-License-Identifier: Apache-2.0
"""The surroundings of the programs in tests: an inventory of instances, a configuration file, a fake Nova."""

from __future__ import annotations

import socketserver
import threading
import wsgiref.simple_server
from pathlib import Path

from tests.fakes import FakeNova

SHIPPED = Path(__file__).parent.parent / 'etc' / 'api-paste.ini'

ROUTER, OTHER_ROUTER, NETWORK = 'router-a', 'router-b', 'network-c'
SECRET = 'a secret of tests'

# Two projects with the same address, each behind its own router; a third in an isolated network. Behind the first
# router two ports have the address 10.1.1.9, which is therefore ambiguous.
INVENTORY = """
routers:
- {id: router-a, networks: [network-a, network-a2]}
- {id: router-b, networks: [network-b]}
networks:
- {id: network-a, subnets: [{cidr: 127.0.0.0/8}, {cidr: 10.1.1.0/24}]}
- {id: network-a2, subnets: [{cidr: 10.1.1.0/24}]}
- {id: network-b, subnets: [{cidr: 127.0.0.0/8}, {cidr: 10.1.1.0/24}]}
- {id: network-c, subnets: [{cidr: 10.1.1.0/24}]}
ports:
- {id: port-a, network: network-a, mac: 'fa:16:3e:00:00:01', addresses: [127.0.0.1, 10.1.1.2],
   instance: instance-a, project: project-a}
- {id: port-b, network: network-b, mac: 'fa:16:3e:00:00:02', addresses: [127.0.0.1, 10.1.1.2],
   instance: instance-b, project: project-b}
- {id: port-c, network: network-c, mac: 'fa:16:3e:00:00:03', addresses: [10.1.1.2],
   instance: instance-c, project: project-c}
- {id: port-d, network: network-a, mac: 'fa:16:3e:00:00:04', addresses: [10.1.1.9],
   instance: instance-d, project: project-a}
- {id: port-e, network: network-a2, mac: 'fa:16:3e:00:00:05', addresses: [10.1.1.9],
   instance: instance-e, project: project-a}
instances:
- {id: instance-a, project: project-a, name: vm-a}
- {id: instance-b, project: project-b, name: vm-b}
- {id: instance-c, project: project-c, name: vm-c}
- {id: instance-d, project: project-a, name: vm-d}
- {id: instance-e, project: project-a, name: vm-e}
"""


class _Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True
    request_queue_size = 256


class _Handler(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, format, *args):
        pass

    def get_environ(self):
        return {**super().get_environ(), 'RAW_URI': self.requestline.split()[1]}


class Cloud:
    """A fake Nova on loopback (``nova`` records its requests) and the files for the programs.

    127.0.0.1 and 10.1.1.2 are addresses of instance-a behind ``router_id``. A test that reads what all agents of this
    machine publish needs a router id that no other test has.
    """

    def __init__(self, directory: Path, router_id: str = ROUTER) -> None:
        self.router_id = router_id
        self.state_path = directory / 'state'
        self.socket = self.state_path / 'metadata_proxy'
        self.conf_file = directory / 'metadata_agent.ini'
        self.nova = FakeNova(
            SECRET.encode(), {'instance-a': 'project-a', 'instance-b': 'project-b', 'instance-c': 'project-c'}
        )
        self.server = wsgiref.simple_server.make_server('127.0.0.1', 0, self.nova, _Server, _Handler)
        self._inventory = directory / 'inventory.yaml'
        self._inventory.write_text(INVENTORY.replace(ROUTER, router_id))
        self.configure()

    def configure(self, **options: object) -> None:
        """Write the configuration file with additional ``options`` in [DEFAULT]. The value None removes an option."""
        values = {
            'state_path': self.state_path,
            'directory': 'static',
            'nova_metadata_host': '127.0.0.1',
            'nova_metadata_port': self.server.server_port,
            'metadata_proxy_shared_secret': SECRET,
            'metadata_workers': 1,
            # The requests of this check to Nova would be among those that a test counts.
            'check_services_at_start': False,
            # The namespace proxies of tests run as nobody: a host of tests has no user metadata-wsgi.
            'metadata_peer_users': 'nobody',
            **options,
        }
        lines = [f'{name} = {value}' for name, value in values.items() if value is not None]
        self.conf_file.write_text('\n'.join(['[DEFAULT]', *lines, '[static]', f'inventory = {self._inventory}', '']))

    def __enter__(self) -> Cloud:
        threading.Thread(target=self.server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.shutdown()
        self.server.server_close()
