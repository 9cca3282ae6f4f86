# SPDX-License-Identifier: Apache-2.0
"""Makes records from the file and checks it: every key is known, every reference exists, ids and addresses are unique.

An error in the contents is a ConfigError ``file:line: reason``. Ids are unique among records of a kind, addresses and
MACs on each network.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

from metadata_wsgi.errors import ConfigError
from metadata_wsgi.inventory.document import MAX_BYTES, Value, document
from metadata_wsgi.inventory.model import Instance, Inventory, Network, Port, Router, Subnet

# The form of an id that header_source accepts. An id is also used in headers and as a file name.
_ID = re.compile(r'[0-9A-Za-z-]{1,64}\Z')
_MAC = re.compile(r'[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z')
# In Quantum the device_owner of an instance's port starts with one of these. All other ports belong to the network.
_OWNERS = ('compute:', 'baremetal:')

T = TypeVar('T')


def read(path: str) -> Inventory:
    """The inventory in the file at ``path``; raises ConfigError."""
    return parse(contents(path)[1], path)


def contents(path: str) -> tuple[os.stat_result, bytes]:
    """The status and the contents of the same open file. Raises ConfigError.

    Of a file that is larger than MAX_BYTES, only the first MAX_BYTES + 1 bytes are returned.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ConfigError(f'inventory = {path}: not a regular file')
        with open(path, 'rb') as file:
            return os.fstat(file.fileno()), file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f'inventory = {path}: cannot be read: {error.strerror}') from error


def parse(data: bytes, path: str) -> Inventory:
    """The inventory that ``data`` describes; ``path`` is for error messages. Raises ConfigError.

    ``networks``, ``ports`` and ``instances`` are required, even if they are empty lists: a half-written file must not
    be read as a cloud without instances.
    """
    top = document(data, path).record(('networks', 'ports', 'instances'), ('routers',))
    networks = _all(top['networks'], 'a network', _network)
    routers = _all(top['routers'], 'a router', lambda v, i: _router(v, i, networks)) if 'routers' in top else {}
    instances = _all(top['instances'], 'an instance', _instance)
    ports = _all(top['ports'], 'a port', lambda v, i: _port(v, i, networks, instances))
    _unique_on_network(top['ports'], list(ports.values()))
    owned: dict[str, list[Port]] = {}
    for port in ports.values():
        if port.instance_id is not None:
            owned.setdefault(port.instance_id, []).append(port)
    return Inventory(
        routers=routers.values(),
        networks=networks.values(),
        ports=ports.values(),
        instances=[replace(instance, ports=tuple(owned.get(instance.id, ()))) for instance in instances.values()],
    )


def _all(values: Value, what: str, make: Callable[[Value, str], T]) -> dict[str, T]:
    """The records of a list, by id. ``make`` makes a record from an entry and its id."""
    found: dict[str, T] = {}
    for node in values.list():
        value = Value(node.path, node.node, what)
        pairs = value.pairs()
        if 'id' not in pairs:
            raise value.error(f'id is missing from {what}')
        name = _id(pairs['id'])
        if name in found:
            raise pairs['id'].error(f'{what} with the id {name} is already there')
        found[name] = make(Value(node.path, node.node, f'{what} ({name})'), name)
    return found


def _network(value: Value, name: str) -> Network:
    record = value.record(('id',), ('name', 'mtu', 'subnets'))
    subnets = tuple(_subnet(one) for one in record['subnets'].list()) if 'subnets' in record else ()
    return Network(name, _text(record, 'name', name), subnets, _mtu(record['mtu']) if 'mtu' in record else None)


def _subnet(entry: Value) -> Subnet:
    value = Value(entry.path, entry.node, 'a subnet')
    record = value.record(('cidr',), ('gateway', 'dns', 'dhcp'))
    cidr = record['cidr']
    try:
        subnet = Subnet(str(ipaddress.ip_network(cidr.text())))
    except ValueError as error:
        raise cidr.error(f'{cidr.text()} is not a CIDR: {error}') from None
    gateway = _address(record['gateway']) if 'gateway' in record else None
    # A link-local address of a router is a valid gateway of every IPv6 subnet.
    if gateway and gateway not in subnet and not ipaddress.ip_address(gateway).is_link_local:
        raise record['gateway'].error(f'gateway {gateway} is not in {subnet.cidr}')
    return Subnet(
        subnet.cidr,
        gateway,
        tuple(_address(one) for one in record['dns'].list()) if 'dns' in record else (),
        _flag(record['dhcp']) if 'dhcp' in record else False,
    )


def _router(value: Value, name: str, networks: Mapping[str, Network]) -> Router:
    record = value.record(('id', 'networks'), ('name',))
    behind: list[str] = []
    for one in record['networks'].list():
        network = _known(one, networks, 'network').id
        if network in behind:
            raise one.error(f'network {network} is twice in {value.what}')
        behind.append(network)
    return Router(name, _text(record, 'name', name), tuple(behind))


def _port(value: Value, name: str, networks: Mapping[str, Network], instances: Mapping[str, Instance]) -> Port:
    record = value.record(('id', 'network', 'mac'), ('addresses', 'instance', 'project', 'device_owner', 'created_at'))
    network = _known(record['network'], networks, 'network')
    addresses = []
    for one in record['addresses'].list() if 'addresses' in record else ():
        address = _address(one)
        if network.subnets and not ipaddress.ip_address(address).is_link_local and not _within(address, network):
            raise one.error(f'{address} is in no subnet of network {network.id}')
        addresses.append(address)
    project = _id(record['project']) if 'project' in record else None
    owner = _text(record, 'device_owner', 'compute:nova' if 'instance' in record else 'network')
    instance = None
    if 'instance' in record:
        instance = _known(record['instance'], instances, 'instance')
        if project not in (None, instance.project_id):
            reason = f'project {project} of {value.what} is not the project of its instance, {instance.project_id}'
            raise record['project'].error(reason)
        if not owner.startswith(_OWNERS):
            raise record['device_owner'].error(
                f'{owner} is not a device_owner of an instance: it must begin with {" or ".join(_OWNERS)}'
            )
        project = instance.project_id
    return Port(
        name,
        network,
        _mac(record['mac']),
        tuple(addresses),
        owner,
        instance.id if instance else None,
        project,
        _timestamp(record['created_at']) if 'created_at' in record else None,
    )


def _instance(value: Value, name: str) -> Instance:
    texts = ('hostname', 'availability_zone', 'instance_type', 'image')
    others = ('security_groups', 'public_keys', 'metadata', 'user_data', 'vendor_data', 'vendor_data2')
    record = value.record(('id', 'project', 'name'), (*texts, *others))
    groups = record['security_groups'].list() if 'security_groups' in record else None
    return Instance(
        id=name,
        project_id=_id(record['project']),
        name=record['name'].text(),
        hostname=_text(record, 'hostname', record['name'].text()),
        availability_zone=_text(record, 'availability_zone', 'nova'),
        instance_type=_text(record, 'instance_type', 'unknown'),
        image=_text(record, 'image', 'ami-00000000'),
        security_groups=('default',) if groups is None else tuple(one.text() for one in groups),
        public_keys=_texts(record, 'public_keys'),
        metadata=tuple((key, one.multiline()) for key, one in _pairs(record, 'metadata')),
        user_data=record['user_data'].binary() if 'user_data' in record else None,
        vendor_data=record['vendor_data'].json() if 'vendor_data' in record else '{}',
        vendor_data2=record['vendor_data2'].json() if 'vendor_data2' in record else '{}',
    )


def _unique_on_network(values: Value, ports: list[Port]) -> None:
    """Raise ConfigError if two ports of a network have the same address or MAC.

    Otherwise the client's address would not identify the instance.
    """
    taken: dict[tuple[str, str], str] = {}
    for value, port in zip(values.list(), ports, strict=True):
        pairs = value.pairs()
        where = pairs['addresses'].list() if 'addresses' in pairs else []
        for address, at in ((port.mac, pairs['mac']), *zip(port.addresses, where, strict=True)):
            other = taken.setdefault((port.network.id, address), port.id)
            if other != port.id or (address != port.mac and port.addresses.count(address) > 1):
                raise at.error(f'{address} is already on network {port.network.id}, at port {other}')


def _id(value: Value) -> str:
    text = value.text()
    if not _ID.match(text):
        raise value.error(f'{text} is not an id: use 1 to 64 letters, digits and dashes')
    return text


def _known(value: Value, records: Mapping[str, T], what: str) -> T:
    if value.text() not in records:
        raise value.error(f'there is no {what} {value.text()}')
    return records[value.text()]


def _text(record: Mapping[str, Value], key: str, default: str) -> str:
    return record[key].text() if key in record else default


def _pairs(record: Mapping[str, Value], key: str) -> list[tuple[str, Value]]:
    return list(record[key].pairs().items()) if key in record else []


def _texts(record: Mapping[str, Value], key: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, value.text()) for name, value in _pairs(record, key))


def _address(value: Value) -> str:
    """The address as canonical text, as in the environ key SOURCE of a request."""
    try:
        parsed = ipaddress.ip_address(value.text())
    except ValueError:
        raise value.error(f'{value.text()} is not an address') from None
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.scope_id is not None:
            raise value.error(f'{value.text()} is not an address: leave the zone out')
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
    return str(parsed)


def _within(address: str, network: Network) -> bool:
    return any(address in subnet for subnet in network.subnets)


def _mac(value: Value) -> str:
    mac = value.text().lower().replace('-', ':')
    if not _MAC.match(mac):
        raise value.error(f'{value.text()} is not a MAC address: write six pairs of hex digits, 52:54:00:12:34:56')
    return mac


def _mtu(value: Value) -> int:
    text = value.text()
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 68 <= int(text) <= 65535):
        raise value.error(f'mtu {text} must be a number of bytes from 68 to 65535')
    return int(text)


def _timestamp(value: Value) -> float:
    try:
        moment = datetime.fromisoformat(value.text())
    except ValueError:
        raise value.error(f'{value.text()} is not a time: write it as 2026-01-31T13:30:00Z') from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _flag(value: Value) -> bool:
    if value.text() not in ('true', 'false'):
        raise value.error(f'{value.what} must be true or false, not {value.text()}')
    return value.text() == 'true'
