# SPDX-License-Identifier: Apache-2.0
"""Lookup in a YAML file: for small clouds without OpenStack, demonstrations and tests.

``directory = static`` and ``[static] inventory = <file>`` select it. If the file has an error, the program does not
start. The file is read again when it changes. If the changed file has an error, the error is logged and the old
inventory stays in use. Only ports with an instance are found.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from oslo_config import cfg

from metadata_wsgi import limits
from metadata_wsgi.config import config_files
from metadata_wsgi.deadline import Deadline
from metadata_wsgi.errors import IncompleteResult
from metadata_wsgi.inventory import Inventory, ReloadingInventory
from metadata_wsgi.lookup.protocol import StepCache
from metadata_wsgi.pipeline.environ_keys import Instance, Source
from metadata_wsgi.throttle import Throttle

LOG = logging.getLogger(__name__)

GROUP = 'static'
OPTS = [
    cfg.StrOpt(
        'inventory',
        required=True,
        help='YAML file with routers, networks, ports and instances; inventory.sample.yaml shows every key.',
    ),
]


class StaticLookup:
    """Finds instances in the inventory that ``current`` returns.

    ``is_reloading`` returns True while a newer inventory is being read. The newer inventory may contain an instance
    that is not found yet. ``on_other_port`` is called with a sentence about each port that has the address but no
    instance. The default logs the sentence. The attribute may be replaced.
    """

    def __init__(self, current: Callable[[], Inventory], *, is_reloading: Callable[[], bool] = lambda: False) -> None:
        self._current = current
        self._is_reloading = is_reloading
        self.on_other_port: Callable[[str], object] = self._log_other_port
        self._other_port_log = Throttle(limits.LOG_INTERVAL_S)

    def find(self, source: Source, deadline: Deadline) -> tuple[Instance, ...]:
        """The instances that have the source's address behind its router or on its network.

        Raises IncompleteResult if none is found while a newer inventory is being read.
        """
        inventory = self._current()
        place = {'router_id': source.router_id, 'network_id': source.network_id, 'interface': source.interface}
        ports = inventory.instance_ports(source.address, **place)
        if not ports and self._is_reloading():
            raise IncompleteResult('a newer inventory is being read')
        if not ports:
            for port in inventory.other_ports(source.address, **place):
                self.on_other_port(
                    f'port {port.id} has the address {source.address}, but belongs to {port.device_owner} and has no '
                    'instance'
                )
        return tuple(
            Instance(port.instance_id, port.project_id, port.id, port.created_at_s)
            for port in ports
            if port.instance_id is not None and port.project_id is not None
        )

    def _log_other_port(self, text: str) -> None:
        if self._other_port_log.allow():
            LOG.info('%s', text)


def factory(global_conf: Mapping[str, str], *, networks_cache: StepCache | None = None) -> StaticLookup:
    """For ``directory = static``. ``networks_cache`` is not used, because the inventory is in memory."""
    conf = config_files.load(global_conf, OPTS, GROUP)
    inventory = ReloadingInventory(conf.static.inventory)
    return StaticLookup(inventory.current, is_reloading=inventory.is_reloading)
