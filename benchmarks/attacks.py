# SPDX-License-Identifier: Apache-2.0
"""Runs the attacks of ``tests/e2e/test_attacks.py`` on Neutron's path: one guest attacks while another boots.

``attacks.py PYTHON`` prints the results of the booting guest's 28 requests. PYTHON is an interpreter that has neutron.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.hostile import peer
from tests.e2e.test_attacks import ATTACKS, Attack, boot


def main(python: str) -> None:
    """Run each attack on newly started programs of Neutron."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for name, (sources, begin, drip) in ATTACKS.items():
        with peer(python) as hops:
            _, port = hops.places['proxy']
            boot(port, 1)
            _, undisturbed_ms = boot(port)
            with Attack(port, sources, begin, drip) as attack:
                try:
                    statuses, disturbed_ms = boot(port)
                    became = f'{statuses.count(200)} of {len(statuses)} got 200, the slowest {disturbed_ms:.1f} ms'
                except OSError as error:
                    became = f'the boot failed: {str(error) or type(error).__name__}'
        print(
            f'{attack.opened} {name}: slowest without attack {undisturbed_ms:.1f} ms; during it {became}',
            flush=True,
        )


if __name__ == '__main__':
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
