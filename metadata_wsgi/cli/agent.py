# SPDX-License-Identifier: Apache-2.0
"""``quantum-metadata-agent``: serves the ``agent`` pipeline of the paste file on the unix socket.

It runs in the foreground. ``--config-file`` may be repeated; without it the first existing ``metadata_agent.ini`` of
/etc/metadata_wsgi, /etc/quantum and /etc/neutron is read. The logging options are those of oslo.log. SIGHUP reloads
the configuration. SIGTERM stops the agent after the requests in progress.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from oslo_config import cfg
from oslo_log import log

from metadata_wsgi.cli import visibility_check
from metadata_wsgi.config import config_files, state_paths
from metadata_wsgi.errors import MetadataError
from metadata_wsgi.keeper.protocol import ONE_HOP
from metadata_wsgi.net import listeners
from metadata_wsgi.pipeline import paste_loader
from metadata_wsgi.pipeline.environ_keys import NAMESPACE
from metadata_wsgi.privileges import identity
from metadata_wsgi.server import master

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

LOG = logging.getLogger(__name__)

PROGRAM = 'quantum-metadata-agent'

OPTS = [
    cfg.StrOpt('api_paste_config', help='Path of the paste file. Default: the one of the package.'),
    cfg.BoolOpt(
        'metadata_one_hop',
        default=False,
        help='Serve the routers that are attached with --mode one_hop too, with the pipeline one_hop.',
    ),
    cfg.BoolOpt(
        'allow_any_destination',
        default=False,
        deprecated_name='metadata_any_destination',
        help='In mode one_hop, serve connections to any destination, not only to 169.254.169.254:80 and '
        '[fe80::a9fe:a9fe]:80. For hosts whose own rules redirect the instances and keep other clients out.',
    ),
    cfg.BoolOpt(
        'check_directory_at_start',
        default=True,
        deprecated_name='metadata_look_at_start',
        help='When the agent starts, check in the background that the lookup directory shows the ports of other '
        'projects, and log an error if it does not.',
    ),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    try:
        conf = _configure(sys.argv[1:] if argv is None else argv)
        workers = _workers(conf)
        global_conf = {'config_file': ','.join(conf.config_file)} if conf.config_file else {}
        agent = master.Server(
            lambda: _application(conf, global_conf),
            [_listen(conf, workers)],
            settings=lambda: _settings(conf),
            name=PROGRAM,
            keeper=(os.path.join(conf.state_path, 'listeners'), ONE_HOP) if conf.metadata_one_hop else None,
            identity=lambda: workers,
            any_destination=conf.allow_any_destination,
            on_config_checked=lambda: _log_warnings(conf),
            on_first_worker=visibility_check.check_in_background if conf.check_directory_at_start else lambda app: None,
        )
        agent.check_config_in_child()
    except MetadataError as error:
        return master.fail(PROGRAM, error)
    agent.run()
    return 0


def _configure(argv: Sequence[str]) -> cfg.ConfigOpts:
    conf = cfg.ConfigOpts()
    opts = [*OPTS, *state_paths.OPTS, *listeners.OPTS, *identity.OPTS, *master.OPTS]
    conf.register_opts(opts)
    log.register_options(conf)
    config_files.parse(conf, config_files.files({}), argv)
    config_files.check(conf, opts, 'DEFAULT', conf.config_file)
    log.setup(conf, 'metadata_wsgi')
    return conf


def _application(conf: cfg.ConfigOpts, global_conf: dict[str, str]) -> Any:
    path = conf.api_paste_config or paste_loader.default_paste_file()
    with config_files.parsed_once():
        agent_app = paste_loader.load(path, 'agent', global_conf)
        if not conf.metadata_one_hop:
            return agent_app
        return _DispatchBySocket(agent_app, paste_loader.load(path, 'one_hop', global_conf))


class _DispatchBySocket:
    """Passes requests of namespace proxies to ``app``, requests of instances to ``one_hop``."""

    def __init__(self, app: Any, one_hop: Any) -> None:
        self.app = app
        self._one_hop = one_hop

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """A socket in a namespace receives requests of instances."""
        body: Iterable[bytes] = (self._one_hop if NAMESPACE in environ else self.app)(environ, start_response)
        return body


def _log_warnings(conf: cfg.ConfigOpts) -> None:
    for sentence in config_files.world_readable_secrets(
        conf.config_file or config_files.files({}), config_files.all_options()
    ):
        LOG.warning('%s', sentence)


def _workers(conf: cfg.ConfigOpts) -> identity.Identity | None:
    workers = identity.of_workers(conf.metadata_user, conf.metadata_group)
    if workers is None:
        return None
    if workers.name == 'nobody' and not conf.metadata_user:
        LOG.warning(
            'The workers run as the user nobody, which other services may use too: create a user for them, '
            'useradd --system %s, or name one in metadata_user',
            identity.USUAL[0],
        )
    if conf.metadata_one_hop and conf.metadata_proxy_group:
        # The keeper's socket for workers has that group.
        return replace(workers, groups=(listeners.gid_of(conf.metadata_proxy_group),))
    return workers


def _listen(conf: cfg.ConfigOpts, workers: identity.Identity | None) -> Any:
    user, group = conf.metadata_proxy_user, conf.metadata_proxy_group
    if workers and not user and not group:
        # Without these options the namespace proxies run as the same user.
        group = str(workers.gid)
    return listeners.unix_listener(
        conf.metadata_proxy_socket,
        mode=listeners.mode(conf.metadata_proxy_socket_mode, user, group),
        user=user,
        group=group,
        backlog=conf.metadata_backlog,
    )


def _settings(conf: cfg.ConfigOpts) -> dict[str, Any]:
    current = config_files.load({'config_file': ','.join(conf.config_file or [])}, master.OPTS)
    return {
        'workers': current.metadata_workers or master.default_workers(),
        'backlog': current.metadata_backlog,
        'worker_connections': current.metadata_connections,
    }
