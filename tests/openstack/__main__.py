# SPDX-License-Identifier: Apache-2.0
"""Run the three services until interrupted; print their URLs."""

import contextlib
import signal

from tests.openstack.deployment import running

with running() as openstack, contextlib.suppress(KeyboardInterrupt):
    services = openstack.services
    print(f'Keystone {services.keystone}, Neutron {services.neutron}, Nova metadata port {services.port("nova")}')
    print(f'Their contents: {services.top}/seed.json. Ctrl-C stops them.', flush=True)
    signal.pause()
