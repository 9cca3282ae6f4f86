# SPDX-License-Identifier: Apache-2.0
"""The three services together: installed and seeded once, started and stopped with each run."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.openstack.install import install
from tests.openstack.seed import Admin, Seed, seed
from tests.openstack.services import SHARED_SECRET, Services

HERE = Path(__file__).parent
SOURCES = ('pins.txt', 'services.py', 'seed.py', 'nova_rows.py', 'neutron_tables.py')
"""If one of these files changes, the databases are made again."""


@dataclass(frozen=True)
class Deployment:
    """The running services, and what is in their databases."""

    services: Services
    seed: Seed


def directory() -> Path:
    """The directory for everything that is used again by the next run."""
    return Path(os.environ.get('METADATA_WSGI_OPENSTACK_DIR') or '~/.cache/metadata_wsgi/openstack').expanduser()


@contextmanager
def running() -> Iterator[Deployment]:
    """Start the services and wait until they respond; stop them at the end. Waits for a run with the same directory."""
    top, port = directory(), int(os.environ.get('METADATA_WSGI_OPENSTACK_PORT') or 18500)
    top.mkdir(parents=True, exist_ok=True)
    with (top / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # A directory for each port, because the catalogue contains the ports.
        services = Services(top / f'cloud-{port}', install(top), port)
        try:
            yield Deployment(services, _seeded(services))
        finally:
            services.stop()


def _seeded(services: Services) -> Seed:
    seed_file, sources_file = services.top / 'seed.json', services.top / 'seeded-by'
    sources = hashlib.sha256(b''.join((HERE / name).read_bytes() for name in SOURCES)).hexdigest()
    if seed_file.exists() and sources_file.exists() and sources_file.read_text() == sources:
        services.configure()
        services.start()
        warm_up(services)
        return Seed.from_json(seed_file.read_text())
    shutil.rmtree(services.top, ignore_errors=True)
    services.configure()
    services.make_databases()
    services.start()
    made = seed(services)
    warm_up(services)
    seed_file.write_text(made.as_json())
    sources_file.write_text(sources)
    return made


def warm_up(services: Services) -> None:
    """Send a request to each service: the first one loads much code, on a busy machine for longer than the deadline."""
    admin = Admin(services)
    admin.neutron('GET', 'networks?limit=1')
    admin.close()
    instance_id = '00000000-0000-4000-8000-000000000000'
    headers = {
        'X-Forwarded-For': '10.1.1.2',
        'X-Instance-ID': instance_id,
        'X-Tenant-ID': 'none',
        'X-Instance-ID-Signature': hmac.new(SHARED_SECRET.encode(), instance_id.encode(), hashlib.sha256).hexdigest(),
    }
    url = f'http://127.0.0.1:{services.port("nova")}/openstack/latest/meta_data.json'
    requests.get(url, headers=headers, timeout=120, proxies={'http': ''})
