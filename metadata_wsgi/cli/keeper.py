# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi keeper``: run the keeper, the privileged process that opens listening sockets in namespaces."""

from __future__ import annotations

import argparse
import os
import sys

from metadata_wsgi.cli import keeper_process, log_output, verbs
from metadata_wsgi.config import config_files, state_paths
from metadata_wsgi.net import options as net_options
from metadata_wsgi.privileges import identity
from metadata_wsgi.privileges import options as privileges_options


def add_verb(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        subparsers,
        'keeper',
        description='The privileged process of the modes shared and one_hop. It enters namespaces, opens the listening '
        'sockets and sends them to the unprivileged workers. It never reads a request. It runs in the foreground until '
        'SIGTERM. While it is restarted, the workers continue to serve.',
    )
    config_files.add_arguments(parser)
    parser.add_argument('--state-path', help="directory of the keeper's two sockets (default: the option state_path)")
    parser.add_argument('--daemonize', action='store_true', help='run in the background and log to syslog')
    log_output.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Replace this process by the keeper, which runs until SIGTERM.

    The keeper's socket for workers belongs to ``metadata_proxy_user`` and ``metadata_proxy_group``. If neither is set,
    the socket belongs to the group of the workers.
    """
    global_conf = config_files.to_global_conf(args.config_file)
    owner = config_files.load(global_conf, net_options.OPTS)
    state_path = args.state_path or config_files.load(global_conf, state_paths.OPTS).state_path
    user, group = owner.metadata_proxy_user, owner.metadata_proxy_group
    if not user and not group:
        conf = config_files.load(global_conf, privileges_options.OPTS)
        workers = identity.resolve_workers(conf.metadata_user, conf.metadata_group)
        group = str(workers.gid) if workers else ''
    flags = {'daemonize': args.daemonize, 'use-json': args.use_json, 'use-journal': args.use_journal}
    argv = keeper_process.command_line(os.path.abspath(state_path), user, group, flags)
    # The same process executes another program: its pid stays, and the memory of all imported modules is freed. With
    # PYTHONPATH the new program finds the package in the same place, even if a wrapper has changed sys.path.
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
    os.execve(sys.executable, argv, environment)  # noqa: S606 (no shell: that is the point)
