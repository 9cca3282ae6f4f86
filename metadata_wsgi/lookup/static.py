# SPDX-License-Identifier: Apache-2.0
"""Who is at an address, from a YAML file: for small clouds without OpenStack, demonstrations and tests.

``directory = static`` and ``[static] inventory = <file>`` choose it. The file is read at start, where a
mistake stops the start, and again when it changes, where a mistake is logged and the old content stays in
force. Only ports with an instance count; a router without networks has no guests. Every answer comes
from memory, so no deadline is ever spent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from oslo_config import cfg

from metadata_wsgi.config import config_files
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.inventory import Inventory, WatchedInventory
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
    """Finds instances in the inventory that is in force when it is asked."""

    def __init__(self, current: Callable[[], Inventory]) -> None:
        self._current = current

    def find(self, source: Source, deadline: Deadline) -> tuple[Instance, ...]:
        """The instances that have the source's address behind its router or on its network."""
        ports = self._current().guests_at(source.address, router_id=source.router_id, network_id=source.network_id)
        return tuple(
            Instance(port.instance_id, port.project_id, port.id, port.created_at_s)
            for port in ports
            if port.instance_id is not None and port.project_id is not None
        )


def factory(global_conf: Mapping[str, str]) -> StaticLookup:
    """For ``directory = static``."""
    conf = config_files.load(global_conf, OPTS, GROUP)
    return StaticLookup(WatchedInventory(conf.static.inventory).current)
