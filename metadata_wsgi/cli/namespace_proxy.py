# SPDX-License-Identifier: Apache-2.0
"""``quantum-ns-metadata-proxy``: the namespace proxy for one router or network, or the shared proxy (``--shared``).

The program accepts the command line of an L3 or DHCP agent of Grizzly. It is started in a namespace, and makes
the shared proxy serve this namespace. With ``--mode process``, or if the shared proxy cannot, the program itself
serves the namespace. It reads no configuration file. If root starts the program, it opens the sockets and then serves
as an unprivileged user. ``--metadata_proxy_user`` and ``--metadata_proxy_group`` select this user; the default is a
user that may connect to the agent's socket. The agent may be started before or after the proxy
(``privileges.identity_from_socket``).

The id of the router or network stays in the command line of the process, because process managers search for the id
there. The proxy does not start if another process has the same pid file.
"""

from __future__ import annotations

import argparse
import logging
import logging.handlers
import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from metadata_wsgi import limits
from metadata_wsgi.cli import log_output, report_process
from metadata_wsgi.errors import ConfigError, MetadataError, NetnsError
from metadata_wsgi.keeper.protocol import SHARED, SHARED_SOCKET
from metadata_wsgi.namespace_proxy import daemonize
from metadata_wsgi.namespace_proxy.pidfile import PidFile
from metadata_wsgi.net import listeners, sd_notify
from metadata_wsgi.net.sd_notify import Notifier
from metadata_wsgi.netns.target import PROCESS
from metadata_wsgi.pipeline.environ_keys import Namespace
from metadata_wsgi.privileges import identity
from metadata_wsgi.privileges.identity import Identity
from metadata_wsgi.privileges.identity_from_socket import IdentityFromSocket
from metadata_wsgi.server import master, reexec

LOG = logging.getLogger(__name__)

PROGRAM = 'quantum-ns-metadata-proxy'
SYSLOG = '/dev/log'
UUID = re.compile(r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}')


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = make_parser().parse_args(argv)
    # Made absolute, because a daemon changes its working directory.
    for name in ('state_path', 'pid_file', 'metadata_proxy_socket', 'log_dir', 'metrics_directory'):
        if getattr(args, name):
            setattr(args, name, os.path.abspath(getattr(args, name)))
    notifier = Notifier.from_environ()
    namespace_id = args.router_id or args.network_id or ('shared' if args.shared else None)
    try:
        if not namespace_id:
            raise ConfigError('no namespace given; use --router_id, --network_id or --shared')
        _configure_logging(args, namespace_id)
        if args.mode == SHARED and _can_hand_over(args) and _hand_over(args):
            return 0
        worker_identity = _worker_identity(args)
        if reexec.is_check():
            _application(args)
            return 0
        pid_file = PidFile(args.pid_file) if args.pid_file else None
        sockets = _open_listeners(args)
    except MetadataError as error:
        print(f'{PROGRAM}: {_with_namespace_id(namespace_id, error)}', file=sys.stderr)
        return 1
    ready = daemonize.daemonize() if args.daemonize else lambda: None
    try:
        if pid_file:
            pid_file.write()
        master.Server(
            lambda: _application(args),
            sockets,
            settings=lambda: {
                'workers': 1,
                'worker_connections': limits.MAX_CONNECTIONS_SHARED if args.shared else limits.MAX_CONNECTIONS,
                'backlog': limits.LISTEN_BACKLOG,
            },
            # If setproctitle is installed, gunicorn replaces the command line. This name keeps the id in it.
            name=' '.join([PROGRAM, *argv]),
            on_worker_start=pid_file.close_in_child if pid_file else lambda: None,
            on_ready=ready,
            keeper=(os.path.join(args.state_path, 'listeners'), SHARED) if args.shared else None,
            namespace=None if args.shared else Namespace(args.router_id, args.network_id),
            identity=worker_identity,
            any_destination=args.allow_any_destination,
            # A daemon inherits NOTIFY_SOCKET of the unit that started it, but is not the main process of that unit.
            notifier=None if args.daemonize else notifier,
            program='namespace_proxy',
            write_report=lambda: report_process.start(args.state_path, f'{PROGRAM}-{namespace_id}'),
            socket_name=SHARED_SOCKET if args.shared and not args.daemonize else '',
        ).run()
    finally:
        if pid_file:
            pid_file.remove()
    return 0


def _can_hand_over(args: argparse.Namespace) -> bool:
    """Whether the shared proxy can serve this namespace instead of this process.

    True if root starts the program in the form of an L3 or DHCP agent: for one id, in the background, with a pid
    file, and without ``--listen_fd``.
    """
    is_uuid = UUID.fullmatch(args.router_id or args.network_id or '')
    return bool(is_uuid and args.daemonize and args.pid_file and not args.listen_fd and os.geteuid() == 0)


def _hand_over(args: argparse.Namespace) -> bool:
    """Make the shared proxy serve this namespace. Returns False if this fails; then this process must serve."""
    # Imported only here: workers of a master with this import would inherit functions that gevent must replace.
    from metadata_wsgi.cli import shared_proxy

    options = [
        f'--metadata_proxy_socket={_agent_socket(args)}',
        f'--metadata_header_prefix={args.metadata_header_prefix}',
    ]
    given = ('metadata_proxy_user', 'metadata_proxy_group', 'log_dir', 'metrics_directory')
    options += [f'--{name}={getattr(args, name)}' for name in given if getattr(args, name)]
    flags = ('use_syslog', 'use_json', 'use_journal', 'debug', 'verbose')
    options += [f'--{name.replace("_", "-")}' for name in flags if getattr(args, name)]
    kind = 'router' if args.router_id else 'network'
    proxy = shared_proxy.SharedProxy(args.state_path, options)
    try:
        proxy.hand_over(kind, args.router_id or args.network_id, args.pid_file, args.metadata_port, args.metadata_host)
    except shared_proxy.AlreadyRunning:
        raise
    except NetnsError as error:
        LOG.warning('Served by a process of its own, which costs tens of MB: %s', error)
        return False
    return True


def _worker_identity(args: argparse.Namespace) -> Callable[[], Identity | None]:
    user, group = args.metadata_proxy_user, args.metadata_proxy_group
    configured = identity.resolve_workers(user, group, options=('metadata_proxy_user', 'metadata_proxy_group'))
    if configured is None or user or group:
        return lambda: configured
    return IdentityFromSocket(_agent_socket(args), configured)


def _agent_socket(args: argparse.Namespace) -> str:
    return str(args.metadata_proxy_socket or os.path.join(args.state_path, 'metadata_proxy'))


def _open_listeners(args: argparse.Namespace) -> list[socket.socket]:
    if args.shared:
        # Clients connect to the keeper's sockets. This socket only prevents the start of a second shared proxy.
        path = os.path.join(args.state_path, SHARED_SOCKET)
        for name, descriptor in sd_notify.inherited():
            inherited = socket.socket(fileno=descriptor)
            if name == SHARED_SOCKET and listeners.keep_unix_listener(inherited, path, mode=0o600):
                return [inherited]
            inherited.close()
        return [listeners.unix_listener(path, mode=0o600, option='state_path', program='shared namespace proxy')]
    if args.listen_fd:
        return [_inherited_socket(number) for number in args.listen_fd]
    return listeners.tcp_listeners(args.metadata_host or [''], args.metadata_port)


def _inherited_socket(number: int) -> socket.socket:
    try:
        return socket.socket(fileno=number)
    except OSError as error:
        raise ConfigError(f'listen_fd = {number}: not a socket: {error.strerror}') from error


def _application(args: argparse.Namespace) -> Any:
    # Imported in the worker, so after gevent has patched the modules that these two import.
    from metadata_wsgi.http import client
    from metadata_wsgi.namespace_proxy.app import NamespaceProxyApp

    if args.metrics_directory:
        from metadata_wsgi.metrics import sink

        sink.connect(args.metrics_directory)
    return NamespaceProxyApp(
        client.unix_client(_agent_socket(args)),
        router_id=args.router_id,
        network_id=args.network_id,
        prefix=args.metadata_header_prefix,
        request_timeout_s=args.request_timeout,
    )


def _with_namespace_id(namespace_id: str | None, error: Exception) -> Exception:
    return MetadataError(f'{namespace_id}: {error}') if namespace_id else error


def _configure_logging(args: argparse.Namespace, namespace_id: str) -> None:
    log_output.set_up(
        _log_handlers(args, namespace_id),
        text_format=f'%(asctime)s %(process)d %(levelname)s %(name)s [{namespace_id} %(request_id)s] %(message)s',
        level=logging.DEBUG if args.debug else logging.INFO if args.verbose else logging.WARNING,
        use_json=args.use_json,
        use_journal=args.use_journal,
    )
    logging.getLogger('urllib3').setLevel(logging.WARNING)
    if args.use_syslog and not _syslog_is_reachable():
        LOG.warning(
            'syslog cannot be reached at %s: logging to standard error%s',
            SYSLOG,
            ', and not at all once it runs in the background; use --log_file' if args.daemonize else '',
        )


def _log_handlers(args: argparse.Namespace, namespace_id: str) -> list[logging.Handler]:
    """The log handlers that the options select.

    A daemon closes its standard error when it is ready, because its caller may read it to the end. So a
    daemon also logs to syslog if no other destination is given.
    """
    if args.use_syslog and _syslog_is_reachable():
        return [logging.handlers.SysLogHandler(SYSLOG)]
    if args.log_file or args.log_dir:
        name = os.path.join(args.log_dir or '', args.log_file or f'{PROGRAM}-{namespace_id}.log')
        try:
            return [logging.handlers.WatchedFileHandler(os.path.abspath(name))]
        except OSError as error:
            raise ConfigError(f'log_file {name}: {error.strerror}') from error
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if args.daemonize and _syslog_is_reachable():
        handlers.append(logging.handlers.SysLogHandler(SYSLOG))
    return handlers


def _syslog_is_reachable() -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(SYSLOG) == 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line: the options of Grizzly's program, and newer ones."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description='Namespace proxy for one router or network, or for all of a host (--shared).',
        allow_abbrev=False,
    )

    def option(name: str, *, former_name: str = '', **kwargs: Any) -> None:
        # Grizzly's agents write underscores, operators today write dashes.
        spellings = [f'--{one}' for name_ in (name, former_name) if name_ for one in (name_, name_.replace('_', '-'))]
        names = dict.fromkeys(spellings)
        parser.add_argument(*names, dest=name, **kwargs)

    option('pid_file', help='file for the pid; locked while the proxy runs')
    option('router_id', help='id of the router whose namespace this is; if it is given, network_id is ignored')
    option('network_id', help='id of the isolated network whose namespace this is')
    option('shared', action='store_true', help='serve every namespace that is attached with --mode shared')
    option(
        'mode',
        choices=[SHARED, PROCESS],
        default=SHARED,
        help="shared (default): pass the listening socket to the host's shared proxy, which is started if it does not "
        'run, and start a small process with the id in its command line; process: serve in this process, which takes '
        'tens of MB of memory. The mode is always process without root, without --pid_file, with --nodaemonize or with '
        '--listen_fd',
    )
    option('state_path', default='/var/lib/quantum', help="directory of the agent's socket (default: %(default)s)")
    option('metadata_port', type=int, default=9697, help='TCP port to listen on (default: %(default)s)')
    option(
        'metadata_host',
        action='append',
        default=[],
        help='address to listen on, with zone if link-local (default: all); may be repeated. If the first address '
        'fails, the proxy does not start; if another one fails, it logs a warning',
    )
    option(
        'listen_fd',
        type=int,
        action='append',
        help='number of an inherited listening socket to serve instead of opening one; may be repeated',
    )
    option('metadata_proxy_socket', help="the agent's socket (default: <state_path>/metadata_proxy)")
    option(
        'metadata_proxy_user',
        default='',
        help="user of the workers if root starts the proxy (default: a user that may connect to the agent's socket)",
    )
    option(
        'metadata_proxy_group',
        default='',
        help="group of the workers if root starts the proxy (default: a group that may connect to the agent's socket)",
    )
    option(
        'allow_any_destination',
        former_name='any_destination',
        action='store_true',
        help='also serve connections to other addresses than the metadata address',
    )
    option('metadata_header_prefix', default='X-Quantum', help='prefix of the id headers (default: %(default)s)')
    option(
        'request_timeout',
        former_name='answer_within',
        type=float,
        default=limits.REQUEST_TIMEOUT_S,
        help='seconds until a request has its response, at the latest a 503 (default: %(default)s)',
    )
    option(
        'metrics_directory',
        help='directory for the counts of the metrics: the option directory in [metrics] of the agent. The user of the '
        'workers must be able to write there (default: nothing is counted)',
    )
    option('log_file', help='log file, instead of standard error (by default a daemon logs to syslog)')
    option('log_dir', help='directory of the log file')
    option('use_syslog', action='store_true', help='log to syslog')
    log_output.add_arguments(parser)
    option('debug', action='store_true', help='log at level DEBUG')
    option('verbose', action='store_true', help='log at level INFO')
    parser.add_argument('--daemonize', action='store_true', default=True, help='run in the background (default)')
    parser.add_argument('--nodaemonize', action='store_false', dest='daemonize', help='stay in the foreground')
    return parser
