# SPDX-License-Identifier: Apache-2.0
"""cloud-init boots completely while Neutron or Keystone fails: the agent retries.

Each request of cloud-init causes two requests to Neutron, and the first one also a token request to Keystone. For a
fault of Keystone the agent is therefore restarted before the boot.
"""

from __future__ import annotations

import pytest

from tests.clients.boot_table import Row
from tests.clients.cloud_init import run_boot
from tests.clients.cloud_init_requests import REQUESTS_BY_DATASOURCE
from tests.clients.named_faults import FAULTS, FAULTS_FOR_EACH_DURATION, inject, nightly
from tests.fault_injecting_proxy import target

pytestmark = [pytest.mark.netns, pytest.mark.cloudinit, pytest.mark.not_traced]

TOKENS = '/v3/auth/tokens'
LOOKUP_REQUESTS = {name: 2 * len(targets) for name, targets in REQUESTS_BY_DATASOURCE.items()}


def from_number(number):
    """Matches request ``number`` and all later ones; the first of these is its retry."""
    return lambda seen: seen.number >= number


@pytest.fixture
def boot_with_fault(services, table, boots_without_faults, tmp_path):
    """Boots with a fault of Keystone or Neutron, like ``boot_with_fault`` of test_cloud_init_nova_faults."""

    def run(datasource, service, number, name, duration='once'):
        injector = {'Keystone': services.keystone, 'Neutron': services.quantum}[service]
        if service == 'Keystone':
            services.path.start_agent()
        inject(injector, name, duration, target(TOKENS) if service == 'Keystone' else from_number(number))
        booted = run_boot(services.path.guest.namespace, datasource, tmp_path / 'root')
        complete = booted == boots_without_faults[datasource]
        faulted = next((seen for seen in injector.requests if seen.fault_injected), None)
        assert faulted, 'no request got the fault'
        target_ = REQUESTS_BY_DATASOURCE[datasource][number // 2]
        table.add(Row(datasource, service, name, duration, target_, complete, booted.seconds))
        assert booted == boots_without_faults[datasource], f'{booted.log}\n{services.path.log_text()}'

    return run


@pytest.mark.parametrize('datasource', REQUESTS_BY_DATASOURCE)
def test_each_request_costs_two_lookup_requests(services, boots_without_faults, tmp_path, datasource):
    services.path.start_agent()
    assert run_boot(services.path.guest.namespace, datasource, tmp_path / 'root') == boots_without_faults[datasource]
    assert services.nova.targets() == [f'GET {sent}' for sent in REQUESTS_BY_DATASOURCE[datasource]]
    assert services.keystone.targets() == [f'POST {TOKENS}']
    assert len(services.quantum.targets()) == LOOKUP_REQUESTS[datasource]


@pytest.mark.parametrize(
    ('datasource', 'number', 'name'),
    [
        *(('OpenStack', 0, name) for name in FAULTS),
        *(('OpenStack', 7, name) for name in ('500', 'refused', 'cut mid-body')),
        *(('Ec2', 9, name) for name in ('503', 'cut mid-body')),
    ],
)
def test_retry_after_one_quantum_fault(boot_with_fault, datasource, number, name):
    boot_with_fault(datasource, 'Neutron', number, name)


@pytest.mark.parametrize(
    # After two timeouts too little time is left on a busy machine: 'hanging, twice' is in the nightly run.
    ('name', 'duration'),
    [*((name, 'once') for name in FAULTS), ('503', 'twice')],
)
def test_retry_after_keystone_fault(boot_with_fault, name, duration):
    boot_with_fault('OpenStack', 'Keystone', 0, name, duration)


@pytest.mark.parametrize(
    ('service', 'number', 'name'),
    [('Neutron', 6, '503'), ('Neutron', 6, 'hanging'), ('Keystone', 0, 'refused'), ('Keystone', 0, 'hanging')],
)
def test_retry_while_quantum_or_keystone_fails_for_5_s(boot_with_fault, service, number, name):
    boot_with_fault('OpenStack', service, number, name, '5 s')


@pytest.mark.parametrize(
    ('datasource', 'number', 'name', 'duration'),
    nightly(
        (name, number, *how)
        for name in REQUESTS_BY_DATASOURCE
        for number in range(LOOKUP_REQUESTS[name])
        for how in FAULTS_FOR_EACH_DURATION
    ),
)
def test_retry_after_quantum_fault_at_any_request(boot_with_fault, datasource, number, name, duration):
    boot_with_fault(datasource, 'Neutron', number, name, duration)


@pytest.mark.parametrize(
    ('datasource', 'name', 'duration'),
    nightly((datasource, *how) for datasource in REQUESTS_BY_DATASOURCE for how in FAULTS_FOR_EACH_DURATION),
)
def test_retry_after_keystone_fault_with_each_datasource(boot_with_fault, datasource, name, duration):
    boot_with_fault(datasource, 'Keystone', 0, name, duration)
