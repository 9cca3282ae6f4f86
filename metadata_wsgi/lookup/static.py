# SPDX-License-Identifier: Apache-2.0
"""Lookup in a YAML file: for small clouds without OpenStack, demonstrations and tests.

``directory = static`` and ``[static] inventory = <file>`` choose it. The file is read at start, where an error stops
the start, and again when it changes, where an error is logged and the inventory read before stays in use. Only ports
with an instance are found; a router without networks has no instances.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from oslo_config import cfg

from metadata_wsgi.config import config_files
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.inventory import Inventory, ReloadingInventory
from metadata_wsgi.lookup.protocol import StepCache
from metadata_wsgi.pipeline.environ_keys import Instance, Source

GROUP = 'static'
OPTS = [
    cfg.StrOpt(
        'inventory',
        required=True,
        help='YAML file of routers, networks, ports and instances; inventory.sample.yaml shows every key.',
    ),
]


class StaticLookup:
    """Finds instances in the inventory that ``current`` returns."""

    def __init__(self, current: Callable[[], Inventory]) -> None:
        self._current = current

    def find(self, source: Source, deadline: Deadline) -> tuple[Instance, ...]:
        """The instances that have the source's address behind its router or on its network."""
        ports = self._current().instance_ports(
            source.address, router_id=source.router_id, network_id=source.network_id, interface=source.interface
        )
        return tuple(
            Instance(port.instance_id, port.project_id, port.id, port.created_at_s)
            for port in ports
            if port.instance_id is not None and port.project_id is not None
        )


def factory(global_conf: Mapping[str, str], *, networks_cache: StepCache | None = None) -> StaticLookup:
    """For ``directory = static``. ``networks_cache`` is not needed: no step takes time."""
    conf = config_files.load(global_conf, OPTS, GROUP)
    return StaticLookup(ReloadingInventory(conf.static.inventory).current)
