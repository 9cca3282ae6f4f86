# SPDX-License-Identifier: Apache-2.0
"""A machine that boots systemd with the shipped units of etc/systemd."""

import uuid

import pytest

from metadata_wsgi.netns import namespaces
from tests.cloud import SECRET, Cloud
from tests.netns.keeper_host import RequestLoad
from tests.netns.router_topology import ip
from tests.netns.systemd_machine import SystemdMachine, missing_requirements
from tests.netns.units.running_units import SECRET_FILE, start_machine


@pytest.fixture
def network():
    """The network namespace of the machine; the fake Nova listens on its loopback."""
    name = f'host-{uuid.uuid4()}'
    ip('netns', 'add', name)
    try:
        ip('-n', name, 'link', 'set', 'lo', 'up')
        yield name
    finally:
        ip('netns', 'delete', name)


@pytest.fixture
def machine(directory, network, topology):
    """The machine for the units, not booted yet."""
    why = missing_requirements()
    if why:
        pytest.skip(why)
    with namespaces.run_in(network, lambda: Cloud(directory)) as cloud:
        cloud.configure(state_path=None, metadata_one_hop=True)
        conf = cloud.conf_file.read_text().replace(str(directory), '/etc/metadata_wsgi')
        inventory = (directory / 'inventory.yaml').read_text()
        made = SystemdMachine(directory, network, conf, {'inventory.yaml': inventory, SECRET_FILE: SECRET})
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture
def host(machine):
    return start_machine(machine)


@pytest.fixture
def attach(host, topology):
    def attach(mode, router='router-a', namespace=topology.router):
        words = ('--no-wait', '--mode', mode, '--router-id', router, '--namespace', namespace)
        done = host.metadata_wsgi('attach', *words)
        assert done.stderr == '', host.text()

    return attach


@pytest.fixture
def load(topology):
    """Starts a load of two parallel requests of the guest; stopped at the end of the test."""
    loads = []

    def start():
        loads.append(RequestLoad([(topology.guest, 'instance-a')] * 2))
        loads[-1].more()
        return loads[-1]

    yield start
    for one in loads:
        one.stop()
