# SPDX-License-Identifier: Apache-2.0
"""Requests metadata inside an instance of the lab, with curl."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.lab import plan

URL = 'http://169.254.169.254'


@dataclass(frozen=True, slots=True)
class Received:
    """The identity that an instance received as its metadata."""

    instance_id: str
    hostname: str


def curl(guest: plan.Guest, path: str) -> str:
    """The body of ``http://169.254.169.254<path>`` inside the instance. NetnsError unless the status is 200."""
    argv = ['ip', 'netns', 'exec', guest.namespace, 'curl', '-sS', '-m', '15', '-w', '\n%{http_code}', URL + path]
    completed = subprocess.run(argv, capture_output=True, text=True, check=False)
    body, _, status = completed.stdout.rpartition('\n')
    if completed.returncode or status != '200':
        reason = completed.stderr.strip() or f'status {status}'
        raise NetnsError(f'{guest.name}: curl {URL}{path}: {reason}')
    return body


def request_identity(guest: plan.Guest) -> Received:
    """Request the id from the OpenStack tree, as cloud-init does, and the hostname from the EC2 tree."""
    metadata = json.loads(curl(guest, '/openstack/latest/meta_data.json'))
    return Received(metadata['uuid'], curl(guest, '/2009-04-04/meta-data/hostname'))
