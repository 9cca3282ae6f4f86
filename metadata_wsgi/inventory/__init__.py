# SPDX-License-Identifier: Apache-2.0
"""A small cloud without OpenStack, in one YAML file: routers, networks, ports, instances.

The file stands in Quantum's place (who is at an address: the ``static`` directory) and in Nova's (what a
guest is told: ``metadata_app``). ``etc/inventory.sample.yaml`` is the manual: every key stands there
with its meaning. What is wrong in a file is said with the line it stands on.

The rooms in here: ``records`` is what a file says, ``document`` reads YAML and knows lines, ``parse``
makes the one into the other, ``watched`` reads the file again when it changes.
"""

from __future__ import annotations

from metadata_wsgi.inventory.model import Instance, Inventory, Network, Port, Router, Subnet
from metadata_wsgi.inventory.parse import parse, read
from metadata_wsgi.inventory.reloading import WatchedInventory

__all__ = ['Instance', 'Inventory', 'Network', 'Port', 'Router', 'Subnet', 'WatchedInventory', 'parse', 'read']
