# SPDX-License-Identifier: Apache-2.0
"""A selection of the faults of ``tox -e chaos``, each for a second or two, in every mode.

No result depends on the speed of this machine: the deadline of a request is far longer than a start of the programs.
In mode process it is the default one, so there the host repairs itself, and a 503 is right while no instance is served.
"""

import os
import subprocess
import sys

import pytest

from tests.chaos.host import MODES, ONE_HOP, PROCESS, SHARED
from tests.chaos.setups import CACHED, TWO_VERSIONS

pytestmark = [
    pytest.mark.not_traced,
    pytest.mark.chaos,
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason='makes network namespaces: run it as root'),
]

FAULTS = {
    SHARED: [
        'SIGKILL agent master', 'SIGKILL proxy master', 'SIGKILL keeper', 'SIGKILL holder', 'reload agent in a loop',
        'Keystone down', 'Neutron flapping', 'Nova garbage', 'packets to the services dropped',
        'state and log directory full', 'descriptors of the agent used up',
    ],
    ONE_HOP: ['SIGKILL agent worker', 'SIGKILL keeper', 'reload agent in a loop', 'Nova flapping', 'Nova resetting'],
    PROCESS: ['SIGKILL agent master', 'SIGKILL proxy of one router'],
    CACHED: ['memcached hanging', 'memcached garbage'],
    TWO_VERSIONS[0]: ['upgrade from the former version', 'downgrade to the former version'],
}  # fmt: skip


def test_every_mode_has_faults():
    assert set(MODES) <= set(FAULTS)


@pytest.mark.parametrize('setup', FAULTS)
def test_booting_instances_lose_no_read(setup):
    argv = [sys.executable, '-m', 'tests.chaos', '--setup', setup, '--seconds', '1.5', '--verbose']
    argv += ['--deadline', '60', '--pause', '0.5']
    argv += [word for fault in FAULTS[setup] for word in ('--fault', fault)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=390)
    assert done.returncode == 0, f'{done.stdout}\n{done.stderr}'
    assert done.stdout.count(f'| {setup} |') == 2 * len(FAULTS[setup]), done.stdout
