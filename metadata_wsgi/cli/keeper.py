# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi keeper``: run the keeper, the privileged process that opens listening sockets in namespaces."""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import os

from metadata_wsgi.config import config_files, state_paths
from metadata_wsgi.keeper.fdstore import SystemdFdStore
from metadata_wsgi.keeper.server import Keeper
from metadata_wsgi.namespace_proxy import daemonize
from metadata_wsgi.net import listeners
from metadata_wsgi.privileges import drop, identity


def add_verb(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        'keeper', help='open listening sockets in namespaces and send them to workers; needs root'
    )
    config_files.add_arguments(parser)
    parser.add_argument('--state-path', help="directory of the keeper's two sockets (default: state_path)")
    parser.add_argument('--daemonize', action='store_true', help='run in the background and log to syslog')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM.

    The owner of the socket for workers is ``metadata_proxy_user`` and ``metadata_proxy_group``. If neither is set, its
    group is the group of the workers.
    """
    handlers = [logging.handlers.SysLogHandler('/dev/log')] if args.daemonize and os.path.exists('/dev/log') else None
    log_format = '%(asctime)s %(process)d %(levelname)s %(name)s %(message)s'
    logging.basicConfig(level=logging.INFO, format=log_format, handlers=handlers)
    global_conf = {'config_file': ','.join(args.config_file)} if args.config_file else {}
    owner = config_files.load(global_conf, listeners.OPTS)
    state_path = args.state_path or config_files.load(global_conf, state_paths.OPTS).state_path
    user, group = owner.metadata_proxy_user, owner.metadata_proxy_group
    if not user and not group:
        conf = config_files.load(global_conf, identity.OPTS)
        workers = identity.resolve_workers(conf.metadata_user, conf.metadata_group)
        group = str(workers.gid) if workers else ''
    drop.no_core_files()
    ready = daemonize.daemonize() if args.daemonize else lambda: None
    # Removed from the environment, so that no child process notifies systemd.
    notify_address = os.environ.pop('NOTIFY_SOCKET', '')
    fdstore = SystemdFdStore(notify_address) if notify_address else None
    keeper = Keeper(state_path, user=user, group=group, fdstore=fdstore)
    if fdstore:
        keeper.restore(fdstore.restore(os.environ))
        fdstore.ready()
    ready()
    keeper.run()
    return 0
