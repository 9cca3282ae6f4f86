# SPDX-License-Identifier: Apache-2.0
"""``neutron-metadata-agent-wsgi``: the agent with the command line and the defaults of Neutron's metadata agent.

It takes the place of ``neutron-metadata-agent`` in a unit file, an image or a wrapper, with the same arguments and
files::

    neutron-metadata-agent-wsgi --config-file /etc/neutron/neutron.conf --config-file /etc/neutron/metadata_agent.ini

The differences to ``quantum-metadata-agent`` are two files of defaults in ``metadata_wsgi/config``, which are read
before all others: ``neutron_defaults.conf`` (state path, header prefix X-Neutron, the only one that is trusted) and, if
root starts the program, ``neutron_defaults_root.conf`` (the workers run as the user neutron, as the haproxies of
Neutron's agents do). The credentials are those of ``[keystone_authtoken]`` if nothing else is set.

As Neutron does, it also reads ``neutron.conf.d`` and ``neutron-metadata-agent.conf.d`` in /etc/neutron, after the
defaults and before the files of the command line; and /etc/neutron/neutron.conf and metadata_agent.ini if the command
line names no file.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Sequence
from pathlib import Path

from oslo_config import cfg

from metadata_wsgi import config
from metadata_wsgi.cli import agent
from metadata_wsgi.config import config_files

PROGRAM = 'neutron-metadata-agent-wsgi'
NEUTRON_PROGRAM = 'neutron-metadata-agent'
USER = 'neutron'
DEFAULT_FILES = ('/etc/neutron/neutron.conf', '/etc/neutron/metadata_agent.ini')


def configuration(paths: Sequence[str]) -> dict[str, str]:
    """The ``global_conf`` for the configuration paths of the command line."""
    directory = Path(config.__file__).parent
    defaults = [str(directory / 'neutron_defaults.conf')]
    if os.geteuid() == 0 and _user_exists():
        defaults.append(str(directory / 'neutron_defaults_root.conf'))
    named = list(paths) or [path for path in DEFAULT_FILES if os.path.exists(path)]
    return config_files.to_global_conf([*defaults, *cfg.find_config_dirs('neutron', NEUTRON_PROGRAM), *named])


def _user_exists() -> bool:
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    return agent.main(argv, agent.Program(PROGRAM, configuration))


if __name__ == '__main__':
    sys.exit(main())
