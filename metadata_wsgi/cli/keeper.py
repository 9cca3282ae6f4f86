# SPDX-License-Identifier: Apache-2.0
"""``metadata-wsgi keeper``: run the privileged part of a host with many routers, in the foreground."""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import os

from metadata_wsgi.cli import log_output, verbs
from metadata_wsgi.config import config_files, state_paths
from metadata_wsgi.keeper.fdstore import SystemdFdStore
from metadata_wsgi.keeper.server import Keeper
from metadata_wsgi.namespace_proxy import daemonize
from metadata_wsgi.net import listeners
from metadata_wsgi.net.sd_notify import Notifier
from metadata_wsgi.privileges import drop, identity


def add_verb(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = verbs.add_parser(
        subparsers,
        'keeper',
        description='The privileged process of the modes shared and one_hop. It enters namespaces, opens the listening '
        'sockets and sends them to the unprivileged workers; it never reads a request. Runs in the foreground until '
        'SIGTERM; the workers serve on while it is restarted.',
    )
    config_files.add_arguments(parser)
    parser.add_argument('--state-path', help='directory of its two sockets (default: state_path)')
    parser.add_argument('--daemonize', action='store_true', help='run in the background and log to syslog')
    log_output.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM. The workers' socket is owned by metadata_proxy_user and metadata_proxy_group, by default by
    the default group of the workers."""
    to_syslog = args.daemonize and os.path.exists('/dev/log')
    log_output.set_up(
        [logging.handlers.SysLogHandler('/dev/log') if to_syslog else logging.StreamHandler()],
        text_format='%(asctime)s %(process)d %(levelname)s %(name)s %(message)s',
        level=logging.INFO,
        use_json=args.use_json,
        use_journal=args.use_journal,
    )
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
    notifier = Notifier.from_environ()
    fdstore = SystemdFdStore(notifier) if notifier else None
    keeper = Keeper(state_path, user=user, group=group, fdstore=fdstore, notifier=notifier)
    if fdstore:
        keeper.restore(fdstore.restore(os.environ))
    ready()
    keeper.run()
    return 0
