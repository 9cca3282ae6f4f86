# SPDX-License-Identifier: Apache-2.0
"""``neutron-netns-cleanup`` in Neutron's virtual environment, as root without sudo."""

import os
import sys

from neutron import privileged
from neutron.cmd import netns_cleanup

if __name__ == '__main__':
    for context in (privileged.default, privileged.namespace_cmd, privileged.link_cmd):
        context.set_client_mode(False)
    netns_cleanup.main()
    # Neutron's process monitor has a thread that never ends.
    sys.stdout.flush()
    os._exit(0)
