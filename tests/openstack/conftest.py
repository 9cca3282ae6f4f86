# SPDX-License-Identifier: Apache-2.0
"""Fixtures that all tests of this package share: one deployment and one compute host, whose guests stay attached.

Each test configures and restarts the agent.
"""

import os
import shutil

import pytest

from tests.openstack.compute_host import ComputeHost
from tests.openstack.deployment import running


def pytest_collection_modifyitems(items):
    missing = [program for program in ('ip', 'iptables', 'curl', 'setpriv') if not shutil.which(program)]
    for item in items:
        if 'openstack' in item.keywords and (os.geteuid() or missing):
            why = f'makes network namespaces: run it as root, with {", ".join(missing) or "what is there"}'
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope='session')
def openstack():
    with running() as openstack:
        yield openstack


@pytest.fixture(scope='session')
def services(openstack):
    return openstack.services


@pytest.fixture(scope='session')
def seed(openstack):
    return openstack.seed


@pytest.fixture(scope='session')
def host(openstack, tmp_path_factory):
    host = ComputeHost(tmp_path_factory.mktemp('host'), openstack)
    try:
        yield host
    finally:
        host.remove()
