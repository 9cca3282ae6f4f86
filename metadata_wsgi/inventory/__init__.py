# SPDX-License-Identifier: Apache-2.0
"""A small cloud without OpenStack, in one YAML file: routers, networks, ports, instances.

The file replaces Quantum (which instance has an address: the lookup ``static``) and Nova (the metadata of an
instance: ``metadata_service``). ``etc/inventory.sample.yaml`` documents every key. Errors in a file are reported with
their line.

``model`` has the records of a file, ``document`` reads YAML with line numbers, ``parse`` makes records from it,
``reloading`` reads the file again when it changes.
"""

from __future__ import annotations

from metadata_wsgi.inventory.model import Instance, Inventory, Network, Port, Router, Subnet
from metadata_wsgi.inventory.parse import parse, read
from metadata_wsgi.inventory.reloading import ReloadingInventory

__all__ = ['Instance', 'Inventory', 'Network', 'Port', 'ReloadingInventory', 'Router', 'Subnet', 'parse', 'read']
