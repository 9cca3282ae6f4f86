# SPDX-License-Identifier: Apache-2.0
"""What a guest of the lab itself receives, asked with curl from inside it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass

from metadata_wsgi.errors import NetnsError
from metadata_wsgi.lab import plan

URL = 'http://169.254.169.254'


@dataclass(frozen=True, slots=True)
class Received:
    """Who the guest was told to be."""

    instance_id: str
    hostname: str


def curl(guest: plan.Guest, path: str) -> str:
    """The body of ``http://169.254.169.254<path>`` inside the guest. NetnsError unless the answer is 200."""
    argv = ['ip', 'netns', 'exec', guest.namespace, 'curl', '-sS', '-m', '15', '-w', '\n%{http_code}', URL + path]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    body, _, status = done.stdout.rpartition('\n')
    if done.returncode or status != '200':
        said = done.stderr.strip() or f'status {status}'
        raise NetnsError(f'{guest.name}: curl {URL}{path}: {said}')
    return body


def ask(guest: plan.Guest) -> Received:
    """Ask as cloud-init does, and once more for the hostname as an EC2 guest does."""
    told = json.loads(curl(guest, '/openstack/latest/meta_data.json'))
    return Received(told['uuid'], curl(guest, '/2009-04-04/meta-data/hostname'))
