# SPDX-License-Identifier: Apache-2.0
"""``quantum-metadata-agent``: serves the ``agent`` pipeline of the paste file on the unix socket.

The agent runs in the foreground. ``--config-file`` and ``--config-dir`` may be repeated. Without these options the
agent reads the first existing ``metadata_agent.ini`` of /etc/metadata_wsgi, /etc/quantum and /etc/neutron. The logging
options are those of oslo.log. SIGHUP reloads the configuration. At SIGTERM the agent finishes the requests in progress
and ends. ``neutron_agent`` is the same program with the defaults of Neutron.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from oslo_config import cfg
from oslo_log import log

from metadata_wsgi.cache.process_shared import SharedPause, UsesSharedPause
from metadata_wsgi.cli import log_output, report_process, visibility_check
from metadata_wsgi.config import config_files, file_warnings, state_paths
from metadata_wsgi.errors import ConfigError, MetadataError
from metadata_wsgi.keeper.protocol import ONE_HOP
from metadata_wsgi.lookup import protocol
from metadata_wsgi.metrics import options
from metadata_wsgi.net import listeners, sd_notify
from metadata_wsgi.net import options as net_options
from metadata_wsgi.net.sd_notify import Notifier
from metadata_wsgi.pipeline import order, outcome, paste_loader
from metadata_wsgi.pipeline.environ_keys import NAMESPACE
from metadata_wsgi.privileges import identity
from metadata_wsgi.privileges import options as privileges_options
from metadata_wsgi.server import master, reexec
from metadata_wsgi.server import options as server_options
from metadata_wsgi.server.worker import Stoppable

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

LOG = logging.getLogger(__name__)

STORED_SOCKET = 'metadata_proxy'
"""Name of the agent's socket in systemd's store, and in the LISTEN_FDNAMES that SIGUSR1 passes to the new program."""

OPTS = [
    cfg.StrOpt('metadata_paste_config', help='Path of the paste file. Default: the paste file of the package.'),
    cfg.StrOpt(
        'api_paste_config',
        help='Old name of metadata_paste_config. Neutron and Nova have an option with this name too, and may read the '
        'same files. So the agent uses this option only if the file that it names has a section [pipeline:agent].',
    ),
    cfg.BoolOpt(
        'metadata_one_hop',
        default=False,
        help='Also serve the routers that are attached with --mode one_hop, with the pipeline one_hop.',
    ),
    cfg.BoolOpt(
        'allow_any_destination',
        default=False,
        deprecated_name='metadata_any_destination',
        help='In mode one_hop, serve connections to any destination, not only to 169.254.169.254:80 and '
        '[fe80::a9fe:a9fe]:80. Set this option only on hosts with firewall rules of their own, which redirect the '
        'instances and reject other clients.',
    ),
    cfg.BoolOpt(
        'check_services_at_start',
        default=True,
        deprecated_name='metadata_look_at_start',
        help='When the agent starts, check in the background that the lookup shows the ports of other projects, and '
        'that Nova checks signatures with the same secret. If a check fails, an error is logged.',
    ),
]


@dataclass(frozen=True, slots=True)
class Program:
    """One of the agent's two program names, with its defaults.

    ``configuration`` converts the configuration paths of the command line to paste's ``global_conf``.
    """

    name: str
    configuration: Callable[[Sequence[str]], dict[str, str]]


QUANTUM = Program('quantum-metadata-agent', config_files.to_global_conf)


def main(argv: Sequence[str] | None = None, program: Program = QUANTUM) -> int:
    """Run the program; return its exit code."""
    notifier = Notifier.from_environ()
    try:
        paths, arguments = config_files.split_arguments(sys.argv[1:] if argv is None else argv)
        global_conf = program.configuration(paths)
        conf = _configure(global_conf, arguments, program.name)
        workers = _workers(conf)
        if reexec.is_check():
            _settings(global_conf)
            _application(global_conf, SharedPause(), one_hop=conf.metadata_one_hop)
            return 0
        serve_host_page = _host_page(global_conf)
        # Created before the fork, so that all workers share it.
        pause = SharedPause()
        listener, is_stored = _listen(conf, workers, notifier)
        agent = master.Server(
            lambda: _application(global_conf, pause, one_hop=conf.metadata_one_hop),
            [listener],
            settings=lambda: _settings(global_conf),
            name=program.name,
            keeper=(os.path.join(conf.state_path, 'listeners'), ONE_HOP) if conf.metadata_one_hop else None,
            identity=lambda: workers,
            any_destination=conf.allow_any_destination,
            on_config_checked=lambda: _on_config_checked(global_conf, pause),
            on_serve=serve_host_page,
            write_report=lambda: report_process.start(conf.state_path, program.name, _report_options(program, paths)),
            on_first_worker=visibility_check.check_in_background if conf.check_services_at_start else lambda app: None,
            notifier=notifier,
            keeps_sockets=is_stored,
            socket_name=STORED_SOCKET,
        )
        agent.check_config_in_child()
    except MetadataError as error:
        print(f'{program.name}: {error}', file=sys.stderr)
        return 1
    agent.run()
    return 0


def _report_options(program: Program, paths: Sequence[str]) -> list[str]:
    return [*(['--neutron'] if program is not QUANTUM else []), *(f'--config-file={path}' for path in paths)]


def paste_file(global_conf: Mapping[str, str]) -> tuple[str, str]:
    """Return the path of the paste file, and a note for the operator.

    The note is '' unless ``api_paste_config`` names the paste file of another program.
    """
    conf = config_files.load(global_conf, OPTS)
    if conf.metadata_paste_config:
        return conf.metadata_paste_config, ''
    note = ''
    if conf.api_paste_config:
        if _has_pipeline(conf.api_paste_config):
            return conf.api_paste_config, ''
        note = (
            f'api_paste_config = {conf.api_paste_config} is not used: the file has no [pipeline:agent], so it is the '
            "paste file of another program. metadata_paste_config names the agent's paste file"
        )
    return paste_loader.default_paste_file(), note


def _has_pipeline(path: str) -> bool:
    try:
        with open(path, encoding='utf-8', errors='replace') as file:
            return any(line.strip() == '[pipeline:agent]' for line in file)
    except OSError:
        return False


def _configure(global_conf: Mapping[str, str], arguments: Sequence[str], name: str) -> cfg.ConfigOpts:
    conf = cfg.ConfigOpts()
    opts = [*OPTS, *state_paths.OPTS, *net_options.OPTS, *privileges_options.OPTS, *server_options.OPTS]
    conf.register_opts(opts)
    log.register_options(conf)
    paths = config_files.files(global_conf)
    config_files.parse(conf, paths, arguments, program=name)
    config_files.check(conf, opts, 'DEFAULT', paths)
    log_output.set_up_oslo_log(conf)
    return conf


def _application(global_conf: Mapping[str, str], pause: SharedPause, *, one_hop: bool) -> Any:
    with config_files.parsed_once():
        path, _ = paste_file(global_conf)
        apps = [paste_loader.load(path, name, global_conf) for name in ('agent', 'one_hop')[: 1 + one_hop]]
    check_metrics(global_conf, apps[0])
    links = [link for app in apps for link in order.chain(app)]
    outcome.share_results(links)
    for link in links:
        lookup: object = protocol.lookup_of(link)
        if isinstance(lookup, UsesSharedPause):
            lookup.use_pause(pause)
    return _DispatchBySocket(*apps) if one_hop else apps[0]


class _DispatchBySocket:
    """Passes requests from namespace proxies to ``app``, and those from sockets in namespaces to ``one_hop``."""

    def __init__(self, app: Any, one_hop: Any) -> None:
        self.app = app
        self._one_hop = one_hop

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """WSGI application. Only requests from sockets in namespaces have the key NAMESPACE."""
        body: Iterable[bytes] = (self._one_hop if NAMESPACE in environ else self.app)(environ, start_response)
        return body


def _on_config_checked(global_conf: Mapping[str, str], pause: SharedPause) -> None:
    # With new credentials the reason for the pause may be gone.
    pause.reset()
    for sentence in file_warnings.world_readable_secrets(config_files.files(global_conf), file_warnings.all_options()):
        LOG.warning('%s', sentence)
    file_warnings.log_misspelt_names(global_conf)
    _, note = paste_file(global_conf)
    if note:
        LOG.info('%s', note)


def _workers(conf: cfg.ConfigOpts) -> identity.Identity | None:
    workers = identity.resolve_workers(conf.metadata_user, conf.metadata_group)
    if workers is None:
        return None
    if workers.name == 'nobody' and not conf.metadata_user:
        LOG.warning(
            'The workers run as the user nobody, which other services may use too: create a user for the workers, '
            'useradd --system %s, or set metadata_user to the name of a user',
            identity.DEFAULT_USERS[0],
        )
    if conf.metadata_one_hop and conf.metadata_proxy_group:
        # The keeper's socket for workers has the group metadata_proxy_group.
        return replace(workers, groups=(listeners.gid_of(conf.metadata_proxy_group),))
    return workers


def socket_access(mode_name: str, user: str, group: str) -> tuple[str, str, str]:
    """The mode, owner and group of the agent's socket. '' means the owner or group of this process.

    The arguments are the values of ``metadata_proxy_socket_mode``, ``metadata_proxy_user`` and
    ``metadata_proxy_group``. Only root can give the socket to another user. If the agent does not run as root and
    ``metadata_proxy_user`` is another user, mode ``deduce`` means the same as in Neutron's agent. The group may connect
    if ``metadata_proxy_group`` is '' or a group of this process; otherwise all users may. The filter
    ``peer_credentials`` still checks the peers.
    """
    if os.geteuid() == 0 or mode_name != 'deduce' or not user or listeners.uid_of(user) == os.geteuid():
        return mode_name, user, group
    if not group or listeners.gid_of(group) in (os.getegid(), *os.getgroups()):
        return 'group', '', group
    return 'all', '', ''


def _host_page(global_conf: Mapping[str, str]) -> Callable[[Any], Stoppable | None]:
    """Open the port of [metrics] listen, if it is set. Returns the function with which a worker serves the port."""
    address = options.load_listen_address(global_conf)
    if address is None:
        return lambda app: None
    # Imported only here, because the page and the filter import WebOb, which takes 3 MB of memory.
    from metadata_wsgi.filters.optional.healthcheck import HealthcheckFilter
    from metadata_wsgi.metrics import page

    listener = listeners.bind_tcp(*address, reuse_port=True, option=f'listen in [{options.GROUP}]')
    metrics_page = page.app_factory(global_conf)

    def serve(app: Any) -> Stoppable:
        health = next((link for link in order.chain(app) if isinstance(link, HealthcheckFilter)), None)

        def host_page(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            is_health = health is not None and health.has_path(environ['PATH_INFO'])
            return (health.respond if is_health and health else metrics_page)(environ, start_response)

        stoppable: Stoppable = page.serve(listener, host_page)
        return stoppable

    return serve


def check_metrics(global_conf: Mapping[str, str], app: Any) -> None:
    """Raise ConfigError if [metrics] listen is set, and no filter of the pipeline ``app`` counts."""
    if not options.load_listen_address(global_conf):
        return
    from metadata_wsgi.filters.optional.metrics import MetricsFilter

    if not any(isinstance(link, MetricsFilter) for link in order.chain(app)):
        raise ConfigError(
            f'listen in [{options.GROUP}] is set, and the pipeline has no filter metrics, so nothing is counted: put '
            'it directly after request_id in the paste file, or remove listen'
        )


def _listen(conf: cfg.ConfigOpts, workers: identity.Identity | None, notifier: Notifier) -> tuple[socket.socket, bool]:
    """The agent's listening socket, and whether systemd keeps a copy of it while the agent is restarted.

    During a restart new connections wait in the backlog of the kept socket. The kept socket is used again if its path
    matches the option. At SIGUSR1 it must be used again, because the former workers listen on it.
    """
    mode_name, user, group = socket_access(
        conf.metadata_proxy_socket_mode, conf.metadata_proxy_user, conf.metadata_proxy_group
    )
    if workers and not user and not group:
        # Without these options the namespace proxies run as the same user as the workers.
        group = str(workers.gid)
    path, mode = conf.metadata_proxy_socket, listeners.socket_mode(mode_name, user, group)
    for name, descriptor in sd_notify.inherited():
        try:
            kept = socket.socket(fileno=descriptor)
        except OSError:
            os.close(descriptor)
            continue
        if name == STORED_SOCKET and listeners.keep_unix_listener(
            kept, path, mode=mode, user=user, group=group, backlog=conf.metadata_backlog
        ):
            return kept, bool(notifier)
        kept.close()
        notifier.remove_from_store(name)
    listener = listeners.unix_listener(path, mode=mode, user=user, group=group, backlog=conf.metadata_backlog)
    return listener, notifier.store(STORED_SOCKET, listener.fileno())


def _settings(global_conf: Mapping[str, str]) -> dict[str, Any]:
    conf = config_files.load(global_conf, server_options.OPTS)
    return {
        # metadata_workers = 0 means in Neutron: no separate worker processes.
        'workers': server_options.worker_count(conf.metadata_workers),
        'backlog': conf.metadata_backlog,
        'worker_connections': conf.metadata_connections,
    }
