# SPDX-License-Identifier: Apache-2.0
"""A small cloud without OpenStack, in one YAML file: routers, networks, ports, instances.

The file replaces Neutron: the lookup ``static`` finds the instance with an address in the file. The file also replaces
Nova: ``metadata_service`` reads the metadata of an instance from it. ``etc/inventory.sample.yaml`` documents every key.
Error messages name the line in the file.

``document`` reads YAML with line numbers. ``parse`` makes the records from it, and ``model`` defines them.
``reloading`` reads the file again when it changes.
"""

from __future__ import annotations

from metadata_wsgi.inventory.model import Instance, Inventory, Network, Port, Router, Subnet
from metadata_wsgi.inventory.parse import parse, read
from metadata_wsgi.inventory.reloading import ReloadingInventory

__all__ = ['Instance', 'Inventory', 'Network', 'Port', 'ReloadingInventory', 'Router', 'Subnet', 'parse', 'read']
