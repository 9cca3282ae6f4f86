# SPDX-License-Identifier: Apache-2.0
"""The configuration files of ``neutron-metadata-agent-wsgi``, for this program and for the commands with ``--neutron``.

``metadata_wsgi/cli/neutron_agent.py`` has their order. This module imports little, because a probe may start
``metadata-wsgi healthcheck`` every few seconds.
"""

from __future__ import annotations

import argparse
import os
import pwd
from collections.abc import Sequence
from pathlib import Path

from oslo_config import cfg

from metadata_wsgi.config import config_files

PROGRAM = 'neutron-metadata-agent-wsgi'
NEUTRON_PROGRAM = 'neutron-metadata-agent'
USER = 'neutron'
DEFAULT_FILES = ('/etc/neutron/neutron.conf', '/etc/neutron/metadata_agent.ini')


def configuration(paths: Sequence[str]) -> dict[str, str]:
    """The ``global_conf`` for the configuration paths of the command line."""
    directory = Path(__file__).parent
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--config-file``, ``--config-dir`` and ``--neutron``."""
    config_files.add_arguments(parser, help=' (default: as the agent)')
    parser.add_argument(
        '--neutron', action='store_true', help=f'read the defaults of {PROGRAM} before the configuration files'
    )


def global_conf_of(args: argparse.Namespace) -> dict[str, str]:
    """The ``global_conf`` of the agent whose configuration ``args`` select."""
    return (configuration if args.neutron else config_files.to_global_conf)(args.config_file)
