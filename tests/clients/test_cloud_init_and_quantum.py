# SPDX-License-Identifier: Apache-2.0
"""Debian's cloud-init boots through the path while Quantum or Keystone fails, and must not notice anything but time.

Each of its requests costs two of Quantum's, and the first one a token of Keystone's: the agent is another one for
each boot that Keystone is to disturb.
"""

from __future__ import annotations

import pytest

from tests.clients.boot import boot
from tests.clients.crawls import CRAWLS
from tests.clients.faults import FAULTS, HOW, nightly, plan
from tests.clients.table import Row
from tests.injector import target

pytestmark = [pytest.mark.netns, pytest.mark.cloudinit]

TOKENS = '/v3/auth/tokens'
QUESTIONS = {name: 2 * len(crawl) for name, crawl in CRAWLS.items()}


def from_(number):
    """The request of that number and all that follow, the next try of it first."""
    return lambda seen: seen.number >= number


@pytest.fixture
def survives(behind, table, undisturbed, tmp_path):
    """Boots with a fault of Keystone's or Quantum's, as ``survives`` of test_cloud_init does with Nova's."""

    def run(datasource, service, number, name, lasting='once'):
        injector = {'Keystone': behind.keystone, 'Quantum': behind.quantum}[service]
        if service == 'Keystone':
            behind.way.start_agent()
        plan(injector, name, lasting, target(TOKENS) if service == 'Keystone' else from_(number))
        booted = boot(behind.way.guest.namespace, datasource, tmp_path / 'root')
        complete = booted == undisturbed[datasource]
        met = next((seen for seen in injector.requests if seen.failed), None)
        assert met, 'the fault met no request'
        asked = CRAWLS[datasource][number // 2]
        table.add(Row(datasource, service, name, lasting, asked, complete, booted.seconds))
        assert booted == undisturbed[datasource], f'{booted.log}\n{behind.way.said()}'

    return run


@pytest.mark.parametrize('datasource', CRAWLS)
def test_without_faults_each_request_costs_two_questions(behind, undisturbed, tmp_path, datasource):
    behind.way.start_agent()
    assert boot(behind.way.guest.namespace, datasource, tmp_path / 'root') == undisturbed[datasource]
    assert behind.nova.targets() == [f'GET {asked}' for asked in CRAWLS[datasource]]
    assert behind.keystone.targets() == [f'POST {TOKENS}']
    assert len(behind.quantum.targets()) == QUESTIONS[datasource]


@pytest.mark.parametrize(
    ('datasource', 'number', 'name'),
    [
        *(('OpenStack', 0, name) for name in FAULTS),
        *(('OpenStack', 7, name) for name in ('500', 'refused', 'cut mid-body')),
        *(('Ec2', 9, name) for name in ('503', 'cut mid-body')),
    ],
)
def test_quantum_fails_once(survives, datasource, number, name):
    survives(datasource, 'Quantum', number, name)


@pytest.mark.parametrize(
    ('name', 'lasting'), [*((name, 'once') for name in FAULTS), ('503', 'twice'), ('hanging', 'twice')]
)
def test_keystone_fails(survives, name, lasting):
    survives('OpenStack', 'Keystone', 0, name, lasting)


@pytest.mark.parametrize(
    ('service', 'number', 'name'),
    [('Quantum', 6, '503'), ('Quantum', 6, 'hanging'), ('Keystone', 0, 'refused'), ('Keystone', 0, 'hanging')],
)
def test_they_fail_for_5_s(survives, service, number, name):
    survives('OpenStack', service, number, name, '5 s')


@pytest.mark.parametrize(
    ('datasource', 'number', 'name', 'lasting'),
    nightly((name, number, *how) for name in CRAWLS for number in range(QUESTIONS[name]) for how in HOW),
)
def test_quantum_fails_anywhere(survives, datasource, number, name, lasting):
    survives(datasource, 'Quantum', number, name, lasting)


@pytest.mark.parametrize(
    ('datasource', 'name', 'lasting'), nightly((datasource, *how) for datasource in CRAWLS for how in HOW)
)
def test_keystone_fails_at_either_datasource(survives, datasource, name, lasting):
    survives(datasource, 'Keystone', 0, name, lasting)
