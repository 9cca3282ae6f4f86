# SPDX-License-Identifier: Apache-2.0
"""``neutron-metadata-agent-wsgi``: the agent with the command line and the defaults of Neutron's metadata agent.

The program can replace ``neutron-metadata-agent`` in a unit file, an image or a wrapper. Its arguments and files are
the same::

    neutron-metadata-agent-wsgi --config-file /etc/neutron/neutron.conf --config-file /etc/neutron/metadata_agent.ini

The program differs from ``quantum-metadata-agent`` only by the files that it reads, in this order:

1. ``metadata_wsgi/config/neutron_defaults.conf``: the state path and the trusted header prefix, X-Neutron.
2. ``metadata_wsgi/config/neutron_defaults_root.conf``, only if root starts the program and a user neutron exists. The
   workers then run as the user neutron, like the haproxies of Neutron's agents.
3. ``neutron.conf.d`` and ``neutron-metadata-agent.conf.d`` in /etc/neutron, like Neutron's agent.
4. The files of the command line, else neutron.conf and metadata_agent.ini in /etc/neutron.

If no other credentials are set, those of ``[keystone_authtoken]`` are used.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from metadata_wsgi.cli import agent
from metadata_wsgi.config import neutron_files


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    return agent.main(argv, agent.Program(neutron_files.PROGRAM, neutron_files.configuration))


if __name__ == '__main__':
    sys.exit(main())
