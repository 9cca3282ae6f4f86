# SPDX-License-Identifier: Apache-2.0
"""The cloud as a whole: installed, seeded once, started and stopped with each run."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.openstack.install import install
from tests.openstack.seed import Admin, Seed, seed
from tests.openstack.services import Services

HERE = Path(__file__).parent
SOURCES = ('pins.txt', 'services.py', 'seed.py', 'nova_rows.py', 'neutron_tables.py')
"""When one of them changes, the databases are made anew."""


@dataclass(frozen=True)
class OpenStack:
    """Three services that run, and what is in them."""

    services: Services
    seed: Seed


def directory() -> Path:
    """Where everything is kept between runs."""
    return Path(os.environ.get('METADATA_WSGI_OPENSTACK_DIR') or '~/.cache/metadata_wsgi/openstack').expanduser()


@contextmanager
def running() -> Iterator[OpenStack]:
    """The three, seeded and answering; ended afterwards. Another run with the same directory is waited for."""
    top, port = directory(), int(os.environ.get('METADATA_WSGI_OPENSTACK_PORT') or 18500)
    top.mkdir(parents=True, exist_ok=True)
    with (top / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The catalogue has the ports in it.
        services = Services(top / f'cloud-{port}', install(top), port)
        try:
            yield OpenStack(services, _seeded(services))
        finally:
            services.stop()


def _seeded(services: Services) -> Seed:
    kept, of = services.top / 'seed.json', services.top / 'seeded-by'
    sources = hashlib.sha256(b''.join((HERE / name).read_bytes() for name in SOURCES)).hexdigest()
    if kept.exists() and of.exists() and of.read_text() == sources:
        services.configure()
        services.start()
        # Their first real answer takes longer than a guest waits on a busy machine: they load much only then.
        awake = Admin(services)
        awake.neutron('GET', 'networks?limit=1')
        awake.close()
        return Seed.from_json(kept.read_text())
    shutil.rmtree(services.top, ignore_errors=True)
    services.configure()
    services.make_databases()
    services.start()
    made = seed(services)
    kept.write_text(made.as_json())
    of.write_text(sources)
    return made
