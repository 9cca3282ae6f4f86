# SPDX-License-Identifier: Apache-2.0
"""The OpenStack tree: ``/openstack/<version>/{meta_data.json,network_data.json,...}``, from an instance.

The functions are pure, except that ``random_seed`` is new in every response. Each file and key exists in the same
versions as in Nova. As in Nova, network_data.json is served under every version, even if that version does not list it.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from metadata_wsgi.inventory import Instance
from metadata_wsgi.metadata_service.network import network_data

VERSIONS = (
    '2012-08-10',
    '2013-04-04',
    '2013-10-17',
    '2015-10-15',
    '2016-06-30',
    '2016-10-06',
    '2017-02-22',
    '2018-08-27',
    '2020-10-14',
    '2025-04-04',
)
PASSWORD = 'password'  # noqa: S105 - the name of the file
JSON = 'application/json'
TEXT = 'text/plain'

# The files in the order of the listing, each with the version that introduced it.
_FILES = {
    'meta_data.json': '2012-08-10',
    'user_data': '2012-08-10',
    PASSWORD: '2013-04-04',
    'vendor_data.json': '2013-10-17',
    'network_data.json': '2015-10-15',
    'vendor_data2.json': '2016-10-06',
}


def has_password(tokens: Sequence[str]) -> bool:
    """Whether ``tokens``, the path segments after ``/openstack``, are the path of the password."""
    return len(tokens) == 2 and tokens[1] == PASSWORD and PASSWORD in _files(_version(tokens[0]))


def find(
    instance: Instance, tokens: Sequence[str], random: Callable[[int], bytes] = os.urandom
) -> tuple[bytes, str] | None:
    """The body and its content type for ``tokens``, the path segments after ``/openstack``.

    None if the path does not exist. The password is not in this tree (``password.py``).
    """
    if not tokens:
        return '\n'.join([*VERSIONS, 'latest']).encode(), TEXT
    version = _version(tokens[0])
    if version is None or len(tokens) > 2:
        return None
    files = _files(version)
    if len(tokens) == 1:
        return '\n'.join(f for f in files if f != 'user_data' or instance.user_data is not None).encode(), TEXT
    match tokens[1]:
        case 'meta_data.json':
            return json.dumps(meta_data(instance, version, random)).encode(), JSON
        case 'network_data.json':
            return json.dumps(network_data(instance)).encode(), TEXT
        case 'user_data' if instance.user_data is not None:
            return instance.user_data, TEXT
        case 'vendor_data.json' as name if name in files:
            return instance.vendor_data.encode(), JSON
        case 'vendor_data2.json' as name if name in files:
            merged = {'static': json.loads(instance.vendor_data), **json.loads(instance.vendor_data2)}
            return json.dumps(merged).encode(), JSON
    return None


def meta_data(instance: Instance, version: str, random: Callable[[int], bytes]) -> dict[str, Any]:
    """The contents of meta_data.json in the version ``version``, a date."""
    document: dict[str, Any] = {'uuid': instance.id}
    if instance.metadata:
        document['meta'] = dict(instance.metadata)
    if instance.public_keys:
        document['public_keys'] = dict(instance.public_keys)
        document['keys'] = [{'name': name, 'type': 'ssh', 'data': key} for name, key in instance.public_keys]
    document['hostname'] = instance.hostname
    document['name'] = instance.name
    document['launch_index'] = 0
    document['availability_zone'] = instance.availability_zone
    later: tuple[tuple[str, str, Any], ...] = (
        ('2013-04-04', 'random_seed', base64.b64encode(random(512)).decode()),
        ('2015-10-15', 'project_id', instance.project_id),
        ('2016-06-30', 'devices', []),
        ('2020-10-14', 'dedicated_cpus', []),
    )
    # Dates in this format can be compared as text.
    document.update({key: value for since, key, value in later if since <= version})
    return document


def _version(token: str) -> str | None:
    if token == 'latest':  # noqa: S105 - no password
        return VERSIONS[-1]
    return token if token in VERSIONS else None


def _files(version: str | None) -> list[str]:
    return [name for name, since in _FILES.items() if version is not None and since <= version]
