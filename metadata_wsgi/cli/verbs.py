# SPDX-License-Identifier: Apache-2.0
"""The verbs of ``metadata-wsgi``: for each verb its module, and its line in the help of the program.

The help lines are here and not in the modules, so that ``metadata-wsgi --help`` need not import the modules.
"""

from __future__ import annotations

import argparse
from typing import Any

PROGRAM = 'metadata-wsgi'

VERBS = {
    'lab': ('lab', 'build a cloud on this machine, show the metadata of each instance'),
    'attach': ('attach', 'attach the metadata path to routers or isolated networks'),
    'detach': ('attach', 'detach them again and remove every trace'),
    'attached': ('attached', 'show what is attached on this host, and what only partly'),
    'keeper': ('keeper', 'open listening sockets in namespaces and hand them to workers; needs root'),
    'adopt': ('adopt', "take over the sockets of Neutron's haproxies, and end them; no client is refused"),
    'give-back': ('adopt', "start Neutron's haproxies again, and close the keeper's sockets; no client is refused"),
    'check-config': ('check_config', 'check the configuration and print what is wrong with it'),
    'show-pipeline': ('check_config', 'print the filters of the pipeline and what each reads and provides'),
    'explain': ('explain', 'send one request through the pipeline and print what each filter finds'),
    'status': ('status', 'show whether the agent runs and works, and what is attached'),
    'healthcheck': ('healthcheck', 'check whether agent or keeper is alive and ready; exit code 0 or 1, for a probe'),
    'supervise': ('supervise', 'run keeper, shared namespace proxy and agent in a container; needs root'),
    'report': ('report', 'write everything that a bug report needs into one file, without secrets'),
    'watch': ('watch', 'attach new namespaces, detach deleted ones; needs root'),
    'completion': ('completion', 'print the script that completes this command in bash or zsh'),
}


def add_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], verb: str, **kwargs: Any
) -> argparse.ArgumentParser:
    """Add the parser of ``verb``. ``kwargs`` are arguments of argparse's ``add_parser``."""
    return subparsers.add_parser(verb, help=VERBS[verb][1], **kwargs)
