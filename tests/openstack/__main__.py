# SPDX-License-Identifier: Apache-2.0
"""Run the cloud until it is interrupted, and say where everything is."""

import contextlib
import signal

from tests.openstack.cloud import running

with running() as openstack, contextlib.suppress(KeyboardInterrupt):
    services = openstack.services
    print(f'Keystone {services.keystone}, Neutron {services.neutron}, Nova metadata port {services.port("nova")}')
    print(f'What is in them: {services.top}/seed.json. Ctrl-C stops them.', flush=True)
    signal.pause()
