# SPDX-License-Identifier: Apache-2.0
"""The EC2 tree: ``/<version>/{meta-data/...,user-data}``, as pure functions of an instance.

The response for a directory is its listing: one name per line in alphabetical order, with a slash after a directory.
The directory of a public key is listed as ``0=name`` and has the path ``0``. Each name exists in the same versions as
in Nova.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from metadata_wsgi.inventory import Instance

VERSIONS = (
    '1.0',
    '2007-01-19',
    '2007-03-01',
    '2007-08-29',
    '2007-10-10',
    '2007-12-15',
    '2008-02-01',
    '2008-09-01',
    '2009-04-04',
)

# The version that introduced each name. All other names are in all versions.
_SINCE = {
    'local-hostname': '2007-01-19',
    'public-hostname': '2007-01-19',
    'public-ipv4': '2007-01-19',
    'instance-type': '2007-08-29',
    'block-device-mapping': '2007-12-15',
    'placement': '2008-02-01',
    'instance-action': '2008-09-01',
}


@dataclass(frozen=True, slots=True)
class Folder:
    """A directory of the tree. ``listed_as`` is its line in the listing of its parent; None: its name."""

    entries: Mapping[str, Node]
    listed_as: str | None = None


Node: TypeAlias = Folder | bytes


def versions() -> bytes:
    """The listing of ``/``. Only this response needs no authentication."""
    return '\n'.join([*VERSIONS, 'latest']).encode()


def find(instance: Instance, tokens: Sequence[str]) -> bytes | None:
    """The body for the path segments ``/<version>/...``; None if the path does not exist.

    Without segments the body is the list of versions.
    """
    if not tokens:
        return versions()
    version = VERSIONS[-1] if tokens[0] == 'latest' else tokens[0]
    if version not in VERSIONS:
        return None
    node: Node = tree(instance, version)
    for token in tokens[1:]:
        if not isinstance(node, Folder) or token not in node.entries:
            return None
        node = node.entries[token]
    return listing(node) if isinstance(node, Folder) else node


def listing(folder: Folder) -> bytes:
    """The listing of a directory: a line for each entry, without a newline at the end."""
    return '\n'.join(_line(name, folder.entries[name]) for name in sorted(folder.entries)).encode()


def tree(instance: Instance, version: str) -> Folder:
    """The tree below ``/<version>``."""
    later = VERSIONS[VERSIONS.index(version) + 1 :]
    there = {name: node for name, node in _meta_data(instance).items() if _SINCE.get(name) not in later}
    entries: dict[str, Node] = {'meta-data': Folder(there)}
    if instance.user_data is not None:
        entries['user-data'] = instance.user_data
    return Folder(entries)


def ec2_id(instance: Instance, prefix: str) -> str:
    """The EC2 id of the instance, for example ``i-0a1b2c3d``.

    The id must never change: with another id cloud-init would configure the instance again, as a new instance.
    """
    return f'{prefix}-{hashlib.sha256(instance.id.encode()).hexdigest()[:8]}'


def _meta_data(instance: Instance) -> dict[str, Node]:
    hostname = instance.hostname.encode()
    addresses = [address for port in instance.ports for address in port.addresses if ':' not in address]
    found: dict[str, Node] = {
        'ami-id': instance.image.encode(),
        'ami-launch-index': b'0',
        'ami-manifest-path': b'FIXME',
        'block-device-mapping': Folder({'ami': b'vda', 'root': b'/dev/vda'}),
        'hostname': hostname,
        'instance-action': b'none',
        'instance-id': ec2_id(instance, 'i').encode(),
        'instance-type': instance.instance_type.encode(),
        'local-hostname': hostname,
        'local-ipv4': addresses[0].encode() if addresses else b'',
        'placement': Folder({'availability-zone': instance.availability_zone.encode()}),
        'public-hostname': hostname,
        'public-ipv4': b'',
        'reservation-id': ec2_id(instance, 'r').encode(),
        'security-groups': '\n'.join(instance.security_groups).encode(),
    }
    if instance.public_keys:
        found['public-keys'] = Folder(
            {
                str(index): Folder({'openssh-key': key.encode()}, f'{index}={name}')
                for index, (name, key) in enumerate(instance.public_keys)
            }
        )
    return found


def _line(name: str, node: Node) -> str:
    if not isinstance(node, Folder):
        return name
    return node.listed_as or f'{name}/'
